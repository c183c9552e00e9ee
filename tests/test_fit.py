"""Facts and fit of public models: expected figures with their sources, against the formulas.

Parameters: the totals that Hugging Face shows for each repository's safetensors, which transformers
confirms on the meta device; of DeepSeek-V3 without its next-token layer (its README: 671B), of Gemma 3 27B
without its image part. KV bytes per token: 2 (key, value) x layers x KV heads x head size x 2 bytes, for
DeepSeek layers x (kv_lora_rank + qk_rope_head_dim) x 2 bytes (arXiv:2405.04434, table 1). Configs are
those of the repositories, cut to what is read.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from core import engine_settings
from core.engines import vllm_settings
from core.errors import EngineLoadError, ModelError
from core.models import facts, fit, fit_compare, fit_sizes, kv_cache
from core.types import EngineInfo, EngineSpec

GIB = 1 << 30
CONFIGS = Path(__file__).parent / "model_configs"
H200 = fit.Device(kind="cuda", name="H200", memory_bytes=int(139.8 * GIB))
CONSUMER = fit.Device(kind="cuda", name="24 GB", memory_bytes=24 * GIB)


def model(name: str) -> facts.ModelFacts:
    return facts.from_config(json.loads((CONFIGS / f"{name}.json").read_text()))


# name: (parameters, KV bytes per token in 16 bits, context, what the layers keep)
EXPECTED = {
    "llama-2-7b": (6_738_415_616, 2 * 32 * 32 * 128 * 2, 4096, {"full": 32}),
    "llama-3.1-8b": (8_030_261_248, 2 * 32 * 8 * 128 * 2, 131_072, {"full": 32}),
    "llama-3.2-1b": (1_235_814_400, 2 * 16 * 8 * 64 * 2, 131_072, {"full": 16}),
    "llama-3.3-70b": (70_553_706_496, 2 * 80 * 8 * 128 * 2, 131_072, {"full": 80}),
    "qwen2.5-0.5b": (494_032_768, 2 * 24 * 2 * 64 * 2, 32_768, {"full": 24}),
    "qwen2.5-7b": (7_615_616_512, 2 * 28 * 4 * 128 * 2, 32_768, {"full": 28}),
    "qwen3-8b": (8_190_735_360, 2 * 36 * 8 * 128 * 2, 40_960, {"full": 36}),
    "qwen3-30b-a3b": (30_532_122_624, 2 * 48 * 4 * 128 * 2, 40_960, {"full": 48}),
    "mistral-7b-v0.1": (7_241_732_096, 2 * 32 * 8 * 128 * 2, 32_768, {"sliding": 32}),
    "mistral-7b-v0.3": (7_248_023_552, 2 * 32 * 8 * 128 * 2, 32_768, {"full": 32}),
    "mixtral-8x7b": (46_702_792_704, 2 * 32 * 8 * 128 * 2, 32_768, {"full": 32}),
    "gemma-2-9b": (9_241_705_984, 2 * 42 * 8 * 256 * 2, 8192, {"full": 21, "sliding": 21}),
    "gemma-3-1b": (999_885_952, 2 * 26 * 1 * 256 * 2, 32_768, {"full": 4, "sliding": 22}),
    "gemma-3-27b": (27_009_346_304, 2 * 62 * 16 * 128 * 2, 131_072, {"full": 10, "sliding": 52}),
    "phi-3-mini-4k": (3_821_079_552, 2 * 32 * 32 * 96 * 2, 4096, {"sliding": 32}),
    "phi-4": (14_659_507_200, 2 * 40 * 10 * 128 * 2, 16_384, {"full": 40}),
    "deepseek-v2-lite": (15_706_484_224, 27 * (512 + 64) * 2, 163_840, {"latent": 27}),
    "deepseek-v3": (671_026_419_200, 61 * (512 + 64) * 2, 163_840, {"latent": 61}),
    "gpt-oss-20b": (20_914_757_184, 2 * 24 * 8 * 64 * 2, 131_072, {"full": 12, "sliding": 12}),
    "gpt-oss-120b": (116_829_156_672, 2 * 36 * 8 * 64 * 2, 131_072, {"full": 18, "sliding": 18}),
    "smollm2-135m": (134_515_008, 23_040, 8192, {"full": 30}),
}


def test_every_config_has_expected_figures() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_public_models_are_counted_exactly(name: str) -> None:
    parameters, per_token, context, layers = EXPECTED[name]
    known = model(name)
    assert known.parameters == parameters
    assert known.context_tokens == context
    assert {group.kind: group.layers for group in known.attention} == layers
    assert kv_cache.layout(known, number_bytes=2).token_bytes == per_token


@pytest.mark.parametrize(
    ("name", "active", "share"),
    [  # what their makers say: Qwen3's blog, Mixtral's and DeepSeek's papers, OpenAI's model card
        ("qwen3-30b-a3b", 3.3e9, 0.02),
        ("mixtral-8x7b", 12.9e9, 0.01),
        ("deepseek-v2-lite", 2.4e9, 0.12),  # the paper leaves the embeddings out
        ("deepseek-v3", 37e9, 0.02),
        ("gpt-oss-20b", 3.6e9, 0.17),  # the card leaves one embedding out
        ("gpt-oss-120b", 5.1e9, 0.13),
    ],
)
def test_active_parameters_of_experts(name: str, active: float, share: float) -> None:
    assert model(name).active_parameters == pytest.approx(active, rel=share)


@pytest.mark.parametrize(
    ("name", "size_gb"),
    [  # *.safetensors on Hugging Face, in GB of 10**9 bytes
        ("llama-3.1-8b", 16.06), ("qwen2.5-7b", 15.23), ("mixtral-8x7b", 93.4), ("phi-4", 29.3),
        ("deepseek-v3", 671.0 + 1.9), ("gpt-oss-20b", 13.76), ("gpt-oss-120b", 65.25),
    ],
)  # fmt: skip
def test_weights_in_their_own_number_format(name: str, size_gb: float) -> None:
    assert fit_sizes.weights_bytes(model(name), EngineSpec()) / 1e9 == pytest.approx(size_gb, rel=0.02)


def test_float32_weights_are_loaded_in_half_precision_unless_told() -> None:
    gemma = model("gemma-2-9b")
    assert fit_sizes.weights_bytes(gemma, EngineSpec()) == 2 * gemma.parameters
    assert fit_sizes.weights_bytes(gemma, EngineSpec(dtype="float32")) == 4 * gemma.parameters


def test_quantization_while_loading_leaves_the_vocabulary_alone() -> None:
    llama = model("llama-3.1-8b")
    embeddings = 2 * 128_256 * 4096
    fp8 = fit_sizes.weights_bytes(llama, EngineSpec(quantization="fp8"))
    assert fp8 == llama.parameters - embeddings + 2 * embeddings


def test_windows_bound_what_a_request_keeps() -> None:
    """Gemma 3: 26 layers make 7 groups of 4, of which one sees everything (and one is padded)."""
    layout = kv_cache.layout(model("gemma-3-1b"), number_bytes=2, in_flight_tokens=2048)
    assert [(group.kind, number) for group, number in layout.groups] == [("full", 1), ("sliding", 6)]
    assert layout.block_bytes == 4 * 16 * 2 * 256 * 2
    assert layout.blocks(32_768) == 2048 + 6 * (-(-(511 + 2048) // 16) + 1)
    assert layout.blocks(16) == 1 + 6 * 2
    assert layout.request_bytes(32_768) < 0.5 * 32_768 * layout.token_bytes


def test_groups_of_about_the_same_size_are_padded_to_one() -> None:
    base = model("gpt-oss-20b")
    uneven = tuple(
        dataclasses.replace(group, layers=layers)
        for group, layers in zip(base.attention, (13, 12), strict=True)
    )
    layout = kv_cache.layout(dataclasses.replace(base, attention=uneven), number_bytes=2)
    assert [number for _, number in layout.groups] == [1, 1]
    assert layout.block_bytes == 13 * 16 * 2 * 8 * 64 * 2


def test_key_value_heads_are_divided_and_then_copied() -> None:
    qwen = model("qwen2.5-7b")  # 4 KV heads
    per_token = [kv_cache.layout(qwen, number_bytes=2, tensor_parallel=n).token_bytes for n in (1, 2, 4, 8)]
    assert per_token == [57_344, 28_672, 14_336, 14_336]
    deepseek = model("deepseek-v3")
    assert kv_cache.layout(deepseek, number_bytes=2, tensor_parallel=8).token_bytes == 61 * 576 * 2


def test_layers_are_divided_by_the_pipeline() -> None:
    llama = model("llama-3.1-8b")
    assert kv_cache.layout(llama, number_bytes=2, pipeline_parallel=2).token_bytes == 65_536


@pytest.mark.parametrize(
    "name", ["gemma-3-1b", "gpt-oss-20b", "llama-3.1-8b", "mistral-7b-v0.1", "gemma-2-9b"]
)
def test_the_longest_context_is_the_last_that_fits(name: str) -> None:
    layout = kv_cache.layout(model(name), number_bytes=2, in_flight_tokens=4096)
    for cache in (50 << 20, 200 << 20, GIB):
        longest = layout.longest(cache, 1 << 20)
        assert layout.request_bytes(longest) <= cache
        assert longest == 1 << 20 or layout.request_bytes(longest + 1) > cache


@pytest.mark.parametrize("free_gib", [3.2, 4, 6, 16, 24, 256])
@pytest.mark.parametrize("name", ["smollm2-135m", "llama-3.2-1b", "qwen2.5-7b"])
def test_on_a_cpu_it_says_what_the_engine_would_be_started_with(name: str, free_gib: float) -> None:
    known, free = model(name), int(free_gib * GIB)
    device = fit.Device(kind="cpu", name="CPU", memory_bytes=free)
    here = vllm_settings.DeviceFacts(kind="cpu", name="CPU", memory_bytes=free)
    estimate = fit.estimate(known, device, EngineSpec())
    try:
        chosen = vllm_settings.choose(EngineSpec(), fit.engine_facts(known, EngineSpec()), here).arguments
    except EngineLoadError:
        assert estimate.verdict == "too large"
        assert estimate.missing_bytes > 0
    else:
        assert estimate.context_tokens == chosen["max_model_len"]
        assert estimate.kv_cache_bytes == chosen["kv_cache_memory_bytes"]
        assert estimate.verdict == ("fits" if chosen["max_model_len"] == known.context_tokens else "shorter")
        assert estimate.used_bytes <= free


def test_on_a_cpu_windows_leave_room_for_the_whole_context() -> None:
    device = fit.Device(kind="cpu", name="CPU", memory_bytes=16 * GIB)
    spec = EngineSpec(kv_cache_memory_bytes=200 << 20)
    gemma = fit.estimate(model("gemma-3-1b"), device, spec)
    assert (gemma.verdict, gemma.context_tokens) == ("fits", 32_768)
    assert gemma.kv_bytes_per_token * 32_768 > 200 << 20  # if each layer kept everything, it would not
    assert fit.estimate(model("llama-3.2-1b"), device, spec).context_tokens < 8192


def test_a_7b_model_on_a_24_gb_gpu_gets_a_shorter_context_or_options() -> None:
    llama = model("llama-3.1-8b")
    asked = fit.estimate(llama, CONSUMER, EngineSpec())
    assert asked.verdict == "shorter"
    assert 512 <= asked.context_tokens < 131_072
    assert f"{asked.context_tokens:,} tokens" in asked.advice
    titles = {option.title.split(",")[0]: option for option in fit.options(llama, CONSUMER, EngineSpec())}
    assert {"KV cache in fp8", "Weights in fp8"} <= set(titles)
    assert titles["KV cache in fp8"].fit.context_tokens > 1.8 * asked.context_tokens
    for option in titles.values():
        again = fit.estimate(llama, CONSUMER, engine_settings.apply(EngineSpec(), option.changes))
        assert again.verdict in ("fits", "shorter")
        assert again.context_tokens > asked.context_tokens


def test_what_does_not_fit_says_how_much_is_missing_and_what_would() -> None:
    llama = model("llama-3.3-70b")
    one = fit.estimate(llama, dataclasses.replace(CONSUMER, memory_bytes=80 * GIB), EngineSpec())
    assert one.verdict == "too large"
    assert 50 * GIB < one.missing_bytes < 75 * GIB
    four = fit.Device(kind="cuda", name="80 GB", memory_bytes=80 * GIB, count=4)
    by_title = {
        option.title.split(",")[0]: option.changes for option in fit.options(llama, four, EngineSpec())
    }
    assert by_title["Tensor parallel over 2 GPUs"] == {"tensor_parallel_size": 2}
    assert "Tensor parallel over 8 GPUs" not in by_title


def test_parallel_sizes_that_cannot_be() -> None:
    qwen = model("qwen2.5-7b")  # 28 heads
    eight = dataclasses.replace(H200, count=8)
    divided = fit.estimate(qwen, eight, EngineSpec(tensor_parallel_size=8))
    assert divided.verdict == "too large"
    assert "28 attention heads" in divided.advice
    lacking = fit.estimate(qwen, H200, EngineSpec(tensor_parallel_size=2))
    assert "need 2 GPUs" in lacking.advice


def test_a_given_cache_and_context_are_taken_as_they_are() -> None:
    smol = model("smollm2-135m")
    spec = EngineSpec(kv_cache_memory_bytes=GIB, max_model_len=2048)
    for device in (H200, fit.Device(kind="cpu", name="CPU", memory_bytes=16 * GIB)):
        estimate = fit.estimate(smol, device, spec)
        assert (estimate.kv_cache_bytes, estimate.context_tokens) == (GIB, 2048)
        assert estimate.full_length_requests == pytest.approx(GIB / (2048 * 23_040), rel=0.02)
        assert estimate.verdict == "fits"


def test_transformers_takes_the_number_format_that_the_processor_is_fast_at() -> None:
    smol = model("smollm2-135m")
    fast = fit.Device(kind="cpu", name="CPU", memory_bytes=16 * GIB)
    spec = EngineSpec(engine="transformers")
    half, full = (
        fit.estimate(smol, dataclasses.replace(fast, halves=halves), spec) for halves in (True, False)
    )
    assert (half.weights_bytes, full.weights_bytes) == (2 * smol.parameters, 4 * smol.parameters)
    assert (half.kv_bytes_per_token, full.kv_bytes_per_token) == (23_040, 46_080)
    assert half.verdict == full.verdict == "fits"
    tiny = dataclasses.replace(fast, memory_bytes=GIB + (270 << 20))
    assert fit.estimate(smol, tiny, spec).verdict == "too large"


def test_llama_cpp_is_made_for_less_than_a_long_context_unless_told() -> None:
    llama = dataclasses.replace(model("llama-3.1-8b"), format="gguf", weights_bytes=5 * GIB)
    device = fit.Device(kind="cpu", name="CPU", memory_bytes=64 * GIB)
    asked = fit.estimate(llama, device, EngineSpec(engine="llamacpp"))
    assert (asked.verdict, asked.context_tokens, asked.largest_context) == ("fits", 16_384, 131_072)
    assert asked.kv_cache_bytes == 32_768 * asked.kv_bytes_per_token
    small = dataclasses.replace(model("smollm2-135m"), format="gguf", weights_bytes=98 << 20)
    assert fit.estimate(small, device, EngineSpec(engine="llamacpp")).kv_cache_tokens == 32_768
    told = fit.estimate(llama, device, EngineSpec(engine="llamacpp", max_model_len=131_072))
    assert (told.verdict, told.context_tokens) == ("fits", 131_072)


def test_a_remote_model_takes_nothing_here() -> None:
    spec = EngineSpec(engine="openai", model="big", base_url="http://gpu/v1")
    estimate = fit.estimate(model("deepseek-v3"), CONSUMER, spec)
    assert (estimate.verdict, estimate.used_bytes) == ("elsewhere", 0)


def test_differences_are_shares_of_the_estimate() -> None:
    estimate = fit.estimate(model("smollm2-135m"), H200, EngineSpec(max_model_len=2048))
    info = loaded(weights_bytes=int(1.05 * estimate.weights_bytes), kv_cache_tokens=None, max_model_len=2048)
    weights, context = fit_compare.compare(estimate, info)
    assert (weights.part, round(weights.share, 2)) == ("Weights", 0.05)
    assert (context.part, context.share) == ("Context", 0.0)


@pytest.mark.parametrize(
    "broken",
    [{}, {"model_type": "clip"}, {"num_hidden_layers": 10**9, "hidden_size": 8, "num_attention_heads": 1},
     {"num_hidden_layers": "2", "hidden_size": None, "num_attention_heads": True},
     {"text_config": []}, {"num_hidden_layers": 2, "hidden_size": -4, "num_attention_heads": 2}],
)  # fmt: skip
def test_a_config_without_sizes_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        facts.from_config(broken)


def test_a_config_with_nonsense_beside_its_sizes_is_read() -> None:
    raw = json.loads((CONFIGS / "deepseek-v2-lite.json").read_text())
    raw |= {"moe_layer_freq": "x", "rope_scaling": 7, "layer_types": {}, "quantization_config": 1,
            "qk_nope_head_dim": "128", "architectures": 3, "torch_dtype": []}  # fmt: skip
    known = facts.from_config(raw)
    assert known.parameters is None  # a size is missing, so nothing is made up
    assert fit.estimate(known, H200, EngineSpec()).weights_bytes > GIB


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4.16),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, 8),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8}}}}, 8),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
    ],
)
def test_quantized_checkpoints(quantization: dict[str, object], bits: float) -> None:
    raw = json.loads((CONFIGS / "llama-3.1-8b.json").read_text()) | {"quantization_config": quantization}
    known = facts.from_config(raw)
    assert known.quantization == quantization["quant_method"]
    assert known.quantization_bits == pytest.approx(bits, abs=0.01)
    weights = fit_sizes.weights_bytes(known, EngineSpec())
    assert weights == pytest.approx((8.03e9 - 1.05e9) * bits / 8 + 1.05e9 * 2, rel=0.01)


def loaded(**changes: object) -> EngineInfo:
    values = {
        "model": "m", "revision": None, "device": "H200", "dtype": "bfloat16", "max_model_len": 2048,
        "max_num_seqs": 16, "batch_slots": 8, "kv_cache_tokens": 1, "kv_cache_bytes": 1,
        "has_chat_template": True, "generation_config": {}, "engine_version": "1", "settings": {},
        "load_s": 1.0,
    }  # fmt: skip
    return EngineInfo(**(values | changes))
