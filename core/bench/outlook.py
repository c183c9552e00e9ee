"""What a benchmark will do, before it starts: how many requests, and about how long.  (pure)"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from core.bench import knee
from core.bench.records import BenchView
from core.bench.spec import (
    BenchSpec,
    Load,
    RandomWorkload,
    SharedPrefixWorkload,
    Workload,
)

_ALL = 10_000.0
"""Requests at once that stand for no limit, when earlier points are compared with a load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """`points` measurements of `requests` each, warm-ups apart; None where only the file says how many.

    `seconds` is None while nothing alike was measured. `is_bound`: it may end sooner, at the knee.
    """

    points: int
    requests: int | None
    seconds: float | None
    is_bound: bool


@dataclass(frozen=True, slots=True)
class _Measured:
    at_once: float
    input_share: float
    tokens_per_s: float


def outlook(spec: BenchSpec, model: str, engine: str, earlier: Iterable[BenchView]) -> Outlook:
    """What `spec` comes to on this model and engine, from what was measured of them before.

    The time of a point is its tokens by the total tokens/s of the earlier point that is most alike in
    requests at once and in the share of prompt tokens; a rate sets a least time besides.
    """
    earlier = [view for view in earlier if _is_same(view, model, engine)]
    sizes = _sizes(spec.workload) or _sizes_before(spec.workload, earlier)
    if spec.kind == "latency":
        loads: list[Load] = [Load(max_concurrency=spec.batch_size)]
        requests = spec.batch_size * (spec.num_iters + spec.num_iters_warmup)
    else:
        loads = _loads(spec)
        requests = spec.workload.num_prompts
    seconds = None
    if requests is not None and sizes is not None:
        known = [one for view in earlier for one in _measured(view)]
        each = [_seconds(load, requests, sizes, spec, known) for load in loads]
        seconds = None if None in each else spec.repeats * sum(each)
    measured = spec.batch_size * spec.num_iters if spec.kind == "latency" else requests
    return Outlook(
        points=len(loads) * spec.repeats,
        requests=measured,
        seconds=seconds,
        is_bound=spec.kind == "serve" and spec.sweep is not None,
    )


def longest(workload: Workload) -> int | None:
    """Tokens of its longest request, prompt and answer; None where only the file says."""
    if isinstance(workload, RandomWorkload):
        most = 1 + workload.range_ratio
        return (
            workload.prefix_len
            + math.floor(workload.input_len * most)
            + math.floor(workload.output_len * most)
        )
    sizes = _sizes(workload)
    return None if sizes is None else sum(sizes)


def _loads(spec: BenchSpec) -> list[Load]:
    if spec.kind == "throughput":
        return [Load()]
    if spec.sweep is None:
        return list(spec.loads)
    like = spec.loads[0] if spec.loads else None
    return [knee.swept_load(spec.sweep, step, like) for step in range(spec.sweep.most_points)]


def _sizes(workload: Workload) -> tuple[int, int] | None:
    """Tokens (in, out) of a typical request; None where only the file says."""
    if isinstance(workload, RandomWorkload):
        return workload.prefix_len + workload.input_len, workload.output_len
    if isinstance(workload, SharedPrefixWorkload):
        return workload.prefix_len + workload.suffix_len, workload.output_len
    return None


def _sizes_before(workload: Workload, earlier: Iterable[BenchView]) -> tuple[float, float] | None:
    """The same of what was found in the file when the same rows of it were asked; None: they never were."""
    if workload.num_prompts is None:
        return None
    for view in earlier:
        if view.spec is None or view.spec.workload != workload:
            continue
        for point in view.points:
            prompt = _number(point.result.get("total_input_tokens"))
            output = _number(point.result.get("total_output_tokens"))
            if prompt and output and point.is_whole:
                # over the requests asked for, of which the file may hold fewer
                return prompt / workload.num_prompts, output / workload.num_prompts
    return None


def _seconds(
    load: Load, requests: int, sizes: tuple[float, float], spec: BenchSpec, known: list[_Measured]
) -> float | None:
    at_once = float(min(load.max_concurrency or _ALL, requests))
    if spec.kind == "latency":
        at_once = float(spec.batch_size)
    share = sizes[0] / sum(sizes)
    if not known:
        return None
    alike = min(
        known, key=lambda one: abs(math.log(one.at_once / at_once)) + 4 * abs(one.input_share - share)
    )
    seconds = requests * sum(sizes) / alike.tokens_per_s
    return seconds if load.request_rate is None else max(seconds, requests / load.request_rate)


def _is_same(view: BenchView, model: str, engine: str) -> bool:
    return view.environment.get("model") == model and view.environment.get("engine") == engine


def _measured(view: BenchView) -> Iterable[_Measured]:
    for point in view.points:
        result = point.result
        at_once = _number(result.get("max_concurrent_requests")) or _number(result.get("completed"))
        prompt, output = _number(result.get("total_input_tokens")), _number(result.get("total_output_tokens"))
        seconds = _number(result.get("duration")) or _number(result.get("elapsed_time"))
        if point.load is not None and point.load.request_rate is not None:
            continue  # as fast as requests came, not as fast as it could
        if at_once and prompt and output and seconds:
            yield _Measured(at_once, prompt / (prompt + output), (prompt + output) / seconds)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None
