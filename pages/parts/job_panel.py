"""A run at work or done: progress, results, downloads."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import browse
from core.batch import Progress
from core.errors import RunBusy, WorkbenchError
from core.runs import Run
from pages.parts import (
    downloads,
    evaluation,
    forecast_card,
    results_table,
    run_actions,
    run_charts,
    session,
)
from pages.parts.charts import counted, duration, metric_cells, per_second
from pages.parts.markdown import plain_text

_CHOSEN = "batch:run"
_FEWEST_READINGS = 5  # a curve over less says nothing
_STATES = {
    "draft": "Draft",
    "queued": "Waiting for its turn",
    "running": "Running",
    "paused": "Paused",
    "stopped": "Stopped",
    "interrupted": "Interrupted",
    "failed": "Could not go on",
    "finished": "Finished",
}


def chosen_run() -> str | None:
    """The run on the page: of the address, or the one this session looked at before it left the page."""
    run_id = st.query_params.get("run") or st.session_state.get(_CHOSEN)
    if run_id is not None:
        st.query_params["run"] = st.session_state[_CHOSEN] = run_id
    return run_id


def choose_run(run_id: str | None) -> None:
    """Show this run, or with None the choice of tables, from now on."""
    forget_run()
    if run_id is not None:
        st.session_state[_CHOSEN] = run_id
    st.rerun()


def forget_run() -> None:
    """No run is on the page any more."""
    st.query_params.clear()
    st.session_state.pop(_CHOSEN, None)


def header(run: Run, back: str) -> None:
    """The file's name, the way back, and the way to get rid of the run."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.subheader(plain_text(run.spec.input.name), anchor=False, width="stretch")
        if st.button(back, icon=":material/arrow_back:"):
            choose_run(None)
        if session.jobs().progress(run.run_id).state not in ("queued", "running"):
            with st.popover("Delete", icon=":material/delete:"):
                st.write("The table, the answers and everything else of this run will be gone.")
                if st.button("Delete this run", type="primary"):
                    _delete(run)


def _delete(run: Run) -> None:
    try:
        session.jobs().delete(run.run_id)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        choose_run(None)


def draw(run: Run, progress: Progress) -> None:
    """Everything about one started run."""
    header(run, "All runs")
    if progress.state in ("queued", "running") or session.jobs().is_here(run.run_id):
        _live(run.run_id)
        return
    _numbers(progress, is_here=False)
    try:
        run_actions.draw(run, progress)
        _failures(run, progress)
        if progress.state == "stopped" and progress.counts.done < progress.rows:  # rows tried, most often
            forecast_card.draw(run, "Forecast of the whole run", with_lengths=False)
            st.subheader("Answers", anchor=False)
        results_table.draw(run, progress)
        downloads.downloads(run, progress)
        evaluation.draw(run)
        spec = run.spec
        context = spec.model.max_model_len if spec.model else None
        run_charts.draw_results(run, context=context, max_tokens=spec.params.get("max_tokens"))
        _charts(run)
        forecast_card.compare(run, progress)
        downloads.specification(run)
    except RunBusy as error:
        st.info(plain_text(str(error)))


@st.fragment(run_every=1.0)
def _live(run_id: str) -> None:
    jobs = session.jobs()
    progress = jobs.progress(run_id)
    if progress.state not in ("queued", "running") and not jobs.is_here(run_id):
        st.rerun()
    _numbers(progress, is_here=jobs.is_here(run_id))
    if not jobs.is_here(run_id):
        st.info(
            "Another process works on this run, the command line perhaps. Its answers show here afterwards."
        )
        return
    with st.container(horizontal=True):
        if st.button("Pause", icon=":material/pause:", help="Keeps its answers and lets the next run work."):
            jobs.pause(run_id)
        if st.button("Stop", icon=":material/stop:", help="What is done is kept; you can go on later."):
            jobs.stop(run_id)
    status = session.runtime().status()
    if status.phase != "ready":
        st.info(f"Waiting for the engine: {status.stage or status.phase}.")
    run = jobs.open(run_id)
    _failures(run, progress)
    _latest(run)
    _charts(run)


def _numbers(progress: Progress, *, is_here: bool) -> None:
    """The figures; `is_here`: this process works on the run, or has only set it aside."""
    counts = progress.counts
    share = counts.done / progress.rows if progress.rows else 1.0
    st.progress(min(share, 1.0), f"{_STATES[progress.state]}: {counts.done:,} of {progress.rows:,} rows")
    cells = metric_cells(6)
    cells[0].metric("Ok", f"{counts.ok:,}")
    cells[1].metric("Errors", f"{counts.errors:,}")
    cells[2].metric("Skipped", f"{counts.skipped:,}", help="Rows whose prompt was empty.")
    if progress.state == "running":
        cells[3].metric(
            "Tokens/s", per_second(progress.output_tokens_per_s), help="Output tokens/s, last 30 s."
        )
        cells[4].metric("Time left", duration(progress.eta_s), help="At the speed of the last 30 s.")
    else:
        rate = counts.output_tokens / progress.work_s if progress.work_s else None
        cells[3].metric("Tokens/s", per_second(rate), help="Output tokens/s over the whole time at work.")
        cells[4].metric(
            "Time", duration(progress.work_s), help="Time at work; loading the engine is not counted."
        )
    cells[5].metric(
        "Shared", f"{counts.shared:,}", help="Rows that ask the same as another one and share its answer."
    )
    by_hand = progress.state == "stopped" or (progress.state == "paused" and not is_here)
    if progress.message and (progress.state == "running" or by_hand):
        st.caption(plain_text(progress.message))
    elif progress.message and progress.state != "finished":
        st.warning(plain_text(progress.message))


def _charts(run: Run) -> None:
    readings = run.progress()
    if len(readings) < _FEWEST_READINGS:
        return
    run_charts.draw_progress(
        [reading.work_s for reading in readings],
        [reading.done for reading in readings],
        [reading.output_tokens_per_s for reading in readings],
        [reading.kv_cache_usage for reading in readings],
        [reading.prefix_hit_rate for reading in readings],
        key=f"progress-{run.run_id}",
    )


def _failures(run: Run, progress: Progress) -> None:
    if not progress.counts.errors:
        return
    title = f"{counted(progress.counts.errors, 'row')} failed"
    with st.expander(title, key=f"failures-{run.run_id}", icon=":material/error:"):  # the number changes
        with run.connect() as connection:
            groups = browse.errors(connection)
        for group in groups:
            st.text(f"{group.rows:,} × {group.message} (first in row {group.first_row + 1:,})")


def _latest(run: Run) -> None:
    latest = run.latest(5)
    if latest:
        st.caption("Latest answers")
        frame = pd.DataFrame(latest, columns=["Row", "Status", "Answer"])
        st.dataframe(
            frame,
            hide_index=True,
            height=213,
            column_config={"Answer": st.column_config.TextColumn(width="large")},
        )


@st.fragment(run_every=2.0)
def earlier_runs() -> None:
    """The newest runs and drafts, each a way to its own page."""
    records = session.store().runs(30, drafts=True)
    if not records:
        return
    st.subheader("Earlier runs", anchor=False)
    for record in records:
        rows = counted(record.rows, "row")
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(
                f"**{plain_text(record.name)}**  \n:small[{record.created_at.astimezone():%Y-%m-%d %H:%M}]",
                width="stretch",
            )
            st.caption(
                f"{_STATES[record.state]}  \n"
                + (rows if record.state == "draft" else f"{record.done:,} of {rows}"),
                width=200,
            )
            if st.button("Open", key=f"open-{record.run_id}"):
                choose_run(record.run_id)
