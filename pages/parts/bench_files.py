"""Files that benchmarks read: uploaded here, kept by core.bench.kept_files."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core.bench.kept_files import KeptFiles
from pages.parts import session
from pages.parts.markdown import plain_text


def files() -> KeptFiles:
    return session.benchmarks().files


def kept_file(key: str, label: str, endings: list[str], given: str | None, help: str) -> Path | None:
    """Draw an uploader; gives the kept file: what was uploaded last, else `given` where it is there."""
    uploaded = st.file_uploader(label, type=endings, key=key, help=help)
    kept = f"{key}:kept"
    if uploaded is not None and st.session_state.get(f"{key}:taken") != uploaded.file_id:
        st.session_state[f"{key}:taken"] = uploaded.file_id
        st.session_state[kept] = files().keep(uploaded, uploaded.name)
    path = st.session_state.get(kept) or (Path(given) if given else None)
    if path is not None and not is_there(path):
        return None
    if path is not None and uploaded is None:
        st.caption(f":material/description: {plain_text(files().name_of(str(path)))}")
    return path


def is_there(path: Path) -> bool:
    """Whether the file can still be measured; says so if not."""
    if not path.is_file():
        st.warning(f"{plain_text(files().name_of(str(path)))} is not there any more. Choose it again.")
        return False
    return True
