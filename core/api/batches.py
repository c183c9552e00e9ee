"""Batches at work: each is a run like any other, and what comes out is a file of OpenAI's form.

validating -> in_progress -> finalizing -> completed, or failed; cancelling -> cancelled on the way, or
finalizing -> expired when its time is over. Every
step is written down before the next: a process that serves the API goes on where a dead one ended. A batch
waits while its model is not the one that is loaded, and while somebody has paused its run.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime as dt
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar

import duckdb

from core import disk, exports, openai_batch
from core.api.batch_lines import Checked, LineChecker
from core.api.batch_records import Batch, BatchCounts, BatchRecords, LineError
from core.api.context import ApiContext
from core.api.files import Files
from core.api.models import ModelNames
from core.api.openai_errors import HttpError
from core.errors import RunBusy, TableError, WorkbenchError
from core.run_spec import Instructions
from core.store import RunRecord
from core.types import EngineInfo

T = TypeVar("T")

_LOOK_EVERY_S = 0.3
_COUNT_ANEW = dt.timedelta(seconds=1)
_TAKE_OVER_EVERY_S = 15.0
_CLOSE_PATIENCE_S = 10.0
_STOPPED_ELSEWHERE = "The run was stopped on the Batch page or the command line."
_log = logging.getLogger(__name__)


class _Closing(Exception):
    """The server ends; what is being read or written is left for the next start."""


class Batches:
    """Works on all batches that no other process works on, from `start` to `close`."""

    def __init__(self, context: ApiContext, files: Files, names: ModelNames) -> None:
        self.records = BatchRecords(context.store)
        self._runtime = context.runtime
        self._store = context.store
        self._jobs = context.jobs
        self._files = files
        self._names = names
        self._closing = threading.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}  # on the loop only
        self._spent: dict[str, tuple[dt.datetime, int]] = {}
        self._watcher: concurrent.futures.Future[None] | None = None
        # whole files are read and written here: not in the loop's own pool, where others would wait
        self._reader = concurrent.futures.ThreadPoolExecutor(2, "api-batch")

    def start(self) -> None:
        """Go on with what is open. Returns at once."""
        self._watcher = self._runtime.spawn(self._watch())

    def close(self) -> None:
        """End the work; runs at work go on in the queue of this process. Not on the loop; safe twice."""
        self._closing.set()
        if self._watcher is not None:
            self._watcher.cancel()
            concurrent.futures.wait([self._runtime.spawn(self._end_all())], timeout=_CLOSE_PATIENCE_S)
        self._reader.shutdown(wait=True, cancel_futures=True)

    def take(self, batch_id: str) -> None:
        """Work on this batch, if nobody else does. On the loop; returns at once."""
        if batch_id not in self._tasks and not self._closing.is_set():
            task = asyncio.create_task(self._work(batch_id))
            self._tasks[batch_id] = task
            task.add_done_callback(lambda _task: self._tasks.pop(batch_id, None))

    def counts(self, batch: Batch) -> BatchCounts:
        """How far it is now. Blocks."""
        if batch.has_ended or batch.status == "validating" or batch.run_id is None:
            return batch.counts
        record = self._store.run(batch.run_id)
        if record is None:
            return batch.counts
        counts = self._jobs().progress(batch.run_id).counts
        return BatchCounts(total=record.rows, completed=counts.ok, failed=counts.errors + counts.skipped)

    def tokens_today(self, key_id: str) -> int:
        """Tokens of the key's batches that were made since midnight UTC; a second old at most."""
        now = dt.datetime.now(dt.UTC)
        counted_at, tokens = self._spent.get(key_id, (None, 0))
        if counted_at is None or now - counted_at > _COUNT_ANEW:
            midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
            tokens = self.records.tokens_since(midnight, key_id)
            self._spent[key_id] = (now, tokens)
        return tokens

    # -- on the loop ------------------------------------------------------------

    async def _watch(self) -> None:
        """Take what is open, now and when the process dies that worked on it."""
        while True:
            try:
                for batch in await asyncio.to_thread(self.records.open):
                    self.take(batch.batch_id)
            except Exception:  # a catalogue that can't be read now must not end the watch
                _log.exception("Open batches could not be looked for")
            await asyncio.sleep(_TAKE_OVER_EVERY_S)

    async def _end_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _work(self, batch_id: str) -> None:
        """Step by step to the batch's end, whatever goes wrong on the way."""
        steps = {"validating": self._validate, "in_progress": self._run}
        try:
            batch = await asyncio.to_thread(self.records.claim, batch_id)
            while batch is not None and not batch.has_ended:
                batch = await self._patiently(batch, steps.get(batch.status, self._finish))
        except _Closing:
            return
        except HttpError as error:  # it is gone from the catalogue
            _log.error("batch %s: %s", batch_id, error.message)
        except Exception:
            _log.exception("batch %s: its end could not be written down", batch_id)

    async def _patiently(self, batch: Batch, step: Callable[[Batch], Coroutine[Any, Any, Batch]]) -> Batch:
        """The batch after a step. A full disk is waited for; any other error is the batch's end."""
        try:
            return await step(batch)
        except (_Closing, HttpError):
            raise
        except Exception as error:
            if disk.is_full(error):
                _log.error("batch %s waits for room on the disk: %s", batch.batch_id, error)
                await disk.wait_for_room(self._runtime.settings.home)
                return await self._now(batch)
            known = isinstance(error, WorkbenchError | OSError | duckdb.Error)
            if not known:
                _log.exception("batch %s", batch.batch_id)
            message = str(error) if known else "An unexpected error; the server's log has it."
            return await self._fail(batch, LineError(code="batch_failed", message=message))

    async def _now(self, batch: Batch) -> Batch:
        """The batch as others may have changed it. Raises HttpError when it is gone."""
        found = await asyncio.to_thread(self.records.find, batch.batch_id)
        if found is None:
            raise HttpError(404, "It was removed.")
        return found

    async def _change(self, batch: Batch, **values: Any) -> Batch:
        return await asyncio.to_thread(self.records.change, batch.batch_id, **values)

    async def _heavy(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, function, *args)

    async def _fail(self, batch: Batch, error: LineError) -> Batch:
        _log.error("batch %s: %s", batch.batch_id, error.message)
        return await self._change(batch, status="failed", errors=(error, *batch.errors))

    # -- the steps: each gives the batch as it is afterwards ----------------------

    async def _validate(self, batch: Batch) -> Batch:
        if batch.run_id is None:
            try:
                run_id = await self._heavy(self._stage, batch)
            except TableError as error:
                return await self._fail(
                    batch, LineError(code="invalid_request_file", message=str(error), line=error.line)
                )
            except HttpError as error:
                return await self._fail(batch, LineError(code="invalid_request_file", message=error.message))
            batch = await self._change(batch, run_id=run_id)
        info = await self._engine_info(batch) if batch.status == "validating" else None
        if info is None:
            return await self._now(batch)
        found = await self._heavy(self._check, batch)
        is_usable = found.bad_lines < found.rows
        if is_usable:
            await asyncio.to_thread(self._configure, batch, found)
        batch = await self._change(
            batch,
            only_in=("validating",),
            status="in_progress" if is_usable else "failed",
            model=info.model,
            errors=found.errors,
            bad_lines=found.bad_lines,
            counts=BatchCounts(total=found.rows, failed=0 if is_usable else found.rows),
        )
        if batch.status == "failed":
            await asyncio.to_thread(self._delete_run, batch)
        return batch

    async def _run(self, batch: Batch) -> Batch:
        """Start the run, and again after a restart, until it has ended or the batch is cancelled."""
        done_at_start = None
        while True:
            batch = await self._now(batch)
            record = await asyncio.to_thread(self._store.run, batch.run_id)
            if batch.status != "in_progress":
                return batch
            if record is None:
                return await self._fail(batch, LineError(code="run_deleted", message="Its run was deleted."))
            if record.state == "finished":
                return await self._change(batch, status="finalizing", only_in=("in_progress",))
            if record.state == "stopped":
                error = LineError(code="run_stopped", message=_STOPPED_ELSEWHERE)
                values = {"status": "cancelling", "errors": (error, *batch.errors)}
                return await self._change(batch, only_in=("in_progress",), **values)
            if batch.is_late:
                return await self._expire(batch)
            if record.is_at_work or record.state == "paused":
                await asyncio.sleep(_LOOK_EVERY_S)
            elif record.state == "failed" and record.done == done_at_start and self._is_loaded(batch):
                # with its own model loaded, and no row further than when it was started
                error = LineError(code="run_failed", message=record.message)
                values = {"status": "finalizing", "errors": (error, *batch.errors)}
                return await self._change(batch, only_in=("in_progress",), **values)
            elif await self._engine_info(batch) is not None:
                done_at_start = record.done
                await self._start_run(batch)

    async def _start_run(self, batch: Batch) -> None:
        try:
            await asyncio.to_thread(lambda: self._jobs().start(batch.run_id))
        except RunBusy:  # another process has just begun it
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _expire(self, batch: Batch) -> Batch:
        """End it with what is done."""
        return await self._change(
            batch, status="finalizing", is_over=True, only_in=("validating", "in_progress")
        )

    async def _finish(self, batch: Batch) -> Batch:
        """Write what there is, and end the batch: completed, cancelled, expired, or failed if its run has."""
        unbegun = "expired" if batch.is_over else "cancelled"
        if batch.run_id is None:
            return await self._change(batch, status=unbegun)
        record = await self._ended_run(batch)
        if record is None:
            return await self._fail(batch, LineError(code="run_deleted", message="Its run was deleted."))
        if record.state == "draft":  # it never began
            was_checked = batch.is_over and batch.model is not None
            files = await self._heavy(self._write, batch) if was_checked else {}
            await asyncio.to_thread(self._delete_run, batch)
            return await self._change(batch, status=unbegun, run_id=None, **files)
        while True:
            try:
                files = await self._heavy(self._write, batch)
                break
            except RunBusy:  # somebody exports it
                await asyncio.sleep(_LOOK_EVERY_S)
        ended = "expired" if batch.is_over else "failed" if record.state == "failed" else "completed"
        status = "cancelled" if batch.status == "cancelling" else ended
        return await self._change(batch, status=status, **files)

    async def _ended_run(self, batch: Batch) -> RunRecord | None:
        """Its run when nobody works on it any more; None when it was deleted."""
        while True:
            record = await asyncio.to_thread(self._store.run, batch.run_id)
            if record is None or not (record.is_at_work or record.state == "paused"):
                return record
            await asyncio.to_thread(lambda: self._jobs().stop(batch.run_id))
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _engine_info(self, batch: Batch) -> EngineInfo | None:
        """Of the engine, once the batch's model is loaded; None when the batch was ended meanwhile."""
        status = batch.status
        while not self._is_loaded(batch):
            await asyncio.sleep(_LOOK_EVERY_S)
            now = await self._now(batch)
            if now.is_late:
                now = await self._expire(now)
            if now.status != status:
                return None
        return self._runtime.status().info

    def _is_loaded(self, batch: Batch) -> bool:
        info = self._runtime.status().info
        return info is not None and batch.model in (None, info.model)

    # -- on the reader's threads --------------------------------------------------

    def _go_on(self, *_progress: Any) -> None:
        if self._closing.is_set():
            raise _Closing

    def _stage(self, batch: Batch) -> str:
        file = self._files.find(batch.input_file_id, batch.key_id)
        path, name = self._files.path(file), f"{batch.filename} (API)"
        return self._jobs().stage(path, name=name, on_progress=self._go_on).run_id

    def _check(self, batch: Batch) -> Checked:
        run = self._jobs().open(batch.run_id)
        return LineChecker(run, batch.endpoint, self._names, self._go_on).check()

    def _delete_run(self, batch: Batch) -> None:
        self._jobs().delete(batch.run_id)

    def _configure(self, batch: Batch, found: Checked) -> None:
        run = self._jobs().open(batch.run_id)
        run.configure(Instructions(mode="openai", batch_lines=found.allowed))

    def _write(self, batch: Batch) -> dict[str, Any]:
        """Write the output file and the error file; gives the fields of the batch that follow from them.

        Their ids follow from the batch's: written again after a kill, they are the same files.
        """
        run = self._jobs().open(batch.run_id)
        names = ("output", "error")
        paths = {name: self._files.new_path() for name in names}
        lines = dict.fromkeys(names, 0)
        with ExitStack() as stack:
            connection = stack.enter_context(run.connect())
            files = {
                name: stack.enter_context(path.open("w", encoding="utf-8")) for name, path in paths.items()
            }
            for row in exports.openai_rows(connection, run.spec):
                self._go_on()
                if row["status"] is None and batch.is_over:
                    row["status"] = "expired"
                name = "output" if row["status"] == "ok" else "error"
                files[name].write(openai_batch.result_line(**row) + "\n")
                lines[name] += 1
        values: dict[str, Any] = {}
        for name, path in paths.items():
            if not lines[name]:
                path.unlink()
                continue
            file = self._files.add(
                path,
                key_id=batch.key_id,
                filename=f"{batch.batch_id}_{name}.jsonl",
                purpose="batch_output",
                file_id=f"file-{batch.batch_id.removeprefix('batch_')}{name}",
            )
            values[f"{name}_file_id"] = file.file_id
        counts = run.counts()
        failed = counts.errors + counts.skipped
        total = run.spec.input.rows
        return {**values, "counts": BatchCounts(total=total, completed=counts.ok, failed=failed)}
