"""The queue of batch runs: stage, start, pause, stop, watch.

One run works at a time. The others wait in the order of their priority, and
of their start where it is the same; a start or a change of priority that puts
a run before the one at work makes that one step back, with its answers kept.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core import tables
from core.batch import BatchJob, Progress
from core.errors import RunBusy, RunError, WorkbenchError
from core.results import Counts
from core.runs import Run
from core.runtime import Runtime
from core.store import RunRecord, RunState, Store, this_process

_CLOSE_PATIENCE_S = 10.0
_LEFT_BEHIND_S = 24 * 3600.0
_NO_OWNER: Mapping[str, Any] = MappingProxyType({"owner_pid": None, "owner_started": None})
_log = logging.getLogger(__name__)


class RunPriority(enum.IntEnum):
    """Whose turn comes first. Among the requests of the engine itself, every run is behind every chat."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEntry:
    """A run that works, waits or was paused. `position` counts from 1; None for a paused one.

    `is_ending`: it was asked to pause, stop or step back, and keeps its last answers now.
    """

    run_id: str
    name: str
    state: RunState
    priority: RunPriority
    position: int | None
    is_ending: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class _Entry:
    """A run from its start to its end, over as many turns as that takes."""

    run: Run
    name: str
    priority: RunPriority
    rows: int | None
    ticket: int
    tried: int = 0
    job: BatchJob | None = None  # of its latest turn
    asked: tuple[RunState, str] | None = None  # how its turn shall end, once somebody has asked
    ended: concurrent.futures.Future[None] = field(default_factory=concurrent.futures.Future)

    @property
    def place(self) -> tuple[int, int]:
        """Sorts entries in the order of their turns."""
        return -self.priority, self.ticket


class Staging:
    """A file being read in the background: `rows` and `share` (0 to 1) so far, `future` gives the run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0
        self.share = 0.0
        self.future: concurrent.futures.Future[Run]

    def report(self, rows: int, share: float) -> None:
        self.rows, self.share = rows, share


class Jobs:
    """The runs of this process, shared by all browser sessions. Call from any thread."""

    def __init__(self, runtime: Runtime, store: Store) -> None:
        self._runtime = runtime
        self._store = store
        self._runs_dir = runtime.settings.runs_dir
        self._stagers = concurrent.futures.ThreadPoolExecutor(2, "stage")
        self._lock = threading.Lock()  # guards all below
        self._entries: dict[str, _Entry] = {}  # also those that have ended, for `wait`
        self._at_work: _Entry | None = None
        self._working_through = False
        self._closed = False
        self._tickets = 0

    def stage(self, source: Path, **options: Any) -> Run:
        """Read a file into a new draft; `options` as for `Run.stage`. Raises TableError."""
        run = Run.stage(self._runs_dir, source, **options)
        spec = run.spec
        self._store.add_run(
            RunRecord(
                run_id=run.run_id,
                created_at=spec.created_at,
                name=spec.input.name,
                state="draft",
                rows=spec.input.rows,
            )
        )
        return run

    def stage_later(self, source: Path, *, name: str, options: tables.ReadOptions | None = None) -> Staging:
        """As `stage`, without waiting for it."""
        staging = Staging(name)
        staging.future = self._stagers.submit(
            self.stage, source, name=name, options=options, on_progress=staging.report
        )
        return staging

    def is_here(self, run_id: str) -> bool:
        """Whether this process works on the run, or has it in its queue."""
        return self._here(run_id) is not None

    def open(self, run_id: str) -> Run:
        """Raises RunNotFound. A folder copied from elsewhere joins the catalogue here."""
        run = Run.open(self._runs_dir, run_id)
        if self._store.run(run_id) is None:
            spec, counts = run.spec, run.counts()
            state: RunState = "finished" if counts.done == spec.input.rows else "stopped"
            self._store.add_run(
                RunRecord(
                    run_id=run_id,
                    created_at=spec.created_at,
                    name=spec.input.name,
                    state=state,
                    model=spec.model.name if spec.model else "",
                    rows=spec.input.rows,
                    wall_s=sum(session.wall_s for session in spec.sessions),
                    **asdict(counts),
                )
            )
        return run

    # -- the queue ------------------------------------------------------------

    def start(self, run_id: str, *, priority: RunPriority | None = None, rows: int | None = None) -> None:
        """Do the run's pending rows, now or when its turn comes. Raises RunNotFound, RunBusy, RunError.

        With `rows`, try only so many of them; the run is stopped then. Without `priority` it keeps its own.
        """
        with self._lock:
            entry = self._here(run_id)
            if entry is None:
                self._enter(run_id, priority, rows)
            else:
                if priority is not None:
                    self._prioritise(entry, priority)
                if entry.asked is not None and not self._closed:  # about to end: it goes on instead
                    entry.asked = ("queued", "")
            self._reconsider()

    def pause(self, run_id: str) -> None:
        """End the work on a run soon, until `start`; its answers are kept, and the queue goes on."""
        self._ask(run_id, "paused", "Paused; what is done is kept.")

    def stop(self, run_id: str) -> None:
        """Take a run from the queue soon; its answers are kept and `start` goes on from there."""
        message = "Stopped; what is done is kept."
        if not self._ask(run_id, "stopped", message):
            record = self._store.run(run_id)
            if record is not None and record.state == "paused" and not record.is_at_work:
                self._store.update_run(run_id, state="stopped", message=message)

    def set_priority(self, run_id: str, priority: RunPriority) -> None:
        """From now on; of a run that is not in the queue, for its next start. Raises RunNotFound."""
        self.open(run_id)
        with self._lock:
            self._store.update_run(run_id, priority=int(priority))
            entry = self._here(run_id)
            if entry is not None:
                entry.priority = priority
                self._reconsider()

    def queue(self) -> list[QueueEntry]:
        """The run at work, those that wait in the order of their turns, then the paused ones."""
        with self._lock:
            first = [self._at_work] if self._at_work else []
            entries = [
                QueueEntry(
                    run_id=entry.run.run_id,
                    name=entry.name,
                    state=entry.job.state if entry is self._at_work and entry.job else "queued",
                    priority=entry.priority,
                    position=position,
                    is_ending=entry.asked is not None,
                )
                for position, entry in enumerate([*first, *self._waiting()], start=1)
            ]
        paused = [
            QueueEntry(
                run_id=record.run_id,
                name=record.name,
                state="paused",
                priority=RunPriority(record.priority),
                position=None,
            )
            for record in self._store.runs_in_state("paused")
            if not record.is_at_work
        ]
        here = {entry.run_id for entry in entries}
        return entries + [entry for entry in paused if entry.run_id not in here]

    def wait(self, run_id: str, timeout_s: float | None = None) -> Progress:
        """Block until the run has left the queue, paused or for good. Raises TimeoutError."""
        entry = self._entries[run_id]
        entry.ended.result(timeout_s)
        return entry.job.progress() if entry.job else self.progress(run_id)

    def progress(self, run_id: str) -> Progress:
        """Of the run at work here from memory, of any other from the catalogue. Raises RunNotFound."""
        entry = self._at_work
        if entry is not None and entry.run.run_id == run_id and entry.job is not None:
            return entry.job.progress()
        record = self._store.run(run_id)
        if record is None:
            self.open(run_id)
            record = self._store.run(run_id)
        return Progress(
            run_id=run_id,
            state=record.state,
            rows=record.rows,
            counts=_counts(record),
            generated=0,
            work_s=record.wall_s,
            output_tokens_per_s=record.output_tokens / record.wall_s if record.wall_s else None,
            eta_s=None,
            message=record.message,
        )

    def delete(self, run_id: str) -> None:
        """Remove a run that is not at work, with everything in its folder."""
        if self.is_here(run_id) or self.progress(run_id).state in ("running", "queued"):
            raise RunError(f"Run {run_id} is at work.", hint="Stop it first.")
        self.open(run_id).delete()
        self._store.delete_run(run_id)
        self._entries.pop(run_id, None)

    def sweep(self) -> None:
        """Remove uploads and half-staged folders that were left behind over a day ago.

        A staged table has its data in its run; the uploaded file only serves to read it differently.
        """
        settings = self._runtime.settings
        unfinished = [entry for entry in settings.runs_dir.iterdir() if not (entry / "run.json").exists()]
        for entry in [*settings.uploads_dir.iterdir(), *unfinished]:
            if time.time() - entry.stat().st_mtime > _LEFT_BEHIND_S:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def close(self) -> None:
        """Stop everything and wait until it is kept."""
        self._stagers.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            entries = list(self._entries.values())
        for entry in entries:
            self._ask(entry.run.run_id, "interrupted", "The workbench was closed; resume goes on from here.")
        concurrent.futures.wait([entry.ended for entry in entries], timeout=_CLOSE_PATIENCE_S)

    # -- under the lock ---------------------------------------------------------

    def _here(self, run_id: str) -> _Entry | None:
        entry = self._entries.get(run_id)
        return None if entry is None or entry.ended.done() else entry

    def _waiting(self) -> list[_Entry]:
        waiting = [
            entry for entry in self._entries.values() if not entry.ended.done() and entry is not self._at_work
        ]
        return sorted(waiting, key=lambda entry: entry.place)

    def _enter(self, run_id: str, priority: RunPriority | None, rows: int | None) -> None:
        if self._closed:
            raise RunError(f"Run {run_id} is not started: the workbench is closing.")
        run = self.open(run_id)
        record = self._store.run(run_id)
        if record.is_at_work and record.owner_pid != os.getpid():
            raise RunBusy(
                f"Run {run_id} is at work in process {record.owner_pid}.", hint="Stop it there first."
            )
        run.recipe()
        priority = RunPriority(record.priority) if priority is None else priority
        self._tickets += 1
        entry = _Entry(run=run, name=record.name, priority=priority, rows=rows, ticket=self._tickets)
        self._store.update_run(run_id, state="queued", message="", priority=int(priority), **this_process())
        self._entries[run_id] = entry

    def _prioritise(self, entry: _Entry, priority: RunPriority) -> None:
        self._store.update_run(entry.run.run_id, priority=int(priority))
        entry.priority = priority

    def _reconsider(self) -> None:
        """Begin to work, or let a run of higher priority take the turn."""
        waiting, at_work = self._waiting(), self._at_work
        if waiting and not self._working_through:
            self._working_through = True
            self._runtime.spawn(self._work_through())
        elif waiting and at_work and at_work.asked is None and waiting[0].priority > at_work.priority:
            self._end_turn(at_work, "queued", "")

    def _ask(self, run_id: str, state: RunState, message: str) -> bool:
        """End a run in `state`, at once if it only waits; whether it is here at all."""
        with self._lock:
            entry = self._here(run_id)
            if entry is None:
                return False
            if entry is self._at_work:
                self._end_turn(entry, state, message)
            else:
                self._end(entry, state, message)
            return True

    def _end_turn(self, entry: _Entry, state: RunState, message: str) -> None:
        entry.asked = (state, message)
        # not task.cancel(): that would call it done before its last answers are kept
        self._runtime.spawn(self._stop_job(entry, state, message))

    def _end(self, entry: _Entry, state: RunState, message: str) -> None:
        """The run leaves the queue. What its job has said itself isn't said again."""
        try:
            if entry.job is None or (entry.job.state, entry.job.message) != (state, message):
                self._store.update_run(entry.run.run_id, state=state, message=message, **_NO_OWNER)
        finally:
            if entry.job is not None:
                entry.job.state, entry.job.message = state, message
            entry.ended.set_result(None)

    def _settle(self, entry: _Entry, state: RunState, message: str) -> None:
        """After a turn: the run ends, or waits for its next one."""
        if entry.asked is not None and state not in ("finished", "failed"):
            state, message = entry.asked
        if entry.rows is not None and entry.tried >= entry.rows and state in ("queued", "stopped"):
            state, message = "stopped", f"Tried {entry.rows:,} rows."
        entry.asked = None
        if state != "queued":
            self._end(entry, state, message)
        elif entry.job is not None and entry.job.state != "queued":
            self._store.update_run(entry.run.run_id, state="queued", message="", **this_process())

    # -- on the loop ------------------------------------------------------------

    async def _work_through(self) -> None:
        """Give the runs their turns until none waits."""
        while True:
            with self._lock:
                waiting = self._waiting()
                if not waiting:
                    self._working_through = False
                    return
                self._at_work = waiting[0]
            # a task of its own: to stop the work is to cancel its task
            await asyncio.wait({asyncio.create_task(self._take_turn(waiting[0]))})

    async def _take_turn(self, entry: _Entry) -> None:
        """Whatever goes wrong in it ends this run, never the queue."""
        try:
            counts = _counts(self._store.run(entry.run.run_id))
            only_rows = None if entry.rows is None else entry.rows - entry.tried
            entry.job = BatchJob(entry.run, self._runtime, self._store, counts, only_rows=only_rows)
            await entry.job.work()
            entry.tried += max(0, entry.job.counts.done - counts.done)
            state, message = entry.job.state, entry.job.message
        except Exception as error:
            _log.exception("run %s", entry.run.run_id)
            known = isinstance(error, WorkbenchError)
            state, message = "failed", str(error) if known else "An unexpected error; the log has it."
        with self._lock:
            self._at_work = None
            self._settle(entry, state, message)

    async def _stop_job(self, entry: _Entry, state: RunState, message: str) -> None:
        if entry.job is not None:
            await entry.job.stop(state, message)


def _counts(record: RunRecord) -> Counts:
    return Counts(record.ok, record.errors, record.skipped, record.prompt_tokens, record.output_tokens)
