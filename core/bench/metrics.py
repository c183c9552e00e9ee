"""What the measured requests come to: the figures of `vllm bench` 0.32, by its definitions.  (pure)

Names and formulas are those of `vllm/benchmarks/serve.py` (`calculate_metrics`), `throughput.py` and
`latency.py`; a test holds them against vLLM's own code. One thing differs: what was not measured is
None here, where vLLM writes 0. Every figure comes from all requests that succeeded, never from the
figures of parts; failed requests are counted in "failed" and stand in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from core.bench.records import RequestRecord
from core.bench.spec import METRICS

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
LATENCY_PERCENTILES = (10, 25, 50, 75, 90, 99)
"""Those that `vllm bench latency` writes."""


def serve_result(
    records: Sequence[RequestRecord],
    duration_s: float,
    *,
    metrics: Iterable[str] = METRICS,
    percentiles: Iterable[float] = PERCENTILES,
    goodput: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The measured fields of `vllm bench serve`, without the lists of requests (see `details`).

    `duration_s`: from the first moment of the load to the last answer's end. `goodput`: the most
    milliseconds of "ttft", "tpot" and "e2el" that a good request may take.

    duration, completed, failed, total_input_tokens, total_output_tokens    of completed requests
    request_throughput, output_throughput, total_token_throughput    per second of `duration_s`
    request_goodput    good requests/s; None without limits
    max_output_tokens_per_s, max_concurrent_requests    of the seconds since the first was sent
    {mean,median,std,pN}_{ttft,tpot,itl,e2el}_ms    milliseconds; the deviation is the population's
    """
    done = [record for record in records if record.ok]
    total_input = sum(record.input_len for record in done)
    total_output = sum(record.output_len for record in done)
    good = _good_requests(done, goodput) if goodput else None
    result: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(done),
        "failed": len(records) - len(done),
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "request_throughput": _rate(len(done), duration_s),
        "request_goodput": None if good is None else _rate(good, duration_s),
        "output_throughput": _rate(total_output, duration_s),
        "total_token_throughput": _rate(total_input + total_output, duration_s),
        "max_output_tokens_per_s": _most_tokens(done),
        "max_concurrent_requests": _most_at_once(done),
        "rtfx": None,  # vLLM's factor of real time for speech: there is none here
    }
    percentiles = tuple(percentiles)
    for metric in metrics:
        result |= _statistics(metric, milliseconds(done, metric), percentiles)
    return result


def throughput_result(records: Sequence[RequestRecord], elapsed_s: float) -> dict[str, Any]:
    """The measured fields of `vllm bench throughput`, and behind them what tells prompts from answers.

    `tokens_per_second` counts prompt and output tokens, as vLLM's does; `output_throughput` the
    generated ones alone. Where requests failed, `num_requests` is those that did not.
    """
    done = [record for record in records if record.ok]
    total_input = sum(record.input_len for record in done)
    total_output = sum(record.output_len for record in done)
    return {
        "elapsed_time": elapsed_s,
        "num_requests": len(done),
        "total_num_tokens": total_input + total_output,
        "requests_per_second": _rate(len(done), elapsed_s),
        "tokens_per_second": _rate(total_input + total_output, elapsed_s),
        "completed": len(done),
        "failed": len(records) - len(done),
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "output_throughput": _rate(total_output, elapsed_s),
    }


def latency_result(
    latencies_s: Sequence[float], records: Sequence[RequestRecord] = (), batch_size: int = 1
) -> dict[str, Any]:
    """The measured fields of `vllm bench latency`: seconds that one batch took, iteration by iteration.

    `records`: the requests in the order they were sent, `batch_size` at a time. A batch with a failed
    request, or the last one when it was stopped, has no time among `latencies_s`: its tokens don't
    count. The percentiles' keys are text, as in JSON.
    """
    times = np.asarray(latencies_s, dtype=float)
    done = [record for record in records if record.ok]
    batches = [records[first : first + batch_size] for first in range(0, len(records), batch_size)]
    timed = [batch for batch in batches if len(batch) == batch_size and all(one.ok for one in batch)]
    total_output = sum(record.output_len for batch in timed for record in batch)
    return {
        "avg_latency": float(times.mean()) if times.size else None,
        "latencies": times.tolist(),
        "percentiles": {
            str(share): float(np.percentile(times, share)) if times.size else None
            for share in LATENCY_PERCENTILES
        },
        "completed": len(done),
        "failed": len(records) - len(done),
        "total_output_tokens": total_output if records else None,
        "output_throughput": _rate(total_output, float(times.sum())) if records else None,
    }


def details(records: Sequence[RequestRecord]) -> dict[str, list[Any]]:
    """The lists of `vllm bench serve --save-detailed`: one entry a request, in order, in seconds.

    `errors` has "" for a request that succeeded. What was not measured is None.
    """
    return {
        "input_lens": [record.input_len for record in records],
        "output_lens": [record.output_len if record.ok else 0 for record in records],
        "ttfts": [record.ttft_s for record in records],
        "itls": [list(record.itls_s) for record in records],
        "latencies": [record.e2el_s for record in records],
        "start_times": [record.start_s for record in records],
        "queue_times": [record.queue_s for record in records],
        "errors": [record.error or "" for record in records],
    }


def milliseconds(records: Iterable[RequestRecord], metric: str) -> list[float]:
    """All values of "ttft", "tpot", "itl" or "e2el" of the requests that succeeded, in ms.

    One value a request, where it was measured; of "itl" all gaps of all requests, pooled.
    """
    done = [record for record in records if record.ok]
    if metric == "itl":
        return [gap * 1000 for record in done for gap in record.itls_s]
    values = (getattr(record, f"{metric}_s") for record in done)
    return [value * 1000 for value in values if value is not None]


def is_good(record: RequestRecord, goodput: Mapping[str, float]) -> bool:
    """Whether a request met every limit (ms). With one token only, its TPOT counts as 0, as in vLLM.

    A failed request is not good, nor is one of which a limited figure was not measured.
    """
    if not record.ok:
        return False
    for metric, limit_ms in goodput.items():
        value = getattr(record, f"{metric}_s")
        if metric == "tpot" and record.output_len < 2:
            value = 0.0
        if value is None or value > limit_ms / 1000:
            return False
    return True


def percentile_name(percentile: float) -> str:
    """As in vLLM's field names: "p99", "p99.9"."""
    return f"p{int(percentile) if int(percentile) == percentile else percentile}"


def per_second(records: Iterable[RequestRecord]) -> tuple[float, ...]:
    """Output tokens in each second since the first request was sent; () where no times are known.

    Where several tokens came in one piece (speculative decoding), an answer's tokens are spread evenly
    over its pieces: which piece held how many is not kept. The last second is rarely a whole one.
    """
    done = [record for record in records if record.ok and record.ttft_s is not None]
    if not done:
        return ()
    began = min(record.start_s for record in done)
    times = [_token_times(record) - began for record in done]
    weights = [np.full(len(at), record.output_len / len(at)) for at, record in zip(times, done, strict=True)]
    seconds = np.concatenate(times).astype(int)
    return tuple(np.bincount(seconds, weights=np.concatenate(weights)).tolist())


def _rate(count: float, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _statistics(metric: str, values: Sequence[float], percentiles: Sequence[float]) -> dict[str, Any]:
    """Mean, median, deviation and percentiles of `values` (ms), under vLLM's names."""
    names = ("mean", "median", "std", *(percentile_name(share) for share in percentiles))
    if not values:
        return {f"{name}_{metric}_ms": None for name in names}
    array = np.asarray(values)
    figures = (array.mean(), np.median(array), array.std(), *np.percentile(array, percentiles))
    return {f"{name}_{metric}_ms": float(value) for name, value in zip(names, figures, strict=True)}


def _good_requests(done: Sequence[RequestRecord], goodput: Mapping[str, float]) -> int | None:
    """None where a limited figure was measured for no request: an engine that doesn't stream has no TTFT."""
    for metric in goodput:
        has_value = any(getattr(record, f"{metric}_s") is not None for record in done)
        if done and not has_value and not (metric == "tpot" and all(r.output_len < 2 for r in done)):
            return None
    return sum(is_good(record, goodput) for record in done)


def _token_times(record: RequestRecord) -> np.ndarray:
    """When each piece of an answer came: float64, (pieces,). Its TTFT is known."""
    return np.cumsum([record.start_s + (record.ttft_s or 0.0), *record.itls_s])


def _most_tokens(done: Sequence[RequestRecord]) -> float | None:
    """The most pieces (mostly tokens) in one of the seconds since the first request was sent."""
    timed = [record for record in done if record.ttft_s is not None]
    if not timed:
        return None
    began = min(record.start_s for record in done)
    seconds = (np.concatenate([_token_times(record) for record in timed]) - began).astype(int)
    return float(np.bincount(seconds).max())


def _most_at_once(done: Sequence[RequestRecord]) -> int | None:
    """The most requests that were active at any time of one second, as vLLM counts them."""
    timed = [record for record in done if record.e2el_s is not None]
    if not timed:
        return None
    began = min(record.start_s for record in timed)
    starts = np.array([record.start_s for record in timed])
    ends = starts + np.array([record.e2el_s for record in timed])
    first = (starts - began).astype(int)
    last = (ends - began).astype(int)
    change = np.zeros(last.max() + 2, dtype=int)
    np.add.at(change, first, 1)
    np.add.at(change, last + 1, -1)
    return int(np.cumsum(change).max())
