"""What must be known of a model before vLLM loads it: its sizes, and what its makers recommend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.engines.vllm_settings import ModelFacts
from core.errors import EngineLoadError
from core.models.locate import LocatedModel, locate
from core.types import EngineSpec

__all__ = ["LocalModel", "locate", "read_facts", "read_generation_config"]

LocalModel = LocatedModel
_DTYPE_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}


def read_facts(model: LocalModel, spec: EngineSpec) -> ModelFacts:
    """Sizes from the model's own files, in the number formats of `spec`.

    Raises EngineLoadError when its architecture is unknown.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model.folder, trust_remote_code=spec.trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise EngineLoadError(
            f"{model.name} can't be loaded: {_first_line(error)}",
            hint="Choose a model whose architecture vLLM supports and that needs no code of its own.",
        ) from error
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 1) or 1
    head_size = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 0) // heads
    key_value_heads = getattr(text, "num_key_value_heads", None) or heads
    kept_as = str(getattr(text, "dtype", None) or "bfloat16").removeprefix("torch.")
    dtype = spec.dtype
    number_bytes = _DTYPE_BYTES.get(dtype if dtype != "auto" else kept_as, 2)
    if dtype == "auto":  # vLLM loads float32 models in half precision
        number_bytes = min(number_bytes, 2)
    if spec.kv_cache_dtype is not None:
        number_bytes = _DTYPE_BYTES.get(
            spec.kv_cache_dtype, 1 if "fp8" in spec.kv_cache_dtype else number_bytes
        )
    layers = getattr(text, "num_hidden_layers", 1)
    return ModelFacts(
        weights_bytes=sum(path.stat().st_size for path in model.folder.glob("*.safetensors")),
        context_tokens=getattr(text, "max_position_embeddings", None) or 2048,
        kv_bytes_per_token=max(1, 2 * layers * key_value_heads * head_size * number_bytes),
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def read_generation_config(model: LocalModel) -> Mapping[str, Any]:
    """The sampling values that the model's makers recommend; empty when they don't."""
    path = model.folder / "generation_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
