"""Where more load stops to pay: the knee of a sweep, and how far the promised latencies hold.  (pure)

With more load an engine gives more tokens a second, until it is saturated; from there on the same
tokens come later. Jain calls the last load before that the knee (The Art of Computer Systems Performance
Analysis, 1991, section 3.3). Here it is found by the gain of one step alone, which anybody can check on
the chart: the last load before the first step that brought less than `least_gain` more tokens a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.bench.records import PointSummary
from core.bench.spec import Load, Sweep


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """All repeats of one load, pooled: their tokens and requests over the sum of their durations.

    `load`: requests/s or requests at once. `good_share`: requests within the goodput limits, of all
    that were sent, failed ones included; None without limits.
    """

    load: float
    output_throughput: float | None
    request_throughput: float | None = None
    good_share: float | None = None


def load_of(load: Load | None, over: str) -> float | None:
    """What is swept: the load's "request_rate" or "max_concurrency"; None where it has none."""
    return None if load is None else getattr(load, over)


def load_points(points: Iterable[PointSummary], over: str) -> list[LoadPoint]:
    """The points of a sweep over `over`, by load. Those without such a load, or cut short, are left out."""
    by_load: dict[float, list[Mapping[str, Any]]] = {}
    for point in points:
        load = load_of(point.load, over)
        if load is not None and point.is_whole:
            by_load.setdefault(load, []).append(point.result)
    return [_pooled(load, by_load[load]) for load in sorted(by_load)]


def knee(points: Sequence[LoadPoint], least_gain: float = 0.05) -> int | None:
    """Index of the knee among `points` (in order of load); None where no step was too small to pay.

    None, too, is the answer of a sweep that ended before the engine was saturated.
    """
    for index in range(1, len(points)):
        if not _pays(points[index - 1], points[index], least_gain):
            return index - 1
    return None


def goes_on(points: Sequence[LoadPoint], sweep: Sweep) -> bool:
    """Whether a sweep with these points behind it goes to a higher load."""
    return len(points) < sweep.most_points and knee(points, sweep.least_gain) is None


def swept_load(sweep: Sweep, step: int, like: Load | None = None) -> Load:
    """The load of a sweep's step (from 0): start x factor^step; all else is as in `like`.

    Concurrency is a whole number, and at least one more than in the step before.
    """
    value: float = sweep.start * sweep.factor**step
    if sweep.over == "max_concurrency":
        value = max(1, round(sweep.start))
        for _ in range(step):
            value = max(value + 1, round(value * sweep.factor))
    base = like or Load()
    return base.model_copy(update={sweep.over: value})


def goodput_region(points: Sequence[LoadPoint], least_share: float = 0.9) -> tuple[float, float] | None:
    """(lowest, highest load) up to which at least `least_share` of the requests met every limit.

    `points` in order of load. The region ends at the first load that fails, whatever comes after it.
    None where the first load fails, or where there are no limits.
    """
    held = []
    for point in points:
        if point.good_share is None or point.good_share < least_share:
            break
        held.append(point.load)
    return (held[0], held[-1]) if held else None


def _pays(before: LoadPoint, after: LoadPoint, least_gain: float) -> bool:
    if not before.output_throughput or after.output_throughput is None:
        return False  # nothing came at one of the two: more load won't help
    return after.output_throughput / before.output_throughput - 1 >= least_gain


def _pooled(load: float, results: Sequence[Mapping[str, Any]]) -> LoadPoint:
    seconds = sum(result["duration"] for result in results)
    if not seconds:
        return LoadPoint(load, None)
    completed = sum(result["completed"] for result in results)
    sent = completed + sum(result.get("failed") or 0 for result in results)
    rates = [result.get("request_goodput") for result in results]
    good = None
    if sent and None not in rates:
        good = sum(rate * result["duration"] for rate, result in zip(rates, results, strict=True)) / sent
    return LoadPoint(
        load,
        sum(result["total_output_tokens"] for result in results) / seconds,
        completed / seconds,
        good,
    )
