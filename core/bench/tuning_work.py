"""One search for settings at work, on a thread of its own: loads, measures, decides.

Each trial is measured once; if that looks better than the best so far, it is measured as often as the best
was, and is better only beyond the spread of these repeats (`core.bench.differences`; the first look, chosen
for being good, is left out). At the end, if there is time, the settings of before and the best are loaded
and measured once more against each other: of many trials, the luckiest always looks good.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from core import engine_settings
from core.bench import differences, figures, subjects, tuning_search
from core.bench.figures import Figure
from core.bench.records import BenchView
from core.bench.runner import Benchmarks
from core.bench.tuning_plan import Trial, TuningPlan, TuningView, changes_words
from core.errors import BenchError, WorkbenchError
from core.runtime import Runtime
from core.types import EngineSpec

_POLL_S = 0.2


class Stopped(Exception):
    """Somebody asked to stop."""


class Replaced(Exception):
    """Somebody else has loaded another model meanwhile."""


class _Over(Exception):
    """The time is over."""


class TuningWork:
    """`view` may be read from any thread. `before`: the settings to begin with, which are loaded."""

    def __init__(
        self, group: str, plan: TuningPlan, before: EngineSpec, benchmarks: Benchmarks, runtime: Runtime
    ) -> None:
        self.stopping = threading.Event()
        self._plan = plan
        self._before = before
        self._benchmarks = benchmarks
        self._runtime = runtime
        self._began = time.monotonic()
        self._view = TuningView(group=group, plan=plan)
        self._loads: list[float] = []
        self._points: list[float] = []

    @property
    def view(self) -> TuningView:
        view = self._view
        return replace(view, elapsed_s=time.monotonic() - self._began) if view.is_live else view

    @property
    def best_spec(self) -> EngineSpec:
        view = self._view
        return view.trials[view.best].spec if view.trials else self._before

    def change(self, **values: Any) -> None:
        """Fields of the view; one that ends it keeps the time it took."""
        if values.get("state", "running") != "running":
            values |= {"elapsed_s": time.monotonic() - self._began, "stage": ""}
        self._view = replace(self._view, **values)

    def run(self, axes: Sequence[tuning_search.Axis]) -> None:
        """The settings of before first, then what the search proposes, then the best against those.

        Raises Stopped, Replaced, and BenchError when the settings of before can't be measured.
        """
        first = self._add({}, self._before)
        figure = self._measure(first, self._plan.repeats)
        if figure is None:
            raise BenchError(f"The settings of before can't be measured. {self._trial(first).message}")
        self._edit(first, state="done", figure=figure)
        try:
            tuning_search.climb(axes, self._try)
        except _Over:
            self.change(message="The time was over before everything was tried.")
        best = self._view.best
        if best:
            found = self._trial(best).figure or figure
            self.change(verdict=differences.difference(self._plan.goal, found, figure))
            try:
                self._confirm(best)
            except _Over:
                self.change(message="The time was over before the best was measured once more.")
            finally:  # what was found stands
                self._settle(0, best)

    def _try(self, changes: tuning_search.Changes) -> bool:
        """Whether these changes are better than the best so far. Raises _Over, Stopped, Replaced."""
        self._need_time()
        trial = self._add(changes, engine_settings.apply(self._before, changes))
        try:
            look = self._measure(trial, 1)
            if look is None:
                return False
            best, goal = self._trial(self._view.best).figure, self._plan.goal
            assert best is not None  # it was measured, or it would not be the best
            if not _is_ahead(goal, look, best):
                found = differences.difference(goal, look, best)
                message = "Not better at first look."
                self._edit(trial, state="done", figure=look, difference=found, message=message)
                return False
            figure = self._measure(trial, self._plan.repeats)
        except (_Over, Stopped):
            self._edit(trial, state="stopped", message="It was not measured to its end.")
            raise
        if figure is None:
            return False
        found = differences.difference(goal, figure, best)
        self._edit(trial, state="done", figure=figure, difference=found)
        if found.verdict == "better":
            self.change(best=trial)
        return found.verdict == "better"

    def _confirm(self, best: int) -> None:
        """Measure the settings of before and the best once more, one after the other, if there is time."""
        repeats = self._plan.repeats
        if self._time_left() < self._cost(2, 2 * repeats):
            return
        self.change(stage="Measuring the settings of before and the best once more")
        found = []
        for place in (0, best):
            figure = self._measure(place, repeats)
            if figure is None:
                return
            found.append(figure)
        verdict = differences.difference(self._plan.goal, found[1], found[0])
        self.change(verdict=verdict, is_confirmed=True)
        if verdict.verdict != "better":
            words = f"{self._trial(best).title} was better at first, but not when measured once more."
            self.change(best=0, message=words)

    def _measure(self, place: int, repeats: int) -> Figure | None:
        """Load the trial's settings and measure them; None where they failed, which is noted.

        Raises Stopped, _Over, Replaced.
        """
        trial = self._trial(place)
        try:
            self._load(trial.spec, place)
            spec = self._plan.spec.model_copy(
                update={"name": trial.title, "group": self._view.group, "repeats": repeats}
            )
            began = time.monotonic()
            benchmark_id = self._benchmarks.start(spec)
            self._edit(place, state="measuring", benchmark_ids=(*trial.benchmark_ids, benchmark_id))
            view = self._followed(benchmark_id, trial.spec, place)
            if view.state != "complete":
                raise BenchError(view.message or f"It was {view.state}.")
            self._points.append((time.monotonic() - began) / repeats)
            figure = measured(self._benchmarks, benchmark_id, self._plan.metric)
            if figure is None:
                raise BenchError(f"{self._plan.goal.title} was not measured.")
        except WorkbenchError as error:  # other settings may well do
            self._edit(place, state="failed", message=str(error))
            return None
        return figure

    def _load(self, spec: EngineSpec, place: int) -> None:
        """Raises what the load raises, and Stopped, _Over, Replaced."""
        status = self._runtime.status()
        if status.phase != "ready" or status.spec != spec:
            self._edit(place, state="loading")
            self._runtime.load(spec)
        while True:
            status = self._runtime.status()
            if status.spec != spec:
                raise Replaced
            if status.phase == "ready" and status.info is not None:
                self._loads.append(status.info.load_s)
                self._edit(place, load_s=status.info.load_s)
                return
            if self.stopping.wait(_POLL_S) or self._is_over(place):
                self._runtime.cancel_load()
                raise Stopped if self.stopping.is_set() else _Over
            if status.phase not in ("loading", "restarting"):
                self._runtime.wait_ready(0)  # raises why

    def _followed(self, benchmark_id: str, spec: EngineSpec, place: int) -> BenchView:
        """The benchmark when it has ended. Raises Stopped, _Over, Replaced."""
        while True:
            ends: Callable[[], Exception] | None = None
            if self.stopping.is_set() or self._is_over(place):
                ends = Stopped if self.stopping.is_set() else _Over
                self._benchmarks.stop(benchmark_id)
            try:
                view = self._benchmarks.wait(benchmark_id, _POLL_S)
            except TimeoutError:
                continue
            if self._runtime.status().spec != spec:
                raise Replaced
            if view.state == "stopped":  # by this search, or on the page of benchmarks
                raise ends() if ends else Stopped
            return view

    # -- time ------------------------------------------------------------------

    def _time_left(self) -> float:
        return 60 * self._plan.minutes - (time.monotonic() - self._began)

    def _is_over(self, place: int) -> bool:
        """The settings of before are measured in any case: without them there is nothing to compare."""
        return (place > 0 or len(self._view.trials) > 1) and self._time_left() <= 0

    def _need_time(self) -> None:
        """Raises _Over when another trial would leave no time to measure the best once more."""
        if self.stopping.is_set():
            raise Stopped
        last = self._cost(2, 2 * self._plan.repeats) if self._view.best else 0.0
        if last > 30 * self._plan.minutes:  # half of the time: trials are worth more
            last = 0.0
        if self._time_left() < self._cost(1, 1) + last:
            raise _Over

    def _cost(self, loads: int, points: int) -> float:
        """Seconds of so many loads and measured points, by those that were done."""
        load = statistics.fmean(self._loads) if self._loads else 0.0
        return loads * load + points * (statistics.fmean(self._points) if self._points else 0.0)

    # -- what is shown -----------------------------------------------------------

    def _trial(self, place: int) -> Trial:
        return self._view.trials[place]

    def _add(self, changes: Mapping[str, Any], spec: EngineSpec) -> int:
        """A new trial; gives its place."""
        trials = (*self._view.trials, Trial(changes=dict(changes), spec=spec))
        self.change(trials=trials, stage=f"Trying {changes_words(changes)}")
        return len(trials) - 1

    def _edit(self, place: int, **values: Any) -> None:
        trials = list(self._view.trials)
        trials[place] = replace(trials[place], **values)
        self.change(trials=tuple(trials))

    def _settle(self, *places: int) -> None:
        """What was found of these stands, whatever became of measuring them once more."""
        for place in places:
            if self._trial(place).state != "done":
                again = self._trial(place).message if self._trial(place).state == "failed" else ""
                message = f"Not measured once more. {again}".strip() if again else ""
                self._edit(place, state="done", message=message)


def measured(benchmarks: Benchmarks, benchmark_id: str, metric: str) -> Figure | None:
    """The metric over the repeats of a benchmark; None where it was not measured."""
    return figures.figure(metric, subjects.kept(benchmarks, benchmark_id).points)


def _is_ahead(goal: figures.Metric, figure: Figure, base: Figure) -> bool:
    return figure.value > base.value if goal.better == "higher" else figure.value < base.value
