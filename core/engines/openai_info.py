"""What is known of a server's model: kept for a day, and told in the workbench's words."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from core.endpoints import DEFAULT_SLOTS, RemoteModel
from core.engines.openai_client import Server
from core.engines.openai_params import Capabilities
from core.settings import Settings
from core.types import EngineInfo, EngineSpec, Feature

ASSUMED_CONTEXT = 32_768
"""Tokens, where neither the server nor the settings say how long its context is."""
_KNOWN_S = 24 * 3600


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
    context = min((size for size in (model.max_model_len, spec.max_model_len) if size), default=None)
    if context is None:
        context = ASSUMED_CONTEXT
        notes.append(f"The server doesn't say how long its context is: {context:,} tokens are assumed.")
    slots = spec.max_num_seqs or DEFAULT_SLOTS
    cannot_params = dict(can.refused)
    if not can.logprobs:
        cannot_params["logprobs"] = "This server gives no probabilities of tokens."
    if not can.structures:
        cannot_params["structured_outputs"] = "This server holds answers to no structure."
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
    cannot: dict[Feature, str] = {
        "score": "A server gives no probabilities of given answers.",
        "beam_search": "Beam search is not asked of a server.",
        "distribution": "A server gives the probabilities of a few tokens, not of all.",
        "adapters": "A server's LoRA adapters are models of their own: load one by its name.",
    }
    if not can.tokens:
        cannot["tokens"] = "This server tells nobody how it cuts text into tokens."
    if not can.is_vllm:
        cannot["chat_options"] = "This server takes no further variables of a chat template."
    if not can.completion:
        cannot["completion"] = "This server takes chats only, no plain text."
    if not can.structures:
        cannot["structured_outputs"] = "This server holds answers to no structure."
    if not can.logprobs:
        cannot["top_logprobs"] = "This server gives no probabilities of tokens."
    return cannot
