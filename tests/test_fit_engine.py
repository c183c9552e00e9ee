"""The estimate against vLLM: the engine's report once it is loaded, and vLLM's own grouping of layers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core import machine
from core.models import facts, fit, fit_compare, kv_cache
from core.models.facts import Attention
from core.runtime import Runtime

pytestmark = pytest.mark.engine

CONFIGS = Path(__file__).parent / "model_configs"
_IN_FLIGHT = 4096


def test_the_estimate_is_near_what_the_engine_reports(engine_runtime: Runtime, embedded_model: Path) -> None:
    info, spec = engine_runtime.engine.info, engine_runtime.engine.spec
    known = facts.read(embedded_model)
    estimate = fit.estimate(known, fit.device_of(machine.describe(), info), spec)
    differences = {difference.part: difference.share for difference in fit_compare.compare(estimate, info)}
    assert set(differences) == {"Weights", "KV cache", "Context"}
    assert all(abs(share) < 0.02 for share in differences.values()), differences


def test_blocks_are_those_that_vllm_itself_would_take() -> None:
    from vllm.v1.core import kv_cache_utils

    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_batched_tokens=_IN_FLIGHT),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1),
        max_in_flight_tokens=_IN_FLIGHT,
    )
    for path in sorted(CONFIGS.glob("*.json")):
        known = facts.from_config(json.loads(path.read_text()))
        config.model_config = SimpleNamespace(max_model_len=known.context_tokens)
        layers = [spec for group in known.attention for spec in [_spec(group)] * group.layers]
        specs = {f"layer.{number}": spec for number, spec in enumerate(layers)}
        if kv_cache_utils.is_kv_cache_spec_uniform(specs):
            groups = kv_cache_utils._get_kv_cache_groups_uniform_spec(specs)
        else:
            groups = kv_cache_utils._get_kv_cache_groups_uniform_page_size(specs)
        pages = [(group.kv_cache_spec, len(group.layer_names)) for group in groups]
        layout = kv_cache.layout(known, number_bytes=2, in_flight_tokens=_IN_FLIGHT)
        blocks = sum(spec.max_memory_usage_bytes(config) // spec.page_size_bytes for spec, _ in pages)
        assert layout.blocks(known.context_tokens) == blocks, path.stem
        assert layout.block_bytes == max(spec.page_size_bytes * number for spec, number in pages), path.stem


def _spec(group: Attention) -> Any:
    import torch
    from vllm.v1 import kv_cache_interface

    sizes = {"block_size": 16, "num_kv_heads": group.kv_heads, "head_size": group.head_dim}
    sizes["dtype"] = torch.bfloat16
    if group.kind == "latent":
        return kv_cache_interface.MLAAttentionSpec(**sizes)
    if group.kind == "sliding":
        return kv_cache_interface.SlidingWindowSpec(**sizes, sliding_window=group.window)
    return kv_cache_interface.FullAttentionSpec(**sizes)
