"""A model that judges pairs of answers: the loaded one, or one behind an OpenAI-compatible address."""

from __future__ import annotations

import streamlit as st

from core.comparing.judge import RUBRIC, Judge
from core.comparing.judging import JudgingProgress
from core.comparing.runner import ComparisonView
from core.errors import WorkbenchError
from pages.parts import session
from pages.parts.charts import counted
from pages.parts.markdown import plain_text

_KINDS = {"engine": "The loaded model", "remote": "Another server"}
_POLL_S = 0.5


def draw(view: ComparisonView) -> None:
    """The judge at work, or the form that starts one."""
    progress = session.comparisons().judging.progress(view.comparison_id)
    with st.expander(
        "Have a model judge", icon=":material/gavel:", key=f"compare:judge:{view.comparison_id}",
        expanded=progress is not None and progress.state == "judging",
    ):  # fmt: skip
        if progress is not None and progress.state == "judging":
            _at_work(view.comparison_id)
            return
        if progress is not None:
            _ended(progress)
        _form(view)


@st.fragment(run_every=_POLL_S)
def _at_work(comparison_id: str) -> None:
    judging = session.comparisons().judging
    progress = judging.progress(comparison_id)
    if progress is None or progress.state != "judging":
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(
            progress.done / progress.total, f"{progress.done:,} of {counted(progress.total, 'pair')} judged"
        )
        st.button("Stop the judge", icon=":material/stop:", on_click=judging.stop, args=(comparison_id,))


def _ended(progress: JudgingProgress) -> None:
    pairs = f"{progress.done:,} of {counted(progress.total, 'pair')}"
    words = f"{plain_text(progress.voter or 'The judge')}: {pairs}"
    if progress.state == "failed":
        st.error(plain_text(progress.error))
    elif progress.failed:
        st.warning(f"{words}; {progress.failed:,} without a verdict. {plain_text(progress.error)}")
    else:
        st.caption(f"{words} judged{', then stopped' if progress.state == 'stopped' else ''}.")


def _form(view: ComparisonView) -> None:
    key = f"compare:judge-form:{view.comparison_id}"
    st.caption(
        "It sees the prompt and two answers, not their sets, and says why. Its votes are counted below, "
        "apart from yours."
    )
    kind = st.segmented_control(
        "Judge", list(_KINDS), format_func=_KINDS.get, default="engine", key=f"{key}:kind", required=True,
        persist_state="session",
    )  # fmt: skip
    address = model = api_key = ""
    if kind == "remote":
        with st.container(horizontal=True):
            address = st.text_input(
                "Address", key=f"{key}:address", placeholder="http://server:8000/v1", persist_state="session"
            )
            model = st.text_input("Model", key=f"{key}:model", persist_state="session")
            api_key = st.text_input(
                "API key", type="password", key=f"{key}:key",
                help="Goes to that address only; it is never kept.",
            )  # fmt: skip
        st.caption("The prompts and answers are sent to that address.")
    rubric = st.text_area(
        "What makes an answer better", RUBRIC, key=f"{key}:rubric", height=90, persist_state="session"
    )
    swap = st.toggle(
        "Ask in both orders", True, key=f"{key}:swap", persist_state="session",
        help="Models favour the first or the second place. One that changes its mind with the order "
        "has seen a tie.",
    )  # fmt: skip
    if st.button("Judge all pairs", icon=":material/gavel:", key=f"{key}:start", disabled=view.is_live):
        try:
            # never the key of the server's own environment: an address of somebody's choice would get it
            judge = Judge(kind=kind, base_url=address.strip(), model=model.strip(), rubric=rubric, swap=swap,
                          api_key=api_key or "none")  # fmt: skip
            session.comparisons().judging.start(view.comparison_id, judge)
        except WorkbenchError as error:
            st.error(plain_text(str(error)))
        else:
            st.rerun()
