"""Where a hub's token comes from; entering one, forgetting it. A token itself is never shown."""

from __future__ import annotations

import streamlit as st

from core.errors import WorkbenchError
from core.hub.repositories import TITLES
from core.types import Hub
from pages.parts import session
from pages.parts.markdown import plain_text

_VARIABLES = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}
_MADE_AT = {
    "huggingface": "https://huggingface.co/settings/tokens",
    "modelscope": "https://modelscope.cn/my/myaccesstoken",
}


def draw(hub: Hub, *, expanded: bool = False) -> None:
    """Folded away unless it is `expanded`: most models need no token."""
    secrets = session.secrets()
    try:
        where = secrets.where(hub)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return
    state = {"environment": "from the environment", "saved": "saved"}.get(where, "none")
    with st.expander(
        f"Token for {TITLES[hub]}: {state}",
        icon=":material/key:",
        key=f"get:token:{hub}:{expanded}",
        expanded=expanded,
    ):
        if where == "environment":
            st.caption(f"It is set as `{_VARIABLES[hub]}` where the workbench was started, and stays there.")
        elif where == "saved":
            st.caption("It lies in the workspace, in a file that only its owner can read.")
            st.button("Forget it", key=f"get:token:forget:{hub}", on_click=secrets.forget, args=(hub,))
        else:
            _enter(hub)


def _enter(hub: Hub) -> None:
    st.caption(
        f"Gated and private models need one. Make it at {_MADE_AT[hub]}; the right to read is enough. "
        "It is kept in the workspace, in a file that only its owner can read."
    )
    form = st.form(f"get:token:form:{hub}", clear_on_submit=True, border=False)
    with form, st.container(horizontal=True, vertical_alignment="bottom"):
        token = st.text_input("Token", type="password", key=f"get:token:field:{hub}", autocomplete="off")
        sent = st.form_submit_button("Save")
    if not sent:
        return
    try:
        session.secrets().save(hub, token)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        st.rerun()
