"""The queue of batch runs: stage, start, stop, watch."""

from __future__ import annotations

import asyncio
import concurrent.futures
import shutil
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core import tables
from core.batch import BatchJob, Progress
from core.errors import RunBusy, RunError
from core.results import Counts
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
    """The runs of this process: one works at a time, the others wait their turn in order."""

    def __init__(self, runtime: Runtime, store: Store) -> None:
        self._runtime = runtime
        self._store = store
        self._runs_dir = runtime.settings.runs_dir
        self._turn = asyncio.Lock()
        self._lock = threading.Lock()
        self._stagers = concurrent.futures.ThreadPoolExecutor(2, "stage")
        self._jobs: dict[str, tuple[BatchJob, concurrent.futures.Future[None]]] = {}

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
        return run_id in self._jobs and not self._jobs[run_id][1].done()

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

    def start(self, run_id: str) -> None:
        """Do the run's pending rows, now or when its turn comes. Raises RunNotFound, RunBusy, RunError."""
        with self._lock:
            if self.is_here(run_id):
                return
            run = self.open(run_id)
            record = self._store.run(run_id)
            if record.state in ("running", "queued"):
                raise RunBusy(
                    f"Run {run_id} is at work in process {record.owner_pid}.", hint="Stop it there first."
                )
            run.recipe()
            job = BatchJob(run, self._runtime, self._store, _counts(record))
            self._jobs[run_id] = (job, self._runtime.spawn(job.work(self._turn)))

    def stop(self, run_id: str) -> None:
        """End the work on a run soon; its answers are kept and `start` goes on from there."""
        self._stop(run_id, "stopped", "Stopped; what is done is kept.")

    def _stop(self, run_id: str, state: RunState, message: str) -> None:
        with self._lock:
            if self.is_here(run_id):
                # not future.cancel(): that would call it done before its last answers are kept
                self._runtime.spawn(self._jobs[run_id][0].stop(state, message))

    def wait(self, run_id: str, timeout_s: float | None = None) -> Progress:
        """Block until the work on the run has ended. Raises TimeoutError."""
        job, future = self._jobs[run_id]
        future.result(timeout_s)
        return job.progress()

    def progress(self, run_id: str) -> Progress:
        """Of a run at work here from memory, of any other from the catalogue. Raises RunNotFound."""
        if self.is_here(run_id):
            return self._jobs[run_id][0].progress()
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
        if self.progress(run_id).state in ("running", "queued"):
            raise RunError(f"Run {run_id} is at work.", hint="Stop it first.")
        self.open(run_id).delete()
        self._store.delete_run(run_id)
        self._jobs.pop(run_id, None)

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
        for run_id in list(self._jobs):
            self._stop(run_id, "interrupted", "The workbench was closed; resume goes on from here.")
        concurrent.futures.wait([future for _job, future in self._jobs.values()], timeout=_CLOSE_PATIENCE_S)


def _counts(record: RunRecord) -> Counts:
    return Counts(record.ok, record.errors, record.skipped, record.prompt_tokens, record.output_tokens)
