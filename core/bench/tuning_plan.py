"""What a search for settings is asked, what it has found so far, and what can't be searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core import engine_settings
from core.bench import figures, tuning_search
from core.bench.differences import Difference
from core.bench.figures import Figure
from core.bench.spec import BenchSpec
from core.errors import ParameterError
from core.machine import Machine
from core.types import EngineInfo, EngineSpec

TrialState = Literal["loading", "measuring", "done", "failed", "stopped"]
TuningState = Literal["running", "done", "stopped", "failed"]
METRICS: tuple[str, ...] = (
    "output_throughput",
    "request_goodput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_tpot_ms",
    "p99_tpot_ms",
    "median_e2el_ms",
    "p99_e2el_ms",
)
"""What settings can be searched for; of a throughput benchmark the first only."""
_LEAST_REPEATS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningPlan:
    """`spec`: a throughput benchmark, or serving at one load. `settings` of `tuning_search.SETTINGS` may
    change. The search ends after `minutes`; loading what stays may come after. `keep`: what stays loaded.
    """

    spec: BenchSpec
    settings: tuple[str, ...]
    minutes: float = 10.0
    metric: str = METRICS[0]
    keep: Literal["best", "before"] = "best"

    @property
    def repeats(self) -> int:
        """Of a measurement that decides: the spread of fewer can't be told."""
        return max(_LEAST_REPEATS, self.spec.repeats)

    @property
    def goal(self) -> figures.Metric:
        found = figures.metric(self.metric)
        if found is None:
            raise ParameterError(f"There is no metric {self.metric!r}.", hint=f"Choose of {METRICS}.")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One choice of settings. `changes`: from those of before; `figure`: of the goal, None until measured.

    `difference`: to the best at that time. `message`: why it failed, or what was found.
    """

    changes: Mapping[str, Any]
    spec: EngineSpec
    state: TrialState = "loading"
    message: str = ""
    benchmark_ids: tuple[str, ...] = ()
    figure: Figure | None = None
    difference: Difference | None = None
    load_s: float | None = None

    @property
    def title(self) -> str:
        return changes_words(self.changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningView:
    """A search as it is now. `best`: a place in `trials`, of which the first is the settings of before.

    `verdict`: the best trial against those, measured once more at the end where `is_confirmed`.
    """

    group: str
    plan: TuningPlan
    trials: tuple[Trial, ...] = ()
    best: int = 0
    state: TuningState = "running"
    stage: str = ""
    message: str = ""
    elapsed_s: float = 0.0
    verdict: Difference | None = None
    is_confirmed: bool = False

    @property
    def is_live(self) -> bool:
        return self.state == "running"

    @property
    def words(self) -> str:
        """What came of it, in a sentence or two."""
        if not self.trials or self.trials[0].figure is None:
            return "Nothing was measured."
        tried = len(self.trials) - 1
        many = f"{tried} other choice{'s' * (tried != 1)}"
        if self.best == 0:
            return f"Keep the settings as they are: of {many}, none was shown to be better."
        found = self.verdict
        share = f"{abs(found.share):.0%}" if found and found.share is not None else "a difference"
        more = "more" if self.plan.goal.better == "higher" else "less"
        once_more = (
            "measured once more at the end"
            if self.is_confirmed
            else "not measured a second time, for which there was no time left"
        )
        return (
            f"Best of {tried + 1}: {self.trials[self.best].title}. {self.plan.goal.title}: {share} {more} "
            f"than with the settings of before, {once_more}."
        )


def changes_words(changes: Mapping[str, Any]) -> str:
    """For people: "max_num_seqs 512, enforce_eager no"."""
    shown = {True: "yes", False: "no"}
    parts = [
        f"{name} {shown[value] if isinstance(value, bool) else value}" for name, value in changes.items()
    ]
    return ", ".join(parts) or "settings of before"


def check(
    plan: TuningPlan, spec: EngineSpec, info: EngineInfo, here: Machine
) -> tuple[tuning_search.Axis, ...]:
    """What can be searched on the engine as it is loaded. Raises ParameterError for what can't be done."""
    asked = plan.spec
    one_load = asked.kind == "serve" and len(asked.loads) == 1 and asked.sweep is None
    if asked.kind != "throughput" and not one_load:
        raise ParameterError(
            "Settings are searched for a throughput benchmark, or for serving at one load.",
            hint="Choose one load, no sweep.",
        )
    known = METRICS if asked.kind == "serve" else METRICS[:1]
    if plan.metric not in known:
        raise ParameterError(
            f"{plan.metric} can't be searched for here.", hint=f"Choose one of {', '.join(known)}."
        )
    if plan.metric == "request_goodput" and not asked.goodput:
        raise ParameterError("Goodput needs limits.", hint="Say what a good request may take, in ms.")
    if not plan.minutes > 0:
        raise ParameterError("The search needs time.", hint="Give it some minutes.")
    for name in plan.settings:
        if name not in tuning_search.SETTINGS:
            raise ParameterError(
                f"{name} can't be searched.", hint=f"Choose of {', '.join(tuning_search.SETTINGS)}."
            )
    names = [name for name in plan.settings if usable(name, spec, here)]
    found = tuning_search.axes(names, spec, info, here)
    if not found:
        raise ParameterError(
            "None of these settings has another value to try on this engine.", hint="Choose others."
        )
    return found


def usable(name: str, spec: EngineSpec, here: Machine) -> bool:
    """Whether the engine of `spec` takes this setting on this machine."""
    setting = engine_settings.BY_NAME[name]
    return spec.engine in setting.engines and engine_settings.obstacle(setting, here) is None
