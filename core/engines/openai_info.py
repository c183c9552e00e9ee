"""What is known of a server's model: found on its list, kept for a day, told in the workbench's words."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from core.endpoints import DEFAULT_SLOTS, RemoteModel
from core.engines.base import Report
from core.engines.openai_client import Refused, Server
from core.engines.openai_params import REASONS, Capabilities
from core.errors import EngineDied, EngineLoadError
from core.settings import Settings
from core.types import EngineInfo, EngineSpec, Feature

ASSUMED_CONTEXT = 32_768
"""Tokens, where neither the server nor the settings say how long its context is."""
_KNOWN_S = 24 * 3600
_POLL_S = 1.0


def find_model(
    server: Server,
    spec: EngineSpec,
    report: Report,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
    *,
    waits: bool,
) -> RemoteModel:
    """The model on the server's list; the only one there is, where none was named."""
    report(f"Asking {server.host} for its models")
    while True:
        try:
            models = run(server.models())
            break
        except EngineDied:
            if not waits:
                raise
            report(f"Waiting for {server.host}")  # raises when nobody wants it any more
            time.sleep(_POLL_S)
        except Refused as error:
            if error.status not in (404, 405, 501):
                raise
            models = (RemoteModel(spec.model),)  # it keeps no list
            break
    named = {model.name: model for model in models}
    if spec.model in named:
        return named[spec.model]
    if spec.model in ("", "embedded") and len(models) == 1:
        return models[0]
    few = ", ".join(list(named)[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
    raise EngineLoadError(
        f"{server.host} has no model {spec.model!r}.",
        hint=f"It has {few}." if few else "It has none at all.",
    )


def known_path(settings: Settings, base_url: str, model: str) -> Path:
    digest = hashlib.blake2b(f"{base_url}\n{model}".encode(), digest_size=12).hexdigest()
    return settings.home / "endpoints" / f"{digest}.json"


def known(path: Path) -> Capabilities | None:
    """What was found out within a day."""
    try:
        if time.time() - path.stat().st_mtime < _KNOWN_S:
            return TypeAdapter(Capabilities).validate_json(path.read_bytes(), extra="forbid")
    except (OSError, ValidationError):  # not there, or of another version: it is found out again
        return None
    return None


def keep(path: Path, can: Capabilities) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(TypeAdapter(Capabilities).dump_json(can))
    partial.replace(path)


def describe(
    server: Server, spec: EngineSpec, model: RemoteModel, can: Capabilities, began: float
) -> EngineInfo:
    notes = []
    context = min(
        (size for size in (model.max_model_len or can.context, spec.max_model_len) if size), default=None
    )
    if context is None:
        context = ASSUMED_CONTEXT
        notes.append(f"The server doesn't say how long its context is: {context:,} tokens are assumed.")
    slots = spec.max_num_seqs or DEFAULT_SLOTS
    cannot_params = dict(can.refused)
    if not can.logprobs:
        cannot_params["logprobs"] = REASONS["top_logprobs"]
    if not can.structures:
        cannot_params["structured_outputs"] = REASONS["structured_outputs"]
    return EngineInfo(
        model=model.name,
        revision=None,
        device=server.host,
        dtype="unknown",
        max_model_len=context,
        max_num_seqs=slots,
        batch_slots=slots,
        kv_cache_tokens=None,
        kv_cache_bytes=None,
        has_chat_template=can.chat,
        generation_config={},
        engine_version=f"vLLM {can.version}".strip() if can.is_vllm else "OpenAI-compatible server",
        settings={
            "base_url": server.base_url,
            "max_num_seqs": slots,
            **({"notes": notes} if notes else {}),
        },
        load_s=time.monotonic() - began,
        cannot=_cannot(can),
        cannot_params=cannot_params,
    )


def _cannot(can: Capabilities) -> dict[Feature, str]:
    able: dict[Feature, bool] = {
        "tokens": can.tokens,
        "chat_options": can.is_vllm,
        "completion": can.completion,
        "structured_outputs": bool(can.structures),
        "score": can.scores,
        "top_logprobs": can.logprobs,
    }
    return {feature: reason for feature, reason in REASONS.items() if not able.get(feature)}
