"""The downloads: how far each is, and pausing, resuming and cancelling it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from core.errors import WorkbenchError
from core.hub.records import Download, size_words
from core.hub.repositories import TITLES
from pages.parts import models_nav, session
from pages.parts.charts import counted, duration
from pages.parts.markdown import plain_text

_SURE, _PROBLEM = "downloads:sure:", "downloads:problem:"
_STATES = {"paused": "Paused", "interrupted": "Interrupted", "failed": "Failed", "finished": "Done"}


@st.fragment(run_every=1.0)
def draw() -> None:
    """All downloads, the newest first; nothing where there are none."""
    downloads = session.downloads().list()
    if not downloads:
        return
    st.subheader("Downloads", anchor=False)
    for download in downloads:
        with st.container(border=True, key=f"download-{download.download_id}"):
            _one(download)


def _one(download: Download) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        revision = f" · {plain_text(download.revision)}" if download.revision else ""
        st.markdown(
            f"**{plain_text(download.repo)}** :gray[{TITLES[download.hub]}{revision}]", width="stretch"
        )
        _buttons(download)
    if download.state != "finished":
        st.progress(download.share, _words(download))
    else:
        st.caption(f":green[:material/check:] {_words(download)}, checksums verified")
    if download.state == "failed":
        st.error(f"{plain_text(download.message)} {plain_text(download.hint)}", icon=":material/error:")
    elif download.state == "interrupted":
        st.caption("Its process ended before it was done. What came is kept: resume it.")
    if problem := st.session_state.get(_PROBLEM + download.download_id):
        st.error(plain_text(problem), icon=":material/error:")
    with st.expander(counted(len(download.files), "file"), key=f"download-files-{download.download_id}"):
        _files(download)


def _words(download: Download) -> str:
    total = size_words(download.total_bytes)
    if download.state == "finished":
        return f"Done: {total}"
    words = [f"{size_words(download.received_bytes)} of {total}"]
    if download.state == "running":
        if download.bytes_per_s is not None:
            words.append(f"{size_words(download.bytes_per_s)}/s")
        if download.eta_s is not None:
            words.append(f"about {duration(download.eta_s)} left")
        return f"{download.stage}: {' · '.join(words)}"
    return f"{_STATES[download.state]}: {words[0]}"


def _buttons(download: Download) -> None:
    downloads, download_id = session.downloads(), download.download_id

    def button(label: str, act: Callable[..., None], *arguments: Any, **options: Any) -> None:
        key = f"download-{label.split()[0].lower()}-{download_id}"
        st.button(label, key=key, on_click=act, args=arguments, **options)

    if download.state == "finished":
        if st.button("Load", key=f"download-load-{download_id}", type="primary"):
            _open(download)
        button("Hide", _act, downloads.forget, download_id, help="The model stays in the library.")
        return
    if download.state == "running":
        button("Pause", _act, downloads.pause, download_id, icon=":material/pause:")
    else:
        icon = ":material/play_arrow:"
        button("Resume", _act, downloads.resume, download_id, icon=icon, type="primary")
    if st.session_state.get(_SURE + download_id):
        size = size_words(download.received_bytes)
        button(f"Remove {size}", _act, downloads.cancel, download_id, help="There is no way back.")
        button("Keep", _ask, download_id, False)
    else:
        button("Cancel", _ask, download_id, True, help="Remove what came of it.")


def _ask(download_id: str, sure: bool) -> None:
    st.session_state[_SURE + download_id] = sure


def _files(download: Download) -> None:
    rows = [
        {"File": file.path, "Size": size_words(file.size_bytes), "Here": 100 * _share(file)}
        for file in sorted(download.files, key=lambda file: -file.size_bytes)
    ]
    percent = st.column_config.ProgressColumn(format="%.0f%%", min_value=0, max_value=100)
    st.dataframe(rows, hide_index=True, column_config={"Here": percent})


def _share(file: Any) -> float:
    return file.received_bytes / file.size_bytes if file.size_bytes else 1.0


def _open(download: Download) -> None:
    """The model as the library knows it, ready to be loaded."""
    for model in session.library().list():
        if model.path == download.path or (model.hub, model.repo) == (download.hub, download.repo):
            models_nav.open_model(model.key)
            break
    else:
        models_nav.go("library")
    st.rerun()


def _act(action: Callable[[str], Any], download_id: str) -> None:
    st.session_state.pop(_SURE + download_id, None)
    try:
        action(download_id)
    except WorkbenchError as error:
        st.session_state[_PROBLEM + download_id] = str(error)
    else:
        st.session_state.pop(_PROBLEM + download_id, None)
