"""Answers onto the disk: in transactions at most half a second apart, with the rates beside them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Collection

import duckdb

from core import results
from core.results import Counts, Reading, Result
from core.types import EngineStats

_FLUSH_S = 0.5
_SAMPLE_S = 1.0
_RATE_WINDOW_S = 30.0


class Keeper:
    """Holds what is not kept yet. `add` on the loop; the numbers are read from any thread.

    `taken` counts the results that were added.
    """

    def __init__(self, counts: Counts, name: str) -> None:
        self.counts = counts
        self.taken = 0
        self._buffer: list[Result] = []
        self._tokens = 0
        # (time, rows done, output tokens) at the last flushes; replaced whole, so any thread may read it
        self._recent: tuple[tuple[float, int, int], ...] = ()
        self._sampled = 0.0
        self._prefix = (0, 0)
        self._writer = concurrent.futures.ThreadPoolExecutor(1, name)

    def begin(
        self,
        connection: duckdb.DuckDBPyConnection,
        counts: Counts,
        *,
        replace: bool,
        share: bool,
        look: Callable[[], tuple[EngineStats, float, float]],
        publish: Callable[[], None],
    ) -> None:
        """Take up a stretch of work. `look` gives the engine's counters, its output tokens/s and work_s."""
        self._connection = connection
        self._replace, self._share = replace, share
        self._look, self._publish = look, publish
        self.counts = counts
        self._recent = ((time.monotonic(), counts.done, self._tokens),)

    @property
    def replaces(self) -> bool:
        """Whether some rows of this stretch have an older result that goes."""
        return self._replace

    def add(self, result: Result, *, generated: bool = True) -> None:
        """Take a result to be kept; `generated` results count in the rate of tokens."""
        self.taken += 1
        self._tokens += (result.output_tokens or 0) if generated else 0
        self._buffer.append(result)

    @property
    def waiting(self) -> list[int]:
        """The rows whose results are not kept yet."""
        return [result.row for result in self._buffer]

    def forget(self, rows: Collection[int]) -> None:
        """Drop what waits for these rows: it was kept after all."""
        self._buffer = [result for result in self._buffer if result.row not in rows]

    def rates(self) -> tuple[float | None, float | None]:
        """(output tokens/s, rows/s) of the last half minute; None until there is something to go by."""
        recent = self._recent
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return None, None
        seconds = recent[-1][0] - recent[0][0]
        return (recent[-1][2] - recent[0][2]) / seconds, (recent[-1][1] - recent[0][1]) / seconds

    async def flush_often(self, ended: asyncio.Event) -> None:
        """Flush until the work has `ended`, and once more then. Never cancelled in the middle of a flush."""
        while not ended.is_set():
            await self.flush()
            with contextlib.suppress(TimeoutError):  # that is the time between two flushes
                await asyncio.wait_for(ended.wait(), _FLUSH_S)
        await self.flush()  # what came while the last one was written

    async def release(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Close the connection of a stretch, once nothing is written by it any more."""
        await asyncio.get_running_loop().run_in_executor(self._writer, connection.close)

    def close(self) -> None:
        self._writer.shutdown(wait=False)

    async def flush(self) -> None:
        """Keep what is buffered. What a failed flush held is put back: its rows are not lost."""
        # taken here, on the loop, where it is filled: on the writer's thread a row could slip between
        batch, self._buffer = self._buffer, []
        now = time.monotonic()
        if not batch and now - self._sampled < _SAMPLE_S:
            return
        self._sampled = now
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._write, batch)
        except BaseException:
            self._buffer = batch + self._buffer
            raise
        recent = (*self._recent, (now, self.counts.done, self._tokens))
        self._recent = tuple(moment for moment in recent if now - moment[0] <= _RATE_WINDOW_S)

    def _write(self, batch: list[Result]) -> None:
        stats, rate, work_s = self._look()
        reading = Reading(
            work_s=work_s,
            # the engine counts tokens as they come, we whole answers: ours serves where it says nothing
            output_tokens_per_s=rate or self._last_rate(),
            kv_cache_usage=stats.kv_cache_usage,
            prefix_hit_rate=self._hit_rate(stats),
        )
        self.counts = results.append(
            self._connection, batch, reading, self.counts, replace=self._replace, share=self._share
        )
        self._publish()

    def _hit_rate(self, stats: EngineStats) -> float | None:
        """Share of prompt tokens found in the prefix cache since the last reading."""
        queries, hits = stats.prefix_queries - self._prefix[0], stats.prefix_hits - self._prefix[1]
        self._prefix = (stats.prefix_queries, stats.prefix_hits)
        return hits / queries if queries > 0 else None

    def _last_rate(self) -> float:
        """Output tokens/s over the last few flushes."""
        window = self._recent[-5:]
        seconds = window[-1][0] - window[0][0]
        return (window[-1][2] - window[0][2]) / seconds if seconds else 0.0
