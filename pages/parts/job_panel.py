"""A run at work or done: progress, results, downloads."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from core import runs, sampling
from core.batch import Progress
from core.errors import RunBusy, WorkbenchError
from core.run_spec import RunSpec
from core.runs import Run
from pages.parts import session
from pages.parts.charts import counted, duration, per_second
from pages.parts.markdown import plain_text

_PAGE_ROWS = 100
_CHOSEN = "batch:run"
_CURVE = "#178A7E"  # the accent; readable on the light and the dark background
_STATES = {
    "draft": "Draft",
    "queued": "Waiting for its turn",
    "paused": "Paused",
    "running": "Running",
    "stopped": "Stopped",
    "interrupted": "Interrupted",
    "failed": "Could not go on",
    "finished": "Finished",
}
_DOWNLOADS = {
    "CSV": ("csv", False, "UTF-8, for programs"),
    "CSV for Excel": ("csv", True, "UTF-8 with a byte-order mark, so that Excel reads every script"),
    "Excel": ("xlsx", False, "One workbook"),
    "JSON Lines": ("jsonl", False, "One object a row"),
    "Parquet": ("parquet", False, "For pandas, DuckDB, Spark"),
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
    if progress.state in ("queued", "running"):
        _live(run.run_id)
        return
    _numbers(progress)
    if progress.state != "finished":
        _offer_resume(run, progress)
    try:
        _rate_chart(run)
        _failures(run, progress)
        _results(run, progress)
        _downloads(run, progress)
        _specification(run)
    except RunBusy as error:
        st.info(plain_text(str(error)))


@st.fragment(run_every=1.0)
def _live(run_id: str) -> None:
    jobs = session.jobs()
    progress = jobs.progress(run_id)
    if progress.state not in ("queued", "running"):
        st.rerun()
    _numbers(progress)
    if not jobs.is_here(run_id):
        st.info(
            "Another process works on this run, the command line perhaps. Its answers show here afterwards."
        )
        return
    if st.button("Stop", icon=":material/stop:", help="What is done is kept; you can go on later."):
        jobs.stop(run_id)
    status = session.runtime().status()
    if status.phase != "ready":
        st.info(f"Waiting for the engine: {status.stage or status.phase}.")
    run = jobs.open(run_id)
    _rate_chart(run)
    _failures(run, progress)
    _latest(run)


def _numbers(progress: Progress) -> None:
    counts = progress.counts
    share = counts.done / progress.rows if progress.rows else 1.0
    st.progress(share, f"{_STATES[progress.state]}: {counts.done:,} of {progress.rows:,} rows")
    cells = st.columns(5)
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
    if progress.message and progress.state not in ("finished", "running"):
        st.warning(plain_text(progress.message))


def _offer_resume(run: Run, progress: Progress) -> None:
    left = progress.rows - progress.counts.done
    if st.button(f"Resume: {counted(left, 'row')} to go", type="primary", icon=":material/play_arrow:"):
        try:
            session.jobs().start(run.run_id)
        except WorkbenchError as error:
            st.error(plain_text(str(error)))
        else:
            st.rerun()


def _rate_chart(run: Run) -> None:
    samples = run.progress()
    if len(samples) < 2:
        return
    figure = go.Figure(
        go.Scatter(
            x=[work_s for work_s, *_rest in samples],
            y=[rate for _work_s, _done, rate, _usage in samples],
            mode="lines",
            fill="tozeroy",
            line={"color": _CURVE, "width": 2},
            hovertemplate="%{y:,.0f} tokens/s at %{x:.0f} s<extra></extra>",
        )
    )
    figure.update_layout(
        height=220,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={"title": "Seconds at work", "rangemode": "tozero"},
        yaxis={"title": "Output tokens/s", "rangemode": "tozero"},
        showlegend=False,
    )
    st.plotly_chart(figure, key=f"rate-{run.run_id}", config={"displayModeBar": False})


def _failures(run: Run, progress: Progress) -> None:
    if not progress.counts.errors:
        return
    with st.expander(f"{counted(progress.counts.errors, 'row')} failed", icon=":material/error:"):
        for message, rows in run.errors():
            st.text(f"{rows:,} × {message}")


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


def _results(run: Run, progress: Progress) -> None:
    pages = max(1, -(-progress.rows // _PAGE_ROWS))
    page = 1
    if pages > 1:
        page = st.number_input(
            f"Page (of {pages:,}, {_PAGE_ROWS} rows each)", 1, pages, key=f"page-{run.run_id}"
        )
    rows = run.preview(_PAGE_ROWS, offset=(page - 1) * _PAGE_ROWS, with_answers=True)
    answers = runs.answer_columns(run.spec.answer_column)
    tokens = answers[-2:]
    frame = pd.DataFrame([{name: _text(value) for name, value in row.items()} for row in rows])
    for name in tokens:  # a row without an answer has no number there
        frame[name] = pd.array([row[name] for row in rows], dtype="Int64")
    frame.index = range((page - 1) * _PAGE_ROWS + 1, (page - 1) * _PAGE_ROWS + 1 + len(frame))
    st.dataframe(frame, column_config={answers[0]: st.column_config.TextColumn(width="large", pinned=True)})


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _downloads(run: Run, progress: Progress) -> None:
    st.caption(
        "Download all rows, in the file's order" if progress.state == "finished" else "Download what is there"
    )
    stem = Path(run.spec.input.name).stem
    for column, (label, (ending, bom, help)) in zip(
        st.columns(len(_DOWNLOADS)), _DOWNLOADS.items(), strict=True
    ):
        column.download_button(
            label,
            data=lambda ending=ending, bom=bom: _exported(run, ending, bom),
            file_name=f"{stem}-answers.{ending}",
            help=help,
            icon=":material/download:",
            on_click="ignore",
            width="stretch",
            key=f"download-{label}-{run.run_id}",
        )


def _exported(run: Run, ending: str, bom: bool) -> BinaryIO:
    """The export as an open file that is gone from the disk once it is closed."""
    with tempfile.TemporaryDirectory(dir=run.folder) as folder:
        path = Path(folder) / f"export.{ending}"
        run.export(path, bom=bom)
        return path.open("rb")


def _specification(run: Run) -> None:
    spec = run.spec
    with st.expander("What was run"):
        st.caption("The same from the command line")
        st.code(command_line(spec), language="shell", wrap_lines=True)
        st.caption(f"run.json in {run.folder}")
        st.json(spec.model_dump(mode="json"), expanded=1)


def command_line(spec: RunSpec) -> str:
    """The `python -m core batch` line that does the run again."""
    words = [
        "python",
        "-m",
        "core",
        "batch",
        spec.input.name,
        "-o",
        "answers.csv",
        "--template",
        spec.prompt.template,
    ]
    words += ["--system", spec.prompt.system] if spec.prompt.system else []
    words += [f"--param={assignment}" for assignment in sampling.as_assignments(spec.params)]
    words += ["--answer-column", spec.answer_column] if spec.answer_column != "answer" else []
    if spec.engine:
        words += ["--engine", spec.engine.engine, "--model", spec.engine.model]
    return shlex.join(words)


@st.fragment(run_every=2.0)
def earlier_runs() -> None:
    """The newest runs and drafts, each a way to its own page."""
    records = session.store().runs(30, drafts=True)
    if not records:
        return
    st.subheader("Earlier runs", anchor=False)
    for record in records:
        name, state, rows, button = st.columns([4, 2, 3, 1], vertical_alignment="center")
        name.markdown(
            f"**{plain_text(record.name)}**  \n:small[{record.created_at.astimezone():%Y-%m-%d %H:%M}]"
        )
        state.caption(_STATES[record.state])
        rows.caption(
            f"{record.done:,} of {record.rows:,} rows"
            if record.state != "draft"
            else counted(record.rows, "row")
        )
        if button.button("Open", key=f"open-{record.run_id}", width="stretch"):
            choose_run(record.run_id)
