"""Two or more benchmarks beside each other: what differs between them, and what that did to speed. Pure.

Whether a difference is more than chance is told from repeats: Welch's interval for the difference of
two means with unequal spreads (Welch, 'The generalization of Student's problem', Biometrika 34, 1947).
Requests of one run wait for each other, so one run, however many requests it has, tells nothing of the next.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.bench import figures
from core.bench.figures import Figure, Metric, student_t
from core.bench.records import BenchView, Point
from core.bench.spec import BenchSpec, Load
from core.errors import BenchError

Verdict = Literal["better", "worse", "no difference shown", "can't be told (one repeat)"]
NO_DIFFERENCE: Verdict = "no difference shown"
ONE_REPEAT: Verdict = "can't be told (one repeat)"
THRESHOLD = 0.05
"""A regression is worse by at least this share, besides being worse beyond the interval."""
_LIKE = 0.01
_MOST_CONDITIONS = 300
_MOST_CHARACTERS = 160
_ENGINE_NAMES = ("model", "revision", "engine", "engine_version", "dtype", "device", "quantization")
_SETTING_NAMES = ("max_model_len", "max_num_seqs", "kv_cache_tokens")
_APART = frozenset({"kind", "name", "group", "loads", "sweep", "percentile_metrics", "metric_percentiles"})
_MEASURING = ("repeats", "seed", "num_warmups", "num_iters", "num_iters_warmup", "goodput")


@dataclass(frozen=True, slots=True)
class Subject:
    """A benchmark with the details of its points."""

    view: BenchView
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """What a benchmark was made under, a value for each of them; None: not known."""

    group: str
    name: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A figure minus the baseline's, with a 95% interval where both have repeats.

    `share` is the difference as a share of the baseline's figure.
    """

    value: float
    low: float | None
    high: float | None
    share: float | None
    verdict: Verdict
    is_regression: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One metric at one load: a figure and a difference for each benchmark, None where there is none."""

    metric: Metric
    figures: tuple[Figure | None, ...]
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True, slots=True)
class AtLoad:
    """What was measured at one load. `repeats`: how many each benchmark has there."""

    load: Load | None
    title: str
    repeats: tuple[int, ...]
    lines: tuple[Line, ...]

    @property
    def where(self) -> str:
        """ " at 4 requests/s", " with 8 at once", for the end of a sentence; "" without a load."""
        return _where(self.load)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Benchmarks side by side; all differences are to `baseline`, a place in `names`.

    `warnings` say what makes figures hard to compare. `unmatched`: loads that fewer than two of them have.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    baseline: int
    threshold: float
    conditions: tuple[Condition, ...]
    warnings: tuple[str, ...]
    loads: tuple[AtLoad, ...]
    unmatched: tuple[str, ...]

    @property
    def regressions(self) -> tuple[tuple[AtLoad, Line, int], ...]:
        """Each (load, line, place of the benchmark) that is worse than the baseline."""
        return tuple(
            (at, line, place)
            for at in self.loads
            for line in at.lines
            for place, found in enumerate(line.differences)
            if found is not None and found.is_regression
        )


def compare(subjects: Sequence[Subject], baseline: int = 0, threshold: float = THRESHOLD) -> Comparison:
    """All subjects beside each other, each held against the one at `baseline`.

    Raises BenchError for fewer than two, or a baseline that is none of them.
    """
    if len(subjects) < 2:
        raise BenchError("One benchmark can't be compared.", hint="Choose two or more.")
    if not 0 <= baseline < len(subjects):
        raise BenchError("The baseline is none of these benchmarks.", hint="Choose one of them.")
    by_load = [_by_load(subject) for subject in subjects]
    loads = list(dict.fromkeys(load for one in by_load for load in one))
    shared = [load for load in loads if sum(load in one for one in by_load) > 1]
    at_loads = tuple(
        _at(load, [one.get(load, ()) for one in by_load], baseline, threshold) for load in shared
    )
    views = [subject.view for subject in subjects]
    return Comparison(
        ids=tuple(view.benchmark_id for view in views),
        names=distinct_names(views),
        baseline=baseline,
        threshold=threshold,
        conditions=conditions(views),
        warnings=tuple(_warnings(subjects, by_load, shared)),
        loads=at_loads,
        unmatched=tuple(_load_title(load) for load in loads if load not in shared),
    )


def difference(metric: Metric, figure: Figure, base: Figure, threshold: float = THRESHOLD) -> Difference:
    """`figure` minus `base`, and what that shows."""
    value = figure.value - base.value
    share = value / base.value if base.value else None
    if figure.error is None or base.error is None:
        return Difference(value=value, low=None, high=None, share=share, verdict=ONE_REPEAT)
    ours, theirs = figure.error**2, base.error**2
    half = 0.0
    if ours + theirs:
        freedom = (ours + theirs) ** 2 / (ours**2 / (figure.n - 1) + theirs**2 / (base.n - 1))
        half = student_t(freedom) * math.sqrt(ours + theirs)
    low, high = value - half, value + half
    verdict = NO_DIFFERENCE
    if low > 0 or high < 0:
        verdict = "better" if (low > 0) == (metric.better == "higher") else "worse"
    is_regression = verdict == "worse" and (share is None or abs(share) >= threshold)
    return Difference(
        value=value, low=low, high=high, share=share, verdict=verdict, is_regression=is_regression
    )


def conditions(views: Sequence[BenchView]) -> tuple[Condition, ...]:
    """All that is known of how each was made: model and engine, settings, machine, workload, measuring."""
    each = [dict(_conditions(view)) for view in views]
    keys = list(dict.fromkeys(key for one in each for key in one))
    order = ("Model and engine", "Settings", "Machine and versions", "Workload", "Measuring")
    keys.sort(key=lambda key: order.index(key[0]))
    return tuple(
        Condition(group, name, tuple(one.get((group, name)) for one in each)) for group, name in keys
    )


def workload_key(view: BenchView) -> str:
    """Equal for benchmarks that ask the same: kind, workload, sampling. "" for a file that doesn't say."""
    if view.spec is None:
        return ""
    asked = view.spec.model_dump(mode="json", include={"kind", "workload", "params", "ignore_eos"})
    if view.spec.kind == "latency":
        asked["batch_size"] = view.spec.batch_size
    return json.dumps(asked, sort_keys=True, ensure_ascii=False)


def distinct_names(views: Sequence[BenchView]) -> tuple[str, ...]:
    """A name for each, numbered where two are the same."""
    wanted = [view.name.strip() or view.benchmark_id for view in views]
    return tuple(
        name if wanted.count(name) == 1 else f"{name} ({wanted[: place + 1].count(name)})"
        for place, name in enumerate(wanted)
    )


def measured(points: Iterable[Point]) -> dict[Load | None, tuple[Point, ...]]:
    """The whole points, the repeats of each load together. One that was stopped is left out."""
    found: dict[Load | None, list[Point]] = {}
    for point in sorted(points, key=lambda one: one.number):
        if point.is_whole:
            found.setdefault(point.load, []).append(point)
    return {load: tuple(repeats) for load, repeats in found.items()}


# -- the inside -------------------------------------------------------------------


def _by_load(subject: Subject) -> dict[Load | None, tuple[Point, ...]]:
    return measured(subject.points)


def _at(load: Load | None, groups: Sequence[Sequence[Point]], baseline: int, threshold: float) -> AtLoad:
    names = dict.fromkeys(name for points in groups for name in figures.names(points))
    tables = [figures.table(names, points) for points in groups]
    lines = []
    for name in names:
        metric = figures.metric(name)
        found = tuple(one.get(name) for one in tables)
        if metric is None or sum(one is not None for one in found) < 2:
            continue
        base = found[baseline]
        differences = tuple(
            None
            if one is None or base is None or place == baseline
            else difference(metric, one, base, threshold)
            for place, one in enumerate(found)
        )
        lines.append(Line(metric, found, differences))
    return AtLoad(load, _load_title(load), tuple(len(points) for points in groups), tuple(lines))


def _where(load: Load | None) -> str:
    if load is None:
        return ""
    if load.request_rate is not None:
        return f" at {load.title}"
    return f" with {load.title}" if load.max_concurrency is not None else f" {load.title}"


def _load_title(load: Load | None) -> str:
    return "" if load is None else load.title


def _conditions(view: BenchView) -> Iterable[tuple[tuple[str, str], str]]:
    for name, value in itertools.islice(_flat(view.environment), _MOST_CONDITIONS):
        head, _dot, rest = name.partition(".")
        if name in _ENGINE_NAMES:
            yield ("Model and engine", name), value
        elif head == "asked":
            yield ("Settings", f"{rest} (asked for)"), value
        elif head == "settings" or name in _SETTING_NAMES:
            yield ("Settings", rest or name), value
        else:
            yield ("Machine and versions", name), value
    if view.spec is None:
        yield ("Workload", "kind"), view.kind
        for point in view.points[:1]:
            for name in ("num_prompts", "num_requests", "total_input_tokens", "total_output_tokens"):
                if name in point.result:
                    yield ("Workload", name), _text(point.result[name])
        return
    yield from _asked(view.spec)


def _asked(spec: BenchSpec) -> Iterable[tuple[tuple[str, str], str]]:
    yield ("Workload", "kind"), spec.kind
    said = spec.model_dump(mode="json", exclude=set(_APART))
    unused = {"num_iters", "num_iters_warmup", "batch_size"} if spec.kind != "latency" else {"num_warmups"}
    for name, value in _flat(said):
        head = name.split(".")[0]
        if head not in unused:
            group = "Measuring" if head in _MEASURING else "Workload"
            yield (group, name.removeprefix("workload.").replace("kind", "workload")), value


def _flat(values: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"[:_MOST_CHARACTERS]
        if isinstance(value, Mapping) and depth < 4:
            yield from _flat(value, f"{name}.", depth + 1)
        elif value is not None and value != "" and value != [] and value != {}:
            yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def _warnings(
    subjects: Sequence[Subject],
    by_load: Sequence[Mapping[Load | None, Sequence[Point]]],
    shared: Sequence[Load | None],
) -> Iterable[str]:
    views = [subject.view for subject in subjects]
    kinds = {view.kind for view in views}
    keys = {key for view in views if (key := workload_key(view))}
    if len(kinds) > 1:
        yield f"These are different kinds of benchmark ({', '.join(sorted(kinds))}): figures don't compare."
    elif len(keys) > 1:
        yield "The workloads differ: a difference may come from what was asked, not from what answered."
    if not shared:
        yield "No load was measured in two of them, so nothing can be compared."
    if len({json.dumps(view.spec.goodput, sort_keys=True) for view in views if view.spec}) > 1:
        yield "The goodput limits differ: goodput doesn't compare."
    for load in shared:
        yield from _token_warnings([one.get(load, ()) for one in by_load], _where(load))
    if any(not point.is_whole for subject in subjects for point in subject.points):
        yield "Points that were stopped before their last request are left out."
    if any(0 < len(one[load]) < 2 for one in by_load for load in shared if load in one):
        yield "With one repeat nobody can tell a difference from chance: measure with 3 repeats or more."


def _token_warnings(groups: Sequence[Sequence[Point]], where: str) -> Iterable[str]:
    for name, words in (("total_input_tokens", "prompt"), ("total_output_tokens", "generated")):
        per_repeat = [
            sum(point.result[name] for point in points) / len(points)
            for points in groups
            if points and all(isinstance(point.result.get(name), int | float) for point in points)
        ]
        if len(per_repeat) > 1 and max(per_repeat) > (1 + _LIKE) * min(per_repeat):
            yield (
                f"The numbers of {words} tokens differ{where} ({min(per_repeat):,.0f} to "
                f"{max(per_repeat):,.0f} a repeat): compare requests/s rather than tokens/s."
            )
    if any(_number_of_failed(points) for points in groups):
        yield f"Some requests failed{where}: they count as failed, and in no latency."
    cached = [_cached_share(points) for points in groups]
    known = [share for share in cached if share is not None]
    if known and max(known) - min(known) > _LIKE:
        shares = ", ".join("not known" if share is None else f"{share:.0%}" for share in cached)
        yield f"Prompt tokens from the prefix cache differ{where} ({shares}): reading them took no time."


def _number_of_failed(points: Sequence[Point]) -> int:
    return sum(int(point.result.get("failed") or 0) for point in points)


def _cached_share(points: Sequence[Point]) -> float | None:
    records = [record for point in points for record in point.records if record.cached_tokens is not None]
    prompt = sum(record.input_len for record in records)
    return sum(record.cached_tokens or 0 for record in records) / prompt if prompt else None
