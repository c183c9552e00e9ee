"""vLLM's own figures of each step, added up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from core.types import EngineStats


@dataclass(slots=True)
class Counters:
    """Totals of what vLLM's stat loggers are told each step."""

    steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    # by data-parallel rank: (running, waiting, share of the KV cache in use)
    load: dict[int, tuple[int, int, float]] = field(default_factory=dict)

    def record(self, scheduler: Any, iteration: Any, rank: int) -> None:
        if scheduler is not None:
            waiting = scheduler.num_waiting_reqs + getattr(scheduler, "num_skipped_waiting_reqs", 0)
            self.load[rank] = (scheduler.num_running_reqs, waiting, scheduler.kv_cache_usage)
            found = scheduler.prefix_cache_stats
            self.prefix_queries += found.queries
            self.prefix_hits += found.hits
        if iteration is not None:
            self.steps += 1
            self.prompt_tokens += iteration.num_prompt_tokens
            self.output_tokens += iteration.num_generation_tokens

    def read(self, *, idle: bool) -> EngineStats:
        load = list(self.load.values())
        return EngineStats(
            running=0 if idle else sum(running for running, _, _ in load),
            waiting=0 if idle else sum(waiting for _, waiting, _ in load),
            kv_cache_usage=0.0 if idle or not load else sum(usage for _, _, usage in load) / len(load),
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            prefix_queries=self.prefix_queries,
            prefix_hits=self.prefix_hits,
        )


def stat_logger(counters: Counters) -> Callable[..., Any]:
    """A factory as vLLM's `stat_loggers` wants it."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class StatLogger(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(
            self,
            scheduler_stats: Any,
            iteration_stats: Any,
            mm_cache_stats: Any = None,
            engine_idx: int = 0,
            **_: Any,
        ) -> None:
            counters.record(scheduler_stats, iteration_stats, engine_idx)

        def log_engine_initialized(self) -> None:
            pass

    return StatLogger
