"""Judges at work on comparisons: every pair, a vote each, kept as it comes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Literal

from core.comparing.cell import Cell, Place
from core.comparing.cells import CellStore, Kept
from core.comparing.judge import Asking, Judge, NoVerdict, asking, verdict
from core.comparing.votes import pairs_of
from core.errors import WorkbenchError
from core.reasoning import split
from core.runtime import Runtime

_log = logging.getLogger(__name__)
_CLOSE_PATIENCE_S = 10.0

_Pair = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingProgress:
    """How far a judge is. `done` of `total` pairs, `failed` of them without a verdict.

    `error` says why it ended early, or why the first pair failed. `voter` is the name of its votes.
    """

    state: Literal["judging", "complete", "stopped", "failed"]
    done: int
    total: int
    failed: int = 0
    error: str = ""
    voter: str = ""


@dataclass(slots=True)
class _Work:
    kept: Kept
    judge: Judge
    pairs: Sequence[_Pair]
    progress: JudgingProgress
    future: Future[None] | None = None


class Judging:
    """The judges at work, one a comparison at most. Every method returns at once, from any thread."""

    def __init__(self, runtime: Runtime, cells: CellStore) -> None:
        self._runtime = runtime
        self._cells = cells
        self._lock = threading.Lock()
        self._work: dict[str, _Work] = {}

    def start(self, comparison_id: str, judge: Judge, sets: tuple[int, int] | None = None) -> None:
        """Have all pairs judged, of these two sets or of any.

        Those that this judge has judged by this rubric already keep their votes. Raises WorkbenchError
        when there is no such comparison, nothing to judge, or a judge at work on it.
        """
        kept = self._cells.find(comparison_id)
        if kept is None:
            raise WorkbenchError(f"There is no comparison {comparison_id}.", hint="It was deleted.")
        pairs = pairs_of(kept.spec, self._cells.cells(comparison_id), sets)
        if not pairs:
            raise WorkbenchError(
                "There are no two different answers to judge.", hint="Wait for the answers, or add a set."
            )
        with self._lock:
            before = self._work.get(comparison_id)
            if before is not None and before.progress.state == "judging":
                raise WorkbenchError("A judge is at work.", hint="Wait for it, or stop it first.")
            progress = JudgingProgress(state="judging", done=0, total=len(pairs))
            work = self._work[comparison_id] = _Work(kept, judge, pairs, progress)
            work.future = self._runtime.spawn(self._run(work))

    def progress(self, comparison_id: str) -> JudgingProgress | None:
        """Of the judge at work, or of the last one since this process began. None: there was none."""
        with self._lock:
            work = self._work.get(comparison_id)
        return work.progress if work else None

    def at_work(self) -> int:
        """How many comparisons are judged now by the engine that is loaded."""
        with self._lock:
            works = list(self._work.values())
        return sum(not work.future.done() for work in works if work.judge.kind == "engine")

    def stop(self, comparison_id: str) -> None:
        """End the judge at work; its verdicts so far are kept."""
        with self._lock:
            work = self._work.get(comparison_id)
        if work and work.future:
            work.future.cancel()

    def close(self) -> None:
        """Stop all judges, and wait for their ends."""
        with self._lock:
            works = list(self._work.values())
        for work in works:
            work.future.cancel()
        wait([work.future for work in works], timeout=_CLOSE_PATIENCE_S)

    async def _run(self, work: _Work) -> None:
        try:
            async with asking(work.judge, self._runtime) as asked:
                voter = f"judge:{asked.model}"
                cells, left = await asyncio.to_thread(self._read, work, voter)
                done = len(work.pairs) - len(left)
                work.progress = replace(work.progress, voter=voter, done=done)
                await self._judge_all(work, asked, cells, left)
        except asyncio.CancelledError:
            work.progress = replace(work.progress, state="stopped")
            raise
        except WorkbenchError as error:
            work.progress = replace(work.progress, state="failed", error=str(error))
        except Exception as error:
            _log.exception("A judge of the comparison %s failed", work.kept.comparison_id)
            work.progress = replace(
                work.progress, state="failed", error=f"Unexpected {type(error).__name__}."
            )
        else:
            work.progress = replace(work.progress, state="complete")

    def _read(self, work: _Work, voter: str) -> tuple[dict[Place, Cell], list[_Pair]]:
        """The answers, and the pairs that this judge has not judged by this rubric."""
        judged = {
            (vote.prompt, vote.sample, *sorted((vote.set_a, vote.set_b)))
            for vote in self._cells.votes(work.kept.comparison_id)
            if vote.voter == voter and vote.details.get("rubric") == work.judge.rubric
        }
        left = [pair for pair in work.pairs if pair not in judged]
        return self._cells.cells(work.kept.comparison_id), left

    async def _judge_all(
        self, work: _Work, asked: Asking, cells: Mapping[Place, Cell], left: Sequence[_Pair]
    ) -> None:
        slots = asyncio.Semaphore(asked.at_once)

        async def judge(pair: _Pair) -> None:
            async with slots:
                await self._judge(work, asked, cells, pair)

        try:
            async with asyncio.TaskGroup() as group:
                for pair in left:
                    group.create_task(judge(pair))
        except ExceptionGroup as errors:  # the first one ended the others
            raise errors.exceptions[0] from errors

    async def _judge(self, work: _Work, asked: Asking, cells: Mapping[Place, Cell], pair: _Pair) -> None:
        prompt, sample, set_a, set_b = pair
        first, second = (split(cells[Place(prompt, place, sample)].text).answer for place in (set_a, set_b))
        item = work.kept.spec.prompts[prompt]
        try:
            winner, details = await verdict(asked.ask, work.judge, item, first, second)
        except NoVerdict as error:
            progress = work.progress
            work.progress = replace(
                progress,
                done=progress.done + 1,
                failed=progress.failed + 1,
                error=progress.error or str(error),
            )
            return
        vote = {"prompt": prompt, "sample": sample, "set_a": set_a, "set_b": set_b, "winner": winner}
        vote |= {"voter": work.progress.voter, "details": details}
        await asyncio.to_thread(self._cells.add_votes, work.kept.comparison_id, [vote])
        work.progress = replace(work.progress, done=work.progress.done + 1)
