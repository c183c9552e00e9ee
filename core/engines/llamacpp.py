"""llama.cpp as an Engine, in a process of its own: GGUF files, on any processor and on GPUs it was built for.

The model is `core.engines.llamacpp_backend`'s. On this side the file is opened a second time for
its tokens alone, so that text becomes tokens without asking the process.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from core import machine
from core.engines.base import Report
from core.engines.engine_log import EngineLog
from core.engines.guard import Guard
from core.engines.llamacpp_model import Model, send_log
from core.engines.worker import Worker
from core.engines.worker_engine import WorkerEngine
from core.errors import EngineLoadError, ParameterError, TemplateError
from core.models.locate import locate
from core.settings import Settings
from core.types import EngineInfo, EngineSpec, Feature, Message, TokenPiece

_TAKEN = (
    "engine", "model", "hub", "revision", "max_model_len", "max_num_seqs", "max_num_batched_tokens",
    "kv_cache_memory_bytes", "cpu_threads",
)  # fmt: skip
_CANNOT: dict[Feature, str] = {
    "beam_search": "llama.cpp has no beam search.",
    "adapters": "LoRA adapters are not loaded into llama.cpp here; merge one into its model instead.",
}
_CANNOT_PARAMS = {
    "spaces_between_special_tokens": "llama.cpp puts no spaces between control tokens.",
}
_TEMPLATE_ARGUMENTS = (
    "conversations", "messages", "tools", "documents", "chat_template", "return_assistant_tokens_mask",
    "continue_final_message", "add_generation_prompt",
)  # fmt: skip


def load(
    spec: EngineSpec,
    settings: Settings,
    *,
    report: Report,
    log: EngineLog,
    guard: Guard,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
) -> WorkerEngine:
    """Start a process with the GGUF file and answer one request with it. Blocks for the whole load.

    Raises EngineLoadError (with the process's log), ModelError, ParameterError.
    """
    began = time.monotonic()
    _refuse_settings(spec)
    log.begin()
    model = locate(spec, settings, report)
    arguments = {
        "path": str(model.path),
        "max_model_len": spec.max_model_len,
        "max_num_seqs": spec.max_num_seqs,
        "max_num_batched_tokens": spec.max_num_batched_tokens,
        "kv_cache_memory_bytes": spec.kv_cache_memory_bytes,
        "cpu_threads": spec.cpu_threads,
    }
    report("Starting llama.cpp")
    try:
        worker = Worker.start(
            "core.engines.llamacpp_backend:make", arguments, report=report, log=log, guard=guard, run=run
        )
    except EngineLoadError as error:
        said = f"{model.name} could not be loaded: {error.message}"
        raise EngineLoadError(said, hint=error.hint, log=error.log) from error
    engine = None
    try:
        # only now: a damaged file may end the process that opens it first
        tokenizer = GgufTokenizer(model.name, model.path)
        info = _describe(spec, model.name, model.revision, worker.facts, tokenizer, began)
        engine = WorkerEngine(spec=spec, info=info, tokenizer=tokenizer, worker=worker)
        report("Warming up")
        run(engine.warm_up())
    except BaseException:
        run(worker.close())
        raise
    return engine


def _describe(
    spec: EngineSpec,
    name: str,
    revision: str | None,
    facts: Mapping[str, Any],
    tokenizer: GgufTokenizer,
    began: float,
) -> EngineInfo:
    here = machine.describe()
    gpus = ", ".join(gpu.name for gpu in here.gpus)
    on_gpu = facts["device"] == "GPU"
    return EngineInfo(
        model=name,
        revision=revision,
        device=gpus or "GPU" if on_gpu else f"CPU, {facts['threads']} threads ({here.cpu})",
        dtype=facts["dtype"],
        max_model_len=facts["context_tokens"],
        max_num_seqs=facts["slots"],
        batch_slots=facts["batch_slots"],
        kv_cache_tokens=facts["cells"],
        kv_cache_bytes=facts["cache_bytes"],
        has_chat_template=tokenizer.chat_template is not None,
        generation_config=_recommended(facts["metadata"]),
        engine_version=f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}",
        settings={
            "max_num_seqs": facts["batch_slots"],
            "max_num_batched_tokens": facts["step_tokens"],
            "cpu_threads": facts["threads"],
            **({} if on_gpu or not here.gpus else {"notes": [_NOT_ON_GPU]}),
        },
        load_s=time.monotonic() - began,
        cannot=_CANNOT,
        cannot_params=_CANNOT_PARAMS,
        weights_bytes=facts["weights_bytes"],
        vocabulary_size=tokenizer.size,
    )


_NOT_ON_GPU = (
    "This build of llama.cpp uses the processor alone; docs/models.md says how to build it for the GPU."
)


def _recommended(metadata: Mapping[str, str]) -> dict[str, float]:
    """The sampling parameters that the file's makers recommend, where they do (general.sampling.*)."""
    names = {
        "temp": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "min_p": "min_p",
        "penalty_repeat": "repetition_penalty",
    }
    found = {}
    for theirs, ours in names.items():
        with contextlib.suppress(ValueError, KeyError):  # a value that is no number recommends nothing
            found[ours] = float(metadata[f"general.sampling.{theirs}"])
    return found


def _refuse_settings(spec: EngineSpec) -> None:
    """Settings that would be ignored are refused. Raises ParameterError."""
    empty = EngineSpec()
    for name in spec.__dataclass_fields__:
        value = getattr(spec, name)
        if name not in _TAKEN and value not in (getattr(empty, name), None, False, 1):
            raise ParameterError(
                f"llama.cpp takes no {name}: a GGUF file is loaded as it is.", hint="Leave it empty."
            )


class GgufTokenizer:
    """The tokens and the chat template of a GGUF file, safe from any thread.

    Making one raises EngineLoadError.
    """

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        send_log(lambda text: None)  # the other process has written the same to the engine's log
        self._model = Model(path, vocab_only=True)
        start, end = self._model.start_id, self._model.end_id
        self._start = "" if start is None else self._model.texts([start])[0]
        from transformers.utils.chat_template_utils import render_jinja_template

        self._render = render_jinja_template  # imported now: the first chat shall not wait for it
        self._end = "" if end is None else self._model.texts([end])[0]

    @property
    def chat_template(self) -> str | None:
        return self._model.chat_template

    @property
    def size(self) -> int:
        """Tokens of the vocabulary, special ones too; ids are below it."""
        return self._model.vocabulary_size

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        return [self._model.encode(text, add_special_tokens=add_special_tokens) for text in texts]

    def encode_prompt(self, text: str) -> list[int]:
        """With the model's own special tokens, unless the text begins with them."""
        has_start = bool(self._start) and text.startswith(self._start)
        return self._model.encode(text, add_special_tokens=not has_start)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._model.decode(token_ids, special=False)

    def pieces(self, token_ids: Sequence[int]) -> list[TokenPiece]:
        texts = self._model.texts(token_ids)
        return [
            TokenPiece(token, text, special=self._model.is_special(token))
            for token, text in zip(token_ids, texts, strict=True)
        ]

    def render_chat(
        self, chats: Sequence[Sequence[Message]], options: Mapping[str, Any] | None = None
    ) -> list[str]:
        """By transformers' own renderer, in its sandbox. Raises TemplateError."""
        from jinja2 import TemplateError as JinjaError

        template = self.chat_template
        if template is None:
            raise TemplateError(
                f"{self._name} has no chat template.",
                hint="It is a base model: send it plain text, or load an instruct model.",
            )
        variables = {
            "add_generation_prompt": True, "bos_token": self._start, "eos_token": self._end, **(options or {})
        }  # fmt: skip
        _check_variables(variables)
        conversations = [[message.as_dict() for message in chat] for chat in chats]
        try:
            rendered, _ = self._render(conversations, chat_template=template, **variables)
        except (JinjaError, ValueError, TypeError) as error:
            raise TemplateError(
                f"{self._name}'s chat template refuses these messages: {error}",
                hint="Some models take no system prompt, or want user and assistant to take turns.",
            ) from error
        return rendered


def _check_variables(variables: Mapping[str, Any]) -> None:
    """The renderer's own arguments are no variables of a template, but for these few."""
    taken = set(_TEMPLATE_ARGUMENTS).difference(("tools", "documents", "add_generation_prompt"))
    for name in sorted(taken.intersection(variables)):
        raise TemplateError(
            f"{name!r} is no option of a chat template.", hint="Give variables that the template reads."
        )
