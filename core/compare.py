"""One prompt under several parameter sets, side by side, through the one engine.

All answers stream at once and go on whatever the browser does; what there is
is kept in the store, as in `core.chat`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from core.answers import Answer, LiveAnswer
from core.errors import WorkbenchError
from core.runtime import Runtime
from core.store import Comparison, MessageState, Store, is_alive, new_id, this_process
from core.types import Message

_log = logging.getLogger(__name__)
_CLOSE_PATIENCE_S = 10.0
MAX_SETS = 4


@dataclass(frozen=True, slots=True)
class ParameterSet:
    """`params` are validated by `core.sampling`."""

    name: str
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One parameter set's answer. `live` while it is generated; `details` as `Answer.details`."""

    name: str
    params: Mapping[str, Any]
    text: str
    state: MessageState
    details: Mapping[str, Any]
    live: LiveAnswer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonView:
    comparison_id: str
    prompt: str
    system: str
    cells: tuple[Cell, ...]

    @property
    def is_live(self) -> bool:
        return any(cell.live for cell in self.cells)


@dataclass(slots=True)
class _Running:
    prompt: str
    system: str
    sets: Sequence[ParameterSet]
    answers: Sequence[Answer]
    future: Future[None] | None = None
    saving: asyncio.Lock = field(default_factory=asyncio.Lock)

    def body(self) -> dict[str, Any]:
        cells = [
            {
                "name": one.name,
                "params": dict(one.params),
                "text": answer.text,
                "state": answer.state,
                "details": answer.details,
            }
            for one, answer in zip(self.sets, self.answers, strict=True)
        ]
        return {"prompt": self.prompt, "system": self.system, "cells": cells, **this_process()}


class Comparisons:
    """All comparisons of one workspace. Every method returns at once, from any thread."""

    def __init__(self, runtime: Runtime, store: Store) -> None:
        self._runtime = runtime
        self._store = store
        self._lock = threading.Lock()
        self._live: dict[str, _Running] = {}

    def start(self, prompt: str, system: str, sets: Sequence[ParameterSet]) -> str:
        """Generate an answer for each set; returns the comparison's id.

        Raises WorkbenchError for a blank prompt or not 1 to MAX_SETS sets.
        """
        if not prompt.strip():
            raise WorkbenchError("The prompt is empty.", hint="Write what the model should answer.")
        if not 1 <= len(sets) <= MAX_SETS:
            raise WorkbenchError(f"{len(sets)} parameter sets.", hint=f"Compare 1 to {MAX_SETS}.")
        messages = [*([Message("system", system)] if system.strip() else []), Message("user", prompt)]
        running = _Running(prompt, system, sets, [Answer(messages, one.params) for one in sets])
        comparison_id = new_id()
        self._store.save_comparison(comparison_id, running.body())
        with self._lock:
            running.future = self._runtime.spawn(self._run(comparison_id, running))
            self._live[comparison_id] = running
        return comparison_id

    def stop(self, comparison_id: str) -> None:
        """Abort its answers that are still being generated; their texts so far are kept."""
        with self._lock:
            running = self._live.get(comparison_id)
        for answer in running.answers if running else ():
            if answer.state == "generating":
                answer.stop(self._runtime)

    def view(self, comparison_id: str) -> ComparisonView | None:
        """The comparison as it is now, from memory while it runs. None: there is none."""
        with self._lock:
            running = self._live.get(comparison_id)
        if running is None:
            kept = self._store.comparison(comparison_id)
            return _kept_view(kept) if kept else None
        body = running.body()
        cells = tuple(
            Cell(**cell, live=answer.live() if cell["state"] == "generating" else None)
            for cell, answer in zip(body["cells"], running.answers, strict=True)
        )
        return ComparisonView(
            comparison_id=comparison_id, prompt=running.prompt, system=running.system, cells=cells
        )

    def recent(self, limit: int = 20) -> list[ComparisonView]:
        """The newest first, as they were last saved."""
        return [_kept_view(kept) for kept in self._store.comparisons(limit)]

    def close(self) -> None:
        """Stop every answer, keeping its text as "interrupted". Waits for the last saves."""
        with self._lock:
            entries = list(self._live.values())
        for running in entries:
            for answer in running.answers:
                if answer.state == "generating":
                    answer.stop(self._runtime, "interrupted")
        wait([running.future for running in entries if running.future], timeout=_CLOSE_PATIENCE_S)

    async def _run(self, comparison_id: str, running: _Running) -> None:
        async def save() -> None:
            async with running.saving:  # or an older text could be written after a newer one
                try:
                    await asyncio.to_thread(self._store.save_comparison, comparison_id, running.body())
                except WorkbenchError:  # a full disk must not end answers that somebody reads right now
                    _log.exception("The comparison %s could not be saved", comparison_id)

        try:
            await asyncio.gather(*(answer.run(self._runtime, save) for answer in running.answers))
        finally:
            with self._lock:
                self._live.pop(comparison_id, None)


def _kept_view(kept: Comparison) -> ComparisonView:
    """From the store. Answers of a process that died were never finished: "interrupted"."""
    body = kept.body
    owner = {name: body.get(name) for name in ("owner_pid", "owner_started")}
    alive = is_alive(owner["owner_pid"], owner["owner_started"])
    cells = []
    for cell in body["cells"]:
        if cell["state"] == "generating" and not alive:
            cell = {**cell, "state": "interrupted"}
        cells.append(Cell(**cell))
    return ComparisonView(
        comparison_id=kept.comparison_id, prompt=body["prompt"], system=body["system"], cells=tuple(cells)
    )
