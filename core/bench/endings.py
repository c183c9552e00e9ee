"""How benchmarks ended, also while the disk is full: written again and again until it is kept."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from core.bench.records import BenchState, BenchView, PointSummary
from core.bench.store import BenchStore
from core.errors import WorkbenchError

_TELL_AGAIN_S = 2.0
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, kw_only=True)
class Ending:
    """Of one benchmark. `unkept`: measured points that the disk didn't take, (summary, text of the file)."""

    benchmark_id: str
    state: BenchState = "failed"
    message: str = ""
    unkept: list[tuple[PointSummary, str]] = field(default_factory=list)
    obstacle: str = ""


class Endings:
    """Those that are not written yet. `spawn` starts a coroutine on the engine's loop. From any thread."""

    def __init__(self, kept: BenchStore, spawn: Callable[[Any], Future[None]]) -> None:
        self._kept = kept
        self._spawn = spawn
        self._lock = threading.Lock()
        self._unwritten: dict[str, Ending] = {}
        self._closing = False

    def add_point(self, ending: Ending, summary: PointSummary, text: str) -> None:
        """Keep a point of the benchmark at work, now or, when that raises WorkbenchError, with its end."""
        try:
            self._kept.add_point(ending.benchmark_id, summary, text)
        except WorkbenchError:
            ending.unkept.append((summary, text))
            raise

    def write(self, ending: Ending) -> None:
        """Say how it ended. What the disk doesn't take is in `as_it_is` until it does."""
        with self._lock:
            if self._is_written(ending):
                return
            self._unwritten[ending.benchmark_id] = ending
        self._spawn(self._write_later(ending))

    def as_it_is(self, view: BenchView) -> BenchView:
        """The benchmark that the catalogue still calls running, as it ended."""
        ending = self._unwritten.get(view.benchmark_id)
        if ending is None or view.state != "running":
            return view
        message = ending.message or f"Its end is not written down yet. {ending.obstacle}"
        return replace(view, state=ending.state, message=message)

    def forget(self, benchmark_id: str) -> None:
        """It is deleted: nothing more of it is written."""
        with self._lock:
            self._unwritten.pop(benchmark_id, None)

    def close(self) -> None:
        """Try once more; what can't be written now reads as interrupted."""
        self._closing = True
        with self._lock:
            for ending in [one for one in self._unwritten.values() if not self._is_written(one)]:
                _log.error("The end of the benchmark %s is lost: %s", ending.benchmark_id, ending.obstacle)
            self._unwritten.clear()

    async def _write_later(self, ending: Ending) -> None:
        while not self._closing:
            await asyncio.sleep(_TELL_AGAIN_S)
            if await asyncio.to_thread(self._try_again, ending):
                return

    def _try_again(self, ending: Ending) -> bool:
        with self._lock:
            if self._unwritten.get(ending.benchmark_id) is not ending:  # deleted, or closed
                return True
            if not self._is_written(ending):
                return False
            del self._unwritten[ending.benchmark_id]
            return True

    def _is_written(self, ending: Ending) -> bool:
        """Write what is still to be written, the points first."""
        try:
            while ending.unkept:
                self._kept.add_point(ending.benchmark_id, *ending.unkept[0])
                del ending.unkept[0]
            self._kept.end(ending.benchmark_id, ending.state, ending.message)
        except WorkbenchError as error:
            ending.obstacle = str(error)
            return False
        return True
