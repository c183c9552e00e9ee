"""Loading from the models page and the engine bar, with the scripted engine."""

from dataclasses import replace

import pytest
from apps import button, opened, turned_to, until
from checkpoints import checkpoint

from core.engines import choice
from core.types import EngineSpec
from pages.parts import session


@pytest.fixture
def app(workspace):
    return opened()


def load_form(app, engine=None):
    button(app, "Other settings").click().run()
    assert not app.exception
    assert app.title[0].value == "Models"
    if engine is not None:
        next(one for one in app.segmented_control if one.label == "Engine").set_value(engine).run()
        assert not app.exception


def field(app, title):
    every = [*app.number_input, *app.selectbox, *app.checkbox, *app.text_area]
    return next(one for one in every if one.label == title)


def ready(app, condition):
    until(app, lambda: (status := session.runtime().status()).phase == "ready" and condition(status))


def test_other_settings_load_the_engine_and_are_kept_for_the_model(app):
    load_form(app)
    field(app, "Context length (tokens)").set_value(512).run()
    button(app, "Load").click().run()
    ready(app, lambda status: status.info.max_model_len == 512)
    assert session.saved_settings().find("embedded").max_model_len == 512
    table = app.dataframe[0].value
    assert [what.split()[0] for what in table["What"]][:2] == ["load", "unload"]
    button(app, "Back to automatic").click().run()
    assert session.saved_settings().find("embedded") is None
    assert field(app, "Context length (tokens)").value is None  # though it is loaded so


def test_what_cannot_be_loaded_is_said_before_the_engine_goes(app):
    before = session.runtime().engine
    load_form(app, "vllm")
    assert not app.exception
    field(app, "Speculative decoding (JSON)").set_value("{nonsense").run()
    assert "speculative\\_config" in app.error[0].value
    assert app.button(key="models_load:load").disabled
    field(app, "Speculative decoding (JSON)").set_value('{"method": "ngram"}').run()
    assert "num\\_speculative\\_tokens" in app.error[0].value
    assert app.button(key="models_load:load").disabled
    assert session.runtime().engine is before
    field(app, "Speculative decoding (JSON)").set_value("").run()
    assert not app.error and not app.button(key="models_load:load").disabled


def test_lora_limits_wait_for_lora(app):
    load_form(app, "vllm")
    assert field(app, "Adapters at once").disabled
    field(app, "Take LoRA adapters").check().run()
    assert not field(app, "Adapters at once").disabled


def test_settings_kept_for_a_model_fill_the_form_in(app):
    spec = EngineSpec(max_model_len=2048, dtype="float32", kv_cache_memory_bytes=1 << 30)
    session.saved_settings().save(spec)
    session.runtime().unload()
    until(app, lambda: session.runtime().status().phase == "empty")
    load_form(app)
    assert field(app, "Context length (tokens)").value == 2048
    assert field(app, "Number format").value == "float32"
    assert field(app, "KV cache (GiB)").value == 1.0


def test_a_switch_asks_while_others_use_the_engine(app, monkeypatch):
    load_form(app)
    before = session.runtime().engine
    monkeypatch.setattr(type(session.runtime()), "in_use", lambda self: {"batch runs": 1, "chats": 2})
    button(app, "Load").click().run()
    assert "1 batch run (goes on" in app.warning[0].value and "2 chat answers" in app.warning[0].value
    assert session.runtime().engine is before
    button(app, "Let it work").click().run()
    assert not app.warning
    button(app, "Load").click().run()
    button(app, "Interrupt and load").click().run()
    ready(app, lambda status: session.runtime().engine is not before)


def test_unload_asks_while_others_use_the_engine(app, monkeypatch):
    monkeypatch.setattr(type(session.runtime()), "in_use", lambda self: {"comparisons": 1})
    button(app, "Unload").click().run()
    assert "1 comparison" in app.sidebar.warning[0].value
    assert session.runtime().status().phase == "ready"
    button(app, "Keep it").click().run()
    assert not app.sidebar.warning
    button(app, "Unload").click().run()
    button(app, "Unload anyway").click().run()
    until(app, lambda: session.runtime().status().phase == "empty")


def test_an_answer_in_a_chat_counts_as_use(app, monkeypatch):
    monkeypatch.setattr(session.runtime().engine, "_seconds_per_token", 0.1)
    turned_to(app, "chat")
    app.chat_input[0].set_value("one two three four five six seven eight nine ten").run()
    assert session.runtime().in_use() == {"chats": 1}
    until(app, lambda: not session.runtime().in_use())


def test_the_bar_says_why_another_engine_took_vllms_place(app, monkeypatch):
    runtime, here = session.runtime(), replace(choice.this_machine(), vllm_build=None)
    monkeypatch.setattr(choice, "this_machine", lambda: here)
    app.run()
    assert not any("Not vLLM" in caption.value for caption in app.sidebar.caption)
    status = runtime.status()
    other = replace(status, spec=replace(status.spec, engine="transformers"))
    monkeypatch.setattr(type(runtime), "status", lambda self: other)
    app.run()
    (reason,) = [caption.value for caption in app.sidebar.caption if "Not vLLM" in caption.value]
    assert "isn't installed" in reason and "make setup" in reason
    button(app, "Other settings").click().run()
    assert any("can't run here" in caption.value for caption in app.caption)
    assert not any(one.label == "Engine" and "vLLM" in one.options for one in app.segmented_control)


def test_settings_that_would_fit_are_taken_over_from_the_card(workspace):
    checkpoint(workspace.models_dir / "small", max_position_embeddings=1 << 20)
    app = opened("models")
    next(one for one in app.button if one.key == "models:load:workspace:small").click().run()
    field(app, "KV cache (GiB)").set_value(0.01).run()
    next(one for one in app.button if one.label == "Use").click().run()
    assert not app.exception
    assert field(app, "KV cache (GiB)").value is None
