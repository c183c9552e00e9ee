"""What must be known of a model before vLLM loads it: its folder, sizes, tokenizer."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import embedded
from core.engines.base import Report
from core.engines.vllm_settings import ModelFacts
from core.errors import EngineLoadError, TemplateError
from core.settings import Settings
from core.types import EngineSpec, Message, TokenPiece

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


class Tokenizer:
    """The model's own tokenizer and chat template, safe from any thread.

    Making one raises EngineLoadError.
    """

    def __init__(self, model: LocalModel) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model.folder, trust_remote_code=False)
        except (ValueError, OSError, KeyError, ImportError) as error:
            raise EngineLoadError(
                f"{model.name}'s tokenizer can't be loaded: {_first_line(error)}",
                hint="The folder needs tokenizer.json, or what its kind of tokenizer is made from.",
            ) from error
        # The Rust tokenizer itself takes many texts at once, on all cores and from many threads;
        # the wrapper around it sets state on each call, and fails when two threads do so.
        self._fast = getattr(self._tokenizer, "backend_tokenizer", None)
        self._lock = threading.Lock()
        self._name = model.name
        self._texts: dict[int, str] = {}
        self._special: dict[int, str] = {
            number: token.content
            for number, token in self._tokenizer.added_tokens_decoder.items()
            if token.special
        }
        if self._fast is not None:
            self._fast.no_truncation()
            self._fast.no_padding()

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    @property
    def chat_template(self) -> str | None:
        """The template that `render_chat` uses: the one named default where there are several."""
        template = self._tokenizer.chat_template
        return template.get("default") if isinstance(template, dict) else template

    @property
    def end_id(self) -> int | None:
        """The token that ends a text; None when there is none."""
        return self._tokenizer.eos_token_id

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        if not texts:
            return []
        if self._fast is not None:
            encodings = self._fast.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encodings]
        with self._lock:
            return self._tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of one prompt: with the model's special tokens, unless a chat template has put them there."""
        start = self._tokenizer.bos_token
        has_start = bool(start) and text.startswith(start)
        return self.encode([text], add_special_tokens=not has_start)[0]

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def pieces(self, token_ids: Sequence[int]) -> list[TokenPiece]:
        """Each token by itself. Models may have more than their tokenizer: those are special and empty."""
        beyond = len(self._tokenizer)
        return [
            TokenPiece(token, text, special=token in self._special or token >= beyond)
            for token, text in zip(token_ids, self.texts(token_ids), strict=True)
        ]

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """What each token adds to a text: incomplete characters are U+FFFD, special tokens their names."""
        missing = list({token for token in token_ids if token not in self._texts})
        if missing:
            # Behind another token, as most decoders leave out the space that a text begins with.
            (anchor,) = (ids[-1] for ids in self.encode(["a"]))
            (before, *both) = self._decode_all([[anchor], *([anchor, token] for token in missing)])
            for token, text in zip(missing, both, strict=True):
                self._texts[token] = self._special.get(token, text[len(before) :])
        return [self._texts[token] for token in token_ids]

    def _decode_all(self, sequences: list[list[int]]) -> list[str]:
        if self._fast is not None:
            return self._fast.decode_batch(sequences, skip_special_tokens=False)
        with self._lock:
            return [self._tokenizer.decode(ids, skip_special_tokens=False) for ids in sequences]

    def render_chat(
        self, chats: Sequence[Sequence[Message]], options: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Raises TemplateError."""
        from jinja2 import TemplateError as JinjaError

        if not self.has_chat_template:
            raise TemplateError(
                f"{self._name} has no chat template.",
                hint="It is a base model: send it plain text, or load an instruct model.",
            )
        if not chats:
            return []
        conversations = [[message.as_dict() for message in chat] for chat in chats]
        variables = {"add_generation_prompt": True, **(options or {})}
        self._check_variables(variables)
        try:
            return self._tokenizer.apply_chat_template(conversations, tokenize=False, **variables)
        except (JinjaError, ValueError, TypeError) as error:
            raise TemplateError(
                f"{self._name}'s chat template refuses these messages: {error}",
                hint="Some models take no system prompt, or want user and assistant to take turns.",
            ) from error

    def _check_variables(self, variables: Mapping[str, Any]) -> None:
        """What the tokenizer's own method takes is no variable of the template, but for these few."""
        own = set(inspect.signature(self._tokenizer.apply_chat_template).parameters) | {"messages"}
        taken = sorted(
            own.difference(("tools", "documents", "add_generation_prompt")).intersection(variables)
        )
        if taken:
            raise TemplateError(
                f"{taken[0]!r} is no option of a chat template.",
                hint="Give variables that the template reads.",
            )
