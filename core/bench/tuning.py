"""The best engine settings for one's own workload, found on one's own machine within some minutes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from core.bench import tuning_plan, tuning_search
from core.bench.runner import Benchmarks
from core.bench.tuning_plan import TuningPlan, TuningState, TuningView
from core.bench.tuning_work import Replaced, Stopped, TuningWork
from core.engines import choice
from core.errors import BenchError, WorkbenchError
from core.runtime import Runtime
from core.saved_settings import SavedSettings
from core.store import new_id
from core.types import EngineSpec

GROUP = "tune-"
_WANTED = ("ready", "loading", "restarting")
_CLOSE_PATIENCE_S = 30.0
_log = logging.getLogger(__name__)


class Tuning:
    """Searches for settings, one at a time. Every method returns at once, from any thread, but `wait`.

    What is measured are ordinary benchmarks, which carry the search's group.
    """

    def __init__(self, benchmarks: Benchmarks, runtime: Runtime, saved: SavedSettings) -> None:
        self._benchmarks = benchmarks
        self._runtime = runtime
        self._saved = saved
        self._lock = threading.Lock()
        self._work: TuningWork | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self, plan: TuningPlan, *, interrupt: bool = False) -> str:
        """Begin to search, from the engine as it is loaded; returns the group that its benchmarks carry.

        Raises ParameterError for a plan that can't be done, BenchError when a search or a benchmark is at
        work, no engine is ready, or somebody uses the engine and `interrupt` is False.
        """
        status = self._runtime.status()
        if status.phase != "ready" or status.spec is None or status.info is None:
            raise BenchError("No engine is ready.", hint="Load the model first, as you use it now.")
        axes = tuning_plan.check(plan, status.spec, status.info, choice.this_machine())
        with self._lock:
            if self._is_live():
                raise BenchError("A search is at work.", hint="Wait for it, or stop it first.")
            if self._benchmarks.at_work() is not None:
                raise BenchError("A benchmark is at work.", hint="Wait for it, or stop it first.")
            if (busy := self._runtime.in_use()) and not interrupt:
                raise BenchError(
                    f"The engine is in use ({', '.join(busy)}): each load would interrupt that.",
                    hint="Wait for it, or say that it may be interrupted.",
                )
            group = f"{GROUP}{new_id()}"
            work = TuningWork(group, plan, status.spec, self._benchmarks, self._runtime)
            self._work = work
            self._thread = threading.Thread(
                target=self._main, args=(work, plan, status.spec, axes), name="bench-tuning", daemon=True
            )
            self._thread.start()
        return group

    def now(self) -> TuningView | None:
        """The search at work, or the last one of this process."""
        return self._work.view if self._work else None

    def stop(self) -> None:
        """Try no more; the best so far stands."""
        if self._work is not None:
            self._work.stopping.set()

    def wait(self, timeout_s: float | None = None) -> TuningView | None:
        """The search when it has ended, or as it is after `timeout_s`."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self.now()

    def use(self) -> EngineSpec:
        """Keep the best settings for the model, and load it with them unless it is. Raises BenchError."""
        if self._work is None or self._is_live():
            raise BenchError("There is no finished search.", hint="Search first, or wait for it.")
        spec = self._work.best_spec
        self._saved.save(spec)
        self._load(spec)
        return spec

    def close(self) -> None:
        """Stop what is at work; nothing is loaded any more."""
        if self._is_live():
            self._closing = True
            self.stop()
            self.wait(_CLOSE_PATIENCE_S)

    # -- the inside ------------------------------------------------------------

    def _is_live(self) -> bool:
        return self._work is not None and self._work.view.is_live

    def _main(
        self, work: TuningWork, plan: TuningPlan, before: EngineSpec, axes: Sequence[tuning_search.Axis]
    ) -> None:
        state: TuningState = "done"
        message = ""
        try:
            with self._benchmarks.holding(plan.spec):  # its trials may be deleted meanwhile
                work.run(axes)
        except Replaced:  # whoever did it wants that model
            work.change(state="stopped", message="Somebody else loaded a model: the search has ended.")
            return
        except Stopped:
            state = "stopped"
        except WorkbenchError as error:
            state, message = "failed", str(error)
        except Exception as error:
            _log.exception("The search for settings could not go on")
            state, message = "failed", f"{type(error).__name__}: {error}"
        work.change(stage="Loading what stays")
        if not self._closing:
            try:
                self._load(work.best_spec if plan.keep == "best" and state != "failed" else before)
            except WorkbenchError as error:
                message = f"{message} The model can't be loaded again: {error}".strip()
        work.change(state=state, message=message or work.view.message)

    def _load(self, spec: EngineSpec) -> None:
        status = self._runtime.status()
        if status.spec != spec or status.phase not in _WANTED:
            self._runtime.load(spec)
