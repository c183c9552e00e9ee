"""Which run works, and which come after it.

One run works at a time. The others wait in the order of their priority, and of
their start where it is the same. A start or a change of priority that puts a
run before the one at work makes that one step back: it keeps its answers and
goes on when its turn comes again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from core.batch import BatchJob, Progress
from core.errors import RunError, WorkbenchError
from core.results import Counts
from core.runs import Run
from core.runtime import Runtime
from core.store import RunRecord, RunState, Store, this_process

_log = logging.getLogger(__name__)

_TELL_AGAIN_S = 2.0


class RunPriority(enum.IntEnum):
    """Whose turn comes first. Within the engine every run is behind every chat, whatever its priority."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEntry:
    """A run that works, waits or was paused. `position` counts from 1; None for one that was paused.

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
    rows: int | None  # to try; None for all
    ticket: int
    tried: int = 0
    job: BatchJob | None = None  # of its latest turn
    asked: tuple[RunState, str] | None = None  # how its turn shall end, once somebody has asked
    ended: concurrent.futures.Future[None] = field(default_factory=concurrent.futures.Future)


class RunQueue:
    """The runs that this process works on, or will. Call from any thread."""

    def __init__(self, runtime: Runtime, store: Store) -> None:
        self._runtime = runtime
        self._store = store
        self._lock = threading.Lock()  # guards all below
        self._entries: dict[str, _Entry] = {}  # also those that have ended, for `wait`
        self._at_work: _Entry | None = None
        self._working_through = False
        self._closed = False
        self._tickets = 0

    def holds(self, run_id: str) -> bool:
        """Whether the run works or waits for its turn."""
        return self._here(run_id) is not None

    def count(self) -> int:
        """Runs that work or wait for their turn."""
        with self._lock:
            return sum(not entry.ended.done() for entry in self._entries.values())

    def enter(self, run: Run, priority: RunPriority | None, rows: int | None) -> None:
        """Queue the run, by its own priority unless one is given; `rows`: try only so many.

        Of a run that is here already, the priority is taken, a try goes on to all rows when they are
        asked for, and a stop under way is taken back.
        """
        with self._lock:
            if self._closed:
                raise RunError(f"Run {run.run_id} is not started: the workbench is closing.")
            entry = self._here(run.run_id)
            if entry is None:
                self._add(run, priority, rows)
            else:
                self._prioritise(run.run_id, entry.priority if priority is None else priority)
                if rows is None:
                    entry.rows = None
                if entry.asked is not None:
                    entry.asked = ("queued", "")
            self._reconsider()

    def set_priority(self, run_id: str, priority: RunPriority) -> None:
        """From now on; of a run that is not here, for its next start."""
        with self._lock:
            self._prioritise(run_id, priority)
            self._reconsider()

    def end(self, run_id: str, state: RunState, message: str) -> bool:
        """Take a run from the queue: at once if it waits, soon if it works. Whether it was here at all."""
        with self._lock:
            entry = self._here(run_id)
            if entry is None:
                return False
            if entry is self._at_work:
                self._end_turn(entry, state, message)
            else:
                self._end(entry, state, message)
            return True

    def wait(self, run_id: str, timeout_s: float | None = None) -> Progress | None:
        """Block until the run has left the queue; None if it never had a turn. Raises TimeoutError."""
        entry = self._entries.get(run_id)
        if entry is None:
            return None
        entry.ended.result(timeout_s)
        return entry.job.progress() if entry.job else None

    def progress(self, run_id: str) -> Progress | None:
        """Of the run at work; of any other, None."""
        entry = self._at_work
        if entry is None or entry.job is None or entry.run.run_id != run_id:
            return None
        return entry.job.progress()

    def entries(self) -> list[QueueEntry]:
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
        here = {entry.run_id for entry in entries}
        paused = [
            QueueEntry(
                run_id=record.run_id,
                name=record.name,
                state="paused",
                priority=RunPriority(record.priority),
                position=None,
            )
            for record in self._store.runs_in_state("paused")
            if not record.is_at_work and record.run_id not in here
        ]
        return entries + paused

    def forget(self, run_id: str) -> None:
        """The run is deleted."""
        with self._lock:
            self._entries.pop(run_id, None)

    def close(self, message: str, patience_s: float) -> None:
        """End every run as interrupted and wait until that is kept."""
        with self._lock:
            self._closed = True
            entries = list(self._entries.values())
        for entry in entries:
            self.end(entry.run.run_id, "interrupted", message)
        concurrent.futures.wait([entry.ended for entry in entries], timeout=patience_s)

    # -- under the lock ---------------------------------------------------------

    def _here(self, run_id: str) -> _Entry | None:
        entry = self._entries.get(run_id)
        return None if entry is None or entry.ended.done() else entry

    def _waiting(self) -> list[_Entry]:
        entries = self._entries.values()
        waiting = [entry for entry in entries if entry is not self._at_work and not entry.ended.done()]
        return sorted(waiting, key=lambda entry: (-entry.priority, entry.ticket))

    def _add(self, run: Run, priority: RunPriority | None, rows: int | None) -> None:
        record = self._store.run(run.run_id)
        priority = RunPriority(record.priority) if priority is None else priority
        self._store.update_run(
            run.run_id, state="queued", message="", priority=int(priority), **this_process()
        )
        self._tickets += 1
        self._entries[run.run_id] = _Entry(
            run=run, name=record.name, priority=priority, rows=rows, ticket=self._tickets
        )

    def _prioritise(self, run_id: str, priority: RunPriority) -> None:
        self._store.update_run(run_id, priority=int(priority))
        entry = self._here(run_id)
        if entry is not None:
            entry.priority = priority

    def _reconsider(self) -> None:
        """Begin to work, or let a run of higher priority take the turn."""
        waiting, at_work = self._waiting(), self._at_work
        if waiting and not self._working_through:
            self._working_through = True
            self._runtime.spawn(self._work_through())
        elif waiting and at_work and at_work.asked is None and waiting[0].priority > at_work.priority:
            self._end_turn(at_work, "queued", "")

    def _end_turn(self, entry: _Entry, state: RunState, message: str) -> None:
        entry.asked = (state, message)
        # not task.cancel(): that would call it done before its last answers are kept
        self._runtime.spawn(self._stop_job(entry, state, message))

    def _end(self, entry: _Entry, state: RunState, message: str) -> None:
        """The run leaves the queue. What its job has told the catalogue itself isn't told again."""
        job = entry.job
        if job is None or not job.told or (job.state, job.message) != (state, message):
            values = {"state": state, "message": message, "owner_pid": None, "owner_started": None}
            if job is not None:
                values |= {"wall_s": job.progress().work_s, **asdict(job.counts)}
                job.state, job.message = state, message
            if not self._tell(entry, values):
                self._runtime.spawn(self._tell_later(entry, values))
        entry.ended.set_result(None)

    def _tell(self, entry: _Entry, values: Mapping[str, Any]) -> bool:
        """Whether the catalogue has taken it; a full disk, say, refuses."""
        try:
            self._store.update_run(entry.run.run_id, **values)
        except WorkbenchError as error:
            _log.error("run %s: %s", entry.run.run_id, error)
            return False
        return True

    def _settle(self, entry: _Entry, state: RunState, message: str) -> None:
        """After a turn: the run ends, or waits for its next one."""
        if entry.asked is not None and state not in ("finished", "failed"):
            state, message = entry.asked  # the latest wish: it may have changed since the job was told
        if entry.rows is not None and entry.tried >= entry.rows and state in ("queued", "stopped"):
            state, message = "stopped", f"Tried {entry.rows:,} rows."
        tried_for_all = entry.job is not None and entry.job.is_try and entry.rows is None
        if tried_for_all and entry.asked is None and state == "stopped":
            state, message = "queued", ""  # all rows were asked for meanwhile
        entry.asked = None
        if state != "queued":
            self._end(entry, state, message)
        elif entry.job is not None and entry.job.state != "queued":
            self._tell(entry, {"state": "queued", "message": "", **this_process()})

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
            counts = counts_of(self._store.run(entry.run.run_id))
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

    async def _tell_later(self, entry: _Entry, values: Mapping[str, Any]) -> None:
        """Until the catalogue has taken it, the run would read as at work here."""
        while True:
            await asyncio.sleep(_TELL_AGAIN_S)
            with self._lock:  # it may have been started again, or deleted
                if self._entries.get(entry.run.run_id) is not entry or self._tell(entry, values):
                    return

    async def _stop_job(self, entry: _Entry, state: RunState, message: str) -> None:
        if entry.job is not None:
            await entry.job.stop(state, message)


def counts_of(record: RunRecord) -> Counts:
    """What the catalogue knows of a run's rows."""
    return Counts(**{column.name: getattr(record, column.name) for column in fields(Counts)})
