"""Comparisons at work: all cells at once through the one engine, kept as they grow."""

from __future__ import annotations

import asyncio
import logging
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from core.adapters.registry import Adapters
from core.answers import Answer
from core.comparing.cell import Cell, Place
from core.comparing.cells import CellStore, Kept, Listed
from core.comparing.estimate import Estimate, Measured, estimate, max_tokens_of
from core.comparing.judging import Judging
from core.comparing.spec import ComparisonSpec, messages_of, params_of
from core.comparing.votes import Votes
from core.errors import WorkbenchError
from core.prompt_styles import Wrapper, Wrappers
from core.runtime import Runtime
from core.store import MessageState, Store
from core.types import LoraAdapter, Priority

_log = logging.getLogger(__name__)
_SAVE_EVERY_S = 0.4
_CLOSE_PATIENCE_S = 10.0
_RUNS_LOOKED_AT = 20
_UNENDED = ("waiting", "generating")
_LOGPROB = 2  # its place in a token as `core.answers.read_logprobs` reads it


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonView:
    """A comparison as it is now. `counts` has the cells of each state; `is_live`: a process works on it."""

    comparison_id: str
    name: str
    spec: ComparisonSpec
    cells: Mapping[Place, Cell]
    counts: Mapping[str, int]
    is_live: bool

    @property
    def complete(self) -> int:
        return self.counts.get("complete", 0)


@dataclass(slots=True)
class _Running:
    """One comparison at work, changed on the loop only.

    `pending` is not asked yet, `answers` are generated or not saved to their end, `saved` is the
    length of their texts when they were last saved, `cells` are as kept.
    """

    comparison_id: str
    name: str
    spec: ComparisonSpec
    cells: dict[Place, Cell]
    pending: deque[Place]
    wrappers: Mapping[str, Wrapper]
    adapters: Mapping[str, LoraAdapter | None]
    answers: dict[Place, Answer] = field(default_factory=dict)
    saved: dict[Place, int] = field(default_factory=dict)
    future: Future[None] | None = None
    output_tokens: int = 0
    generated: int = 0
    cut: int = 0
    limits: int = 0
    at_once: int = 0
    model: str = ""

    def cell(self, place: Place) -> Cell:
        answer = self.answers.get(place)
        if answer is None:
            return self.cells.get(place) or Cell("", "waiting")
        live = answer.live() if answer.state == "generating" else None
        return Cell(answer.text, answer.state, self._details(answer), live)

    def _details(self, answer: Answer) -> dict[str, Any]:
        """The answer's figures, its mean log-probability per token, and its tokens where they are kept."""
        details = answer.details
        logprobs = answer.logprobs
        if logprobs:
            details["mean_logprob"] = statistics.fmean(token[_LOGPROB] for token in logprobs)
            if self.spec.top_logprobs is not None:
                details["logprobs"] = logprobs
        return details


class Comparisons:
    """All comparisons of one workspace. Every method returns at once, from any thread.

    `votes` are their votes, `judging` has models judge them.
    """

    def __init__(self, runtime: Runtime, store: Store) -> None:
        self._runtime = runtime
        self._cells = CellStore(store)
        self._store = store
        self._lock = threading.Lock()
        self._live: dict[str, _Running] = {}
        self.votes = Votes(self._cells)
        self.judging = Judging(runtime, self._cells)
        runtime.add_user("comparisons", lambda: len(self._live) + self.judging.at_work())

    def start(self, spec: ComparisonSpec) -> str:
        """Generate every cell; returns the comparison's id.

        Raises TemplateError for an unknown style, ModelError for an adapter that can't be used.
        """
        means = self._means_of(spec)
        comparison_id = self._cells.add(spec)
        self._begin(_Running(comparison_id, spec.title, spec, {}, deque(_places(spec)), *means))
        return comparison_id

    def resume(self, comparison_id: str) -> None:
        """Generate the cells again that are not complete: missing, failed, stopped or interrupted.

        Raises WorkbenchError when there is no such comparison, or somebody works on it.
        """
        kept = self._found(comparison_id)
        means = self._means_of(kept.spec)
        with self._lock:
            busy = comparison_id in self._live
        if busy or not self._cells.take(comparison_id):
            raise WorkbenchError(f"{kept.name!r} is being answered.", hint="Wait for it, or stop it first.")
        done = {
            place: cell
            for place, cell in self._cells.cells(comparison_id).items()
            if cell.state == "complete"
        }
        pending = deque(place for place in _places(kept.spec) if place not in done)
        self._begin(_Running(comparison_id, kept.name, kept.spec, done, pending, *means))

    def stop(self, comparison_id: str) -> None:
        """Ask no further cells, and abort those being generated; their texts so far are kept."""
        with self._lock:
            running = self._live.get(comparison_id)
        if running is not None:
            self._runtime.spawn(self._stop(running, "stopped"))

    def delete(self, comparison_id: str) -> None:
        """Remove it with its answers and votes; what is being generated is stopped first."""
        self.stop(comparison_id)
        self.judging.stop(comparison_id)
        with self._lock:  # forgotten at once; what it still writes is dropped
            self._live.pop(comparison_id, None)
        self._cells.delete(comparison_id)

    def rename(self, comparison_id: str, name: str) -> None:
        """Raises WorkbenchError for a blank name, or when there is no such comparison."""
        self._found(comparison_id)
        if not name.strip():
            raise WorkbenchError("The name is empty.", hint="Write one.")
        self._cells.rename(comparison_id, name.strip())
        with self._lock:
            if comparison_id in self._live:
                running = self._live[comparison_id]
                running.name = name.strip()
                running.spec = running.spec.model_copy(update={"name": running.name})

    def list(self, limit: int = 50, search: str = "") -> list[Listed]:
        """The newest first, those with `search` in their name, prompts or sets."""
        return self._cells.list(limit, search)

    def view(self, comparison_id: str) -> ComparisonView | None:
        """The comparison as it is now, from memory while it runs here. None: there is none."""
        with self._lock:
            running = self._live.get(comparison_id)
        if running is not None:
            spec, name, is_live = running.spec, running.name, True
            cells = {place: running.cell(place) for place in _places(spec)}
        else:
            kept = self._cells.find(comparison_id)
            if kept is None:
                return None
            spec, name, is_live = kept.spec, kept.name, kept.is_owned
            found = self._cells.cells(comparison_id)
            cells = {place: _settled(found.get(place), is_live) for place in _places(spec)}
        return ComparisonView(
            comparison_id=comparison_id,
            name=name,
            spec=spec,
            cells=cells,
            counts=Counter(cell.state for cell in cells.values()),
            is_live=is_live,
        )

    def estimate(self, spec: ComparisonSpec) -> Estimate:
        """How many generations, tokens and seconds, from what this model's answers took before."""
        info = self._runtime.status().info
        return estimate(spec, info, self._cells.measured(), self._store.runs(_RUNS_LOOKED_AT))

    def close(self) -> None:
        """Stop every answer, keeping its text as "interrupted", and every judge. Waits for the last saves."""
        self.judging.close()
        with self._lock:
            entries = list(self._live.values())
        for running in entries:
            self._runtime.spawn(self._stop(running, "interrupted"))
        wait([running.future for running in entries if running.future], timeout=_CLOSE_PATIENCE_S)

    # -- the inside ------------------------------------------------------------

    def _found(self, comparison_id: str) -> Kept:
        kept = self._cells.find(comparison_id)
        if kept is None:
            raise WorkbenchError(f"There is no comparison {comparison_id}.", hint="It was deleted.")
        return kept

    def _means_of(self, spec: ComparisonSpec) -> tuple[dict[str, Wrapper], dict[str, LoraAdapter | None]]:
        """The wrappers and adapters that the sets name."""
        wrappers, adapters = Wrappers(self._store), Adapters(self._runtime.settings, self._store)
        found = {style: wrappers.find(style) for style in {one.style for one in spec.sets}}
        named = {one.adapter for one in spec.sets if one.adapter is not None}
        return (
            {style: wrapper for style, wrapper in found.items() if wrapper is not None},
            {name: adapters.lora(name) for name in named},
        )

    def _begin(self, running: _Running) -> None:
        with self._lock:
            running.future = self._runtime.spawn(self._run(running))
            self._live[running.comparison_id] = running

    async def _stop(self, running: _Running, state: MessageState) -> None:
        running.pending.clear()
        for answer in running.answers.values():
            if answer.state == "generating":
                answer.stop(self._runtime, state)

    def _at_once(self) -> int:
        """Answers that one comparison may have in flight: its share of what a batch may fill."""
        info = self._runtime.status().info
        with self._lock:
            sharing = max(1, len(self._live))
        return max(1, (info.batch_slots if info else 1) // sharing)

    async def _run(self, running: _Running) -> None:
        started = saved = time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        try:
            while running.pending or tasks:
                while running.pending and len(tasks) < self._at_once():
                    tasks.add(self._ask(running, running.pending.popleft()))
                running.at_once = max(running.at_once, len(tasks))
                # not for ever: texts grow, and so does the share when another comparison ends
                ended, tasks = await asyncio.wait(
                    tasks, timeout=_SAVE_EVERY_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in ended:
                    task.result()
                if time.monotonic() - saved >= _SAVE_EVERY_S:
                    await self._save(running)
                    saved = time.monotonic()
        except Exception:
            _log.exception("The comparison %s could not go on", running.comparison_id)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            await self._save(running)
            await self._release(running, time.monotonic() - started)

    def _ask(self, running: _Running, place: Place) -> asyncio.Task[None]:
        one = running.spec.sets[place.set]
        answer = Answer(
            messages_of(running.spec.prompts[place.prompt], one),
            params_of(one, running.spec.seeds[place.sample]),
            style=one.style,
            wrapper=running.wrappers.get(one.style),
            template_options=one.template_options,
            top_logprobs=running.spec.top_logprobs or 0,  # the mean log-probability is a score
            priority=Priority.COMPARE,
            adapter=running.adapters.get(one.adapter),
        )
        running.answers[place] = answer
        return asyncio.create_task(self._answer(running, answer))

    async def _answer(self, running: _Running, answer: Answer) -> None:
        await answer.run(self._runtime, _saved_together)
        details = answer.details
        running.generated += 1
        running.cut += details["finish_reason"] == "length"
        running.limits += max_tokens_of(details["params"])
        running.output_tokens += details["output_tokens"] or 0
        running.model = details["model"] or running.model

    async def _save(self, running: _Running) -> None:
        """Write what has changed, in one transaction; ended answers then need no Answer any more."""
        changed = {}
        for place, answer in list(running.answers.items()):
            cell = running.cell(place)
            if answer.state != "generating" or running.saved.get(place) != len(cell.text):
                changed[place] = cell
        if not changed:
            return
        try:
            await asyncio.to_thread(self._cells.save, running.comparison_id, changed)
        except WorkbenchError:  # a full disk must not end answers that somebody reads right now
            _log.exception("Answers of the comparison %s could not be saved", running.comparison_id)
            return
        for place, cell in changed.items():
            running.saved[place] = len(cell.text)
            if cell.state not in _UNENDED:
                running.cells[place] = cell
                del running.answers[place]

    async def _release(self, running: _Running, seconds: float) -> None:
        measured = None
        if running.output_tokens:
            measured = Measured(
                model=running.model,
                answers=running.generated,
                output_tokens=running.output_tokens,
                seconds=seconds,
                at_once=running.at_once,
                max_tokens=running.limits / running.generated,
                cut=running.cut / running.generated,
            )
        try:
            await asyncio.to_thread(self._cells.release, running.comparison_id, measured)
        except WorkbenchError:
            _log.exception("The end of the comparison %s could not be saved", running.comparison_id)
        finally:
            with self._lock:
                if self._live.get(running.comparison_id) is running:
                    del self._live[running.comparison_id]


async def _saved_together() -> None:
    """The answers of a comparison are saved together, not one by one."""


def _places(spec: ComparisonSpec) -> list[Place]:
    """All cells, in the order they are asked: a prompt's sets together, which share its prefix.

    Each time another set begins: the first reads the prompt for the others, and waits for its
    first token longer than they do.
    """
    sets = len(spec.sets)
    return [
        Place(prompt, (prompt + sample + turn) % sets, sample)
        for prompt in range(len(spec.prompts))
        for sample in range(len(spec.seeds))
        for turn in range(sets)
    ]


def _settled(cell: Cell | None, is_live: bool) -> Cell:
    """A kept cell as it is: one whose process died was never finished."""
    if cell is None:
        return Cell("", "waiting" if is_live else "missing")
    if cell.state == "generating" and not is_live:
        return Cell(cell.text, "interrupted", cell.details)
    return cell
