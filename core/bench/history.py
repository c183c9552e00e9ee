"""One metric of all benchmarks that ask the same, over time and versions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.bench import figures
from core.bench.differences import conditions, workload_key
from core.bench.records import BenchView
from core.bench.spec import Load

_CHANGES_TOLD = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A benchmark in a history. `values`: each repeat's own figure. `series`: model and engine.

    `changes` says what is not as in the one before it of the same series, such as "vllm 0.31 → 0.32".
    """

    benchmark_id: str
    name: str
    created_at: dt.datetime
    series: str
    values: tuple[float, ...]
    changes: tuple[str, ...]
    is_baseline: bool


def alike(views: Iterable[BenchView], like: BenchView) -> tuple[BenchView, ...]:
    """Those that ask the same as `like`, oldest first. What a file of vLLM asked is not known: none."""
    key = workload_key(like)
    found = [view for view in views if key and workload_key(view) == key]
    return tuple(sorted(found, key=lambda view: (view.created_at, view.benchmark_id)))


def loads(views: Iterable[BenchView]) -> tuple[Load | None, ...]:
    """The loads that were measured whole, those of most benchmarks first."""
    counts: dict[Load | None, int] = {}
    for view in views:
        for load in dict.fromkeys(point.load for point in view.points if point.is_whole):
            counts[load] = counts.get(load, 0) + 1
    return tuple(sorted(counts, key=lambda load: -counts[load]))


def metric_names(views: Iterable[BenchView], load: Load | None) -> tuple[str, ...]:
    """The metrics that any of them has at this load."""
    return figures.names(
        [figures.without_details(one) for view in views for one in view.points if one.load == load]
    )


def history(views: Sequence[BenchView], load: Load | None, metric: str) -> tuple[Place, ...]:
    """`metric` at `load` of each of `views` (in their order) that has it. Reads no files."""
    found: list[Place] = []
    before: dict[str, BenchView] = {}
    for view in views:
        points = [figures.without_details(one) for one in view.points if one.load == load and one.is_whole]
        values = tuple(value for point in points if (value := figures.own(metric, point)) is not None)
        if not values:
            continue
        series = series_of(view)
        found.append(
            Place(
                benchmark_id=view.benchmark_id,
                name=view.name,
                created_at=view.created_at,
                series=series,
                values=values,
                changes=changes(before[series], view) if series in before else (),
                is_baseline=view.is_baseline,
            )
        )
        before[series] = view
    return tuple(found)


def series_of(view: BenchView) -> str:
    """Model and engine, which make benchmarks one line of a chart."""
    known = [str(view.environment[name]) for name in ("model", "engine") if view.environment.get(name)]
    return ", ".join(known) or "not known"


def changes(before: BenchView, after: BenchView) -> tuple[str, ...]:
    """What engine, settings, versions and machine are not as they were, a few words each."""
    found = [
        f"{one.name} {one.values[0] or 'not set'} → {one.values[1] or 'not set'}"
        for one in conditions((before, after))
        if one.differs and one.group not in ("Workload", "Measuring")
    ]
    more = len(found) - _CHANGES_TOLD
    return tuple(found) if more <= 0 else (*found[:_CHANGES_TOLD], f"and {more} more")
