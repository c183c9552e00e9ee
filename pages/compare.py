"""One prompt under several parameter sets. `?x=ID` shows one comparison."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core.compare import MAX_SETS, ComparisonView, ParameterSet
from core.errors import WorkbenchError
from pages.parts import session
from pages.parts.answer_caption import answer_caption, live_caption
from pages.parts.markdown import model_text, plain_text
from pages.parts.sampling_form import sampling_form

_POLL_S = 0.15
_CURRENT = "compare:current"
_TEMPERATURES = (0.0, 0.7, 1.2, 1.0)


def _current() -> ComparisonView | None:
    """The comparison of the address (?x=ID) or else the last one in this tab; None: a new one."""
    wanted = st.query_params.get("x") or st.session_state.get(_CURRENT)
    view = session.comparisons().view(wanted) if wanted else None
    _show(view.comparison_id if view else None)
    return view


def _show(comparison_id: str | None) -> None:
    st.session_state[_CURRENT] = comparison_id
    if comparison_id is None:
        st.query_params.pop("x", None)
    elif st.query_params.get("x") != comparison_id:
        st.query_params["x"] = comparison_id


def _new() -> None:
    """An empty prompt; the system prompt and the sets of the last new comparison stay."""
    _show(None)
    st.session_state["compare:new:prompt"] = ""


def _toolbar() -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.title("Compare", anchor=False)
        st.button("New", icon=":material/add:", on_click=_new, help="Start a new comparison")
        with st.popover("Recent", icon=":material/history:"):
            views = session.comparisons().recent()
            if not views:
                st.caption("Your comparisons will be listed here.")
            for one in views:
                words = " ".join(one.prompt.split())
                label = plain_text(words[:50] + ("…" if len(words) > 50 else ""))
                st.button(
                    label, key=f"compare:open:{one.comparison_id}", type="tertiary",
                    help=plain_text(", ".join(cell.name for cell in one.cells)),
                    on_click=_show, args=(one.comparison_id,),
                )  # fmt: skip


def _ask(name: str, shown: ComparisonView | None) -> tuple[str, str, int, bool]:
    """Draw what all sets share. Keys carry the comparison's id, so that opening one fills the form anew."""
    prompt = st.text_area(
        "Prompt", shown.prompt if shown else "", key=f"compare:{name}:prompt", height=90,
        placeholder="What every parameter set answers", persist_state="session",
    )  # fmt: skip
    system = st.text_input(
        "System prompt", shown.system if shown else "", key=f"compare:{name}:system",
        placeholder="Optional", persist_state="session",
    )  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="bottom"):
        count = st.segmented_control(
            "Parameter sets", range(2, MAX_SETS + 1), default=len(shown.cells) if shown else 3,
            key=f"compare:{name}:count", persist_state="session", required=True,
        )  # fmt: skip
        is_live = shown is not None and shown.is_live
        run = st.button("Run", type="primary", icon=":material/play_arrow:", disabled=is_live)
        if is_live:
            st.button(
                "Stop all", icon=":material/stop:", on_click=session.comparisons().stop,
                args=(shown.comparison_id,),
            )  # fmt: skip
    return prompt, system, count, run


def _set(name: str, number: int, shown: ComparisonView | None) -> ParameterSet:
    """Draw one set: its name, temperature and length in sight, the rest in a popover."""
    info = session.runtime().status().info
    cell = shown.cells[number] if shown and number < len(shown.cells) else None
    key = f"compare:{name}:{number}"
    title = st.text_input(
        "Name", cell.name if cell else f"Set {number + 1}", key=f"{key}:name", persist_state="session"
    )
    params = sampling_form(
        key,
        info.generation_config if info else None,
        initial=cell.params if cell else {"temperature": _TEMPERATURES[number]},
        main=("temperature", "max_tokens"),
    )
    return ParameterSet(title.strip() or f"Set {number + 1}", params)


def _row(count: int) -> list[DeltaGenerator]:
    """Cards of one height; what does not fit a narrow window goes to the next line."""
    with st.container(horizontal=True):
        return [st.container(border=True, height="stretch") for _ in range(count)]


def _answers(view: ComparisonView) -> None:
    for card, cell in zip(_row(len(view.cells)), view.cells, strict=True):
        with card:
            st.markdown(f"**{plain_text(cell.name)}**")
            if cell.live:
                st.markdown(model_text(cell.live.text) + (" ▌" if cell.live.phase == "generating" else ""))
                live_caption(cell.live)
            else:
                st.markdown(model_text(cell.text))
                answer_caption(cell.state, cell.details)


@st.fragment(run_every=_POLL_S)
def _growing(comparison_id: str) -> None:
    """The answers being generated: drawn again several times a second, by themselves."""
    view = session.comparisons().view(comparison_id)
    if view is None or not view.is_live:
        st.rerun()
    _answers(view)


_toolbar()
view = _current()
form = view.comparison_id if view else "new"
prompt, system, count, run = _ask(form, view)
sets = []
for number, card in enumerate(_row(count)):
    with card:
        sets.append(_set(form, number, view))
if run:
    try:
        _show(session.comparisons().start(prompt, system, sets))
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        st.rerun()
if view and view.is_live:
    _growing(view.comparison_id)
elif view:
    _answers(view)
