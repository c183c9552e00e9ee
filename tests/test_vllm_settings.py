"""How vLLM is sized: pure arithmetic, no engine."""

from __future__ import annotations

import pytest

from core.engines.engine_log import cause_in, stage_of
from core.engines.vllm_settings import CHAT_SLOTS, DeviceFacts, ModelFacts, choose
from core.errors import EngineLoadError
from core.types import EngineSpec

GIB = 1 << 30
SMOL = ModelFacts(weights_bytes=269 << 20, context_tokens=8192, kv_bytes_per_token=23_040)
SEVEN_B = ModelFacts(weights_bytes=15 * GIB, context_tokens=32_768, kv_bytes_per_token=57_344)


def cpu(free_gib: float) -> DeviceFacts:
    return DeviceFacts(kind="cpu", name="CPU", memory_bytes=int(free_gib * GIB))


def gpu(total_gib: float) -> DeviceFacts:
    return DeviceFacts(kind="cuda", name="GPU", memory_bytes=int(total_gib * GIB))


@pytest.mark.parametrize("free_gib", [4, 5, 6.5, 16, 24, 256])
def test_embedded_model_keeps_its_context_and_leaves_memory(free_gib: float) -> None:
    choice = choose(EngineSpec(), SMOL, cpu(free_gib))
    cache = choice.arguments["kv_cache_memory_bytes"]
    assert choice.arguments["max_model_len"] == 8192
    assert cache >= 8192 * SMOL.kv_bytes_per_token
    assert cache + SMOL.weights_bytes + 2.5 * GIB < free_gib * GIB
    assert choice.notes == ()


def test_cache_is_no_larger_than_the_slots_can_use() -> None:
    choice = choose(EngineSpec(max_num_seqs=16), SMOL, cpu(256))
    assert choice.arguments["kv_cache_memory_bytes"] == (16 + CHAT_SLOTS) * 1024 * SMOL.kv_bytes_per_token


def test_context_shrinks_to_what_fits_and_says_so() -> None:
    choice = choose(EngineSpec(), SEVEN_B, cpu(20))
    context = choice.arguments["max_model_len"]
    assert 512 <= context < SEVEN_B.context_tokens
    assert context * SEVEN_B.kv_bytes_per_token <= choice.arguments["kv_cache_memory_bytes"]
    assert f"from 32,768 to {context:,} tokens" in choice.notes[0]


def test_given_cache_bounds_the_context() -> None:
    choice = choose(EngineSpec(kv_cache_memory_bytes=64 << 20), SMOL, cpu(16))
    assert choice.arguments["kv_cache_memory_bytes"] == 64 << 20
    assert choice.arguments["max_model_len"] * SMOL.kv_bytes_per_token <= 64 << 20
    assert choice.notes


def test_too_little_memory_says_how_much_is_missing() -> None:
    with pytest.raises(EngineLoadError, match=r"needs 3\.5 GiB more") as caught:
        choose(EngineSpec(max_model_len=512), SEVEN_B, cpu(15.53))
    assert "smaller model" in caught.value.hint


def test_a_context_that_was_asked_for_is_never_shortened() -> None:
    with pytest.raises(EngineLoadError, match="too small for 8,192 tokens"):
        choose(EngineSpec(max_model_len=8192, kv_cache_memory_bytes=64 << 20), SMOL, cpu(16))


def test_asked_for_values_win() -> None:
    spec = EngineSpec(max_num_seqs=4, max_model_len=1024, max_num_batched_tokens=512, enforce_eager=False)
    arguments = choose(spec, SMOL, cpu(16)).arguments
    assert (arguments["max_num_seqs"], arguments["max_model_len"]) == (4 + CHAT_SLOTS, 1024)
    assert (arguments["max_num_batched_tokens"], arguments["enforce_eager"]) == (512, False)


def test_a_small_model_on_a_large_gpu_stays_within_the_cuda_graphs() -> None:
    choice = choose(EngineSpec(), SMOL, gpu(139))
    assert choice.batch_slots == 504
    assert choice.arguments["max_num_seqs"] == 512


@pytest.mark.parametrize(("total_gib", "slots", "batched"), [(139, 1024, 16384), (23, 256, 8192)])
def test_gpu_gets_explicit_sizes_and_compiles(total_gib: float, slots: int, batched: int) -> None:
    choice = choose(EngineSpec(), SEVEN_B, gpu(total_gib))
    assert choice.batch_slots == slots
    assert choice.arguments == {
        "max_num_seqs": slots + CHAT_SLOTS,
        "max_num_batched_tokens": batched,
        "enforce_eager": False,
        "max_model_len": -1,
        "enable_prefix_caching": True,
    }


def test_gpu_takes_what_was_asked_for() -> None:
    spec = EngineSpec(max_model_len=4096, gpu_memory_utilization=0.5, enforce_eager=True)
    arguments = choose(spec, SEVEN_B, gpu(139)).arguments
    assert (arguments["max_model_len"], arguments["gpu_memory_utilization"]) == (4096, 0.5)
    assert arguments["enforce_eager"] is True


def test_cause_is_the_last_real_error() -> None:
    lines = (
        "INFO 11-21 04:10:45 [model.py:733] Resolved architecture: LlamaForCausalLM",
        "ERROR 11-21 04:10:46 [core.py:99] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB",
        "ERROR 11-21 04:10:46 [core.py:99] ValueError: No available memory for the cache blocks.",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    )
    assert cause_in(lines) == "ValueError: No available memory for the cache blocks."
    assert cause_in(lines[:2]) == "OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
    assert cause_in(lines[:1]) is None


def test_stages_only_go_forward() -> None:
    line = "INFO 11-21 04:11:09 [cpu_model_runner.py:68] Starting to load model smol..."
    assert stage_of(line, "Starting the engine process") == "Loading weights"
    assert stage_of(line, "Warming up") is None
    assert stage_of("INFO something else") is None


def test_what_needs_no_choice_is_passed_on() -> None:
    spec = EngineSpec(
        kv_cache_dtype="fp8",
        quantization="fp8",
        tensor_parallel_size=2,
        pipeline_parallel_size=2,
        enable_prefix_caching=False,
        speculative_config={"method": "ngram", "num_speculative_tokens": 3},
        trust_remote_code=True,
    )
    arguments = choose(spec, SEVEN_B, gpu(139)).arguments
    assert (arguments["kv_cache_dtype"], arguments["quantization"]) == ("fp8", "fp8")
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (2, 2)
    assert arguments["enable_prefix_caching"] is False and arguments["trust_remote_code"] is True
    assert arguments["speculative_config"]["num_speculative_tokens"] == 3
    assert "trust_remote_code" not in choose(EngineSpec(), SEVEN_B, gpu(139)).arguments


def test_copies_of_the_model_widen_the_batch() -> None:
    one, four = (choose(EngineSpec(data_parallel_size=n), SEVEN_B, gpu(139)) for n in (1, 4))
    assert four.batch_slots == 4 * one.batch_slots
    assert four.arguments["max_num_seqs"] == one.arguments["max_num_seqs"]
    ray = EngineSpec(data_parallel_size=2, distributed_executor_backend="ray")
    assert choose(ray, SEVEN_B, gpu(139)).arguments["data_parallel_backend"] == "ray"


def test_a_step_holds_the_longest_prompt_without_chunks() -> None:
    spec = EngineSpec(enable_chunked_prefill=False)
    for device in (cpu(64), gpu(23)):
        arguments = choose(spec, SMOL, device).arguments
        assert arguments["max_num_batched_tokens"] >= SMOL.context_tokens


def test_a_block_is_as_long_as_asked_for() -> None:
    spec = EngineSpec(block_size=128, kv_cache_memory_bytes=64 << 20)
    arguments = choose(spec, SMOL, cpu(16)).arguments
    assert arguments["block_size"] == 128 and arguments["max_model_len"] % 128 == 0
    assert choose(EngineSpec(), SMOL, cpu(16)).arguments["block_size"] == 32
    assert choose(EngineSpec(block_size=16), SMOL, gpu(23)).arguments["block_size"] == 16
    assert "block_size" not in choose(EngineSpec(), SMOL, gpu(23)).arguments


def test_a_cpu_keeps_one_lora_place_empty() -> None:
    spec = EngineSpec(enable_lora=True, max_loras=2, max_cpu_loras=2, max_lora_rank=64)
    on_cpu = choose(spec, SMOL, cpu(16)).arguments
    assert (on_cpu["max_loras"], on_cpu["max_cpu_loras"], on_cpu["max_lora_rank"]) == (3, 3, 64)
    assert choose(spec, SMOL, gpu(23)).arguments["max_loras"] == 2
    assert "max_loras" not in choose(EngineSpec(), SMOL, cpu(16)).arguments
