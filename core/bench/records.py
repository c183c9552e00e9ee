"""What was measured, request by request and second by second. Times are seconds from a point's start."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.bench.spec import BenchSpec, Load
from core.types import LoraAdapter

BenchState = Literal["running", "complete", "stopped", "failed", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """One request of a workload. `output_len`: the exact length wanted; None: where the model ends it.

    `params`: sampling parameters of its own; `adapter` answers it, None: the model itself.
    """

    token_ids: tuple[int, ...]
    output_len: int | None
    group: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    adapter: LoraAdapter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One measured request. None means not measured, never 0.

    `start_s`: sent to the engine; `queue_s`: waited before that for a place under max_concurrency.
    `ttft_s`, `e2el_s` from being sent; `itls_s`: the gaps between tokens that came apart. `error` says
    why it failed; a failed request counts as failed, and in no latency.
    """

    input_len: int
    output_len: int
    start_s: float
    ttft_s: float | None = None
    itls_s: tuple[float, ...] = ()
    e2el_s: float | None = None
    queue_s: float = 0.0
    cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def tpot_s(self) -> float | None:
        """(E2EL - TTFT) / (output tokens - 1), as `vllm bench serve`."""
        if self.ttft_s is None or self.e2el_s is None or self.output_len < 2:
            return None
        return (self.e2el_s - self.ttft_s) / (self.output_len - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSample:
    """The engine and the device at one moment. Token counts are totals since the point began.

    `cpu_percent` is of one core, of this process and its children (200: two cores), `gpu_percent`
    the busiest GPU's; `power_w` all GPUs'. None where nothing tells.
    """

    at_s: float
    output_tokens: int
    prompt_tokens: int
    running: int
    waiting: int
    kv_cache_usage: float | None
    prefix_queries: int
    prefix_hits: int
    cpu_percent: float | None = None
    ram_bytes: int | None = None
    gpu_percent: float | None = None
    gpu_memory_bytes: int | None = None
    power_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measurement, as it is kept on disk: `result` holds the JSON fields of `vllm bench` for its kind.

    `load`: None for throughput and latency. `records` and `samples` are empty where a file of vLLM
    had no details. `is_whole`: False when it was stopped before its last request.
    """

    number: int
    repeat: int
    load: Load | None
    result: Mapping[str, Any]
    records: tuple[RequestRecord, ...] = ()
    samples: tuple[EngineSample, ...] = ()
    is_whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSummary:
    """A point without its details: what lists and charts over many points need."""

    number: int
    repeat: int
    load: Load | None
    result: Mapping[str, Any]
    is_whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A benchmark at work. `stage` is a short phrase ("Warming up", "4 requests/s, repeat 2 of 3")."""

    stage: str
    done: int
    total: int
    failed: int
    elapsed_s: float
    samples: tuple[EngineSample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchView:
    """A benchmark as it is now. `environment`: model, engine, settings, versions and machine it ran on.

    `spec` is None for an imported file of vLLM's; `source` is then the file's name.
    """

    benchmark_id: str
    name: str
    created_at: dt.datetime
    state: BenchState
    message: str
    kind: str
    spec: BenchSpec | None
    environment: Mapping[str, Any]
    points: tuple[PointSummary, ...]
    is_baseline: bool = False
    source: str | None = None
    progress: Progress | None = field(default=None)
