"""What must be known of a model before vLLM loads it: its folder and sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import embedded
from core.engines.base import Report
from core.engines.vllm_settings import ModelFacts
from core.errors import EngineLoadError
from core.settings import Settings
from core.types import EngineSpec

_DOWNLOADED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_DTYPE_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this machine. `name` is for people, `folder` for vLLM."""

    name: str
    folder: Path
    revision: str | None


def locate(spec: EngineSpec, settings: Settings, report: Report) -> LocalModel:
    """Have the model in a folder: prepared, found or downloaded. Raises EngineLoadError, ModelError."""
    if spec.model == "embedded":
        report("Preparing the model")
        return LocalModel(embedded.EMBEDDED_MODEL, embedded.prepare(settings, report), None)
    folder = Path(spec.model).expanduser()
    if folder.is_dir():
        return _checked(LocalModel(folder.name, folder.resolve(), None))
    if folder.is_absolute() or spec.model.startswith((".", "~")) or spec.model.count("/") != 1:
        raise EngineLoadError(
            f"There is no model {spec.model!r}.",
            hint="Give 'embedded', a folder with a model, or a Hugging Face id such as owner/name.",
        )
    report(f"Downloading {spec.model}")
    return _checked(LocalModel(spec.model, _download(spec), spec.revision))


def _download(spec: EngineSpec) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            spec.model, revision=spec.revision, allow_patterns=_DOWNLOADED
        )
    except errors.GatedRepoError as error:
        raise EngineLoadError(
            f"{spec.model} is gated: its owner must let you in first.",
            hint="Ask for access on its Hugging Face page and set HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EngineLoadError(f"{spec.model} has no revision {spec.revision!r}.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise EngineLoadError(
            f"There is no model {spec.model!r} on Hugging Face, and no folder of that name.",
            hint="Check its name; for a private one set HF_TOKEN.",
        ) from error
    except (OSError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        raise EngineLoadError(
            f"{spec.model} could not be downloaded: Hugging Face can't be reached or broke off.",
            hint="Check the network (HF_ENDPOINT names a mirror), or give the model's folder.",
        ) from error
    return Path(folder)


def _checked(model: LocalModel) -> LocalModel:
    if not (model.folder / "config.json").is_file():
        raise EngineLoadError(
            f"{model.folder} holds no model: config.json is missing.",
            hint="Give the folder that holds config.json and *.safetensors.",
        )
    if not any(model.folder.glob("*.safetensors")):
        raise EngineLoadError(
            f"{model.folder} holds no *.safetensors weights.",
            hint="Only safetensors are loaded, as other formats can run code.",
        )
    return model


def read_facts(model: LocalModel, dtype: str) -> ModelFacts:
    """Sizes from the model's own files. Raises EngineLoadError when its architecture is unknown."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model.folder, trust_remote_code=False)
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
    number_bytes = _DTYPE_BYTES.get(dtype if dtype != "auto" else kept_as, 2)
    if dtype == "auto":  # vLLM loads float32 models in half precision
        number_bytes = min(number_bytes, 2)
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
