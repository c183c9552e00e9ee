"""Does a model fit? Weights, KV cache and overhead from a model's facts, before anything is loaded: pure.

On a CPU it is the arithmetic that vLLM is started with here (`core.engines.vllm_settings.choose`), on a GPU
vLLM's own: of the share `gpu_memory_utilization` of each GPU, what weights, activations and CUDA graphs
leave is KV cache (v1/worker/gpu_worker.py, determine_available_memory). `fit_compare` holds an
estimate against what the engine reports once it is loaded. How far off it was: docs/models.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from core.engines.vllm_settings import DeviceFacts, choose, cpu_block_tokens
from core.engines.vllm_settings import ModelFacts as EngineFacts
from core.errors import EngineLoadError
from core.models import fit_sizes, kv_cache
from core.models.facts import ModelFacts
from core.models.fit_sizes import Part
from core.types import EngineInfo, EngineSpec

if TYPE_CHECKING:
    from core.machine import Machine

GPU_SHARE = 0.92
"""vLLM's default gpu_memory_utilization, 0.26 to 0.33."""
NOTHING_HELPS = "No settings would make it fit: choose a smaller model, or one that was saved quantized."
_LEAST_CONTEXT = 512
Verdict = Literal["fits", "shorter", "too large", "elsewhere"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """`memory_bytes`: of one GPU all of it, of a CPU what is free. `count`: how many such GPUs there are.
    `halves`: whether it computes in 16 bits; transformers takes 32 on a CPU that doesn't."""

    kind: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    count: int = 1
    halves: bool = True


def device_of(machine: Machine, loaded: EngineInfo | None = None) -> Device:
    """What models are loaded on here. What the loaded one takes of a CPU's memory will be free again."""
    if machine.gpus:
        smallest = min(machine.gpus, key=lambda gpu: gpu.memory_bytes)
        return Device(
            kind="cuda", name=smallest.name, memory_bytes=smallest.memory_bytes, count=len(machine.gpus)
        )
    back = (loaded.kv_cache_bytes or 0) + (loaded.weights_bytes or 0) if loaded else 0
    free = min(machine.available_bytes + back, machine.memory_bytes)
    halves = bool({"amx_bf16", "avx512_bf16"} & set(machine.cpu_features))
    return Device(kind="cpu", name=machine.cpu, memory_bytes=free, halves=halves)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """An estimate. All bytes are those of one device; `overhead` are parts with their sources.

    `context_tokens` is the context that the engine would have, `largest_context` the longest that fits (no
    more than the model's). `full_length_requests`: how many requests of `context_tokens` the KV cache
    holds at once; `kv_cache_tokens` is that in tokens. `kv_bytes_per_token` counts all layers, before any
    window lets go of a token. `missing_bytes`: what it lacks where it is too large. `advice` is one
    sentence, `notes` are more of them.
    """

    spec: EngineSpec
    device: Device
    devices_used: int
    verdict: Verdict
    advice: str
    weights_bytes: int
    overhead: tuple[Part, ...]
    kv_cache_bytes: int
    kv_bytes_per_token: int
    kv_cache_tokens: int
    context_tokens: int
    model_context_tokens: int
    largest_context: int
    full_length_requests: float
    missing_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def overhead_bytes(self) -> int:
        return sum(part.size_bytes for part in self.overhead)

    @property
    def used_bytes(self) -> int:
        """What one device needs in all."""
        return self.weights_bytes + self.overhead_bytes + self.kv_cache_bytes


def estimate(facts: ModelFacts, device: Device, spec: EngineSpec) -> Fit:
    """What loading `facts` by `spec` on `device` would take. Never raises: what is too large says so."""
    if spec.engine == "openai":
        return _elsewhere(facts, device, spec)
    if spec.engine in ("transformers", "llamacpp"):
        return _simple(facts, device, spec)
    return _on_cpu(facts, device, spec) if device.kind == "cpu" else _on_gpu(facts, device, spec)


def _on_cpu(facts: ModelFacts, device: Device, spec: EngineSpec) -> Fit:
    """As `choose` sizes the engine."""
    model = engine_facts(facts, spec)
    here = DeviceFacts(kind="cpu", name=device.name, memory_bytes=device.memory_bytes)
    overhead = fit_sizes.cpu_overhead(model.weights_bytes)
    open_context = dataclasses.replace(spec, max_model_len=None)
    try:
        chosen = choose(spec, model, here).arguments
        longest = choose(open_context, model, here).arguments["max_model_len"]
    except EngineLoadError as error:
        wanted = min(spec.max_model_len or _LEAST_CONTEXT, facts.context_tokens)
        least = model.weights_bytes + sum(part.size_bytes for part in overhead)
        least += model.cache.request_bytes(wanted) if model.cache else 0
        missing = max(1, least - device.memory_bytes)
        return _too_large(facts, device, spec, model.weights_bytes, overhead, missing, error.message)
    layout = kv_cache.layout(
        facts,
        number_bytes=fit_sizes.kv_number_bytes(facts, spec),
        block_tokens=cpu_block_tokens(spec),
        in_flight_tokens=chosen["max_num_batched_tokens"],
    )
    context, cache = chosen["max_model_len"], chosen["kv_cache_memory_bytes"]
    return _fitting(facts, device, spec, model.weights_bytes, overhead, layout, cache, context, longest)


def _on_gpu(facts: ModelFacts, device: Device, spec: EngineSpec) -> Fit:
    tensor, pipeline = spec.tensor_parallel_size or 1, spec.pipeline_parallel_size or 1
    copies = spec.data_parallel_size or 1
    needed = tensor * pipeline * copies
    weights = fit_sizes.weights_bytes(facts, spec)
    here = DeviceFacts(kind="cuda", name=device.name, memory_bytes=device.memory_bytes)
    chosen = choose(spec, engine_facts(facts, spec), here).arguments
    own = weights // (tensor * pipeline)
    overhead = fit_sizes.gpu_overhead(facts, spec, chosen)
    layout = kv_cache.layout(
        facts,
        number_bytes=fit_sizes.kv_number_bytes(facts, spec),
        block_tokens=spec.block_size or kv_cache.GPU_BLOCK_TOKENS,
        in_flight_tokens=(2 if pipeline == 1 else pipeline) * chosen["max_num_batched_tokens"],
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
    )
    share = int(device.memory_bytes * (spec.gpu_memory_utilization or GPU_SHARE))
    left = share - own - sum(part.size_bytes for part in overhead)
    cache = spec.kv_cache_memory_bytes or left
    if spec.kv_cache_memory_bytes:  # vLLM then takes it beside the share
        left = device.memory_bytes - own - sum(part.size_bytes for part in overhead)
    longest = (
        layout.longest(max(0, min(cache, left)), facts.context_tokens)
        if layout.token_bytes
        else (facts.context_tokens)
    )
    least = min(spec.max_model_len or _LEAST_CONTEXT, facts.context_tokens)
    problem = _parallel_problem(facts, device, spec, needed)
    if longest < least or cache > left or problem:
        missing = max(layout.request_bytes(least), cache if cache > left else 0) - left
        return _too_large(facts, device, spec, own, overhead, max(0, missing), problem, layout, needed)
    context = min(spec.max_model_len or longest, facts.context_tokens)
    return _fitting(facts, device, spec, own, overhead, layout, cache, context, longest, needed)


def _parallel_problem(facts: ModelFacts, device: Device, spec: EngineSpec, needed: int) -> str | None:
    tensor = spec.tensor_parallel_size or 1
    if facts.heads % tensor:
        return f"{facts.heads} attention heads can't be divided by tensor parallel {tensor}."
    if needed > device.count and spec.distributed_executor_backend != "ray":
        return f"These parallel sizes need {needed} GPUs; this machine has {device.count}."
    return None


def _simple(facts: ModelFacts, device: Device, spec: EngineSpec) -> Fit:
    """transformers and llama.cpp: the weights, and half of what they leave for keys and values."""
    of_llama = spec.engine == "llamacpp"
    kept = fit_sizes.simple_spec(facts, spec, device.kind == "cpu" and not device.halves)
    weights = fit_sizes.weights_bytes(facts, kept)
    overhead = fit_sizes.simple_overhead(spec.engine)
    number = 2.0 if of_llama else fit_sizes.kv_number_bytes(facts, kept)
    token_bytes = kv_cache.layout(facts, number_bytes=number).token_bytes
    layout = kv_cache.plain_layout(token_bytes, 1)  # all of a request is kept, windows or not
    left = device.memory_bytes - weights - sum(part.size_bytes for part in overhead)
    cache = spec.kv_cache_memory_bytes or max(0, left) // 2
    room = cache // max(1, token_bytes)
    longest = min(facts.context_tokens, room)
    least = min(spec.max_model_len or _LEAST_CONTEXT, facts.context_tokens)
    if longest < least:
        missing = 2 * (least * token_bytes - cache) if left > 0 else -left
        return _too_large(facts, device, spec, weights, overhead, max(1, missing), None, layout)
    wanted = facts.context_tokens
    if of_llama:  # it is made for less than the model's context, unless told
        wanted = min(wanted, fit_sizes.LLAMA_CONTEXT)
    context = min(spec.max_model_len or wanted, longest)
    if of_llama and not spec.kv_cache_memory_bytes:
        cells = min(fit_sizes.LLAMA_CELLS, room, context * fit_sizes.llama_slots(spec, device.kind))
        cache = max(context, cells) * token_bytes
    return _fitting(
        facts,
        device,
        spec,
        weights,
        overhead,
        layout,
        cache,
        context,
        longest,
        wanted=spec.max_model_len or wanted,
    )


def engine_facts(facts: ModelFacts, spec: EngineSpec) -> EngineFacts:
    """What `choose` asks of a model."""
    layout = kv_cache.layout(
        facts,
        number_bytes=fit_sizes.kv_number_bytes(facts, spec),
        block_tokens=cpu_block_tokens(spec),
    )
    return EngineFacts(
        weights_bytes=fit_sizes.weights_bytes(facts, spec),
        context_tokens=facts.context_tokens,
        kv_bytes_per_token=max(1, layout.token_bytes),
        cache=layout if layout.token_bytes else None,
    )


def _fitting(
    facts: ModelFacts,
    device: Device,
    spec: EngineSpec,
    weights: int,
    overhead: tuple[Part, ...],
    layout: kv_cache.CacheLayout,
    cache: int,
    context: int,
    longest: int,
    needed: int = 1,
    wanted: int | None = None,
) -> Fit:
    requests = layout.requests(cache, context) if layout.token_bytes else 0.0
    wanted = min(wanted or spec.max_model_len or facts.context_tokens, facts.context_tokens)
    shorter = context < wanted
    many = f"{requests:,.0f} requests" if requests >= 1.95 else "one request"
    advice = (
        f"It fits with a context of {context:,} tokens; the model's own {wanted:,} need more memory."
        if shorter
        else f"It fits, with {many} of {context:,} tokens at a time."
    )
    return Fit(
        spec=spec,
        device=device,
        devices_used=needed,
        verdict="shorter" if shorter else "fits",
        advice=advice,
        weights_bytes=weights,
        overhead=overhead,
        kv_cache_bytes=cache,
        kv_bytes_per_token=layout.token_bytes,
        kv_cache_tokens=int(requests * context),
        context_tokens=context,
        model_context_tokens=facts.context_tokens,
        largest_context=longest,
        full_length_requests=requests,
        notes=_notes(facts),
    )


def _too_large(
    facts: ModelFacts,
    device: Device,
    spec: EngineSpec,
    weights: int,
    overhead: tuple[Part, ...],
    missing: int,
    why: str | None = None,
    layout: kv_cache.CacheLayout | None = None,
    needed: int = 1,
) -> Fit:
    layout = layout or kv_cache.layout(facts, number_bytes=fit_sizes.kv_number_bytes(facts, spec))
    return Fit(
        spec=spec,
        device=device,
        devices_used=needed,
        verdict="too large",
        advice=why or f"It does not fit: about {fit_sizes.size_text(missing)} of memory are missing.",
        weights_bytes=weights,
        overhead=overhead,
        kv_cache_bytes=0,
        kv_bytes_per_token=layout.token_bytes,
        kv_cache_tokens=0,
        context_tokens=0,
        model_context_tokens=facts.context_tokens,
        largest_context=0,
        full_length_requests=0.0,
        missing_bytes=missing,
        notes=_notes(facts),
    )


def _elsewhere(facts: ModelFacts, device: Device, spec: EngineSpec) -> Fit:
    return Fit(
        spec=spec, device=device, devices_used=0, verdict="elsewhere",
        advice="It runs on another machine and takes no memory here.",
        weights_bytes=0, overhead=(), kv_cache_bytes=0, kv_bytes_per_token=0, kv_cache_tokens=0,
        context_tokens=facts.context_tokens, model_context_tokens=facts.context_tokens,
        largest_context=facts.context_tokens, full_length_requests=0.0,
    )  # fmt: skip


def _notes(facts: ModelFacts) -> tuple[str, ...]:
    notes = []
    if facts.weights_bytes is None and facts.parameters is None:
        notes.append("Its parameters can't be counted from the config: weights are a rough guess.")
    states = sum(group.layers for group in facts.attention if group.kind == "state")
    if states:
        notes.append(f"{states} layers keep a state instead of keys and values, which isn't counted.")
    if facts.needs_code:
        notes.append("It brings Python code of its own, which runs only when you trust it.")
    return tuple(notes)


@dataclass(frozen=True, slots=True)
class Option:
    """Settings that make it fit, or fit better. `changes` are fields of EngineSpec."""

    title: str
    changes: Mapping[str, Any]
    fit: Fit


def options(facts: ModelFacts, device: Device, spec: EngineSpec) -> tuple[Option, ...]:
    """Settings under which it fits where it doesn't as asked, or its whole context where only a part does.

    The mildest first: a shorter context, a smaller KV cache format, more GPUs, smaller weights.
    """
    asked = estimate(facts, device, spec)
    if asked.verdict in ("fits", "elsewhere"):
        return ()
    found = []
    for title, changes in _candidates(facts, device, spec):
        fit = estimate(facts, device, dataclasses.replace(spec, **changes))
        better = asked.verdict == "too large" or fit.context_tokens > asked.context_tokens
        if fit.verdict in ("fits", "shorter") and better:
            if fit.verdict == "shorter" and "context" not in title:
                title += f", with a context of {fit.context_tokens:,} tokens"
            found.append(Option(title, changes, fit))
    return tuple(found)


def _candidates(facts: ModelFacts, device: Device, spec: EngineSpec) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    if spec.max_model_len:
        found.append(("The longest context that fits", {"max_model_len": None}))
    if spec.dtype == "float32":
        found.append(("Half precision (bfloat16)", {"dtype": "bfloat16"}))
    if spec.engine != "vllm":
        return found
    if spec.kv_cache_memory_bytes:
        found.append(("A KV cache sized for the machine", {"kv_cache_memory_bytes": None}))
    if device.kind == "cpu":
        return found
    if not (spec.kv_cache_dtype or "").startswith("fp8"):
        found.append(("KV cache in fp8", {"kv_cache_dtype": "fp8"}))
    sizes = [size for size in (2, 4, 8, 16) if size <= device.count and facts.heads % size == 0]
    for size in sizes:
        if size > (spec.tensor_parallel_size or 1):
            found.append((f"Tensor parallel over {size} GPUs", {"tensor_parallel_size": size}))
    if facts.quantization is None and spec.quantization is None:
        found.append(("Weights in fp8", {"quantization": "fp8"}))
        both = {"quantization": "fp8", "kv_cache_dtype": "fp8"}
        found.append(("Weights and KV cache in fp8", both))
    return found
