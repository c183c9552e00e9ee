"""Files that benchmarks read, kept in the workspace so that a benchmark can be done again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import streamlit as st

from core.runs import Run
from core.store import new_id
from pages.parts import session
from pages.parts.markdown import plain_text

_NAMES = "names.json"


def kept_file(key: str, label: str, endings: list[str], given: str | None, help: str) -> Path | None:
    """Draw an uploader; gives the kept file: what was uploaded last, else `given` where it is there."""
    uploaded = st.file_uploader(label, type=endings, key=key, help=help)
    kept = f"{key}:kept"
    if uploaded is not None and st.session_state.get(f"{key}:taken") != uploaded.file_id:
        st.session_state[f"{key}:taken"] = uploaded.file_id
        st.session_state[kept] = keep(uploaded, uploaded.name)
    path = st.session_state.get(kept) or (Path(given) if given else None)
    if path is not None and not path.is_file():
        st.warning(f"{plain_text(name_of(str(path)))} is not there any more. Choose it again.")
        return None
    if path is not None and uploaded is None:
        st.caption(f":material/description: {plain_text(name_of(str(path)))}")
    return path


def keep(file: BinaryIO, name: str) -> Path:
    """Copy the file under a name of our own: by what is in it, so that it is kept once."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{new_id()}.partial"
    try:
        with partial.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        with partial.open("rb") as copy:
            digest = hashlib.file_digest(copy, "sha256").hexdigest()[:24]
        path = folder / f"{digest}{Path(name).suffix.lower()}"
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _remember(path, name)
    return path


def keep_run(run: Run) -> Path:
    """The table of a run as a file of its own, which stays when the run goes. Raises TableError, RunBusy."""
    path = _folder() / f"run-{run.run_id}.parquet"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        run.export_input(path)
        _remember(path, run.spec.input.name)
    return path


def name_of(path: str) -> str:
    """The name that the file came with, else its own."""
    file = Path(path)
    return _names().get(file.name, file.name) if file.parent == _folder() else file.name


def _folder() -> Path:
    return session.runtime().settings.benchmarks_dir / "files"


def _remember(path: Path, name: str) -> None:
    names = {**_names(), path.name: name}
    written = _folder() / f"{new_id()}.partial"
    written.write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    written.replace(_folder() / _NAMES)


def _names() -> dict[str, Any]:
    path = _folder() / _NAMES
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
