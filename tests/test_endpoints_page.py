"""Remote endpoints on the models page: add a server, see its models, use one."""

import pytest
from apps import button, opened, until

from pages.parts import session
from tests.openai_server import FakeServer

KEY = "sk-secret-0123456789"


@pytest.fixture
def server(httpserver):
    server = FakeServer(
        httpserver, [{"id": "small", "max_model_len": 2048}, {"id": "poet", "parent": "small"}]
    )
    server.key = KEY
    return server


@pytest.fixture
def app(workspace):
    app = opened("models")
    next(one for one in app.segmented_control if one.key.startswith("models:section")).set_value(
        "engines"
    ).run()
    assert not app.exception
    return app


def words(app):
    texts = [*app.markdown, *app.caption, *app.error, *app.warning]
    return "\n".join(one.value for one in texts).replace("\\", "").replace("&#58;", ":")


def field(app, label):
    return next(one for one in app.text_input if one.label == label)


def add(app, address, key=""):
    field(app, "Address").set_value(address)
    field(app, "Key").set_value(key)
    button(app, "Add and test").click().run()
    assert not app.exception


def test_a_server_is_added_and_one_of_its_models_used(app, server):
    add(app, server.base_url, KEY)
    assert "key saved" in words(app) and "It has 2 models." in words(app)
    (models,) = (one for one in app.selectbox if one.label == "Model")
    assert [str(option) for option in models.options] == [
        "small · context 2,048 tokens", "poet · adapter of small",
    ]  # fmt: skip
    assert KEY not in str(app.session_state._state.filtered_state) + words(app)
    button(app, "Use").click().run()
    runtime = session.runtime()
    until(app, lambda: runtime.status().phase == "ready" and runtime.status().info.model == "small")
    assert (runtime.engine.spec.base_url, runtime.engine.info.batch_slots) == (server.base_url, 64)
    app.run()
    assert "how it cuts text into tokens" in words(app)

    server.honours = {"top_k"}
    assert "top_k" in runtime.engine.info.cannot_params
    button(app, "Find out again").click().run()
    until(app, lambda: runtime.status().phase == "ready")
    assert "top_k" not in runtime.engine.info.cannot_params


def test_what_goes_wrong_is_said_there(app, server):
    add(app, "not an address")
    assert "This is no address of a server." in words(app)
    add(app, server.base_url, "sk-wrong")
    assert "does not accept the key" in words(app) and "sk-wrong" not in words(app)
    field(app, "New key").set_value(KEY)
    button(app, "Save the key").click().run()
    button(app, "Test").click().run()
    assert "It has 2 models." in words(app)
    button(app, "Delete this endpoint").click().run()
    assert not app.exception and session.endpoints().list() == []


def test_switching_asks_while_somebody_is_at_work(app, server, monkeypatch):
    add(app, server.base_url, KEY)
    runtime = session.runtime()
    at_work = {"run": 1}
    monkeypatch.setattr(runtime, "in_use", lambda: at_work)
    button(app, "Use").click().run()
    assert "1 run" in words(app) and runtime.status().spec.engine == "scripted"
    button(app, "Keep it").click().run()
    assert runtime.status().spec.engine == "scripted"
    button(app, "Use").click().run()
    button(app, "Switch").click().run()
    assert runtime.status().spec.engine == "openai"
