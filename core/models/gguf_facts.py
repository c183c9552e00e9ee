"""What a model in a GGUF file is, by the file's header (its keys: ggml's docs/gguf.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import ModelError
from core.models import headers
from core.models.facts import Attention, ModelFacts

_MOST_LAYERS = 10_000


def from_gguf(file: headers.Gguf) -> ModelFacts:
    """Raises ModelError where the header names no sizes of a language model."""
    kind = str(file.values.get("general.architecture") or "")
    text = {name.removeprefix(f"{kind}."): value for name, value in file.values.items() if kind}
    layers, hidden, heads = _size(text, "block_count"), _size(text, "embedding_length"), _heads(text)
    if not layers or not hidden or not heads or layers > _MOST_LAYERS:
        raise ModelError(
            f"This GGUF file is no language model: its header ({kind[:60] or 'no kind'}) names no layers.",
            hint="Image, adapter and vocabulary files can't be loaded as models.",
        )
    kv_heads = _heads(text, "attention.head_count_kv") or heads
    key = _size(text, "attention.key_length") or hidden // heads
    value = _size(text, "attention.value_length") or key
    window = _size(text, "attention.sliding_window")
    pattern = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2}.get(kind, 1)
    sliding = layers - layers // pattern if window and pattern > 1 else layers if window else 0
    groups = [
        Attention(kind=name, layers=number, kv_heads=kv_heads, head_dim=(key + value) // 2, window=seen)
        for name, number, seen in (("full", layers - sliding, None), ("sliding", sliding, window))
        if number
    ]
    vocabulary = _size(text, "vocab_size") or file.lengths.get("tokenizer.ggml.tokens", 0)
    sizes = file.tensors.size_bytes
    return ModelFacts(
        format="gguf",
        architecture=kind,
        model_type=kind,
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=key,
        vocab_size=vocabulary,
        context_tokens=_size(text, "context_length") or 2048,
        attention=tuple(groups),
        intermediate_size=_size(text, "feed_forward_length") or 4 * hidden,
        experts=_size(text, "expert_count") or 0,
        experts_per_token=_size(text, "expert_used_count") or 0,
        window=window,
        rope_scaling=text.get("rope.scaling.type"),
        dtype="float16",
        quantization=max(sizes, key=lambda name: sizes[name]) if sizes else None,
        quantization_bits=8 * file.tensors.total_bytes / max(1, file.tensors.total_numbers),
        parameters=file.tensors.total_numbers,
        tensors=file.tensors,
        weights_bytes=file.tensors.total_bytes,
    )


def _heads(text: Mapping[str, Any], name: str = "attention.head_count") -> int | None:
    """A number for all layers, or of a list (one for each layer) the largest."""
    value = text.get(name)
    if isinstance(value, list):
        value = max((item for item in value if isinstance(item, int)), default=None)
    return _size({name: value}, name)


def _size(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    return value if type(value) is int and 0 < value < 1 << 32 else None
