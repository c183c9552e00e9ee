"""What must be known of a model before vLLM loads it: its sizes, and what its makers recommend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.engines.vllm_settings import ModelFacts
from core.errors import EngineLoadError, ModelError
from core.models import facts, fit
from core.models.locate import LocatedModel, locate
from core.types import EngineSpec

__all__ = ["LocalModel", "locate", "read_facts", "read_generation_config"]

LocalModel = LocatedModel


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
    try:
        return fit.engine_facts(facts.read(model.folder), spec)
    except ModelError:  # a config unlike others, which vLLM may know all the same
        return _rough_facts(model, config.get_text_config())


def _rough_facts(model: LocalModel, text: Any) -> ModelFacts:
    """Of a model without layers of attention that could be counted."""
    return ModelFacts(
        weights_bytes=sum(path.stat().st_size for path in model.folder.glob("*.safetensors")),
        context_tokens=getattr(text, "max_position_embeddings", None) or 2048,
        kv_bytes_per_token=4 * getattr(text, "num_hidden_layers", 1) * getattr(text, "hidden_size", 1),
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def read_generation_config(model: LocalModel) -> Mapping[str, Any]:
    """The sampling values that the model's makers recommend; empty when they don't."""
    path = model.folder / "generation_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
