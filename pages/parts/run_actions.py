"""What can be done with a run that is at rest: go on, retry, redo, change the prompt."""

from __future__ import annotations

import streamlit as st

from core import browse, revisions
from core.batch import Progress
from core.errors import WorkbenchError
from core.runs import Run
from pages.parts import forecast_card, session
from pages.parts.charts import counted
from pages.parts.markdown import plain_text

_EDITING = "batch:editing"


def is_edited(run: Run) -> bool:
    """Whether this browser session changes the run's prompt now."""
    return st.session_state.get(_EDITING) == run.run_id


def stop_editing() -> None:
    st.session_state.pop(_EDITING, None)


def draw(run: Run, progress: Progress) -> None:
    """The buttons. Raises RunBusy."""
    left = progress.rows - progress.counts.done
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if left:
            label = f"Resume: {counted(left, 'row')} to go"
            if st.button(label, type="primary", icon=":material/play_arrow:"):
                _start(run)
        if progress.counts.errors:
            label = f"Retry {counted(progress.counts.errors, 'failed row')}"
            if st.button(label, icon=":material/refresh:"):
                _again(run, lambda: revisions.retry_failed(run, session.store()))
        _redo_truncated(run)
        if st.button(
            "Change the prompt",
            icon=":material/edit:",
            help="Only rows whose request changes are asked again.",
        ):
            st.session_state[_EDITING] = run.run_id
            st.rerun()


def _redo_truncated(run: Run) -> None:
    with run.connect() as connection:
        cut = dict(browse.finish_reasons(connection)).get("length", 0)
    if not cut:
        return
    now = int(run.spec.params.get("max_tokens", 256))
    with st.popover(f"Redo {counted(cut, 'cut answer')}", icon=":material/content_cut:"):
        st.write(f"These answers were cut at {now:,} tokens.")
        more = st.number_input("Max tokens", now + 1, value=now * 2, key=f"more-{run.run_id}")
        if st.button("Do them again", type="primary", key=f"redo-{run.run_id}"):
            _again(run, lambda: revisions.redo_truncated(run, session.store(), int(more)))


def _again(run: Run, mark) -> None:
    try:
        mark()
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        _start(run)


def _start(run: Run) -> None:
    forecast_card.keep(run)
    try:
        session.jobs().start(run.run_id)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        st.rerun()
