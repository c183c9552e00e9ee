"""What a model is, from its own files: architecture, sizes, attention, context. Nothing of it is loaded.

`read` takes a folder (config.json, safetensors headers) or a GGUF file, `from_config` a config.json alone,
as for a model that still lies on a hub; `gguf_facts` reads GGUF. How much memory that takes is
`core.models.fit`'s business.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.errors import ModelError
from core.models import headers, parameters

AttentionKind = Literal["full", "sliding", "chunked", "latent", "state"]
_MOST_CONFIG_BYTES = 10_000_000
_MOST_LAYERS, _MOST_SIZE = 10_000, 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """`layers` layers that keep the same of a token in the KV cache.

    A full layer keeps keys and values of `kv_heads` heads of `head_dim` each, a sliding or chunked one
    those of the last `window` tokens only, a latent one (DeepSeek's MLA) one vector of `head_dim` for all
    heads. A layer with a state (Mamba, linear attention) keeps nothing of a token.
    """

    kind: AttentionKind
    layers: int
    kv_heads: int = 0
    head_dim: int = 0
    window: int | None = None

    @property
    def numbers_per_token(self) -> int:
        """Numbers that one of these layers keeps of one token."""
        if self.kind == "state":
            return 0
        return self.head_dim if self.kind == "latent" else 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is known of a model. `tensors` are those in its files, None where only the config was read.

    `context_tokens` counts what a scaled RoPE adds, as vLLM does. `parameters` is None where they can't be
    counted; `active_parameters` are those that one token goes through. `weights_bytes`: what the files
    hold, or what an index says that they will. `dtype`: as the weights are kept. `window`: what sliding
    layers see. `needs_code`: it brings Python of its own.
    """

    format: Literal["safetensors", "gguf", "config"]
    architecture: str
    model_type: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_tokens: int
    attention: tuple[Attention, ...]
    intermediate_size: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    window: int | None = None
    rope_scaling: str | None = None
    dtype: str = "bfloat16"
    quantization: str | None = None
    quantization_bits: float | None = None
    parameters: int | None = None
    active_parameters: int | None = None
    embedding_parameters: int | None = None
    expert_parameters: int = 0
    tensors: headers.Tensors | None = None
    weights_bytes: int | None = None
    needs_code: bool = False

    def with_tensors(self, tensors: headers.Tensors) -> ModelFacts:
        """The same with what the headers of its weights say."""
        counted = tensors.total_numbers if self.quantization is None else self.parameters
        return dataclasses.replace(
            self, tensors=tensors, weights_bytes=tensors.total_bytes, parameters=counted, format="safetensors"
        )

    def in_parts(self, size_bytes: int) -> ModelFacts:
        """The same where the header is that of the first of several files, of so many bytes together."""
        return dataclasses.replace(self, weights_bytes=size_bytes, tensors=None, parameters=None)


def read(path: Path) -> ModelFacts:
    """Of a model's folder or GGUF file. Raises ModelError. Files that did not change are read once."""
    path = Path(path)
    try:
        files = (
            gguf_parts(path)
            if path.is_file()
            else [path / "config.json", *sorted(path.glob("*.safetensors"))]
        )
        stamp = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    except OSError as error:
        raise ModelError(
            f"{path} holds no model: {error.strerror or error}.",
            hint="Give a folder with config.json, or a GGUF file.",
        ) from error
    return _read(path, stamp)


@functools.lru_cache(maxsize=256)
def _read(path: Path, _stamp: tuple[tuple[str, int, int], ...]) -> ModelFacts:
    try:
        if path.is_file():
            return _read_gguf(path)
        return _read_folder(path)
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}.") from error


def gguf_parts(path: Path) -> list[Path]:
    """A GGUF file, with its other parts where it was split (NAME-00001-of-00003.gguf)."""
    part = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name, re.IGNORECASE)
    if not part:
        return [path]
    return sorted(path.parent.glob(f"{glob.escape(part[1])}-[0-9][0-9][0-9][0-9][0-9]-of-{part[2]}.gguf"))


def _read_gguf(path: Path) -> ModelFacts:
    from core.models.gguf_facts import from_gguf  # which needs ModelFacts from here

    known = from_gguf(headers.read_gguf(headers.local(path), path.name))
    parts = gguf_parts(path)
    return known if len(parts) == 1 else known.in_parts(sum(part.stat().st_size for part in parts))


def _read_folder(folder: Path) -> ModelFacts:
    facts = from_config(read_config((folder / "config.json").read_bytes(), str(folder)))
    index = folder / "model.safetensors.index.json"
    files, total = sorted(folder.glob("*.safetensors")), None
    if index.is_file():
        names, total = headers.read_index(index.read_bytes(), index.name)
        listed = [folder / name for name in names]
        if not all(file.is_file() for file in listed):  # a download under way: the index knows how much
            return dataclasses.replace(facts, weights_bytes=total)
        files = listed
    elif len(files) > 1:  # Mistral AI's repositories hold the weights twice
        files = [file for file in files if not file.name.startswith("consolidated")]
    if not files:
        return facts
    tensors = headers.NO_TENSORS
    for file in files:
        tensors += headers.read_safetensors(headers.local(file), file.name)
    return facts.with_tensors(tensors)


def read_config(data: bytes, name: str = "config.json") -> Mapping[str, Any]:
    """The text of a config.json, checked to be an object. Raises ModelError."""
    try:
        config = json.loads(data) if len(data) <= _MOST_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"{name}'s config.json is no JSON object.", hint="Download or copy it again.")
    return config


def from_config(config: Mapping[str, Any]) -> ModelFacts:
    """Of a config.json. Raises ModelError where it names no sizes of a language model."""
    text = _text_config(config)
    model_type = str(config.get("model_type") or text.get("model_type") or "unknown")
    layers, hidden, heads = (_size(text, *names) for names in _SIZES)
    if not layers or not hidden or not heads:
        raise ModelError(
            f"The config of this model ({model_type[:60]}) names no layers, hidden size and heads.",
            hint="It is no language model, or one whose sizes can't be read here: load it anyway.",
        )
    if layers > _MOST_LAYERS:
        raise ModelError(f"The config of this model names {layers:,} layers.", hint="It may be damaged.")
    kv_heads = (
        _size(text, "num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num") or heads
    )
    head_dim = _size(text, "head_dim", "hidden_size_per_head") or hidden // heads
    counted = parameters.count(text)
    experts, chosen = parameters.expert_numbers(text)
    quantization, bits = _quantization(config, text)
    attention = _attention(text, layers, kv_heads, head_dim)
    architectures = config.get("architectures") or text.get("architectures")
    named = isinstance(architectures, list) and architectures and isinstance(architectures[0], str)
    return ModelFacts(
        format="config",
        architecture=architectures[0] if named else model_type,
        model_type=model_type,
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=1 if text.get("kv_lora_rank") else kv_heads,
        head_dim=attention[0].head_dim or head_dim,
        vocab_size=_size(text, "vocab_size") or 0,
        context_tokens=_context(text, model_type),
        attention=attention,
        intermediate_size=_size(text, "intermediate_size", "ffn_dim", "n_inner") or 4 * hidden,
        experts=experts,
        experts_per_token=chosen,
        expert_size=_size(text, "moe_intermediate_size", "intermediate_size") or 0 if experts else 0,
        kv_lora_rank=_size(text, "kv_lora_rank"),
        qk_rope_head_dim=_size(text, "qk_rope_head_dim"),
        window=next((group.window for group in attention if group.window), None),
        rope_scaling=_rope(text)[0],
        dtype=_dtype(config, text),
        quantization=quantization,
        quantization_bits=bits,
        parameters=counted.total if counted else None,
        active_parameters=counted.active if counted else None,
        embedding_parameters=counted.embedding if counted else None,
        expert_parameters=counted.experts if counted else 0,
        needs_code=isinstance(config.get("auto_map"), dict) and bool(config["auto_map"]),
    )


_SIZES = (
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    ("hidden_size", "n_embd", "d_model"),
    ("num_attention_heads", "n_head", "n_heads"),
)
# What config.json may leave out, as transformers' classes of these models fill it in.
_LEFT_OUT: dict[str, dict[str, Any]] = {
    "gemma": {"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 256, "sliding_window": 4096, "tie_word_embeddings": True, "vocab_size": 256_000},
    "gemma3_text": {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
        "max_position_embeddings": 131_072, "sliding_window": 4096, "tie_word_embeddings": True,
        "num_hidden_layers": 26, "hidden_size": 2304, "intermediate_size": 9216,
    },
    "gpt_oss": {"attention_bias": True, "sliding_window": 128},
    "qwen2_moe": {"decoder_sparse_step": 1},
}  # fmt: skip


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part, with what its file leaves out and without sizes that are none."""
    text = _filled(config)
    return {
        name: value
        for name, value in text.items()
        if name not in parameters.SIZES or (type(value) is int and 0 <= value < _MOST_SIZE)
    }


def _filled(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("text_config", "llm_config", "language_config", "thinker_config"):
        part = config.get(name)
        if isinstance(part, dict):
            part = part.get("text_config", part) if name == "thinker_config" else part
            kind = part.get("model_type") or ("gemma3_text" if config.get("model_type") == "gemma3" else "")
            return {**_LEFT_OUT.get(kind, {}), **part, "model_type": kind}
    return {**_LEFT_OUT.get(str(config.get("model_type")), {}), **config}


def _size(text: Mapping[str, Any], *names: str) -> int | None:
    """The first of these values that is there and is a size."""
    for name in names:
        value = text.get(name)
        if type(value) is int and 0 < value < _MOST_SIZE:
            return value
    return None


def _attention(text: Mapping[str, Any], layers: int, kv_heads: int, head_dim: int) -> tuple[Attention, ...]:
    """Layers by what they keep, the full ones first."""
    latent = _size(text, "kv_lora_rank")
    if latent:
        size = latent + (_size(text, "qk_rope_head_dim") or 0)
        return (Attention(kind="latent", layers=layers, kv_heads=1, head_dim=size),)
    window = _size(text, "sliding_window")
    if text.get("use_sliding_window") is False:  # Qwen names a window that it doesn't use
        window = None
    chunk = _size(text, "attention_chunk_size")
    kinds = _layer_kinds(text, layers, bool(window), bool(chunk))
    groups = []
    for kind in ("full", "sliding", "chunked"):
        if kind in kinds:
            seen = {"sliding": window, "chunked": chunk}.get(kind)
            groups.append(
                Attention(
                    kind=kind, layers=kinds.count(kind), kv_heads=kv_heads, head_dim=head_dim, window=seen
                )
            )
    if "state" in kinds:
        groups.append(Attention(kind="state", layers=kinds.count("state")))
    return tuple(groups)


_NAMED_KINDS: dict[str, AttentionKind] = {
    "full_attention": "full", "attention": "full", "sliding_attention": "sliding",
    "chunked_attention": "chunked", "linear_attention": "state", "mamba": "state",
}  # fmt: skip


def _layer_kinds(text: Mapping[str, Any], layers: int, window: bool, chunk: bool) -> list[AttentionKind]:
    named = text.get("layer_types")
    if isinstance(named, list) and len(named) == layers:
        kinds = [_NAMED_KINDS.get(str(name), "full") for name in named]
        return [
            "full" if (kind == "sliding" and not window) or (kind == "chunked" and not chunk) else kind
            for kind in kinds
        ]
    if chunk and text.get("model_type") == "llama4_text":  # three of four layers see a chunk
        return ["full" if (index + 1) % 4 == 0 else "chunked" for index in range(layers)]
    every = {"gemma2": 2, "gpt_oss": 2, "gemma3_text": _size(text, "sliding_window_pattern") or 6}
    period = every.get(str(text.get("model_type")))
    if window and period:  # the last layer of each period sees everything
        return ["full" if (index + 1) % period == 0 else "sliding" for index in range(layers)]
    return ["sliding" if window else "full"] * layers


def _rope(text: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """(The kind of scaling, its values), or (None, {}) without one."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = text.get(name)
        if isinstance(rope, dict):
            nested = [part for part in rope.values() if isinstance(part, dict)]
            for part in nested or [rope]:
                kind = part.get("rope_type") or part.get("type")
                if isinstance(kind, str) and kind != "default":
                    return kind, part
    return None, {}


def _context(text: Mapping[str, Any], model_type: str) -> int:
    """As vLLM derives max_model_len (`_get_and_verify_max_len`): 2,048 where nothing is said."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length",
             "max_seq_length", "seq_len")  # fmt: skip
    said = [size for name in names if (size := _size(text, name))]
    context = _size(text, "model_max_length") or min(said, default=2048)
    kind, rope = _rope(text)
    if kind == "longrope":
        return _size(text, "original_max_position_embeddings") or context
    factor = rope.get("factor")
    if kind in (None, "su", "llama3") or "gemma3" in model_type or not isinstance(factor, (int, float)):
        return context
    if kind == "yarn":
        context = _size(rope, "original_max_position_embeddings") or context
    return int(context * factor) if 1 <= factor <= 10_000 else context


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    for part in (text, config):
        named = part.get("dtype") or part.get("torch_dtype")
        if isinstance(named, str):
            return named.removeprefix("torch.")[:20]
    return "bfloat16"


_KNOWN_BITS = {"fp8": 8, "fbgemm_fp8": 8, "awq": 4, "mxfp4": 4.25, "bitsandbytes": 4}


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """The method's name and its bits a weight, scales left out where they aren't part of the method."""
    found = config.get("quantization_config") or text.get("quantization_config")
    if not isinstance(found, dict):
        return None, None
    method = str(found.get("quant_method") or "unknown")[:40]
    bits = found.get("bits") or found.get("w_bit") or _KNOWN_BITS.get(method)
    if found.get("load_in_8bit"):
        bits = 8
    groups = found.get("config_groups")
    if bits is None and isinstance(groups, dict):  # compressed-tensors
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, dict) else None
            bits = weights.get("num_bits") if isinstance(weights, dict) else None
    group_size = found.get("group_size") or found.get("q_group_size")
    if not isinstance(bits, (int, float)) or not 1 <= bits <= 16:
        return method, None
    if bits < 8 and isinstance(group_size, int) and group_size > 0:
        bits += 20 / group_size  # a 16 bit scale and a zero point for each group
    return method, float(bits)
