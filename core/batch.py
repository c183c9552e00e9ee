"""One run at work: rows into the engine, answers onto the disk.

A run's rows go through the engine with a bounded number in flight; answers are
kept in transactions at most half a second apart. Whatever ends the work, a
stop, an error or a kill, what was kept stays and the rest is pending: starting
the run again does exactly the rows that have no result.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime as dt
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
from pydantic_core import to_jsonable_python

from core import machine, results, sampling
from core.engines.base import Engine
from core.errors import (
    EngineDied,
    RequestRejected,
    RunError,
    WorkbenchError,
)
from core.requests import Item, Preparer
from core.results import Counts, Result, Sample
from core.run_spec import ModelSpec, SessionSpec
from core.runs import Run
from core.runtime import Runtime
from core.store import RunState, Store, this_process
from core.types import Completion, Priority, Request

_log = logging.getLogger(__name__)

_FLUSH_S = 0.5
_SAMPLE_S = 1.0
_CHUNK_ROWS = 256
_RATE_WINDOW_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is. `eta_s` and the rate are None until there is something to go by."""

    run_id: str
    state: RunState
    rows: int
    counts: Counts
    generated: int
    work_s: float
    output_tokens_per_s: float | None
    eta_s: float | None
    message: str = ""


class BatchJob:
    """One stretch of work on one run, on the runtime's loop; its numbers are read from any thread."""

    def __init__(
        self, run: Run, runtime: Runtime, store: Store, counts: Counts, *, only_rows: int | None = None
    ) -> None:
        self.run = run
        self.only_rows = only_rows
        self.state: RunState = "queued"
        self.message = ""
        self.counts = counts
        self.generated = 0
        self.rows = run.spec.input.rows
        self._runtime = runtime
        self._store = store
        self._params: dict[str, Any] = {}
        self._buffer: list[Result] = []
        self._suspects: list[Item] = []
        self._session_tokens = [0, 0]
        self._started_at = dt.datetime.now(dt.UTC)
        self._work_started: float | None = None
        self._work_ended: float | None = None
        self._earlier_s = sum(session.wall_s for session in run.spec.sessions)
        # (time, rows done, output tokens) at the last flushes; replaced whole, so any thread may read it
        self._recent: tuple[tuple[float, int, int], ...] = ()
        self._end: tuple[RunState, str] = ("stopped", "")
        self._task: asyncio.Task[Any] | None = None
        self._stopping = False
        self._sampled = 0.0
        self._reader = concurrent.futures.ThreadPoolExecutor(1, f"read-{run.run_id}")
        self._writer = concurrent.futures.ThreadPoolExecutor(1, f"write-{run.run_id}")

    # -- read from any thread -------------------------------------------------

    @property
    def work_s(self) -> float:
        """Seconds of this stretch, the wait for the engine left out."""
        if self._work_started is None:
            return 0.0
        return (self._work_ended or time.monotonic()) - self._work_started

    def progress(self) -> Progress:
        recent = self._recent
        rate = eta = None
        if len(recent) > 1 and recent[-1][0] > recent[0][0]:
            seconds = recent[-1][0] - recent[0][0]
            rate = (recent[-1][2] - recent[0][2]) / seconds
            rows_per_s = (recent[-1][1] - recent[0][1]) / seconds
            eta = (self.rows - self.counts.done) / rows_per_s if rows_per_s else None
        if not rate and self.state == "running":  # rows on their way, none at its end yet
            rate = self._runtime.status().output_tokens_per_s
        return Progress(
            run_id=self.run.run_id,
            state=self.state,
            rows=self.rows,
            counts=self.counts,
            generated=self.generated,
            work_s=self._earlier_s + self.work_s,
            output_tokens_per_s=rate,
            eta_s=eta,
            message=self.message,
        )

    # -- on the loop ----------------------------------------------------------

    async def work(self) -> None:
        """Do the pending rows, or only so many. Ends in finished, failed or the state that `stop` was given.

        Raises nothing but a bug.
        """
        self._task = asyncio.current_task()
        try:
            self.state = "running"
            self._publish()
            connection = await self._in_reader(self.run.open_database)
            try:
                await self._work(connection)
            finally:
                connection.close()
            self.state = "finished"
            if self.counts.done < self.rows:
                self.state, self.message = "stopped", f"Tried {self.only_rows:,} rows."
        except asyncio.CancelledError:
            self.state, self.message = self._end
        except (WorkbenchError, OSError, duckdb.Error) as error:
            _log.error("run %s: %s", self.run.run_id, error)
            self.state, self.message = "failed", str(error)
        except BaseException:
            self.state, self.message = "failed", "An unexpected error; the log has it."
            raise
        finally:
            self._work_ended = time.monotonic()
            self._close()

    async def stop(self, state: RunState, message: str) -> None:
        """Cancel the work, which then ends in `state`; the caller waits for that elsewhere."""
        if self._task is not None and not self._stopping:  # a second cancel would cut off the last flush
            self._stopping = True
            self._end = (state, message)
            self._task.cancel()

    async def _work(self, connection: duckdb.DuckDBPyConnection) -> None:
        reader, writer = connection.cursor(), connection.cursor()
        self.counts = await self._in_reader(results.read_counts, reader)
        pending = (await self._in_reader(results.read_pending, reader))[: self.only_rows]
        engine = await self._runtime.wait_engine()
        await self._in_reader(self._note_model, engine)
        self._work_started = time.monotonic()
        self._recent = ((self._work_started, self.counts.done, 0),)
        ended = asyncio.Event()
        flusher = asyncio.create_task(self._flush_often(writer, ended))
        work = asyncio.create_task(self._generate_all(reader, pending, engine))
        try:
            # a disk that is full shows in the flusher: the work must end then, not go on unkept
            await asyncio.wait({flusher, work}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not work.done():
                work.cancel()
            await asyncio.wait({work})
            ended.set()
            await flusher  # its last flush; a failure to keep rows is the run's failure
            self._work_ended = time.monotonic()
        await work
        if self.counts.done < self.rows and self.only_rows is None:
            raise RunError(f"{self.rows - self.counts.done:,} rows have no result.", hint="Resume the run.")

    def _in_reader(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._reader, function, *args)

    async def _generate_all(self, reader: Any, pending: Any, engine: Engine) -> None:
        """Feed rows to as many workers as the engine has batch slots; then the suspects, one by one."""
        queue: asyncio.Queue[Item | None] = asyncio.Queue(maxsize=2 * _CHUNK_ROWS)
        slots = min(engine.info.batch_slots, max(1, len(pending)))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(reader, pending, engine, queue, slots))
                for _slot in range(slots):
                    group.create_task(self._serve(queue))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # the others met the same: the engine is gone
        for item in self._suspects:
            await self._generate(item, deaths_allowed=0)

    async def _feed(self, reader: Any, pending: Any, engine: Engine, queue: Any, slots: int) -> None:
        preparer = await self._in_reader(Preparer, self.run.recipe(), reader, engine)
        for start in range(0, len(pending), _CHUNK_ROWS):
            rows = pending[start : start + _CHUNK_ROWS]
            for ready in await self._in_reader(preparer.prepare, rows):
                if isinstance(ready, Result):
                    self._buffer.append(ready)
                else:
                    await queue.put(ready)
        for _slot in range(slots):
            await queue.put(None)

    async def _serve(self, queue: Any) -> None:
        while (item := await queue.get()) is not None:
            await self._generate(item, deaths_allowed=1)

    async def _generate(self, item: Item, *, deaths_allowed: int) -> None:
        """One row to its result. A row that saw the engine die too often is set aside, then blamed."""
        request = Request(
            id=f"{self.run.run_id}-{item.row}",
            prompt=item.token_ids,
            params=self._params,
            priority=Priority.BATCH,
        )
        deaths = 0
        while True:
            engine = await self._runtime.wait_engine()
            self.generated += 1
            try:
                self._keep(item.row, await engine.complete(request))
            except RequestRejected as error:
                self._buffer.append(Result(row=item.row, status="error", error=str(error)))
            except EngineDied as error:
                deaths += 1
                if deaths <= deaths_allowed:
                    continue
                if deaths_allowed:
                    self._suspects.append(item)
                else:
                    message = f"The engine died while it answered this row alone: {error.message}"
                    self._buffer.append(Result(row=item.row, status="error", error=message))
            return

    def _keep(self, row: int, completion: Completion) -> None:
        self._session_tokens[0] += completion.prompt_tokens
        self._session_tokens[1] += completion.output_tokens
        self._buffer.append(
            Result(
                row=row,
                status="ok",
                answer=completion.text,
                finish_reason=completion.finish_reason,
                prompt_tokens=completion.prompt_tokens,
                output_tokens=completion.output_tokens,
                cached_tokens=completion.cached_tokens,
                ttft_s=completion.timing.ttft_s,
                e2el_s=completion.timing.e2el_s,
            )
        )

    # -- keeping --------------------------------------------------------------

    async def _flush_often(self, writer: duckdb.DuckDBPyConnection, ended: asyncio.Event) -> None:
        """Flush until the work has `ended`, and once more then. Never cancelled in the middle of a flush."""
        while not ended.is_set():
            await self._flush(writer)
            with contextlib.suppress(TimeoutError):  # that is the time between two flushes
                await asyncio.wait_for(ended.wait(), _FLUSH_S)
        await self._flush(writer)  # what came while the last one was written

    async def _flush(self, writer: duckdb.DuckDBPyConnection) -> None:
        """Keep what is buffered. Rows whose flush fails stay pending, and the failure ends the run."""
        # taken here, on the loop, where it is filled: on the writer's thread a row could slip between
        batch, self._buffer = self._buffer, []
        counts = _add(self.counts, batch)
        now = time.monotonic()
        recent = (*self._recent, (now, counts.done, self._session_tokens[1]))
        self._recent = tuple(sample for sample in recent if now - sample[0] <= _RATE_WINDOW_S)
        if batch or now - self._sampled >= _SAMPLE_S:
            self._sampled = now
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._writer, self._write, writer, batch, counts)

    def _write(self, writer: duckdb.DuckDBPyConnection, batch: list[Result], counts: Counts) -> None:
        status = self._runtime.status()
        # the engine counts tokens as they come, we whole answers: ours serves where the engine says nothing
        rate = status.output_tokens_per_s or self._last_rate()
        work_s = self._earlier_s + self.work_s
        stats = status.stats
        sample = Sample(
            work_s=work_s, done=counts.done, output_tokens_per_s=rate, kv_cache_usage=stats.kv_cache_usage
        )
        results.append(writer, batch, sample)
        self.counts = counts
        self._publish()

    def _last_rate(self) -> float:
        """Output tokens/s over the last few flushes."""
        window = self._recent[-5:]
        seconds = window[-1][0] - window[0][0]
        return (window[-1][2] - window[0][2]) / seconds if seconds else 0.0

    def _note_model(self, engine: Engine) -> None:
        """Write down what answers, and the parameters with the model's own defaults filled in.

        Raises RunError when earlier rows were answered by another model: one table, one model.
        """
        spec = self.run.spec
        info = engine.info
        if spec.model is not None and spec.model.name != info.model:
            raise RunError(
                f"The run was begun with {spec.model.name}, and {info.model} is loaded.",
                hint=f"Load {spec.model.name} and resume, or start a new run.",
            )
        self._params = sampling.validate({**sampling.defaults(info.generation_config), **spec.params})
        model = ModelSpec(
            name=info.model,
            revision=info.revision,
            device=info.device,
            dtype=info.dtype,
            max_model_len=info.max_model_len,
            engine_version=info.engine_version,
            settings=to_jsonable_python(dict(info.settings), fallback=str),
        )
        described = to_jsonable_python(asdict(machine.describe()))
        self.run.update(model=model, engine=engine.spec, params=self._params, machine=described)
        self._store.update_run(self.run.run_id, model=info.model)

    def _publish(self) -> None:
        """Tell the catalogue. Seconds of work add up over the stretches."""
        ended = self.state not in ("queued", "running")
        owner = {"owner_pid": None, "owner_started": None} if ended else this_process()
        self._store.update_run(
            self.run.run_id,
            state=self.state,
            message=self.message,
            wall_s=self._earlier_s + self.work_s,
            **asdict(self.counts),
            **owner,
        )

    def _close(self) -> None:
        self._reader.shutdown(wait=False)
        self._writer.shutdown(wait=False)
        session = SessionSpec(
            started_at=self._started_at,
            state=self.state,
            generated=self.generated,
            prompt_tokens=self._session_tokens[0],
            output_tokens=self._session_tokens[1],
            wall_s=self.work_s,
        )
        try:
            self.run.update(sessions=(*self.run.spec.sessions, session))
        finally:
            self._publish()


def _add(counts: Counts, batch: Sequence[Result]) -> Counts:
    statuses = [result.status for result in batch]
    return Counts(
        ok=counts.ok + statuses.count("ok"),
        errors=counts.errors + statuses.count("error"),
        skipped=counts.skipped + statuses.count("skipped"),
        prompt_tokens=counts.prompt_tokens + sum(result.prompt_tokens or 0 for result in batch),
        output_tokens=counts.output_tokens + sum(result.output_tokens or 0 for result in batch),
    )
