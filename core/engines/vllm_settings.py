"""How large vLLM is built for a model on a machine: pure arithmetic, in bytes and tokens.

Measured on two cores with SmolLM2-135M: see `choose` for what each choice buys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from core.errors import EngineLoadError
from core.models.kv_cache import CacheLayout, plain_layout
from core.types import EngineSpec

CHAT_SLOTS = 8
"""Slots that the engine gets beyond a batch's width, so that a chat never waits for a row to end."""

CPU_BLOCK_TOKENS = 32
_GIB = 1 << 30
_CPU_ENGINE_BYTES = int(2.5 * _GIB)
_CPU_SLOTS = 256
_CPU_PROMPT_TOKENS = 320
"""Tokens of prompts that a step may read beside the answers: what a chat waits for when it comes."""
_TOKENS_PER_SLOT = 1024
_LEAST_CONTEXT = 512
_BIG_GPU_BYTES = 70 * _GIB
_SMALL_MODEL_BYTES = 4 * _GIB
DEFAULT_LORAS = 4
"""Adapters that one step may use, where LoRA is asked for and their number isn't."""

_PASSED_ON = (
    "kv_cache_dtype",
    "quantization",
    "enable_chunked_prefill",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "distributed_executor_backend",
    "reasoning_parser",
)
_CUDA_GRAPH_SEQUENCES = 512
"""The most sequences of a step that vLLM records a graph for by default: beyond, each kernel is launched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """`context_tokens`: what the model was made for. `kv_bytes_per_token`: keys and values, all layers.

    `cache`: how layers share the KV cache on a CPU; without it, each layer keeps all of a request.
    """

    weights_bytes: int
    context_tokens: int
    kv_bytes_per_token: int
    cache: CacheLayout | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """`memory_bytes`: on a GPU all of it, on a CPU what is available now. `processors`: those that
    threads on a CPU are bound to, by number; empty where vLLM chooses.
    """

    kind: str
    name: str
    memory_bytes: int
    processors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """vLLM's engine arguments, the batch's width, and remarks for the user on what was reduced.

    `batch_slots` counts all copies of the model, vLLM's own max_num_seqs one of them.
    """

    arguments: dict[str, Any]
    batch_slots: int
    notes: tuple[str, ...] = ()


def choose(spec: EngineSpec, model: ModelFacts, device: DeviceFacts) -> Choice:
    """Fill in what `spec` leaves open. Raises EngineLoadError when the memory can't be enough.

    max_num_seqs and max_num_batched_tokens are always given: left out, AsyncLLM takes
    128 and 2,048 on any device, a quarter less throughput than an H200 has to give.
    """
    choice = _choose_cpu(spec, model, device) if device.kind == "cpu" else _choose_gpu(spec, model, device)
    arguments = choice.arguments | _as_asked(spec) | _adapters(spec, device)
    if spec.enable_chunked_prefill is False:  # then a step must hold the longest prompt
        context = arguments["max_model_len"] if arguments["max_model_len"] > 0 else model.context_tokens
        arguments["max_num_batched_tokens"] = max(arguments["max_num_batched_tokens"], context)
    slots = choice.batch_slots * (spec.data_parallel_size or 1)
    return replace(choice, arguments=arguments, batch_slots=slots)


def _as_asked(spec: EngineSpec) -> dict[str, Any]:
    """What needs no choice: vLLM's own default is right, or has been asked not to be taken."""
    arguments = {name: getattr(spec, name) for name in _PASSED_ON if getattr(spec, name) is not None}
    arguments["enable_prefix_caching"] = spec.enable_prefix_caching is not False
    if spec.trust_remote_code:
        arguments["trust_remote_code"] = True
    if spec.speculative_config is not None:
        arguments["speculative_config"] = dict(spec.speculative_config)
    if spec.distributed_executor_backend == "ray" and (spec.data_parallel_size or 1) > 1:
        arguments["data_parallel_backend"] = "ray"
    return arguments


def _adapters(spec: EngineSpec, device: DeviceFacts) -> dict[str, Any]:
    """On a CPU one place more than asked for: without an empty last one, vLLM answers requests for the
    model itself with the adapter there, as soon as they share a step.
    """
    if not spec.enable_lora:
        return {}
    places = (spec.max_loras or DEFAULT_LORAS) + (device.kind == "cpu")
    arguments: dict[str, Any] = {"enable_lora": True, "max_loras": places}
    if spec.max_lora_rank is not None:
        arguments["max_lora_rank"] = spec.max_lora_rank
    if spec.max_cpu_loras is not None:
        arguments["max_cpu_loras"] = max(spec.max_cpu_loras, places)
    return arguments


def _choose_gpu(spec: EngineSpec, model: ModelFacts, device: DeviceFacts) -> Choice:
    """On a large GPU a small model gets no more slots than vLLM has CUDA graphs for, a large one 1,024.

    H200, 1,000 rows: a 0.5B shape made 46,000 output tokens/s with 1,024 slots and 59,000 with 504,
    a 7B shape 15,000 and 14,600.
    """
    big = device.memory_bytes >= _BIG_GPU_BYTES
    small_model = model.weights_bytes <= _SMALL_MODEL_BYTES
    wide = _CUDA_GRAPH_SEQUENCES - CHAT_SLOTS if small_model else 1024
    slots = spec.max_num_seqs or (wide if big else 256)
    arguments = {
        "max_num_seqs": slots + CHAT_SLOTS,
        "max_num_batched_tokens": max(
            spec.max_num_batched_tokens or (16384 if big else 8192), slots + CHAT_SLOTS
        ),
        "enforce_eager": bool(spec.enforce_eager),
    }
    arguments["max_model_len"] = spec.max_model_len or -1  # -1: as long as the memory allows
    for name in ("kv_cache_memory_bytes", "gpu_memory_utilization", "block_size"):
        if getattr(spec, name) is not None:
            arguments[name] = getattr(spec, name)
    return Choice(arguments, slots)


def _choose_cpu(spec: EngineSpec, model: ModelFacts, device: DeviceFacts) -> Choice:
    """Eager unless told otherwise: it starts in 20 s instead of 70, and batches run about as fast.

    vLLM takes the whole KV cache from the system at once, so it gets half of the free
    memory at most, and no more than 1,024 tokens for each slot.
    """
    slots, block = spec.max_num_seqs or _CPU_SLOTS, cpu_block_tokens(spec)
    step = max(spec.max_num_batched_tokens or slots + CHAT_SLOTS + _CPU_PROMPT_TOKENS, slots + CHAT_SLOTS)
    free = device.memory_bytes - int(1.1 * model.weights_bytes) - _CPU_ENGINE_BYTES
    context = spec.max_model_len or model.context_tokens
    layout = _layout(model, context if spec.enable_chunked_prefill is False else step, block)
    notes: list[str] = []
    if spec.kv_cache_memory_bytes is None:
        cache = min(free // 2, (slots + CHAT_SLOTS) * _TOKENS_PER_SLOT * model.kv_bytes_per_token)
        cache = min(max(cache, _cache_bytes(context, layout)), free)
    else:
        cache = spec.kv_cache_memory_bytes
    if cache < _cache_bytes(context, layout):
        least = min(context, _LEAST_CONTEXT) if spec.max_model_len is None else context
        missing = _cache_bytes(least, layout) - cache
        if missing > 0:
            raise _too_small(spec, model, device, least, missing)
        longest = layout.longest(cache - layout.block_bytes, context)
        wanted, context = context, longest // block * block
        notes.append(
            f"The context was reduced from {wanted:,} to {context:,} tokens: the KV cache holds no more."
        )
    arguments = {
        "max_num_seqs": slots + CHAT_SLOTS,
        "max_num_batched_tokens": step,
        "max_model_len": context,
        "kv_cache_memory_bytes": cache,
        "block_size": block,
        "enforce_eager": True if spec.enforce_eager is None else spec.enforce_eager,
    }
    return Choice(arguments, slots, tuple(notes))


def cpu_block_tokens(spec: EngineSpec) -> int:
    """vLLM's own 128 would share only what is that long."""
    return spec.block_size or CPU_BLOCK_TOKENS


def _layout(model: ModelFacts, in_flight_tokens: int, block_tokens: int) -> CacheLayout:
    if model.cache is not None:
        return replace(model.cache, in_flight_tokens=in_flight_tokens)
    return plain_layout(model.kv_bytes_per_token, block_tokens)


def _cache_bytes(tokens: int, layout: CacheLayout) -> int:
    """Bytes of a cache for one sequence of `tokens`, in whole blocks, with one to spare."""
    return layout.request_bytes(tokens) + layout.block_bytes


def _too_small(
    spec: EngineSpec, model: ModelFacts, device: DeviceFacts, tokens: int, missing: int
) -> EngineLoadError:
    if spec.kv_cache_memory_bytes is not None:
        return EngineLoadError(
            f"A KV cache of {_size(spec.kv_cache_memory_bytes)} is too small for {tokens:,} tokens of this "
            f"model: {_size(missing)} more are needed.",
            hint="Raise kv_cache_memory_bytes or lower max_model_len.",
        )
    return EngineLoadError(
        f"{_size(device.memory_bytes)} of memory are free; this model ({_size(model.weights_bytes)} of "
        f"weights) with a context of {tokens:,} tokens needs {_size(missing)} more.",
        hint="Close other programs, choose a smaller model, or lower max_model_len.",
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / (1 << 20):.0f} MiB"
