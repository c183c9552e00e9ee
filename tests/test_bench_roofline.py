"""The roof over a model on a device, and how near a point came: by figures worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.bench import device_rates, limits, roofline
from core.bench.device_rates import DeviceRates
from core.bench.records import Point, RequestRecord
from core.bench.roofline import Roof, Work
from core.engines.scripted import ScriptedEngine
from core.errors import BenchError
from core.models.facts import Attention, from_config
from core.settings import Settings
from core.types import EngineSpec, EngineStatus

SMOL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
    "tie_word_embeddings": True, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
PARAMETERS = 134_515_008
# one layer, one head of 4: 10 bytes of weights, 16 bytes of keys and values and 16 FLOP of attention a token
TINY = Work(
    shared_bytes=10, expert_bytes=0, experts=0, experts_per_token=0, kv_number_bytes=2,
    attention=(Attention(kind="full", layers=1, kv_heads=1, head_dim=4),), heads=1, matrix_flops=20,
    output_flops=8,
)  # fmt: skip


def answer(start_s: float, ttft_s: float, tpot_s: float, output_len: int, input_len: int = 10, **more):
    e2el = ttft_s + tpot_s * (output_len - 1)
    return RequestRecord(
        input_len=input_len, output_len=output_len, start_s=start_s, ttft_s=ttft_s, e2el_s=e2el, **more
    )


def point(*records: RequestRecord) -> Point:
    return Point(number=0, repeat=0, load=None, result={}, records=records)


def test_a_model_s_work_is_counted_from_its_config():
    work = roofline.work_of(from_config(SMOL), EngineSpec())
    assert work.weights_bytes(1) == work.weights_bytes(64) == 2 * PARAMETERS  # one table, read for the output
    assert work.kv_bytes(1) == 2 * 30 * 3 * 64 * 2 == 23_040
    assert work.matrix_flops == 2 * PARAMETERS
    assert work.output_flops == 2 * 49152 * 576
    assert work.attention_flops(100) == 4 * 30 * 9 * 64 * 100


def test_a_table_for_the_input_alone_is_looked_up_not_read():
    config = SMOL | {"tie_word_embeddings": False}
    work = roofline.work_of(from_config(config), EngineSpec())
    assert work.weights_bytes(1) == pytest.approx(2 * PARAMETERS)
    assert work.matrix_flops == 2 * PARAMETERS


def test_settings_change_what_is_read():
    facts = from_config(SMOL)
    assert roofline.work_of(facts, EngineSpec(dtype="float32")).weights_bytes(1) == 4 * PARAMETERS
    assert roofline.work_of(facts, EngineSpec(kv_cache_dtype="fp8")).kv_bytes(1) == 11_520
    assert roofline.work_of(facts, EngineSpec(), weights_bytes=10**8).weights_bytes(1) == pytest.approx(10**8)
    guessing = EngineSpec(speculative_config={"method": "ngram", "num_speculative_tokens": 2})
    assert "several tokens" in roofline.work_of(facts, guessing)
    assert "can't be counted" in roofline.work_of(replace(facts, parameters=None), EngineSpec())


def test_of_experts_only_those_that_are_chosen_are_read():
    work = replace(TINY, expert_bytes=800, experts=8, experts_per_token=2)
    assert work.weights_bytes(1) == pytest.approx(10 + 200)
    assert work.weights_bytes(2) == pytest.approx(10 + 800 * (1 - 0.75**2))
    assert work.weights_bytes(1000) == pytest.approx(810)


def test_a_window_bounds_what_is_read_and_computed():
    seen = replace(TINY, attention=(Attention(kind="sliding", layers=1, kv_heads=1, head_dim=4, window=8),))
    assert seen.kv_bytes(100) == TINY.kv_bytes(8) == 128
    assert seen.attention_flops(100) == TINY.attention_flops(8) == 128


def test_a_step_takes_the_slower_of_reading_and_computing():
    roof = Roof(work=TINY, bandwidth=10, flops=100)
    # 10 of weights + 2 x 16 of keys and values at 10 a second; 2 x (20 + 16) at 100 a second
    assert roof.step_s(2, 1) == (pytest.approx(4.2), "memory")
    assert roof.decode_tokens_per_s(2, 1) == pytest.approx(2 / 4.2)
    assert replace(roof, flops=10).step_s(2, 1) == (pytest.approx(7.2), "compute")
    assert replace(roof, copies=2).step_s(2, 1) == roof.step_s(1, 1)


def test_prompts_are_bounded_by_what_is_computed():
    roof = Roof(work=TINY, bandwidth=1000, flops=100)
    # 4 tokens: 12 each beside the output, once 8 for the output, attention to 2 others on average
    assert TINY.prompt_flops(4) == 4 * 12 + 8 + 4 * 32
    assert roof.prompt_s([(4, 0)]) == pytest.approx(1.84)
    assert roof.prompt_s([(4, 0), (4, 0)]) == pytest.approx(3.68)
    assert TINY.prompt_flops(4, cached=2) == 2 * 12 + 8 + 2 * 48  # half of it is known already
    assert roof.prompt_s([]) == 0


@given(
    batch=st.floats(1, 1e4), more=st.floats(1, 1e4), context=st.floats(1, 1e5),
    bandwidth=st.floats(1e9, 1e13), flops=st.floats(1e9, 1e15),
)  # fmt: skip
def test_more_requests_are_never_slower_together_nor_a_step_quicker(batch, more, context, bandwidth, flops):
    roof = Roof(work=roofline.work_of(from_config(SMOL), EngineSpec()), bandwidth=bandwidth, flops=flops)
    few, many = batch, batch + more
    assert roof.step_s(many, context)[0] >= roof.step_s(few, context)[0]
    slack = 1 - 1e-9
    assert roof.decode_tokens_per_s(many, context) >= slack * roof.decode_tokens_per_s(few, context)
    assert roof.decode_tokens_per_s(many, context + 1) <= roof.decode_tokens_per_s(many, context)


def test_one_request_at_the_limit_reaches_all_of_it():
    roof = Roof(work=TINY, bandwidth=1000, flops=1e9)
    step_s, _ = roof.step_s(1, 10 + 101 / 2)
    found = roofline.reached(point(answer(0, 0.5, step_s, 101)), roof)
    assert found.batch == pytest.approx(1) and found.context == 10 + 101 / 2
    assert found.tokens_per_s == pytest.approx(1 / step_s) and found.bound == "memory"
    assert found.share == pytest.approx(1)
    assert found.decode_s == pytest.approx(100 * step_s) and found.wall_s == pytest.approx(0.5 + 100 * step_s)
    assert found.words == "Decode reaches 100% of what this memory can give"
    half = roofline.reached(point(answer(0, 0.5, 2 * step_s, 101)), roof)
    assert half.share == pytest.approx(0.5)


def test_requests_that_write_together_share_their_steps():
    roof = Roof(work=TINY, bandwidth=1e6, flops=1e12)
    found = roofline.reached(point(*[answer(0, 0.1, 0.01, 51) for _ in range(8)]), roof)
    assert found.batch == pytest.approx(8) and found.decode_s == pytest.approx(0.5)
    assert found.prompts_s == 0  # all were read before the first token
    assert found.tokens_per_s == pytest.approx(8 * 50 / 0.5)


def test_half_of_the_time_alone_is_a_batch_between():
    roof = Roof(work=TINY, bandwidth=1e9, flops=1e12)
    found = roofline.reached(point(answer(0, 1, 0.01, 101), answer(1, 1, 0.01, 101)), roof)
    assert found.batch == pytest.approx(1) and found.decode_s == pytest.approx(2)
    overlapping = roofline.reached(point(answer(0, 1, 0.01, 101), answer(0.5, 1, 0.01, 101)), roof)
    assert overlapping.decode_s == pytest.approx(1.5) and overlapping.batch == pytest.approx(200 / 150)


def test_a_pause_between_batches_is_no_decoding():
    roof = Roof(work=TINY, bandwidth=1e9, flops=1e12)
    found = roofline.reached(point(answer(0, 0.1, 0.01, 11), answer(100, 0.1, 0.01, 11)), roof)
    assert found.decode_s == pytest.approx(0.2) and found.wall_s == pytest.approx(100.2)


def test_prompts_that_are_read_meanwhile_cost_their_least_time():
    roof = Roof(work=TINY, bandwidth=1e9, flops=1000)
    late = answer(0.2, 0.5, 0.01, 51, input_len=4)
    found = roofline.reached(point(answer(0, 0.1, 0.02, 51), late), roof)
    assert found.prompts_s == pytest.approx(0.184)
    assert found.tokens_per_s == pytest.approx(100 / (found.decode_s - 0.184))
    cached = roofline.reached(point(answer(0, 0.1, 0.02, 51), replace(late, cached_tokens=4)), roof)
    assert cached.prompts_s < found.prompts_s  # what the cache had was not read


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ((), "weren't kept"),
        ((RequestRecord(input_len=5, output_len=0, start_s=0, error="No."),), "weren't kept"),
        ((answer(0, 0.1, 0.1, 1),), "can't be told"),
        ((RequestRecord(input_len=5, output_len=9, start_s=0, e2el_s=2.0),), "can't be told"),
        ((answer(0, 0.1, 0.1, 3), answer(0.1, 0.2, 0.1, 3, input_len=10_000)), "longer answers"),
    ],
)
def test_what_cannot_be_told_says_why(records, words):
    assert words in roofline.reached(point(*records), Roof(work=TINY, bandwidth=10, flops=10))


def test_the_curve_meets_the_roof_and_is_finite():
    roof = Roof(work=TINY, bandwidth=1e3, flops=1e4)
    line = roofline.curve(roof, 10, 32)
    assert line[0] == (1, roof.decode_tokens_per_s(1, 10)) and line[-1][0] == pytest.approx(64)
    assert json.dumps(line, allow_nan=False)


# -- rates of the device ------------------------------------------------------------

CPU = {
    "engine": "vllm", "model": "x", "device": "CPU, 4 cores (Some)", "cpu": "Some", "gpus": [],
    "physical_cores": 4, "dtype": "bfloat16", "settings": {"cpu_threads": 2}, "asked": {},
}  # fmt: skip
RATES = DeviceRates(
    device="Some, 2 threads", bandwidth=2e10, copy_bandwidth=2e10, read_bandwidth=1e10,
    flops={"bfloat16": 1e11, "float32": 2e11}, measured_at="2026-11-21T10:00:00+00:00",
)  # fmt: skip


def test_a_device_is_named_with_its_threads():
    assert device_rates.device_of(CPU) == "Some, 2 threads"
    assert device_rates.device_of(CPU | {"settings": {}}) == "Some, 4 threads"
    assert device_rates.device_of(CPU | {"gpus": ["H200"], "device": "H200"}) == "H200"
    assert device_rates.device_of(CPU | {"gpus": ["H200"]}) == "Some, 2 threads"  # it computed on the CPU
    assert device_rates.device_of(CPU | {"engine": "openai"}) is None
    assert device_rates.device_of({}) is None


def test_rates_are_kept_for_each_device(tmp_path):
    settings = Settings(home=tmp_path)
    assert device_rates.kept(settings, RATES.device) is None
    device_rates._keep(settings, RATES)
    device_rates._keep(settings, replace(RATES, device="other"))
    assert device_rates.kept(settings, RATES.device) == RATES
    assert RATES.flops_of("bfloat16") == 2e11  # bfloat16 can be computed as float32
    (tmp_path / "device_rates.json").write_text("{")
    assert device_rates.kept(settings, RATES.device) is None


def test_a_worker_that_fails_says_its_reason():
    with pytest.raises(BenchError, match=r"could not be measured: .*nonsense"):
        device_rates._run({"dtypes": ["nonsense"], "processors": []})


def test_a_limit_is_found_by_the_model_s_name(tmp_path):
    settings = Settings(home=tmp_path)
    folder = settings.models_dir / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SMOL))
    environment = CPU | {"model": "mine"}
    missing = limits.limit_of(environment, settings)
    assert missing.device == RATES.device and "hasn't been measured" in missing.reason
    device_rates._keep(settings, RATES)
    limit = limits.limit_of(environment, settings)
    assert (limit.roof.bandwidth, limit.roof.flops) == (2e10, 2e11)
    assert limit.roof.work.weights_bytes(1) == 2 * PARAMETERS
    gone = limits.limit_of(environment | {"model": "another"}, settings)
    assert "isn't found here by its name" in gone.reason and gone.device is None
    spec = EngineSpec(model=str(folder))
    status = EngineStatus(phase="ready", spec=spec, info=replace(ScriptedEngine(spec).info, model="another"))
    assert limits.limit_of(environment | {"model": "another"}, settings, status) == limit
    assert "elsewhere" in limits.limit_of(CPU | {"engine": "scripted"}, settings).reason
    assert "elsewhere" in limits.limit_of({}, settings).reason
