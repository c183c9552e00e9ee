"""The models page, run as Streamlit runs it, with the scripted engine."""

import pytest
from apps import button, opened, until
from checkpoints import checkpoint, gguf_file

from core.types import EngineSpec
from pages.parts import models_library, session


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches: what the person who runs the tests has downloaded is no part of them."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))


@pytest.fixture
def app(workspace, caches):
    return opened("models")


def words(app):
    """All that is written, without what escapes it."""
    texts = [*app.markdown, *app.caption, *app.info, *app.error]
    return "\n".join(one.value for one in texts).replace("\\", "")


def keyed(elements, start):
    return next(one for one in elements if (one.key or "").startswith(start))


def press(app, key):
    keyed(app.button, key).click().run()
    assert not app.exception


def section(app, title):
    chosen = keyed(app.segmented_control, "models:section")
    chosen.set_value(title).run()
    assert not app.exception


def fill_import(app, path, *, name="", copy=False):
    next(one for one in app.text_input if one.label == "Folder or GGUF file").set_value(str(path))
    next(one for one in app.text_input if one.label == "Name").set_value(name)
    next(one for one in app.checkbox if one.label.startswith("Copy")).set_value(copy)
    next(one for one in app.button if one.label == "Import" and "FormSubmitter" in one.key).click().run()
    assert not app.exception


def test_a_fresh_workspace_shows_the_embedded_model_and_the_ways_to_more(app):
    assert "SmolLM2-135M-Instruct" in words(app) and "· embedded" in words(app)
    assert "Get a larger one" in words(app)
    assert "It comes with the workbench, and stays." in words(app)
    button(app, "Get a model").click().run()
    assert not app.exception
    assert keyed(app.segmented_control, "models:section").value == "get"


@pytest.mark.parametrize("name", ["library", "get", "load", "engines", "adapters"])
def test_every_section_is_drawn_in_an_empty_workspace(app, name):
    section(app, name)
    assert not app.error


def test_a_folder_is_imported_opened_and_forgotten(app, tmp_path):
    folder = checkpoint(tmp_path / "reviews_v2")
    fill_import(app, folder)
    assert "reviews_v2" in words(app) and "Llama" in words(app) and "mit" in words(app)
    press(app, "models:load:imported:reviews_v2")
    assert app.query_params["model"] == "imported:reviews_v2"
    assert next(one for one in app.selectbox if one.label == "Model").value == "imported:reviews_v2"
    section(app, "library")
    assert "model" not in app.query_params
    press(app, "models:delete:imported:reviews_v2")
    assert "Its files stay where they are" in words(app)
    press(app, "models:delete:imported:reviews_v2:yes")
    assert "reviews_v2" not in words(app) and (folder / "config.json").is_file()


def test_what_is_wrong_with_a_folder_is_said_in_the_form(app, tmp_path):
    folder = checkpoint(tmp_path / "half", parts=2)
    (folder / "model-00001-of-00002.safetensors").unlink()
    fill_import(app, folder)
    assert "1 of 2 parts of its weights are missing" in words(app)
    fill_import(app, "")
    assert "Give the path of a folder" in words(app)
    assert session.library().list()[1:] == ()


def test_a_copy_is_shown_until_it_is_put_away(app, workspace, tmp_path):
    fill_import(app, checkpoint(tmp_path / "mine"), name="tuned", copy=True)
    until(app, lambda: session.imports().list()[0].state == "finished")
    assert "tuned was copied" in words(app).replace("*", "")
    press(app, "models:copy:tuned")
    assert "was copied" not in words(app)
    press(app, "models:delete:workspace:tuned")
    assert "There is no way back" in words(app)
    button(app, "No").click().run()
    assert (workspace.models_dir / "tuned").is_dir()
    press(app, "models:delete:workspace:tuned")
    press(app, "models:delete:workspace:tuned:yes")
    assert not (workspace.models_dir / "tuned").exists()


def test_a_broken_model_says_why_and_can_be_deleted_but_not_loaded(app, workspace):
    folder = checkpoint(workspace.models_dir / "broken")
    (folder / "tokenizer.json").unlink()
    app.run()
    assert "Its tokenizer is missing" in words(app)
    assert keyed(app.button, "models:load:workspace:broken").disabled
    press(app, "models:delete:workspace:broken")
    press(app, "models:delete:workspace:broken:yes")
    assert "broken" not in words(app)


def test_the_loaded_model_is_marked_and_stays(app, workspace, monkeypatch):
    folder = checkpoint(workspace.models_dir / "tuned")
    monkeypatch.setattr(models_library, "loaded_spec", lambda: EngineSpec(model=str(folder)))
    app.run()
    assert "tuned** :green-badge[loaded]" in words(app)
    assert "unload it before you delete it" in words(app)


def test_many_models_are_searched(app, workspace):
    for number in range(8):
        checkpoint(workspace.models_dir / f"model-{number}")
    gguf_file(workspace.models_dir / "other.gguf")
    app.run()
    assert "10 models here" in words(app)
    next(one for one in app.text_input if one.label == "Search").set_value("OTHER").run()
    assert "other" in words(app) and "model-3" not in words(app)
    next(one for one in app.text_input if one.label == "Search").set_value("nothing").run()
    assert "No model is called so." in words(app)


def test_an_address_opens_a_model_and_survives_one_that_is_gone(app, workspace):
    checkpoint(workspace.models_dir / "tuned")
    app.query_params["model"] = "workspace:tuned"
    app.run()
    assert next(one for one in app.selectbox if one.label == "Model").value == "workspace:tuned"
    app.query_params["model"] = "workspace:gone"
    app.run()
    assert not app.exception
    assert next(one for one in app.selectbox if one.label == "Model").value == "embedded"


def test_names_from_outside_are_shown_letter_by_letter(app, workspace):
    checkpoint(workspace.models_dir / ":red[x] ![y](http:)", license="<b>mine</b>")
    app.run()
    shown = "\n".join(one.value for one in [*app.markdown, *app.caption])
    assert ":red[x]" not in shown and "![y]" not in shown and "<b>" not in shown
