"""The models page's part that gets models, run as Streamlit runs it, with a local server as the hubs."""

import pytest
from apps import button, opened, until
from hub_server import TINY, HubServer, Model, only_hub

from core.secrets import Secrets
from pages.parts import session


@pytest.fixture
def hub(tmp_path, monkeypatch) -> HubServer:
    with only_hub(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def app(workspace, hub):
    app = opened("models")
    app.session_state["models:section"] = "get"
    app.session_state["models:turn"] = 1
    app.run()
    assert not app.exception
    return app


def words(app):
    texts = [*app.markdown, *app.caption, *app.error, *app.warning, *app.info, *app.subheader]
    return "\n".join(one.value for one in texts).replace("\\", "")


def press(app, label):
    button(app, label).click().run()
    assert not app.exception


def write(app, label, text):
    next(one for one in app.text_input if one.label == label).set_value(text).run()
    assert not app.exception


def test_a_model_is_searched_looked_at_downloaded_and_opened(app, hub):
    assert "Search by name" in words(app)
    write(app, "Search", "tin")
    assert "**org/tiny**" in words(app) and "apache-2.0" in words(app)
    press(app, "Look")
    assert "5 files" in words(app) and "commit 01234567" in words(app)
    (files,) = app.dataframe
    table = files.value.set_index("File")
    assert list(table["Taken"][["model.safetensors", "pytorch_model.bin"]]) == [True, False]
    assert "safetensors are taken instead" in table["Why not"]["pytorch_model.bin"]
    assert not app.checkbox
    hub.bytes_per_s = 2e5
    press(app, "Download 2.9 MiB")
    (download,) = session.downloads().list()
    press(app, "Pause")
    assert session.downloads().view(download.download_id).state == "paused"
    hub.bytes_per_s = None
    press(app, "Resume")
    until(app, lambda: session.downloads().list()[0].state == "finished")
    assert "checksums verified" in words(app)
    press(app, "Load")
    assert app.query_params["model"]
    app.session_state["models:section"] = "get"
    app.session_state["models:turn"] = 99
    app.run()
    press(app, "Hide")
    assert not session.downloads().list() and "Done" not in words(app)


def test_a_download_is_cancelled_only_after_it_was_asked(app, hub, tmp_path):
    hub.bytes_per_s = 2e5
    write(app, "Search", "org/tiny")
    press(app, "Look at org/tiny")
    press(app, "Download 2.9 MiB")
    press(app, "Cancel")
    press(app, "Keep")
    assert len(session.downloads().list()) == 1
    press(app, "Cancel")
    next(one for one in app.button if one.label.startswith("Remove ")).click().run()
    assert session.downloads().list() == []
    assert not list((tmp_path / "huggingface").rglob("*.incomplete"))


def test_a_failure_is_shown_with_what_to_do(app, hub):
    hub.damaged["model.safetensors"] = 5
    write(app, "Search", "org/tiny")
    press(app, "Look at org/tiny")
    press(app, "Download 2.9 MiB")
    until(app, lambda: session.downloads().list()[0].state == "failed")
    assert "wrong checksum" in words(app) and "try again later" in words(app)
    press(app, "Resume")
    hub.damaged.clear()


def test_pickle_and_code_are_taken_only_when_they_are_allowed(app, hub):
    config = b'{"auto_map": {"AutoModel": "model.Model"}}'
    hub.models["org/risky"] = Model(
        {"config.json": config, "pytorch_model.bin": b"1" * 3000, "model.py": b"1"}
    )
    write(app, "Search", "org/risky")
    press(app, "Look at org/risky")
    assert "pickle only" in words(app) and "own code" in words(app)
    assert {one.label for one in app.checkbox} == {"Take its own Python code", "Take its pickle weights"}
    assert next(one for one in app.button if one.label.startswith("Download")).disabled
    next(one for one in app.checkbox if "pickle" in one.label).check().run()
    assert "can run any code on this machine" in words(app)
    press(app, "Download 3.0 KiB")
    until(app, lambda: session.downloads().list()[0].state == "finished")
    assert {file.path for file in session.downloads().list()[0].files} == {"config.json", "pytorch_model.bin"}


def test_one_gguf_of_several_is_chosen(app, hub):
    hub.models["org/gguf"] = Model({"m-Q8_0.gguf": b"8" * 4000, "m-Q4_K_M.gguf": b"4" * 2000})
    write(app, "Search", "org/gguf")
    press(app, "Look at org/gguf")
    (choice,) = [one for one in app.selectbox if one.label == "GGUF"]
    assert choice.value == "m-Q4_K_M"
    choice.set_value("m-Q8_0").run()
    press(app, "Download 3.9 KiB")
    until(app, lambda: session.downloads().list()[0].state == "finished")
    assert session.downloads().list()[0].path.name == "m-Q8_0.gguf"


def test_a_token_is_entered_used_and_forgotten_and_never_shown(app, hub, workspace):
    hub.models["org/gated"] = Model(dict(TINY), gated=True, token="hf_secret")
    write(app, "Search", "org/gated")
    press(app, "Look at org/gated")
    assert "its owner must let you in" in words(app)
    assert next(one for one in app.button if one.label.startswith("Download")).disabled
    next(one for one in app.text_input if one.label == "Token").set_value("hf_secret")
    press(app, "Save")
    assert Secrets(workspace).find("huggingface") == "hf_secret"
    assert "hf_secret" not in str(app.main)
    press(app, "Back to the search")
    press(app, "Look at org/gated")
    assert not next(one for one in app.button if one.label.startswith("Download")).disabled
    press(app, "Back to the search")
    press(app, "Forget it")
    assert Secrets(workspace).find("huggingface") is None


def test_a_hub_that_is_not_reached_is_said_and_tried_again(app, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    write(app, "Search", "tiny")
    assert "can't be reached" in words(app)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    press(app, "Try again")
    assert "**org/tiny**" in words(app)
    write(app, "Search", "nothing of that name")
    assert "No model on Hugging Face has" in words(app)
