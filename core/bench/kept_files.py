"""Tables and conversations that benchmarks read, kept in the workspace so that each can be done again."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from core import openai_batch
from core.runs import Run
from core.store import new_id

_NAMES = "names.json"
_LEFT_BEHIND_S = 24 * 3600.0
_log = logging.getLogger(__name__)


class KeptFiles:
    """The files of `folder`, each under a name of our own; names.json has those that they came with."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def keep(self, file: BinaryIO, name: str) -> Path:
        """Copy what was uploaded as `name`. It is called by what is in it, so that it is kept once."""
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f"{new_id()}.partial"
        try:
            with partial.open("wb") as copy:
                shutil.copyfileobj(file, copy)
            with partial.open("rb") as copy:
                digest = hashlib.file_digest(copy, "sha256").hexdigest()[:24]
            path = self._folder / f"{digest}{Path(name).suffix.lower()}"
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        self._remember({path.name: name})
        return path

    def keep_run(self, run: Run) -> Path:
        """The table of a run as a file, which stays when the run goes. Raises TableError, RunBusy."""
        # in Parquet the body of a Batch file's line would be a text
        ending = "jsonl" if openai_batch.is_batch(run.info().columns) else "parquet"
        path = self._folder / f"run-{run.run_id}.{ending}"
        if path.is_file():
            path.touch()  # somebody is about to measure it: it is no leftover
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            run.export_input(path)
            self._remember({path.name: run.spec.input.name})
        return path

    def name_of(self, path: str) -> str:
        """The name that a file came with, else its own."""
        file = Path(path)
        return self._names().get(file.name, file.name) if file.parent == self._folder else file.name

    def drop(self, names: Iterable[str]) -> None:
        """Remove these files, as far as they are there. What can't be removed is left to `leftovers`."""
        gone: dict[str, None] = {}
        for name in set(names) - {_NAMES, ""}:
            try:
                (self._folder / Path(name).name).unlink(missing_ok=True)
                gone[name] = None
            except OSError:
                _log.warning("The file %s of deleted benchmarks can't be removed", name, exc_info=True)
        if gone.keys() & self._names().keys():
            self._remember(gone)

    def leftovers(self, needed: Collection[str]) -> list[str]:
        """The names of files that nobody needs and nobody has chosen for a day."""
        if not self._folder.is_dir():
            return []
        oldest = time.time() - _LEFT_BEHIND_S
        return [
            entry.name
            for entry in self._folder.iterdir()
            if entry.is_file()
            and entry.name not in needed
            and entry.name != _NAMES
            and entry.stat().st_mtime < oldest
        ]

    def _remember(self, changes: dict[str, str | None]) -> None:
        """Write down names by files; None forgets one."""
        with self._lock:
            names = {name: came_as for name, came_as in {**self._names(), **changes}.items() if came_as}
            written = self._folder / f"{new_id()}.partial"
            written.write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
            written.replace(self._folder / _NAMES)

    def _names(self) -> dict[str, Any]:
        path = self._folder / _NAMES
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
