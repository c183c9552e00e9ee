"""transformers as an Engine, in a process of its own: runs nearly every model, wherever torch does.

The model is `core.engines.hf_backend`'s; this is the side that the runtime knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from core import machine
from core.engines.base import Report
from core.engines.engine_log import EngineLog
from core.engines.guard import Guard
from core.engines.tokenizer import Tokenizer, end_ids
from core.engines.vllm_models import read_generation_config
from core.engines.worker import Worker
from core.engines.worker_engine import WorkerEngine
from core.errors import EngineLoadError, ModelError
from core.hub import permissions
from core.models import facts
from core.models.locate import locate
from core.settings import Settings
from core.types import EngineInfo, EngineSpec, Feature

_SLOTS = 32
_CHAT_SLOTS = 4
"""Slots beyond a batch's width, so that a chat never waits for a row to end."""
_CANNOT: dict[Feature, str] = {
    "structured_outputs": "transformers can't hold an answer to a structure.",
    "beam_search": "Beam search is not done with transformers here: its sequences share one batch.",
    "adapters": "LoRA adapters are not loaded into transformers here; merge one into its model instead.",
}
_CANNOT_PARAMS = {
    "spaces_between_special_tokens": "transformers' tokenizers put no spaces between control tokens.",
}


def load(
    spec: EngineSpec,
    settings: Settings,
    *,
    report: Report,
    log: EngineLog,
    guard: Guard,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
) -> WorkerEngine:
    """Start a process with the model and answer one request with it. Blocks for the whole load.

    Raises EngineLoadError (with the process's log) and ModelError.
    """
    began = time.monotonic()
    log.begin()
    model = locate(spec, settings, report)
    report("Importing transformers")
    generation_config = read_generation_config(model)
    tokenizer = Tokenizer(model.name, model.folder, trust_remote_code=spec.trust_remote_code)
    slots = spec.max_num_seqs or _SLOTS
    arguments = {
        "name": model.name,
        "folder": str(model.folder),
        "dtype": spec.dtype,
        "slots": slots + _CHAT_SLOTS,
        "context_tokens": spec.max_model_len,
        "made_for": _made_for(model.path),
        "end_ids": end_ids(tokenizer, generation_config),
        "trust_remote_code": spec.trust_remote_code,
        "allow_pickle": "pickle" in permissions.allowed(settings, spec.model, spec.hub),
    }
    try:
        worker = Worker.start(
            "core.engines.hf_backend:make", arguments, report=report, log=log, guard=guard, run=run
        )
    except EngineLoadError as error:
        said = f"{model.name} could not be loaded: {error.message}"
        raise EngineLoadError(said, hint=error.hint, log=error.log) from error
    found = worker.facts
    info = EngineInfo(
        model=model.name,
        revision=model.revision,
        device=_device(found["device"]),
        dtype=found["dtype"],
        max_model_len=found["context_tokens"],
        max_num_seqs=slots + _CHAT_SLOTS,
        batch_slots=slots,
        kv_cache_tokens=found["cache_tokens"],
        kv_cache_bytes=found["cache_bytes"],
        has_chat_template=tokenizer.has_chat_template,
        generation_config=generation_config,
        engine_version=found["version"],
        settings={"max_num_seqs": slots, "notes": list(found["notes"])},
        load_s=time.monotonic() - began,
        cannot=_CANNOT,
        cannot_params=_CANNOT_PARAMS,
        weights_bytes=found["weights_bytes"],
        vocabulary_size=tokenizer.size,
    )
    engine = WorkerEngine(spec=spec, info=info, tokenizer=tokenizer, worker=worker)
    try:
        report("Warming up")
        run(engine.warm_up())
    except BaseException:
        run(engine.close())
        raise
    return engine


def _made_for(path: Path) -> int | None:
    """The context that the model's makers name, with what a scaled RoPE adds; None where they don't."""
    try:
        return facts.read(path).context_tokens
    except ModelError:  # sizes that can't be read: transformers may know the model all the same
        return None


def _device(kind: str) -> str:
    if kind != "cpu":
        return kind
    here = machine.describe()
    return f"CPU, {here.cores} cores ({here.cpu})"
