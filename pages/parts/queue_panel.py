"""The queue of runs, and the choice of a table that lies on the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import streamlit as st

from core import server_files
from core.errors import RunNotFound, WorkbenchError
from core.run_queue import QueueEntry, RunPriority
from core.server_files import ServerFile
from pages.parts import session
from pages.parts.charts import counted, duration
from pages.parts.job_panel import choose_run
from pages.parts.markdown import plain_text

_PRIORITIES = {RunPriority.HIGH: "High", RunPriority.NORMAL: "Normal", RunPriority.LOW: "Low"}
_STATES = {"running": "Running", "queued": "Waiting", "paused": "Paused"}
_FOLDER = "queue:folder"


@st.fragment(run_every=1.0)
def draw() -> None:
    """Every run that works, waits or was paused, whoever started it; nothing when there is none."""
    entries = session.jobs().queue()
    if not entries:
        return
    st.subheader("Queue", anchor=False)
    for entry in entries:
        _line(entry)


def _line(entry: QueueEntry) -> None:
    try:
        progress = session.jobs().progress(entry.run_id)
    except RunNotFound:  # deleted since the queue was read
        return
    with st.container(border=True, key=f"queue-{entry.run_id}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            place = f"{entry.position}. " if entry.position else ""
            st.markdown(f"**{plain_text(place + entry.name)}**", width="stretch")
            _priority(entry)
            _buttons(entry)
        words = "Ending its turn" if entry.is_ending else _STATES.get(entry.state, entry.state.capitalize())
        if progress.eta_s is not None and entry.state == "running":
            words += f", about {duration(progress.eta_s)} left"
        share = progress.counts.done / progress.rows if progress.rows else 1.0
        st.progress(min(share, 1.0), f"{words}: {progress.counts.done:,} of {counted(progress.rows, 'row')}")
        if progress.message:
            st.caption(plain_text(progress.message))


def _priority(entry: QueueEntry) -> None:
    key = f"queue-priority-{entry.run_id}"
    shown = f"{key}-shown"
    # set anew where another browser session changed it, and where Streamlit forgot it on another page
    if key not in st.session_state or st.session_state.get(shown) != entry.priority:
        st.session_state[shown] = st.session_state[key] = entry.priority
    chosen = st.selectbox(
        "Priority",
        list(_PRIORITIES),
        format_func=_PRIORITIES.__getitem__,
        key=key,
        label_visibility="collapsed",
        width=120,
        help="A run of higher priority takes its turn at once; the one at work goes on afterwards.",
    )
    if chosen != entry.priority:
        st.session_state[shown] = chosen
        _act(session.jobs().set_priority, entry.run_id, chosen)


def _buttons(entry: QueueEntry) -> None:
    jobs, run_id = session.jobs(), entry.run_id
    # a run that a full disk has paused still has its turn, and goes on by itself
    if entry.position is None:
        if st.button("Resume", key=f"queue-resume-{run_id}"):
            _act(jobs.start, run_id)
    elif st.button(
        "Pause",
        key=f"queue-pause-{run_id}",
        disabled=entry.is_ending,
        help="What is done is kept; the other runs go on.",
    ):
        _act(jobs.pause, run_id)
    if st.button(
        "Cancel",
        key=f"queue-cancel-{run_id}",
        help="Take it from the queue. What is done is kept, and it can go on later.",
    ):
        _act(jobs.stop, run_id)
    if st.button("Open", key=f"queue-open-{run_id}"):
        choose_run(run_id)


def _act(action: Callable[..., None], *args: Any) -> None:
    try:
        action(*args)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        st.rerun()


def pick_server_file() -> Path | None:
    """A table of the server's folder, once it is chosen; None before, or where no folder is set up."""
    settings = session.runtime().settings
    if settings.tables_dir is None:
        return None
    folder = PurePosixPath(st.session_state.get(_FOLDER, ""))
    try:
        entries = server_files.listing(settings, str(folder))
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        if folder.parts and st.button("Back to the first folder", icon=":material/home:"):
            _enter(PurePosixPath())
        return None
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if folder.parts and st.button(
            "Up", icon=":material/arrow_upward:", help="The folder above this one."
        ):
            _enter(folder.parent)
        chosen = st.selectbox(
            "Table on the server" + (f": {plain_text(str(folder))}" if folder.parts else ""),
            entries,
            index=None,
            format_func=_described,
            key=f"server-file-{folder}",
            placeholder="Choose a table or a folder" if entries else "There is no table here",
        )
        if chosen is not None and chosen.is_folder:
            _enter(folder / chosen.name)
        use = st.button("Use this table", icon=":material/table:", disabled=chosen is None)
    if not use or chosen is None:
        return None
    try:
        return server_files.resolve(settings, str(folder / chosen.name))
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return None


def _enter(folder: PurePosixPath) -> None:
    # forgotten, or coming back to a folder would find the subfolder still chosen, and enter it again
    st.session_state.pop(f"server-file-{folder}", None)
    st.session_state[_FOLDER] = str(folder)
    st.rerun()


def _described(entry: ServerFile) -> str:
    if entry.is_folder:
        return f"{entry.name}/"
    return f"{entry.name} · {_size(entry.size_bytes)} · {entry.modified.astimezone():%Y-%m-%d %H:%M}"


def _size(size_bytes: int) -> str:
    """As a file manager says it: 87 B, 12 kB, 3.4 GB."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5 or unit == "GB":
            break
    return f"{size:.1f} {unit}" if size < 10 else f"{size:,.0f} {unit}"
