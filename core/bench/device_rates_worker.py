"""python -m core.bench.device_rates_worker: how fast this device copies memory and multiplies matrices.

In a process of its own: torch's threads are bound when it is imported, and CUDA's memory is given back
when it ends. The request comes as JSON in the first argument: {"dtypes": ["bfloat16"], "processors": [0, 1]}
(empty: all). It prints one line of JSON, rates in bytes/s and FLOP/s:

    {"bandwidth": 1.9e10, "read": 2.1e10, "flops": {"bfloat16": 2.4e11}}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

COPIED_BYTES = 256 << 20
"""Of one buffer: beyond any cache of the processors this runs on."""
_TURNS, _LEAST_TURN_S = 7, 0.05
_SMALL, _TARGET_S, _LARGEST = 512, 0.3, 8192


def main() -> None:
    request = json.loads(sys.argv[1])
    processors = request["processors"]
    if processors and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors)
    import torch

    if torch.cuda.is_available():
        device, wait = "cuda", torch.cuda.synchronize
    else:
        device, wait = "cpu", lambda: None
        if processors:
            torch.set_num_threads(len(processors))
    bandwidth, read = _bandwidths(torch, device, wait)
    flops = {name: _flops(torch, device, wait, getattr(torch, name)) for name in request["dtypes"]}
    print(json.dumps({"bandwidth": bandwidth, "read": read, "flops": flops}), flush=True)


def _bandwidths(torch: Any, device: str, wait: Callable[[], None]) -> tuple[float, float]:
    """Bytes/s of a copy, which reads and writes each byte, and of a sum, which only reads."""
    source = torch.ones(COPIED_BYTES // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copy = 2 * COPIED_BYTES / _best(lambda: target.copy_(source), wait)
    return copy, COPIED_BYTES / _best(source.sum, wait)


def _flops(torch: Any, device: str, wait: Callable[[], None], dtype: Any) -> float:
    """FLOP/s of square matrices, as large as a third of a second allows."""
    size, best = _SMALL, 0.0
    while True:
        left = torch.randn(size, size, device=device).to(dtype)
        right = torch.randn(size, size, device=device).to(dtype)
        took = _best(lambda: torch.matmul(left, right), wait)  # noqa: B023  (called here)
        best = max(best, 2 * size**3 / took)
        if size >= _LARGEST or 8 * took > _TARGET_S:
            return best
        size *= 2


def _best(work: Callable[[], Any], wait: Callable[[], None]) -> float:
    """The least seconds of one `work` over several turns; a short one is done several times a turn."""
    work()
    wait()
    began = time.perf_counter()
    work()
    wait()
    times = max(1, int(_LEAST_TURN_S / max(time.perf_counter() - began, 1e-6)))
    least = float("inf")
    for _ in range(_TURNS):
        began = time.perf_counter()
        for _ in range(times):
            work()
        wait()
        least = min(least, (time.perf_counter() - began) / times)
    return least


if __name__ == "__main__":
    main()
