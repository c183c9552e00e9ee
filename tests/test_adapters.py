"""The registry of LoRA adapters, and what their headers tell against the model's."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from core.adapters import checks
from core.adapters.registry import Adapters, check_asked, named, registered
from core.errors import ModelError, ParameterError, RunError
from core.run_spec import PromptSpec
from core.types import EngineInfo, EngineSpec, LoraAdapter

HIDDEN, OUT = 16, 32
Q = "model.layers.0.self_attn.q_proj"
EXPERT = "model.layers.0.mlp.experts.3.up_proj"


def make_base(folder, weights=None, **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    weights = weights or {f"{Q}.weight": np.zeros((OUT, HIDDEN), np.float16)}
    save_file({"model.embed_tokens.weight": np.zeros((40, HIDDEN), np.float16), **weights},
              folder / "model.safetensors")  # fmt: skip
    return folder


def make_adapter(
    folder, *, rank=4, base="owner/Tiny", layer=Q, inputs=HIDDEN, outputs=OUT, tensors=None, **config
):
    folder.mkdir(parents=True)
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"],
            "base_model_name_or_path": base, **config}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(said))
    start = f"base_model.model.{layer}"
    tensors = tensors or {
        f"{start}.lora_A.weight": np.ones((rank, inputs), np.float32),
        f"{start}.lora_B.weight": np.ones((outputs, rank), np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def adapters(settings, store):
    return Adapters(settings, store)


def test_an_adapter_is_known_by_name_with_what_it_is(adapters, tmp_path):
    folder = make_adapter(tmp_path / "polite")
    added = adapters.add("  Polite  one ", folder)
    assert (added.name, added.rank, added.base, added.checked_with) == ("Polite one", 4, "owner/Tiny", None)
    assert added.target_modules == ("q_proj",)
    assert adapters.list() == (added,)
    assert adapters.find("polite ONE") == added
    assert adapters.lora("Polite one") == LoraAdapter("Polite one", str(folder), added.number)
    assert registered(adapters._store) == {"polite one": added.as_lora}


def test_it_is_compared_with_its_model_where_that_is_here(adapters, settings, tmp_path):
    make_base(settings.models_dir / "Tiny")
    folder = make_adapter(tmp_path / "fits", base="Tiny")
    assert adapters.add("fits", folder).checked_with == "Tiny"
    for number, base in enumerate(("owner/Tiny", "/home/somebody/models/Tiny/")):
        same = make_adapter(tmp_path / str(number), base=base)
        assert adapters.add(f"same {number}", same).checked_with == base
    assert adapters.add("told", make_adapter(tmp_path / "told"), base="Tiny").checked_with == "Tiny"
    wide = make_adapter(tmp_path / "wide", base="Tiny", inputs=24)
    with pytest.raises(ModelError, match=r"adapter wide does not fit Tiny: .*q_proj maps 24 to 32.*16 to 32"):
        adapters.add("wide", wide)
    deep = make_adapter(tmp_path / "deep", base="Tiny", layer="model.layers.7.self_attn.q_proj")
    with pytest.raises(ModelError, match=r"layers\.7\.self_attn\.q_proj, which Tiny does not have"):
        adapters.add("deep", deep)
    with pytest.raises(ModelError, match="not on this machine"):
        adapters.add("lost", folder, base="nobody/knows")
    assert [one.name for one in adapters.list()] == ["fits", "same 0", "same 1", "told"]


def test_a_number_is_never_given_twice(adapters, tmp_path):
    folder = make_adapter(tmp_path / "one")
    first = adapters.add("one", folder)
    adapters.remove("ONE")
    second = adapters.add("one", folder)
    assert second.number > first.number
    with pytest.raises(ModelError, match="already"):
        adapters.add("One", folder)
    adapters.remove("one")
    with pytest.raises(ModelError, match="no adapter 'one'"):
        adapters.remove("one")


@pytest.mark.parametrize("name", ["", "base", "BASE", "../up", "a/b", "-x", "a\nb/c", "x" * 65, "a,b"])
def test_names_that_mean_something_else_are_refused(adapters, tmp_path, name):
    with pytest.raises(ModelError):
        adapters.add(name, make_adapter(tmp_path / "one"))


def test_an_adapter_whose_folder_went_says_so(adapters, tmp_path):
    folder = make_adapter(tmp_path / "one")
    adapters.add("one", folder)
    (folder / "adapter_model.safetensors").unlink()
    assert "is gone" in adapters.list()[0].problem
    with pytest.raises(ModelError, match="can't be used"):
        adapters.find("one")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "kind 'IA3'"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole layers"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"use_dora": True, "lora_bias": True}, "DoRA and biases"),
        ({"r": "four"}, "r = 'four'"),
        ({"r": 8}, "says rank 8, the weights of .* rank 4"),
    ],
)
def test_what_engines_can_not_add_is_said(tmp_path, config, words):
    folder = make_adapter(tmp_path / "odd", **config)
    with pytest.raises(ModelError, match=words):
        checks.read_adapter(folder)


def test_ranks_of_single_layers_count(tmp_path):
    folder = make_adapter(tmp_path / "ranks", rank_pattern={"q_proj": 4})
    config = json.loads((folder / "adapter_config.json").read_text()) | {"r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert checks.read_adapter(folder).rank == 4


def test_what_is_missing_or_damaged_is_said(tmp_path):
    with pytest.raises(ModelError, match="no folder"):
        checks.read_adapter(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        checks.read_adapter(tmp_path / "empty")
    folder = make_adapter(tmp_path / "one")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(ModelError, match="damaged"):
        checks.read_adapter(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="is missing"):
        checks.read_adapter(folder)
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="can run code"):
        checks.read_adapter(folder)
    (folder / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="can't be read"):
        checks.read_adapter(folder)


def test_weights_that_are_no_lora_are_refused(tmp_path):
    whole = {"base_model.model.lm_head.weight": np.zeros((40, HIDDEN), np.float32)}
    with pytest.raises(ModelError, match=r"lm_head\.weight, which is no part of a LoRA"):
        checks.read_adapter(make_adapter(tmp_path / "whole", tensors=whole))
    half = {f"base_model.model.{Q}.lora_A.weight": np.zeros((4, HIDDEN), np.float32)}
    with pytest.raises(ModelError, match="incomplete"):
        checks.read_adapter(make_adapter(tmp_path / "half", tensors=half))


@pytest.mark.parametrize(
    ("weights", "layer", "fits"),
    [
        ({"language_model.model.layers.0.self_attn.q_proj.weight": (OUT, HIDDEN)}, Q, True),
        ({"model.layers.0.self_attn.q_proj.qweight": (2, 4)}, Q, True),  # quantized: no shape to compare
        ({"model.layers.0.self_attn.qkv_proj.weight": (96, HIDDEN)}, Q, True),  # kept fused
        ({"model.layers.0.mlp.experts.3.up_proj.weight": (8, HIDDEN)}, EXPERT, False),
        ({"lm_head.weight": (OUT, HIDDEN)}, "lm_head", True),
        ({"model.layers.10.self_attn.q_proj.weight": (OUT, HIDDEN)}, Q.replace("0", "1"), False),
    ],
)
def test_layers_are_found_as_libraries_name_them(tmp_path, weights, layer, fits):
    arrays = {name: np.zeros(shape, np.float16) for name, shape in weights.items()}
    base = make_base(tmp_path / "base", arrays)
    facts = checks.read_adapter(make_adapter(tmp_path / "one", layer=layer))
    if fits:
        checks.check_base(facts, "one", base, "Base")
    else:
        with pytest.raises(ModelError, match="does not fit"):
            checks.check_base(facts, "one", base, "Base")


def test_an_output_shared_with_the_input_is_compared_with_it(tmp_path):
    base = make_base(tmp_path / "base")
    facts = checks.read_adapter(make_adapter(tmp_path / "one", layer="lm_head", outputs=40))
    checks.check_base(facts, "one", base, "Base")
    facts = checks.read_adapter(make_adapter(tmp_path / "two", layer="lm_head", outputs=41))
    with pytest.raises(ModelError, match="lm_head maps 16 to 41 numbers, that of Base 16 to 40"):
        checks.check_base(facts, "two", base, "Base")


def test_an_engine_is_asked_for_room_for_those_of_its_model(adapters, tmp_path):
    plain = EngineSpec(model="owner/Tiny")
    adapters.add("small", make_adapter(tmp_path / "small"))
    adapters.add("large", make_adapter(tmp_path / "large", rank=24))
    adapters.add("other", make_adapter(tmp_path / "other", base="someone/Else", rank=64))
    assert adapters.needed(plain, [None, "base"]) == plain
    needed = adapters.needed(plain, [None, "small"])
    assert (needed.enable_lora, needed.max_loras, needed.max_lora_rank) == (True, 2, 32)
    assert adapters.needed(plain, [], by_row=True) == needed
    own = EngineSpec(model="owner/Tiny", enable_lora=True, max_loras=1)
    assert adapters.needed(own, ["small"]) == own
    with pytest.raises(ModelError, match="no adapter 'nobody'"):
        adapters.needed(plain, ["nobody"])


def test_a_run_that_no_row_of_could_be_answered_is_refused():
    known = {"one": LoraAdapter("one", "/one", 1)}
    info = EngineInfo(
        model="m", revision=None, device="d", dtype="x", max_model_len=1, max_num_seqs=1, batch_slots=1,
        kv_cache_tokens=None, kv_cache_bytes=None, has_chat_template=True, generation_config={},
        engine_version="", settings={}, load_s=0.0, cannot={"adapters": "It has no LoRA."},
    )  # fmt: skip
    check_asked(PromptSpec(template="x"), info, {})
    for prompt in (PromptSpec(template="x", adapter="one"), PromptSpec(template="x", adapter_column="c")):
        with pytest.raises(RunError, match="It has no LoRA"):
            check_asked(prompt, info, known)
    assert named("ONE", known) is known["one"]
    assert named("Base", known) is named(None, known) is None
    with pytest.raises(ParameterError, match=r"no adapter 'two'\. Registered: one"):
        named("two", known)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a/Model", "/data/model/", True),
        ("a/Model", "b/Model-2", False),
        ("", "", False),
        ("C:\\m\\X", "x", True),
    ],
)
def test_names_of_one_model(one, other, same):
    assert checks.same_model(one, other) is same
