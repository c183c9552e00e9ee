"""One metric of a benchmark at one load, over its repeats, with its spread. Pure.

Never an average of averages: a rate of several repeats is the sum of what was done by the sum of
the seconds, a percentile is taken over the requests of all repeats together. Each repeat's own
figure serves for the spread only.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.bench.records import Point, PointSummary, RequestRecord

Better = Literal["higher", "lower"]
Of = Literal["repeats", "iterations", "requests"]
_RESAMPLES = 400
_MOST_BOOTSTRAPPED = 200_000
"""Values above which a single run gets no interval: finding it would take seconds."""
_REQUEST_METRIC = re.compile(r"(mean|median|p(\d{1,2}(?:\.\d{1,6})?))_(ttft|tpot|itl|e2el)_ms")
_LATENCY_METRIC = re.compile(r"(avg|p(\d{1,2}(?:\.\d{1,6})?))_latency")
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True)
class Metric:
    """What is compared. `name` is the field of `vllm bench`; `is_main`: among the few that matter most."""

    name: str
    title: str
    unit: str
    better: Better
    help: str
    is_main: bool = True


RATES = {
    metric.name: metric
    for metric in (
        Metric(
            "output_throughput", "Output tokens/s", "tokens/s", "higher", "Generated tokens by wall time."
        ),
        Metric(
            "total_token_throughput",
            "Total tokens/s",
            "tokens/s",
            "higher",
            "Prompt and generated tokens by wall time; prompt tokens from the prefix cache count too.",
            is_main=False,
        ),
        Metric("request_throughput", "Requests/s", "requests/s", "higher", "Answered requests by wall time."),
        Metric(
            "request_goodput",
            "Goodput",
            "requests/s",
            "higher",
            "Requests that met every limit, by wall time.",
        ),
        Metric(
            "failed_share", "Failed requests", "%", "lower", "Of all requests that were sent.", is_main=False
        ),
    )
}
_OF_REQUESTS = {
    "ttft": ("TTFT", "Time to first token: request sent to its first token."),
    "tpot": ("TPOT", "Time per output token: (E2EL - TTFT) / (output tokens - 1), per request."),
    "itl": ("ITL", "Inter-token latency: every gap between consecutive tokens, of all requests together."),
    "e2el": ("E2EL", "End-to-end latency: request sent to its last token."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A metric over all repeats of one load. None: not measured.

    `values` are the repeats' own figures. `low` and `high` are a 95% interval around `value`; `n`
    counts what it rests on: "repeats" (or a latency benchmark's "iterations"), or where there is one
    repeat its "requests". The last tells how the requests of that run vary, not how another run would.
    """

    value: float
    values: tuple[float, ...]
    low: float | None
    high: float | None
    n: int
    of: Of
    error: float | None = None
    """Standard error; None where one repeat can't tell."""


@dataclass(frozen=True, slots=True)
class _Samples:
    """`values` in ms, those of each request beside each other; `sizes`: how many each request has."""

    values: np.ndarray
    sizes: np.ndarray


_Seen = dict[tuple[str, int], _Samples | None]
"""What was read of points already, by metric and point: reading it for each percentile takes seconds."""


def metric(name: str) -> Metric | None:
    """The metric of that name, such as "p99_ttft_ms"; None for a field that is no metric to compare."""
    if name in RATES:
        return RATES[name]
    if found := _REQUEST_METRIC.fullmatch(name):
        statistic, percentile, what = found.groups()
        title, help = _OF_REQUESTS[what]
        words = f"p{percentile}" if percentile else statistic
        is_main = statistic in ("mean", "median", "p99")
        return Metric(name, f"{title}, {words}", "ms", "lower", help, is_main)
    if found := _LATENCY_METRIC.fullmatch(name):
        words = f"p{found[2]}" if found[2] else "mean"
        help = "A whole batch, sent to last token."
        return Metric(name, f"Batch latency, {words}", "s", "lower", help, words in ("mean", "p99"))
    return None


def without_details(summary: PointSummary) -> Point:
    """A summary as a point: `own` then reads what the result says."""
    return Point(
        number=summary.number,
        repeat=summary.repeat,
        load=summary.load,
        result=summary.result,
        is_whole=summary.is_whole,
    )


def names(points: Sequence[Point]) -> tuple[str, ...]:
    """The metrics that these points have, the rates first."""
    found: dict[str, None] = {}
    for name in RATES:
        if any(own(name, point) for point in points):
            found[name] = None
    for point in points:
        found |= {name: None for name, value in point.result.items() if value is not None and metric(name)}
        if point.result.get("avg_latency") is not None:
            found |= {name: None for name in ("p50_latency", "p99_latency") if _latencies(point)}
    if any(name.startswith("median") for name in found):  # the same twice
        found = {name: None for name in found if not name.startswith("p50_") or "latency" in name}
    return tuple(found)


def figure(name: str, points: Sequence[Point]) -> Figure | None:
    """The metric over `points`, the repeats of one load. None where it was not measured in all of them.

    Also None for a percentile or mean of several repeats without their requests: such figures can't
    be put together.
    """
    return table([name], points).get(name)


def table(names: Iterable[str], points: Sequence[Point]) -> dict[str, Figure]:
    """The figures of several metrics over the same repeats; those that `figure` has none of are left out."""
    seen: _Seen = {}
    found = {name: _figure(name, points, seen) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def own(name: str, point: Point) -> float | None:
    """The metric of one repeat."""
    return _own(name, point, {})


def student_t(freedom: float) -> float:
    """The 97.5% quantile of Student's t, fractions rounded down (a little too wide rather than too narrow).

    From tables to 10 degrees of freedom, then the Cornish-Fisher expansion (Abramowitz & Stegun, 26.7.5).
    """
    whole = max(1, math.floor(freedom))
    if whole <= len(_T_975):
        return _T_975[whole - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * whole) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * whole**2)


# -- the inside -------------------------------------------------------------------


def _figure(name: str, points: Sequence[Point], seen: _Seen) -> Figure | None:
    each = [_own(name, point, seen) for point in points]
    values = tuple(value for value in each if value is not None)
    if not points or len(values) < len(each):
        return None
    value = values[0] if len(values) == 1 else _pooled(name, points, seen)
    if value is None:
        return None
    if len(values) > 1:
        return _with_interval(value, values, values, "repeats")
    if name == "avg_latency" and len(iterations := _latencies(points[0])) > 1:
        return _with_interval(value, values, iterations, "iterations")
    samples = _samples(name, points[0], seen)
    if samples is None:
        return Figure(value=value, values=values, low=None, high=None, n=1, of="repeats")
    low, high = _bootstrap(name, samples)
    return Figure(value=value, values=values, low=low, high=high, n=len(samples.sizes), of="requests")


def _own(name: str, point: Point, seen: _Seen) -> float | None:
    if name in RATES:
        amount, per = _amounts(name, point)
        return None if amount is None or not per else amount / per
    if _LATENCY_METRIC.fullmatch(name):
        values = _latencies(point)
        return _statistic(name, np.asarray(values)) if values else _number(point.result.get(name))
    samples = _samples(name, point, seen)
    return _number(point.result.get(name)) if samples is None else _statistic(name, samples.values)


def _with_interval(value: float, values: tuple[float, ...], spread: Sequence[float], of: Of) -> Figure:
    """Student's interval from what varied between independent measurements."""
    n = len(spread)
    error = float(np.std(spread, ddof=1)) / math.sqrt(n)
    half = student_t(n - 1) * error
    low = max(0.0, value - half)  # no rate, no time and no share is below 0
    return Figure(value=value, values=values, low=low, high=value + half, n=n, of=of, error=error)


def _pooled(name: str, points: Sequence[Point], seen: _Seen) -> float | None:
    if name in RATES:
        parts = [_amounts(name, point) for point in points]
        return sum(amount or 0.0 for amount, _per in parts) / sum(per for _amount, per in parts)
    if _LATENCY_METRIC.fullmatch(name):
        each = [_latencies(point) for point in points]
        return _statistic(name, np.concatenate(each)) if all(each) else None
    samples = [_samples(name, point, seen) for point in points]
    known = [one.values for one in samples if one is not None]
    return _statistic(name, np.concatenate(known)) if len(known) == len(samples) else None


def _amounts(name: str, point: Point) -> tuple[float | None, float]:
    """(how much, by how many): tokens or requests by seconds, failed requests by all requests."""
    result = point.result
    seconds = _number(result.get("duration")) or _number(result.get("elapsed_time")) or sum(_latencies(point))
    done = _number(result.get("completed", result.get("num_requests")))
    if name == "failed_share":
        failed = _number(result.get("failed"))
        return (None, 0.0) if failed is None or done is None else (100 * failed, done + failed)
    if name == "request_throughput":
        return done, seconds
    if name == "request_goodput":
        good = _number(result.get("request_goodput"))
        return (None if good is None else good * seconds), seconds
    output = _number(result.get("total_output_tokens"))
    if output is None and point.records:
        output = float(sum(record.output_len for record in point.records if record.ok))
    if name == "output_throughput":
        return output, seconds
    total = _number(result.get("total_num_tokens"))
    prompt = _number(result.get("total_input_tokens"))
    if total is None and prompt is not None and output is not None:
        total = prompt + output
    return total, seconds


def _latencies(point: Point) -> list[float]:
    found = point.result.get("latencies")
    if isinstance(found, Sequence) and not isinstance(found, str):
        return [float(value) for value in found]
    return []


def _samples(name: str, point: Point, seen: _Seen) -> _Samples | None:
    """The metric's values of all answered requests; None where nothing was measured, request by request."""
    found = _REQUEST_METRIC.fullmatch(name)
    if found is None or not point.records:
        return None
    key = (found[3], id(point))
    if key not in seen:
        each = [_values(found[3], record) for record in point.records if record.ok]
        sizes = np.asarray([len(values) for values in each if values])
        values = np.fromiter(itertools.chain.from_iterable(each), float, count=int(sizes.sum())) * 1000
        seen[key] = _Samples(values, sizes) if len(values) else None
    return seen[key]


def _values(what: str, record: RequestRecord) -> tuple[float, ...]:
    if what == "itl":
        return record.itls_s
    value = record.ttft_s if what == "ttft" else record.tpot_s if what == "tpot" else record.e2el_s
    return () if value is None else (value,)


def _statistic(name: str, values: np.ndarray) -> float:
    word = name.split("_")[0]
    if word in ("mean", "avg"):
        return float(np.mean(values))
    return float(np.percentile(values, 50.0 if word == "median" else float(word[1:])))


def _bootstrap(name: str, samples: _Samples) -> tuple[float | None, float | None]:
    """A 95% percentile interval (Efron & Tibshirani, 1993, chapter 13), whole requests drawn anew.

    The gaps of one request are no independent evidence, so a request comes with all of its.
    """
    values, sizes = samples.values, samples.sizes
    if len(sizes) < 2 or len(values) > _MOST_BOOTSTRAPPED:
        return None, None
    draws = _draws(len(sizes))
    if name.startswith("mean"):
        sums = np.add.reduceat(values, np.cumsum(sizes) - sizes)
        found = (draws @ sums) / (draws @ sizes)
    else:
        order = np.argsort(values, kind="stable")
        owners, ordered = np.repeat(np.arange(len(sizes)), sizes)[order], values[order]
        share = 0.5 if name.startswith("median") else float(name.split("_")[0][1:]) / 100
        found = np.asarray([_weighted_quantile(ordered, draw[owners], share) for draw in draws])
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def _weighted_quantile(ordered: np.ndarray, weights: np.ndarray, share: float) -> float:
    """As np.percentile over the values repeated by their whole weights, linear between neighbours."""
    ends = np.cumsum(weights)
    place = share * (ends[-1] - 1)
    below, above = np.searchsorted(ends, (math.floor(place), math.ceil(place)), side="right")
    return float(ordered[below] + (ordered[above] - ordered[below]) * (place - math.floor(place)))


# several figures of the same requests: drawn once for all of them
@functools.lru_cache(maxsize=4)
def _draws(n: int) -> np.ndarray:
    """How often each of n requests was drawn in each resample (resamples, n); the same every time."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
