"""One benchmark at work: loads, repeats and warm-ups in turn, each point kept as soon as it is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from core.bench import arrivals, knee, metrics, workloads
from core.bench.measuring import Measuring, requests_of
from core.bench.records import BenchState, PlannedRequest, Point, PointSummary, Progress
from core.bench.spec import BenchSpec, Load, RandomWorkload, TableWorkload
from core.engines.base import Engine
from core.errors import BenchError, ParameterError
from core.run_spec import PromptSpec
from core.types import EngineInfo, LoraAdapter, Request


class BenchWork:
    """Belongs to the engine's loop; `progress` may be read from any thread.

    `keep` writes a point to disk; it is called in a thread. `adapters` may be named by a table's rows.
    """

    def __init__(
        self,
        benchmark_id: str,
        spec: BenchSpec,
        engine: Engine,
        keep: Callable[[Point], PointSummary],
        adapters: Mapping[str, LoraAdapter] = MappingProxyType({}),
    ) -> None:
        self.benchmark_id = benchmark_id
        self.ends_as: BenchState | None = None
        self._spec = spec
        self._engine = engine
        self._keep = keep
        self._adapters = adapters
        self._stage = "Preparing prompts"
        self._measuring: Measuring | None = None
        self._began = time.monotonic()

    @property
    def progress(self) -> Progress:
        """Of the point at work, or of the warm-up before it: requests, in a latency benchmark batches."""
        measuring = self._measuring
        if measuring is None:
            elapsed_s = time.monotonic() - self._began
            return Progress(stage=self._stage, done=0, total=0, failed=0, elapsed_s=elapsed_s)
        return Progress(
            stage=self._stage,
            done=measuring.done,
            total=measuring.total,
            failed=measuring.failed,
            elapsed_s=measuring.elapsed_s,
            samples=measuring.samples,
        )

    def end(self, state: BenchState) -> None:
        """Measure no more: what has been answered of the point at work is kept. On the loop."""
        self.ends_as = self.ends_as or state
        if self._measuring is not None:
            self._measuring.stop()

    async def run(self) -> None:
        """Measure all points, or until `end`. Raises what ends it: EngineDied, ParameterError, BenchError."""
        measured: list[PointSummary] = []
        for load in _loads(self._spec, measured):
            for repeat in range(self._spec.repeats):
                summary = await self._point(len(measured), repeat, load)
                if summary is not None:
                    measured.append(summary)
                if self.ends_as is not None:
                    return

    async def _point(self, number: int, repeat: int, load: Load | None) -> PointSummary | None:
        """Measure one point. None: it was ended before anything was answered."""
        spec = self._spec
        # what can't forget what it has read is asked something else each time
        forgets = await self._engine.reset_prefix_cache()
        seed = spec.seed + (repeat if forgets else number)
        if spec.kind == "latency":
            measuring = await self._measure_batches(number, repeat, seed)
        else:
            measuring = await self._measure_requests(number, repeat, load, seed)
        if measuring.is_stopped and not any(record.ok for record in measuring.records):
            return None
        point = Point(
            number=number,
            repeat=repeat,
            load=load,
            result=_result(spec, measuring),
            records=measuring.records,
            samples=measuring.samples,
            is_whole=not measuring.is_stopped,
        )
        summary = await asyncio.to_thread(self._keep, point)
        if not any(record.ok for record in point.records):
            raise BenchError(f"No request was answered. The first: {point.records[0].error}")
        return summary

    async def _measure_requests(self, number: int, repeat: int, load: Load | None, seed: int) -> Measuring:
        spec, engine = self._spec, self._engine
        most = load.max_concurrency if load else None
        streams = spec.kind == "serve"
        self._stage = "Preparing prompts"
        planned = await asyncio.to_thread(workloads.plan, spec, engine, seed, self._adapters)
        first_ones = await asyncio.to_thread(workloads.warmups, spec, engine, planned, seed)
        warmups = self._requests(first_ones, "warm-up")
        requests = self._requests(planned, str(number))
        times = arrivals.send_times(load or Load(), len(requests), seed)
        if warmups:
            first = Measuring(engine, len(warmups), streams=streams)
            await self._watched(first, "Warming up", first.send(warmups, [0.0] * len(warmups), most))
        await engine.reset_prefix_cache()
        measuring = Measuring(engine, len(requests), streams=streams)
        stage = f"{load.title if load else 'All at once'}{_repeat(spec, repeat)}"
        await self._watched(measuring, stage[:1].upper() + stage[1:], measuring.send(requests, times, most))
        return measuring

    async def _measure_batches(self, number: int, repeat: int, seed: int) -> Measuring:
        spec, engine, size = self._spec, self._engine, self._spec.batch_size
        self._stage = "Preparing prompts"
        # all batches are drawn at once: none has a prompt of another
        rounds = spec.num_iters_warmup + spec.num_iters
        workload = spec.workload.model_copy(update={"num_prompts": size * rounds})
        whole = spec.model_copy(update={"kind": "throughput", "workload": workload})
        requests = self._requests(await asyncio.to_thread(workloads.plan, whole, engine, seed), str(number))
        batches = [requests[begin : begin + size] for begin in range(0, len(requests), size)]
        warmups, batches = batches[: spec.num_iters_warmup], batches[spec.num_iters_warmup :]
        if warmups:
            first = Measuring(engine, len(warmups), streams=False)
            await self._watched(first, "Warming up", first.send_batches(warmups, engine.reset_prefix_cache))
        measuring = Measuring(engine, len(batches), streams=False)
        stage = f"Batches of {size}{_repeat(spec, repeat)}"
        await self._watched(measuring, stage, measuring.send_batches(batches, engine.reset_prefix_cache))
        return measuring

    async def _watched(self, measuring: Measuring, stage: str, work: Coroutine[Any, Any, None]) -> None:
        if self.ends_as is not None:  # while the prompts were prepared
            work.close()
            measuring.stop()
            return
        self._stage, self._measuring = stage, measuring
        try:
            await work
        finally:
            self._stage, self._measuring = "Keeping the results", None

    def _requests(self, planned: Sequence[PlannedRequest], name: str) -> list[Request]:
        return requests_of(
            planned,
            self._spec.params,
            ignore_eos=self._spec.ignore_eos,
            max_model_len=self._engine.info.max_model_len,
            name=f"bench-{self.benchmark_id}-{name}",
        )


def check(spec: BenchSpec, info: EngineInfo) -> None:
    """Raise ParameterError for what this engine can't be asked."""
    if "tokens" in info.cannot:
        raise ParameterError(
            f"This engine can't be measured in tokens: {info.cannot['tokens']}", hint="Load another engine."
        )
    asked = {**spec.params, **({"ignore_eos": True} if spec.ignore_eos else {})}
    for name, reason in info.cannot_params.items():
        if name in asked:
            hint = f"Leave {name} out." if name != "ignore_eos" else "Let answers end where the model ends."
            raise ParameterError(f"{name} can't be asked of this engine: {reason}", hint=hint)
    workload = spec.workload
    if isinstance(workload, TableWorkload):
        _check_table(workload.prompt, info)
    if spec.kind == "latency" and (not isinstance(workload, RandomWorkload) or workload.range_ratio):
        raise ParameterError(
            "Latency is measured with prompts of one length.", hint="Choose random prompts, all equally long."
        )


def _check_table(prompt: PromptSpec, info: EngineInfo) -> None:
    if (prompt.adapter or prompt.adapter_column) and "adapters" in info.cannot:
        raise ParameterError(
            f"The table asks for adapters. {info.cannot['adapters']}", hint="Load the model with LoRA."
        )
    for name, column in prompt.param_columns.items():
        if name in info.cannot_params:
            reason = info.cannot_params[name]
            raise ParameterError(
                f"{name} can't be asked of this engine: {reason}", hint=f"Leave column {column!r} out."
            )


def title(spec: BenchSpec, info: EngineInfo) -> str:
    """A name for a benchmark without one."""
    words = {"throughput": "Throughput", "serve": "Serving", "latency": "Latency"}[spec.kind]
    return spec.name.strip() or f"{words} of {info.model}"


def _loads(spec: BenchSpec, measured: list[PointSummary]) -> Iterator[Load | None]:
    """The loads one after the other; a sweep looks at what is `measured` before it goes on."""
    if spec.kind != "serve":
        yield None
    elif spec.sweep is None:
        yield from spec.loads
    else:
        step, like = 0, spec.loads[0] if spec.loads else None
        over = spec.sweep.over
        while knee.goes_on(knee.load_points(measured, over), spec.sweep) and not _has_all(measured, over):
            yield knee.swept_load(spec.sweep, step, like)
            step += 1


def _has_all(measured: list[PointSummary], over: str) -> bool:
    """Whether the last load had every request in flight: a higher bound would be the same load again."""
    if over != "max_concurrency" or not measured:
        return False
    load, result = measured[-1].load, measured[-1].result
    return load.max_concurrency >= result["completed"] + result["failed"]


def _repeat(spec: BenchSpec, repeat: int) -> str:
    return f", repeat {repeat + 1} of {spec.repeats}" if spec.repeats > 1 else ""


def _result(spec: BenchSpec, measuring: Measuring) -> dict[str, Any]:
    records = measuring.records
    if spec.kind == "latency":
        return metrics.latency_result(measuring.latencies_s, records, spec.batch_size)
    if spec.kind == "throughput":
        return metrics.throughput_result(records, measuring.elapsed_s)
    return metrics.serve_result(
        records,
        measuring.elapsed_s,
        metrics=spec.percentile_metrics,
        percentiles=spec.metric_percentiles,
        goodput=spec.goodput,
    )
