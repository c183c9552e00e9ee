"""The batch runs of this process: stage, start, pause, stop, watch, delete."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core import tables
from core.batch import Progress
from core.errors import RunBusy, RunError
from core.run_queue import QueueEntry, RunPriority, RunQueue, counts_of
from core.runs import Run
from core.runtime import Runtime
from core.store import RunRecord, RunState, Store

_CLOSE_PATIENCE_S = 10.0
_LEFT_BEHIND_S = 24 * 3600.0


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
    """All runs, shared by all browser sessions; which works when is up to its `RunQueue`. From any thread."""

    def __init__(self, runtime: Runtime, store: Store) -> None:
        self._runtime = runtime
        self._store = store
        self._runs_dir = runtime.settings.runs_dir
        self._stagers = concurrent.futures.ThreadPoolExecutor(2, "stage")
        self._queue = RunQueue(runtime, store)
        runtime.add_user("batch runs", self._queue.count)

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
        return self._queue.holds(run_id)

    def _is_elsewhere(self, run_id: str) -> bool:
        """Whether another process works on the run, or has it in its queue."""
        record = self._store.run(run_id)
        return record.is_at_work and record.owner_pid != os.getpid()

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

    def start(self, run_id: str, *, priority: RunPriority | None = None, rows: int | None = None) -> None:
        """Do the run's pending rows, now or when its turn comes. Raises RunNotFound, RunBusy, RunError.

        With `rows`, try only so many of them; the run is stopped then. Without `priority` it keeps its own.
        """
        run = self.open(run_id)
        if not self.is_here(run_id):
            if self._is_elsewhere(run_id):
                owner = self._store.run(run_id).owner_pid
                raise RunBusy(f"Run {run_id} is at work in process {owner}.", hint="Stop it there first.")
            run.recipe()
        self._queue.enter(run, priority, rows)

    def pause(self, run_id: str) -> None:
        """End the work on a run soon, until `start`; its answers are kept, and the others go on."""
        self._queue.end(run_id, "paused", "Paused; what is done is kept.")

    def stop(self, run_id: str) -> None:
        """Take a run from the queue soon; its answers are kept and `start` goes on from there."""
        message = "Stopped; what is done is kept."
        if not self._queue.end(run_id, "stopped", message):
            record = self._store.run(run_id)
            if record is not None and record.state == "paused" and not record.is_at_work:
                self._store.update_run(run_id, state="stopped", message=message)

    def set_priority(self, run_id: str, priority: RunPriority) -> None:
        """From now on; of a run that is not in the queue, for its next start. Raises RunNotFound."""
        self.open(run_id)
        self._queue.set_priority(run_id, priority)

    def queue(self) -> list[QueueEntry]:
        """The run at work, those that wait in the order of their turns, then the paused ones."""
        return self._queue.entries()

    def wait(self, run_id: str, timeout_s: float | None = None) -> Progress:
        """Block until the run has left the queue, paused or for good. Raises TimeoutError."""
        return self._queue.wait(run_id, timeout_s) or self.progress(run_id)

    def progress(self, run_id: str) -> Progress:
        """Of the run at work here from memory, of any other from the catalogue. Raises RunNotFound."""
        progress = self._queue.progress(run_id)
        if progress is not None:
            return progress
        record = self._store.run(run_id)
        if record is None:
            self.open(run_id)
            record = self._store.run(run_id)
        return Progress(
            run_id=run_id,
            state=record.state,
            rows=record.rows,
            counts=counts_of(record),
            generated=0,
            work_s=record.wall_s,
            output_tokens_per_s=record.output_tokens / record.wall_s if record.wall_s else None,
            eta_s=None,
            message=record.message,
        )

    def delete(self, run_id: str) -> None:
        """Remove a run that is not at work, with everything in its folder."""
        run = self.open(run_id)
        if self.is_here(run_id) or self._is_elsewhere(run_id):
            raise RunError(f"Run {run_id} is at work.", hint="Stop it first.")
        run.delete()
        self._store.delete_run(run_id)
        self._queue.forget(run_id)

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
        self._queue.close("The workbench was closed; resume goes on from here.", _CLOSE_PATIENCE_S)
