"""When the requests of a load are sent: as `vllm bench serve` sends them."""

from __future__ import annotations

import numpy as np

from core.bench.spec import Load


def send_times(load: Load, count: int, seed: int) -> list[float]:
    """Seconds after the start at which each of `count` requests is due, in order.

    As vLLM's `get_request`: the gaps are drawn (exponential, or of a gamma distribution of shape
    `burstiness`; all 1/rate where arrivals are constant), the first stands before the first request,
    and all are stretched so that the last request is due at count / rate exactly. Without a rate, all
    are due at once. `max_concurrency` changes nothing here: who has to wait is late.
    """
    if count < 1:
        return []
    if load.request_rate is None:
        return [0.0] * count
    if load.arrivals == "constant":
        gaps = np.full(count, 1.0 / load.request_rate)
    else:
        shape = load.burstiness if load.arrivals == "gamma" else 1.0
        gaps = np.random.RandomState(seed).gamma(shape, size=count)  # stretched below: the scale is free
    times = np.cumsum(gaps)
    if times[-1] > 0:  # a tiny shape may draw nothing but zeros
        times *= count / load.request_rate / times[-1]
    return times.tolist()
