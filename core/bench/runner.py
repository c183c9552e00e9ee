"""All benchmarks of a workspace: one at a time is measured, all are kept, read, named and imported here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import machine
from core.adapters.registry import registered
from core.bench import files
from core.bench.endings import Ending, Endings
from core.bench.kept_files import KeptFiles
from core.bench.records import BenchState, BenchView, Point, PointSummary
from core.bench.spec import BenchSpec
from core.bench.store import BenchStore, file_read, to_text
from core.bench.work import BenchWork, check, title
from core.engines.base import Engine
from core.errors import BenchError, EngineDied, EngineNotReady, WorkbenchError
from core.runtime import Runtime
from core.settings import Settings
from core.store import Store

_log = logging.getLogger(__name__)
_CLOSE_PATIENCE_S = 10.0
_POLL_S = 0.1
_LONGEST_NAME = 200


class Benchmarks:
    """Every method returns at once, from any thread, but `wait`.

    A benchmark whose process died reads as "interrupted", with its finished points. One that ends while
    the disk is full has ended here at once; the catalogue hears of it when there is room.
    """

    def __init__(self, runtime: Runtime, store: Store, settings: Settings) -> None:
        self._runtime = runtime
        self._store = store
        self._kept = BenchStore(store, settings)
        self._endings = Endings(self._kept, runtime.spawn)
        self.files = KeptFiles(settings.benchmarks_dir / "files")
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._work: BenchWork | None = None
        self._future: Future[None] | None = None
        runtime.add_user("benchmarks", lambda: int(self._work is not None))

    def start(self, spec: BenchSpec) -> str:
        """Begin to measure the engine that is loaded; returns the benchmark's id.

        Raises BenchError when one is at work or no engine is ready, ParameterError for what this
        engine can't do. What shows only when the workload is read ends the benchmark as "failed".
        """
        try:
            engine = self._runtime.engine
        except EngineNotReady as error:
            raise BenchError(error.message, hint=error.hint or "Load a model first.") from error
        check(spec, engine.info)
        environment = self._environment(engine)
        with self._lock:
            if self._work is not None:
                raise BenchError("A benchmark is at work.", hint="Wait for it, or stop it first.")
            benchmark_id = self._kept.add(
                name=title(spec, engine.info), kind=spec.kind, spec=spec, environment=environment
            )

            ending = Ending(benchmark_id=benchmark_id)

            def keep(point: Point) -> PointSummary:
                summary = _summary(point)
                text = to_text(files.to_json(point, spec, environment))
                self._endings.add_point(ending, summary, text)
                return summary

            work = self._work = BenchWork(benchmark_id, spec, engine, keep, registered(self._store))
            self._future = self._runtime.spawn(self._run(work, ending))
        return benchmark_id

    def stop(self, benchmark_id: str) -> None:
        """Measure no more. Finished points stay, and of the one at work what has been answered."""
        self._end(benchmark_id, "stopped")

    def wait(self, benchmark_id: str, timeout_s: float | None = None) -> BenchView:
        """The benchmark when it has ended. Raises TimeoutError, or BenchError when there is none."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while (view := self.view(benchmark_id)).state == "running":
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"The benchmark {benchmark_id} is still at work.")
            time.sleep(_POLL_S)
        return view

    def at_work(self) -> str | None:
        """The id of the benchmark that this process measures now."""
        work = self._work
        return work.benchmark_id if work else None

    def view(self, benchmark_id: str) -> BenchView:
        """The benchmark as it is now; `progress` is of the point at work. Raises BenchError."""
        work = self._work  # before the row is read: it may end in between
        view = self._endings.as_it_is(self._kept.view(benchmark_id))
        if work is None or work.benchmark_id != benchmark_id or view.state != "running":
            return view
        return replace(view, progress=work.progress)

    def recent(self, limit: int = 100) -> tuple[BenchView, ...]:
        """The newest first, without their progress."""
        return tuple(map(self._endings.as_it_is, self._kept.recent(limit)))

    def point(self, benchmark_id: str, number: int) -> Point:
        """One point with all its requests and samples, from its file. Raises BenchError."""
        data = self._kept.read(benchmark_id, number)
        summary = next(one for one in self._kept.view(benchmark_id).points if one.number == number)
        _kind, (point,) = files.read(data)
        return replace(point, number=number, repeat=summary.repeat, load=summary.load)

    def path(self, benchmark_id: str, number: int) -> Path:
        """The file of one point, in the form of `vllm bench`. Raises BenchError."""
        return self._kept.path(benchmark_id, number)

    def environment(self, benchmark_id: str) -> Mapping[str, Any]:
        """Model, engine, settings, versions and machine that it ran on. Raises BenchError."""
        return self._kept.view(benchmark_id).environment

    def rename(self, benchmark_id: str, name: str) -> None:
        """Raises BenchError for a blank name, or when there is no such benchmark."""
        self._kept.view(benchmark_id)
        if not name.strip():
            raise BenchError("The name is empty.", hint="Write one.")
        self._kept.rename(benchmark_id, name.strip()[:_LONGEST_NAME])

    def delete(self, benchmark_id: str) -> None:
        """Remove it with its files, and the table that it read unless another benchmark needs that.

        Raises BenchError when there is none, or it is at work.
        """
        view = self.view(benchmark_id)
        if view.state == "running":
            raise BenchError("It is being measured.", hint="Stop it first.")
        self._kept.delete(benchmark_id)
        self._endings.forget(benchmark_id)
        name = file_read(view.spec)
        with self._kept.files_read() as needed:
            if name and name not in needed and not self._held[name]:
                self.files.drop([name])

    @contextlib.contextmanager
    def holding(self, spec: BenchSpec) -> Iterator[None]:
        """While it is open, the file that `spec` reads stays, even when no benchmark has it."""
        name = file_read(spec)
        self._held[name] += 1
        try:
            yield
        finally:
            self._held[name] -= 1

    def sweep(self) -> None:
        """Remove what was left behind over a day ago: files that no benchmark reads, folders of none."""
        try:
            with self._kept.files_read() as needed:
                self.files.drop(self.files.leftovers(needed | set(+self._held)))
            self._kept.sweep()
        except (WorkbenchError, OSError):  # a full disk, say: the next start tries again
            _log.warning("What benchmarks left behind can't be removed", exc_info=True)

    def set_baseline(self, benchmark_id: str | None) -> None:
        """The benchmark that others are held against; None: none is. Raises BenchError."""
        self._kept.set_baseline(benchmark_id)

    def import_file(self, name: str, data: bytes) -> str:
        """Keep a file of `vllm bench`, or of another workbench, as a benchmark; returns its id.

        `name` is the file's, kept as the source. Raises BenchError for a file that is no result, and on a
        full disk; then nothing of it is kept.
        """
        found = files.load(data)
        source = Path(name.replace("\\", "/")).name[:_LONGEST_NAME] or "a file"
        benchmark_id = self._kept.add(
            name=(found.spec.name if found.spec else "") or source,
            kind=found.kind,
            spec=found.spec,
            environment=found.environment,
            source=source,
        )
        try:
            for number, point in enumerate(found.points):
                point = replace(point, number=number)
                text = to_text(files.to_json(point, found.spec, found.environment))
                self._kept.add_point(benchmark_id, _summary(point), text)
        except WorkbenchError:
            self._kept.delete(benchmark_id)  # half of it would look like all of it
            raise
        return benchmark_id

    def close(self) -> None:
        """Stop what is at work and wait until it is kept, as "interrupted"."""
        work, future = self._work, self._future
        if work is not None and future is not None:
            self._end(work.benchmark_id, "interrupted")
            wait([future], timeout=_CLOSE_PATIENCE_S)
        self._endings.close()

    # -- the inside ------------------------------------------------------------

    def _environment(self, engine: Engine) -> dict[str, Any]:
        found = dict(files.environment(engine.info, engine.spec, machine.describe()))
        if beside := dict(self._runtime.in_use()):
            found["beside"] = beside  # an engine that others use has less for the benchmark
        return found

    def _end(self, benchmark_id: str, state: BenchState) -> None:
        async def end(work: BenchWork) -> None:
            work.end(state)

        work = self._work
        if work is not None and work.benchmark_id == benchmark_id:
            self._runtime.spawn(end(work))

    async def _run(self, work: BenchWork, ending: Ending) -> None:
        try:
            await work.run()
            ending.state = work.ends_as or "complete"
        except asyncio.CancelledError:
            ending.state = "interrupted"
            raise
        except EngineDied as error:
            ending.message = f"The engine did not last: {error}"
        except WorkbenchError as error:
            ending.message = str(error)
        except Exception as error:
            _log.exception("The benchmark %s could not go on", work.benchmark_id)
            ending.message = f"{type(error).__name__}: {error}"
        finally:
            try:
                await asyncio.to_thread(self._endings.write, ending)
            finally:
                self._work = None


def _summary(point: Point) -> PointSummary:
    return PointSummary(
        number=point.number,
        repeat=point.repeat,
        load=point.load,
        result=point.result,
        is_whole=point.is_whole,
    )
