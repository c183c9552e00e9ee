"""Adapters in the real vLLM: several in one batch, more than there is room for, broken ones."""

import asyncio
import json
import shutil
from dataclasses import replace

import batch_runs
import numpy as np
import pytest
from api_serving import serving
from batch_runs import exported, finish, write_csv
from small_adapters import ANSWERS, made_for_tests

from core.adapters.registry import Adapters
from core.errors import RequestRejected
from core.run_spec import Instructions
from core.runtime import Runtime
from core.settings import load_settings
from core.store import Store
from core.types import LoraAdapter, Message, Request

QUESTIONS = ("Tell me about Paris.", "What is a cat?", "Name a colour.")
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def made(embedded_model):
    return made_for_tests(embedded_model)


@pytest.fixture(scope="module")
def lora(engine_spec, tmp_path_factory):
    """Another real engine, with room for two adapters of rank 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("lora-home")))
        runtime = Runtime(load_settings())
    spec = replace(
        engine_spec, enable_lora=True, max_loras=2, max_lora_rank=8, max_num_seqs=16, max_model_len=512,
        kv_cache_memory_bytes=64 << 20,
    )  # fmt: skip
    runtime.load(spec)
    runtime.wait_ready(280)
    yield runtime
    runtime.close()


def ask(engine, asked):
    """The answers to (question, adapter) all at once; what was refused as its error."""

    async def one(place, question, adapter):
        (prompt,) = engine.render_chat([[Message("user", question)]])
        request = Request(id=f"ask-{place}", prompt=prompt, params=GREEDY, adapter=adapter)
        try:
            return (await engine.complete(request)).text
        except RequestRejected as error:
            return error

    async def all_of_them():
        return await asyncio.gather(*(one(place, *each) for place, each in enumerate(asked)))

    return all_of_them()


def adapter(made, name, number):
    return LoraAdapter(name, str(made[name]), number)


def test_one_batch_answers_by_adapter_and_its_other_rows_as_without_lora(
    lora, engine_runtime, made, tmp_path
):
    rows = [[question, voice] for question in QUESTIONS for voice in ("pirate", "", "formal", "nobody")]
    table = write_csv(tmp_path / "table.csv", ["question", "voice"], rows)
    asked = Instructions(template="{{ question }}", adapter_column="voice", params=GREEDY)
    with batch_runs.opened(lora) as (_runtime, store, jobs):
        adapters = Adapters(lora.settings, store)
        for name, folder in made.items():
            adapters.add(name, folder)
        run = jobs.stage(table, instructions=asked)
        counts = finish(jobs, run, timeout_s=120).counts
    assert (counts.ok, counts.errors) == (9, 3)
    written = exported(run, tmp_path)
    plain = engine_runtime.run(ask(engine_runtime.engine, [(question, None) for question in QUESTIONS]))
    assert [row["answer"] for row in written if not row["voice"]] == plain
    for name, answer in ANSWERS.items():
        said = [row["answer"] for row in written if row["voice"] == name]
        assert len(said) == 3 and all(text.startswith(answer[:8]) for text in said), said
    assert all("no adapter 'nobody'" in row["answer_error"] for row in written if row["voice"] == "nobody")


def test_more_adapters_than_there_is_room_for_take_turns(lora, engine_runtime, made):
    several = [adapter(made, name, number) for number, name in enumerate(ANSWERS, start=11)]
    several += [replace(several[0], name="again", number=13), None]
    asked = [(question, each) for question in QUESTIONS for each in several]
    texts = lora.run(ask(lora.engine, asked))
    plain = engine_runtime.run(ask(engine_runtime.engine, [(question, None) for question in QUESTIONS]))
    assert texts[3::4] == plain
    assert texts[0::4] == texts[2::4] and all(text.startswith("Ahoy") for text in texts[0::4])
    assert all(text.startswith("Dear Sir") for text in texts[1::4])


def test_scores_and_distributions_are_the_adapters(lora, made):
    (prompt,) = lora.engine.render_chat([[Message("user", "Who is there?")]])
    found = {}
    for each in (None, adapter(made, "pirate", 11), adapter(made, "formal", 12)):
        request = Request(id="scored", prompt=prompt, adapter=each)
        scores = lora.run(lora.engine.score(request, ["Ahoy", "Dear"]))
        likeliest = int(np.argmax(lora.run(lora.engine.next_logprobs(request))))
        found[each and each.name] = (scores[0] > scores[1], lora.engine.decode([likeliest]))
    assert found["pirate"][0]
    assert not found["formal"][0] and not found[None][0]
    assert len({likeliest for _first, likeliest in found.values()}) == 3


def test_an_adapter_that_can_not_be_loaded_ends_its_request_and_nothing_else(lora, made, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(made["pirate"], broken)
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    strange = tmp_path / "strange"  # fits by its header, and names a layer's target that vLLM doesn't know
    shutil.copytree(made["pirate"], strange)
    config = json.loads((strange / "adapter_config.json").read_text())
    (strange / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": "much"}))
    folders = {"gone": tmp_path / "gone", "broken": broken, "strange": strange}
    asked = [
        ("Hello", LoraAdapter(name, str(folder), 30 + n)) for n, (name, folder) in enumerate(folders.items())
    ]
    asked += [("Hello", adapter(made, "pirate", 11)), ("Hello", None)]
    gone, damaged, refused, fine, plain = lora.run(ask(lora.engine, asked))
    assert "no folder" in str(gone)
    assert "damaged" in str(damaged)
    assert "can't load the adapter strange" in str(refused)
    assert fine.startswith("Ahoy") and plain
    lora.run(lora.engine.check())


def test_a_rank_that_the_engine_has_no_room_for_is_told(lora, made, tmp_path):
    from safetensors.numpy import load_file, save_file

    large = tmp_path / "large"
    shutil.copytree(made["pirate"], large)
    tensors = load_file(large / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        axis = 0 if "lora_A" in name else 1
        tensors[name] = np.concatenate([tensor, tensor], axis=axis)
    save_file(tensors, large / "adapter_model.safetensors")
    config = json.loads((large / "adapter_config.json").read_text())
    (large / "adapter_config.json").write_text(json.dumps({**config, "r": 16}))
    (refused,) = lora.run(ask(lora.engine, [("Hello", LoraAdapter("large", str(large), 40))]))
    assert "has rank 16; the model was loaded for ranks up to 8" in str(refused)


def test_an_adapter_registered_while_the_api_serves_is_a_model_of_it_until_it_is_removed(
    lora, made, tmp_path
):
    store = Store(lora.settings.catalogue_path)
    adapters = Adapters(lora.settings, store)
    broken = tmp_path / "broken"
    shutil.copytree(made["pirate"], broken)
    with serving(lora) as (_server, client):

        def ask_for(model):
            body = {"model": model, "messages": [{"role": "user", "content": QUESTIONS[0]}], **GREEDY}
            return client.post("/v1/chat/completions", json=body)

        assert ask_for("sailor").status_code == 404
        adapters.add("sailor", made["pirate"])
        adapters.add("clerk", made["formal"])
        adapters.add("broken", broken)
        weights = broken / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        names = [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert {"sailor", "clerk"} < set(names)
        answers = {name: ask_for(name).json() for name in ("sailor", "clerk", names[0])}
        texts = {name: answer["choices"][0]["message"]["content"] for name, answer in answers.items()}
        assert texts["sailor"].startswith("Ahoy") and texts["clerk"].startswith("Dear Sir")
        assert not texts[names[0]].startswith(("Ahoy", "Dear")) and answers["clerk"]["model"] == "clerk"
        damaged = ask_for("broken")
        assert damaged.status_code == 400 and "damaged" in damaged.json()["error"]["message"]
        adapters.remove("sailor")
        assert ask_for("sailor").status_code == 404
        assert ask_for("clerk").status_code == 200
    store.close()


def test_an_engine_without_lora_says_what_to_do(engine_runtime, made):
    engine = engine_runtime.engine
    assert engine.info.cannot["adapters"] == "The model was loaded without LoRA."
    (refused,) = engine_runtime.run(ask(engine, [("Hello", adapter(made, "pirate", 11))]))
    assert "Load it again with LoRA" in str(refused)
