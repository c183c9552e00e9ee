"""Adapters on the pages, run as Streamlit runs them, with the scripted engine."""

from dataclasses import replace

import pytest
from apps import button, opened, turned_to, until
from test_adapters import make_adapter, make_base

from core.adapters.merging import MergeView
from core.comparing.cell import Place
from core.conversations import ChatOptions
from core.run_spec import Instructions
from pages.parts import session


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))


@pytest.fixture
def app(workspace, caches):
    return opened()


def words(app):
    texts = [*app.markdown, *app.caption, *app.info, *app.error]
    return "\n".join(one.value for one in texts).replace("\\", "")


def section(app):
    turned_to(app, "models")
    next(one for one in app.segmented_control if (one.key or "").startswith("models:section")).set_value(
        "adapters"
    ).run()
    assert not app.exception


def register(tmp_path, *names):
    for name in names:
        session.adapters().add(name, make_adapter(tmp_path / name, base="scripted"))


def fill(app, name, where):
    next(one for one in app.text_input if one.label == "Name").set_value(name)
    next(one for one in app.text_input if one.label == "Folder or hub id").set_value(str(where))
    submit(app, "Register")


def submit(app, label):
    next(one for one in app.button if one.label == label and "FormSubmitter" in (one.key or "")).click().run()
    assert not app.exception


def picker(app, label="Adapter"):
    return next(one for one in app.selectbox if one.label == label)


def picker_is_there(app):
    return any(one.label == "Adapter" for one in app.selectbox)


def without_lora(monkeypatch):
    engine = session.runtime().engine
    info = replace(engine.info, cannot={"adapters": "The model was loaded without LoRA."})
    monkeypatch.setattr(engine, "info", info)


# -- the models page ----------------------------------------------------------------


def test_an_adapter_is_registered_and_removed(app, tmp_path):
    section(app)
    folder = make_adapter(tmp_path / "red", base="scripted")
    fill(app, "base", folder)
    assert "stands for the model itself" in words(app)
    fill(app, "red", tmp_path / "nothing")
    assert "no folder" in words(app)
    fill(app, "red", folder)
    assert "**red**" in words(app) and "rank 4" in words(app) and "made for scripted" in words(app)
    assert "not here yet" in words(app)
    next(one for one in app.button if one.label == "Remove it from the list").click().run()
    assert session.adapters().list() == () and "**red**" not in words(app)


def test_an_adapter_among_the_models_is_offered(app, workspace):
    make_adapter(workspace.models_dir / "blue")
    section(app)
    assert "not registered" in words(app) and "**blue**" in words(app)
    next(one for one in app.button if one.key.startswith("adapter-found-")).click().run()
    assert [one.name for one in session.adapters().list()] == ["blue"]
    assert "not registered" not in words(app)


def test_an_engine_without_lora_is_told_with_what_to_do(app, tmp_path, monkeypatch):
    without_lora(monkeypatch)
    section(app)
    assert "Take LoRA adapters" not in words(app)  # nobody has one
    register(tmp_path, "red")
    app.run()
    assert "without LoRA. To use adapters, load it with “Take LoRA adapters”" in words(app)


def test_a_broken_adapter_says_so(app, tmp_path):
    register(tmp_path, "red")
    (tmp_path / "red" / "adapter_model.safetensors").unlink()
    section(app)
    assert "is gone" in words(app)


def test_merges_show_how_they_go(app, workspace, tmp_path, monkeypatch):
    make_base(workspace.models_dir / "Tiny", quantization_config={"bits": 4})
    session.adapters().add("red", make_adapter(tmp_path / "red", base="Tiny"))
    section(app)
    name = next(one for one in app.text_input if one.label == "Name of the new model")
    assert name.value == "Tiny-red"
    submit(app, "Merge")
    assert "Tiny is quantized" in words(app)
    common = {"adapter": "red", "base": "Tiny"}
    views = (
        MergeView(merge_id="1", name="A", stage="Writing", share=0.4, **common),
        MergeView(merge_id="2", name="B", state="failed", error="The disk is full.", **common),
        MergeView(merge_id="3", name="C", state="cancelled", **common),
        MergeView(merge_id="4", name="Tiny", state="done", path=workspace.models_dir / "Tiny", **common),
    )
    with monkeypatch.context() as patch:
        patch.setattr(session.merges(), "list", lambda: views)
        app.run()
    assert not app.exception
    assert "The disk is full" in words(app) and "nothing of it is left" in words(app)
    assert "**Tiny** is in the library." in words(app)
    assert button(app, "Cancel")


# -- where answers are asked for --------------------------------------------------------


def test_nothing_is_drawn_where_there_is_no_adapter(app):
    turned_to(app, "chat")
    assert not picker_is_there(app)


def test_a_chat_answers_with_the_adapter_that_was_chosen(app, tmp_path):
    register(tmp_path, "red", "blue")
    turned_to(app, "chat")
    assert picker(app).options == ["None: the model itself", "blue", "red"]
    picker(app).set_value("red").run()
    app.chat_input[0].set_value("Hello").run()
    until(app, lambda: "adapter red" in words(app.run()))
    (conversation,) = session.chats().conversations.list()
    assert conversation.options.adapter == "red"


def test_an_adapter_that_went_can_be_taken_away(app, tmp_path, monkeypatch):
    made = session.chats().create(options=ChatOptions(adapter="gone"))
    without_lora(monkeypatch)
    app.query_params["c"] = made.conversation_id
    turned_to(app, "chat")
    assert picker(app).value == "gone" and not picker(app).disabled
    assert "gone (removed)" in picker(app).options
    picker(app).set_value("").run()
    assert session.chats().conversations.get(made.conversation_id).options.adapter is None
    assert not picker_is_there(app)


def test_an_engine_without_lora_greys_the_choice_out(app, tmp_path, monkeypatch):
    register(tmp_path, "red")
    without_lora(monkeypatch)
    turned_to(app, "chat")
    assert picker(app).disabled
    assert "without LoRA. Load it again with LoRA" in words(app)


def test_a_comparison_varies_the_adapter(app, tmp_path):
    register(tmp_path, "red")
    turned_to(app, "compare")
    first = picker(app)
    first.set_value("red").run()
    assert not app.exception
    next(one for one in app.text_area if "prompt" in (one.label or "").lower()).set_value("Hello").run()
    next(one for one in app.button if one.label.startswith(("Run", "Generate"))).click().run()
    assert not app.exception
    (listed,) = session.comparisons().list()
    until(app, lambda: not session.comparisons().view(listed.comparison_id).is_live)
    view = session.comparisons().view(listed.comparison_id)
    assert [one.adapter for one in view.spec.sets] == ["red", None, None]
    assert view.cells[Place(0, 0, 0)].details["adapter"] == "red"


def test_a_batch_takes_an_adapter_and_a_column(app, tmp_path):
    register(tmp_path, "red", "blue")
    table = tmp_path / "table.csv"
    table.write_text("text,voice\na,red\nb,\n")
    run = session.jobs().stage(table, instructions=Instructions(template="{{ text }}"))
    app.session_state["batch:run"] = run.run_id
    turned_to(app, "batch")
    picker(app).set_value("blue").run()
    picker(app, "Column with each row's adapter").set_value("voice").run()
    assert not app.exception
    prompt = session.jobs().open(run.run_id).spec.prompt
    assert (prompt.adapter, prompt.adapter_column) == ("blue", "voice")
