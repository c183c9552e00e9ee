"""The editor of one's own prompt styles: the texts around each message."""

from __future__ import annotations

import streamlit as st

from core.errors import WorkbenchError
from core.prompt_styles import ALPACA, SHIPPED, Wrapper
from core.types import Message
from pages.parts import session
from pages.parts.markdown import plain_text

_NEW = "New style"
_EXAMPLE = (Message("system", "(system prompt)"), Message("user", "(message)"))


@st.dialog("Prompt styles", width="large")
def edit() -> None:
    """Make, change and delete styles; they are shared by all chats."""
    st.caption("What is written around each message, for models that were trained on such a form.")
    own = {wrapper.name: wrapper for wrapper in session.wrappers().list() if wrapper.name not in SHIPPED}
    begins = [_NEW, *own, *(f"Copy of {name}" for name in SHIPPED)]
    chosen = st.selectbox("Style", begins, key="chat:style:chosen") if len(begins) > 1 else _NEW
    begin = own.get(chosen) or SHIPPED.get(chosen.removeprefix("Copy of "), ALPACA)
    made = _fields(chosen, begin, chosen if chosen in own else "")
    if made is None:
        return
    st.caption("So the model reads it:")
    st.code(made.render(_EXAMPLE), language=None, wrap_lines=True)
    with st.container(horizontal=True):
        if st.button("Save", icon=":material/save:", type="primary"):
            _save(made)
        if chosen in own and st.button("Delete", icon=":material/delete:"):
            session.wrappers().delete(chosen)
            st.rerun()


def _fields(key: str, begin: Wrapper, name: str) -> Wrapper | None:
    """The style as it is written here; None, with the reason said, while it can't be used."""

    def area(label: str, value: str, about: str) -> str:
        return st.text_area(label, value, key=f"chat:style:{key}:{label}", height=90, help=about) or ""

    name = st.text_input("Name", name, key=f"chat:style:{key}:name", placeholder="Vicuna") or ""
    first, second = st.columns(2)
    with first:
        system = area("Around the system prompt", begin.system, "{content} stands for the text.")
        default = area(
            "System prompt where there is none", begin.default_system, "Empty: then nothing is written."
        )
    with second:
        user = area("Around your message", begin.user, "{content} stands for the text.")
        assistant = area(
            "Around the answer",
            begin.assistant,
            "The model writes at {content}; what follows it closes earlier answers.",
        )
    stop = area(
        "Stop at",
        "\n".join(one.replace("\n", "\\n") for one in begin.stop),
        "One text a line; \\\\n: a new line.",
    )
    if not name.strip():
        st.caption("Give it a name to save it.")
        return None
    try:
        return Wrapper(
            name=name.strip(),
            system=system,
            user=user,
            assistant=assistant,
            stop=tuple(line.replace("\\n", "\n") for line in stop.splitlines() if line),
            default_system=default,
        )
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return None


def _save(wrapper: Wrapper) -> None:
    try:
        session.wrappers().save(wrapper)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        st.rerun()
