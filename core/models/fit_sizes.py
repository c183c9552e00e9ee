"""The sizes that `core.models.fit` adds up: weights, a key's bytes, overhead with its sources. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.models.facts import ModelFacts
from core.types import EngineName, EngineSpec

GIB = 1 << 30
_DTYPE_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
_FLOATS = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2}
_ONLINE_BITS = {"fp8": 8.0, "bitsandbytes": 4.5, "int8": 8.0, "mxfp8": 8.25, "mxfp4": 4.25}
"""Bits a weight that vLLM makes of bfloat16 ones while it loads; bitsandbytes has a scale for 64 weights."""

CPU_ENGINE_BYTES = int(2.5 * GIB)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the overhead. `source`: where the figure comes from."""

    name: str
    size_bytes: int
    source: str


def number_bytes(facts: ModelFacts, dtype: str) -> int:
    """Bytes of one weight as it is loaded: vLLM loads float32 models in half precision unless told."""
    if dtype != "auto":
        return _DTYPE_BYTES.get(dtype, 2)
    return min(2, _DTYPE_BYTES.get(facts.dtype, 2))


def kv_number_bytes(facts: ModelFacts, spec: EngineSpec) -> float:
    """Bytes of one key or value."""
    kept = spec.kv_cache_dtype or "auto"
    if kept.startswith(("fp8", "int8")):
        return 1.0
    return _DTYPE_BYTES.get(kept) or number_bytes(facts, spec.dtype)


def weights_bytes(facts: ModelFacts, spec: EngineSpec) -> int:
    """Of all devices together, as they lie in memory once loaded."""
    if facts.format == "gguf":
        return facts.weights_bytes or 0
    online = _online_bits(facts, spec)
    plain = number_bytes(facts, spec.dtype)
    parameters = facts.parameters
    if online is not None and parameters:
        return _quantized(parameters, facts.embedding_parameters or 0, online, plain)
    if facts.tensors is not None:
        return _as_loaded(facts, plain, converts=facts.quantization is None)
    if facts.weights_bytes is not None:
        kept = _DTYPE_BYTES.get(facts.dtype, 2)
        return facts.weights_bytes if facts.quantization else facts.weights_bytes * plain // kept
    if parameters is None:
        return _guess(facts) * plain
    if facts.quantization and facts.quantization_bits:
        left_alone = parameters - facts.expert_parameters if facts.quantization == "mxfp4" else None
        kept = facts.embedding_parameters or 0 if left_alone is None else left_alone
        return _quantized(parameters, kept, facts.quantization_bits, 2)
    return parameters * plain


def _online_bits(facts: ModelFacts, spec: EngineSpec) -> float | None:
    if spec.quantization is None or facts.quantization is not None:
        return None
    return next((bits for name, bits in _ONLINE_BITS.items() if spec.quantization.startswith(name)), None)


def _quantized(parameters: int, left_alone: int, bits: float, plain: float) -> int:
    return int((parameters - left_alone) * bits / 8 + left_alone * plain)


def _as_loaded(facts: ModelFacts, plain: int, *, converts: bool) -> int:
    """The tensors in the files; floats in the type they are loaded in, but for a quantization's scales."""
    assert facts.tensors is not None
    total = 0
    for kind, size in facts.tensors.size_bytes.items():
        own = _FLOATS.get(kind)
        total += size if own is None or not converts else size * plain // own
    return total


def _guess(facts: ModelFacts) -> int:
    """Parameters of a decoder of this size, where its family is unknown."""
    hidden, heads = facts.hidden_size, facts.heads * facts.head_dim
    attention = hidden * (2 * heads + 2 * facts.kv_heads * facts.head_dim)
    mlp = 3 * hidden * (facts.expert_size * facts.experts if facts.experts else facts.intermediate_size)
    return facts.layers * (attention + mlp) + 2 * facts.vocab_size * hidden


def cpu_overhead(weights: int) -> tuple[Part, ...]:
    """What `vllm_settings.choose` keeps free beside weights and KV cache."""
    return (
        Part("Engine", CPU_ENGINE_BYTES, "Kept free for vLLM's processes and activations, measured here."),
        Part("Loading", int(1.1 * weights) - weights, "A tenth of the weights, for copies made on the way."),
    )


LLAMA_CONTEXT, LLAMA_CELLS = 16_384, 32_768
"""What llama.cpp is made for here when nobody says: a context, and tokens of memory for all sequences."""


def llama_slots(spec: EngineSpec, kind: str) -> int:
    return (spec.max_num_seqs or (8 if kind == "cpu" else 16)) + 2


def simple_spec(facts: ModelFacts, spec: EngineSpec, only_singles: bool) -> EngineSpec:
    """As transformers takes the number format: the model's own, where vLLM would halve it, and float32 on a
    CPU that is slow at anything else."""
    if spec.engine != "transformers" or spec.dtype != "auto":
        return spec
    own = facts.dtype if facts.dtype in _DTYPE_BYTES else "bfloat16"
    return replace(spec, dtype="float32" if only_singles else own)


def simple_overhead(engine: EngineName) -> tuple[Part, ...]:
    if engine == "llamacpp":
        return (Part("Engine", GIB, "Kept free for llama.cpp's buffers."),)
    return (Part("Engine", GIB, "PyTorch, transformers and activations, a rule of thumb."),)


_GRAPH_BYTES = 3 * GIB // 10
_LIBRARY_BYTES = GIB // 4
_LOGIT_BYTES = 16
"""Of one logit, while the profiling run samples: in 16 bits, in 32, as a probability, its random number."""


def gpu_overhead(facts: ModelFacts, spec: EngineSpec, chosen: Mapping[str, Any]) -> tuple[Part, ...]:
    """Of one GPU. `chosen`: the arguments that vLLM would be started with.

    Activations are those of vLLM's profiling run: max_num_batched_tokens in one step, then the logits of
    max_num_seqs sequences; the larger of the two counts.
    """
    tensor = spec.tensor_parallel_size or 1
    tokens, sequences = chosen["max_num_batched_tokens"], chosen["max_num_seqs"]
    inner = 3 * facts.intermediate_size // tensor
    if facts.experts:
        inner = max(
            inner if facts.expert_size != facts.intermediate_size else 0,
            facts.experts_per_token * (3 * facts.expert_size // tensor + facts.hidden_size),
        )
    heads = (2 * facts.heads + 2 * facts.kv_heads) * facts.head_dim // tensor
    step = 2 * tokens * (4 * facts.hidden_size + max(inner, heads))
    logits = _LOGIT_BYTES * sequences * facts.vocab_size + 2 * tokens * facts.hidden_size
    parts = [
        Part("Activations", max(step, logits), "vLLM's profiling run: one full step, or all logits."),
        Part("CUDA libraries", _LIBRARY_BYTES, "cuBLAS and attention workspaces, a rule of thumb."),
    ]
    if not chosen["enforce_eager"]:
        graphs = _GRAPH_BYTES + 2 * 512 * 4 * facts.hidden_size * facts.layers // tensor
        parts.append(Part("CUDA graphs", graphs, "Grows with layers and width, a rule of thumb."))
    if spec.enable_lora:
        parts.append(
            Part("LoRA adapters", _lora(facts, spec) // tensor, "Room for max_loras of max_lora_rank.")
        )
    return tuple(parts)


def _lora(facts: ModelFacts, spec: EngineSpec) -> int:
    hidden, heads = facts.hidden_size, facts.heads * facts.head_dim
    sides = 4 * hidden + 2 * heads + 2 * facts.kv_heads * facts.head_dim
    sides += 3 * (hidden + facts.intermediate_size)
    return 2 * (spec.max_loras or 4) * (spec.max_lora_rank or 16) * facts.layers * sides


def size_text(size_bytes: float) -> str:
    """Binary units, as memory is sold: "5.8 GiB"."""
    if size_bytes >= 100 * GIB:
        return f"{size_bytes / GIB:,.0f} GiB"
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / (1 << 20):,.0f} MiB"
