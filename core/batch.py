"""One run at work: rows into the engine, answers onto the disk.

So many at once as the engine takes; answers are kept in transactions at most half a second apart.
What was kept stays, whatever ends the work; starting again does exactly the rows without a result.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime as dt
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
from pydantic_core import to_jsonable_python

from core import disk, machine, results, sampling, tables
from core.adapters.registry import check_asked, registered
from core.answering import Answerer
from core.engines.base import Engine
from core.errors import EngineDied, RunError, WorkbenchError
from core.keeper import Keeper
from core.planning import plans
from core.planning.plans import PlanInfo, plan_run
from core.recipes import Recipe
from core.requests import Item, Preparer
from core.results import Counts, Result
from core.run_spec import ModelSpec, SessionSpec
from core.runs import Run
from core.runtime import Runtime
from core.store import RunState, Store, this_process
from core.types import EngineStats, Priority

_log = logging.getLogger(__name__)

_CHUNK_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is. `eta_s` and the rates are None until there is something to go by.

    `cached_share`: prompt tokens of this stretch that came from the prefix cache.
    """

    run_id: str
    state: RunState
    rows: int
    counts: Counts
    generated: int
    work_s: float
    output_tokens_per_s: float | None
    eta_s: float | None
    cached_share: float | None = None
    message: str = ""


class BatchJob:
    """One stretch of work on one run, on the runtime's loop; its numbers are read from any thread.

    `only_rows`: end after so many rows, the rest stays pending. `told`: whether the catalogue
    knows how the run is.
    """

    def __init__(
        self, run: Run, runtime: Runtime, store: Store, counts: Counts, *, only_rows: int | None = None
    ) -> None:
        self.run = run
        self.state: RunState = "queued"
        self.message = ""
        self.rows = run.spec.input.rows
        self._runtime = runtime
        self._store = store
        self._spec = run.spec
        self._only_rows = only_rows
        self._params: dict[str, Any] = {}
        self._suspects: list[Item] = []
        self._started_at = dt.datetime.now(dt.UTC)
        self._work_started: float | None = None
        self._worked_s = 0.0  # before a full disk, which may part a stretch in several
        self._earlier_s = sum(session.wall_s for session in self._spec.sessions)
        self._end: tuple[RunState, str] = ("stopped", "")
        self._task: asyncio.Task[Any] | None = None
        self._stopping = False
        self._busy = 0
        self.told = True
        self._tail_started: float | None = None
        self._tail_s: float | None = None
        self._keeper = Keeper(counts, f"write-{run.run_id}")
        self._answerer = Answerer(
            run.run_id, self._follow, choice_probabilities=self._spec.output.choice_probabilities
        )
        self._reader = concurrent.futures.ThreadPoolExecutor(1, f"read-{run.run_id}")

    # -- read from any thread -------------------------------------------------

    @property
    def is_try(self) -> bool:
        return self._only_rows is not None

    @property
    def counts(self) -> Counts:
        return self._keeper.counts

    @property
    def work_s(self) -> float:
        """Seconds of this stretch, the waits for the engine and for room on the disk left out."""
        started = self._work_started
        return self._worked_s + (time.monotonic() - started if started is not None else 0.0)

    def progress(self) -> Progress:
        rate, rows_per_s = self._keeper.rates()
        if not rate and self.state == "running":  # rows on their way, none at its end yet
            rate = self._runtime.status().output_tokens_per_s
        work = self._answerer.work
        return Progress(
            run_id=self.run.run_id,
            state=self.state,
            rows=self.rows,
            counts=self.counts,
            generated=work.generated,
            work_s=self._earlier_s + self.work_s,
            output_tokens_per_s=rate,
            eta_s=(self.rows - self.counts.done) / rows_per_s if rows_per_s else None,
            cached_share=work.cached_tokens / work.prompt_tokens if work.prompt_tokens else None,
            message=self.message,
        )

    # -- on the loop ----------------------------------------------------------

    async def work(self) -> None:
        """Do the pending rows, or only so many. Ends in finished, failed or the state that `stop` was given.

        A full disk pauses the work until there is room. Raises nothing but a bug.
        """
        self._task = asyncio.current_task()
        try:
            while True:
                try:
                    await self._stretch()
                    break
                except (WorkbenchError, duckdb.Error, OSError) as error:
                    if self._stopping or not disk.is_full(error):
                        raise
                    await self._wait_for_room()
            self.state, self.message = "finished", ""
            if self.counts.done < self.rows:
                self.state, self.message = "stopped", f"Tried {self._only_rows:,} rows."
        except asyncio.CancelledError:
            self.state, self.message = self._end
        except (WorkbenchError, OSError, duckdb.Error) as error:
            _log.error("run %s: %s", self.run.run_id, error)
            self.state, self.message = "failed", str(error)
        except BaseException:
            self.state, self.message = "failed", "An unexpected error; the log has it."
            raise
        finally:
            await self._in_reader(lambda: None)  # what a stop cut off there must not outlive the turn
            self._close()

    async def stop(self, state: RunState, message: str) -> None:
        """Cancel the work, which then ends in `state`; the caller waits for that elsewhere."""
        if self._task is not None and not self._stopping:  # a second cancel would cut off the last flush
            self._stopping = True
            self._end = (state, message)
            self._task.cancel()

    async def _wait_for_room(self) -> None:
        """Stand still until the disk takes data again; what is generated and not kept waits in memory."""
        self.state = "paused"
        self.message = f"The disk of {self.run.folder} is full. The run goes on when there is room."
        _log.error("run %s: %s", self.run.run_id, self.message)
        self._publish()
        await disk.wait_for_room(self.run.folder)
        self.message = ""

    async def _stretch(self) -> None:
        self.state = "running"
        self._publish()
        connection = await self._in_reader(self.run.open_database)
        reader, writer = connection.cursor(), connection.cursor()
        try:
            await self._work(reader, writer)
        finally:
            if self._work_started is not None:
                self._worked_s, self._work_started = self.work_s, None
            # on their own threads, behind what a stop cut off there; each by name: one that is
            # left open, if only in a traceback, keeps other processes from the run
            reader.interrupt()
            await self._in_reader(reader.close)
            await self._keeper.release(writer)
            connection.close()

    async def _work(self, reader: duckdb.DuckDBPyConnection, writer: duckdb.DuckDBPyConnection) -> None:
        engine = await self._runtime.wait_engine()
        await self._in_reader(self._note_model, engine)
        self._work_started = time.monotonic()
        self.message = "Planning the order of the rows."
        plan = await self._in_reader(self._plan, reader, engine)
        self.message = ""
        if plan.duplicates:
            await self._in_reader(results.share_kept, reader)
        if self._keeper.waiting:  # a commit that a full disk reported as failed may have been kept
            self._keeper.forget(await self._in_reader(results.kept_rows, reader, self._keeper.waiting))
        counts = await self._in_reader(results.read_counts, reader)
        self._keeper.begin(
            writer,
            counts,
            replace=await self._in_reader(results.any_stale, reader),
            share=plan.duplicates > 0,
            look=self._look,
            publish=self._publish,
        )
        await self._keeper.flush()  # what a full disk refused before: those rows are done
        pending = await self._in_reader(plans.pending, reader)
        if self._only_rows is not None:
            pending = pending[: self._only_rows - self._keeper.taken]
        self._preparer = await self._in_reader(self._make_preparer, reader, engine, plan)
        ended = asyncio.Event()
        flusher = asyncio.create_task(self._keeper.flush_often(ended))
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
            if self._tail_started is not None:
                self._tail_s, self._tail_started = time.monotonic() - self._tail_started, None
        await work
        if self.counts.done < self.rows and self._only_rows is None:
            raise RunError(f"{self.rows - self.counts.done:,} rows have no result.", hint="Resume the run.")

    def _in_reader(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._reader, function, *args)

    def _plan(self, reader: duckdb.DuckDBPyConnection, engine: Engine) -> PlanInfo:
        return plan_run(reader, self._spec, self._params, engine)

    def _make_preparer(self, reader: duckdb.DuckDBPyConnection, engine: Engine, plan: PlanInfo) -> Preparer:
        self._columns = tables.info(reader).columns  # once: it costs as much as encoding a chunk
        recipe = Recipe(self._spec.prompt, self._columns)
        asked = (recipe, self._columns, engine, self._params, self._spec.overflow, plan.field_orders)
        return Preparer(*asked, registered(self._store))

    async def _follow(self, item: Item, answer: str) -> Item | Result:
        return await self._in_reader(self._preparer.follow, item, answer)

    async def _generate_all(self, reader: Any, pending: Any, engine: Engine) -> None:
        """Feed rows to as many workers as the engine takes at once; then the suspects, one by one."""
        queue: asyncio.Queue[Item | None] = asyncio.Queue(maxsize=2 * _CHUNK_ROWS)
        slots, rows = engine.info.batch_slots, max(1, len(pending))
        slots, workers = min(slots, rows), min(slots + engine.info.batch_ahead, rows)
        self._suspects.clear()  # those from before a full disk are pending again
        self._tail_started = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(reader, pending, queue, workers))
                for _worker in range(workers):
                    group.create_task(self._serve(queue, slots))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # the others met the same: the engine is gone
        for item in self._suspects:
            await self._generate(item, deaths_allowed=0)

    async def _feed(self, reader: Any, pending: Any, queue: Any, workers: int) -> None:
        for start in range(0, len(pending), _CHUNK_ROWS):
            for ready in await self._in_reader(self._prepare, reader, pending[start : start + _CHUNK_ROWS]):
                if isinstance(ready, Result):
                    self._keeper.add(ready, generated=False)
                else:
                    await queue.put(ready)
        for _worker in range(workers):
            await queue.put(None)

    def _prepare(self, reader: duckdb.DuckDBPyConnection, positions: Any) -> list[Item | Result]:
        """Rows ready for the engine, and results of those that need none: bad rows, answers that hold."""
        rows = plans.read(reader, self._columns, positions, self._preparer.variables)
        ready = self._preparer.prepare(rows)
        if not self._keeper.replaces:
            return ready
        kept = results.still_valid(reader, [item.asked for item in ready if isinstance(item, Item)])
        return [kept.get(entry.row, entry) for entry in ready]

    async def _serve(self, queue: Any, slots: int) -> None:
        while (item := await queue.get()) is not None:
            self._busy += 1
            try:
                await self._generate(item, deaths_allowed=1)
            finally:
                self._busy -= 1
        # the queue is at its end: from here on the batch only gets emptier
        if self._busy < slots / 2 and self._tail_started is None:
            self._tail_started = time.monotonic()

    async def _generate(self, item: Item, *, deaths_allowed: int) -> None:
        """One row to its result. A row that saw the engine die too often is set aside, then blamed."""
        deaths = 0
        while True:
            try:
                self._keeper.add(await self._answered(item))
            except EngineDied as error:
                deaths += 1
                if deaths <= deaths_allowed:
                    continue
                if deaths_allowed:
                    self._suspects.append(item)
                else:
                    message = f"The engine died while it answered this row alone: {error.message}"
                    self._keeper.add(Result(row=item.row, status="error", error=message))
            return

    async def _answered(self, item: Item) -> Result:
        async with self._runtime.slots.held(Priority.BATCH):
            engine = await self._runtime.wait_engine()
            self._check_model(engine)  # somebody may have loaded another one
            return await self._answerer.answer(item, engine)

    def _look(self) -> tuple[EngineStats, float, float]:
        status = self._runtime.status()
        return status.stats, status.output_tokens_per_s, self._earlier_s + self.work_s

    def _note_model(self, engine: Engine) -> None:
        """Write down what answers, and the parameters with the model's own defaults filled in."""
        self._spec = self.run.spec
        self._check_model(engine)
        check_asked(self._spec.prompt, engine.info, registered(self._store))
        info = engine.info
        params = {**sampling.defaults(info.generation_config), **self._spec.params}
        self._params = sampling.validate(params)
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
        self._spec = self.run.update(model=model, engine=engine.spec, params=self._params, machine=described)
        self._store.update_run(self.run.run_id, model=info.model)

    def _check_model(self, engine: Engine) -> None:
        """Raise RunError when earlier rows were answered by another model: one table, one model."""
        begun = self._spec.model
        if begun is not None and begun.name != engine.info.model:
            raise RunError(
                f"The run was begun with {begun.name}, and {engine.info.model} is loaded.",
                hint=f"Load {begun.name} and resume, or start a new run.",
            )

    def _publish(self) -> None:
        """Tell the catalogue. Seconds of work add up over the stretches."""
        at_work = self.state in ("queued", "running") or (self.state == "paused" and not self._stopping)
        owner = this_process() if at_work else {"owner_pid": None, "owner_started": None}
        try:
            self._store.update_run(
                self.run.run_id,
                state=self.state,
                message=self.message,
                wall_s=self._earlier_s + self.work_s,
                **asdict(self.counts),
                **owner,
            )
            self.told = True
        except WorkbenchError as error:
            # the catalogue only repeats what the run's folder holds; it is told again at the next flush
            self.told = False
            _log.error("run %s: the catalogue can't be written: %s", self.run.run_id, error)

    def _close(self) -> None:
        self._reader.shutdown(wait=False)
        self._keeper.close()
        work = self._answerer.work
        session = SessionSpec(
            started_at=self._started_at,
            state=self.state,
            generated=work.generated,
            prompt_tokens=work.prompt_tokens,
            output_tokens=work.output_tokens,
            cached_tokens=work.cached_tokens,
            wall_s=self.work_s,
            tail_s=self._tail_s,
        )
        try:
            self.run.update(sessions=(*self.run.spec.sessions, session))
        except OSError as error:
            # a full disk; the rows are kept, and only the figures of this stretch are not
            _log.error("run %s: its run.json can't be written: %s", self.run.run_id, error)
        self._publish()
