"""The shell and its pages, run as Streamlit runs them, with the scripted engine."""

import pytest
import streamlit as st
from apps import HOME, button, opened, turned_to, until
from streamlit.testing.v1 import AppTest

from core.errors import EngineLoadError, EngineUnavailable
from core.types import EngineStatus
from pages.parts import session
from pages.parts.charts import duration, gibibytes, per_second, spark


@pytest.fixture
def app(workspace):
    return opened()


def words(app):
    """All Markdown and captions of the page, for looking up what it says."""
    return "\n".join(element.value for element in [*app.markdown, *app.caption, *app.sidebar.caption])


def send(app, text):
    app.chat_input[0].set_value(text).run()
    assert not app.exception
    until(app, lambda: not session.chats().live(app.query_params["c"]))


# -- shell, engine bar, home -------------------------------------------------------


def test_home_shows_the_ways_in_machine_and_engine(app):
    assert app.title[0].value == "vLLM Workbench"
    assert "scripted" in words(app) and "cores" in words(app) and "8,192" in words(app)
    assert "No run yet" in words(app)


def test_engine_bar_is_on_every_page(app):
    for page in ("home", "chat", "compare"):
        turned_to(app, page)
        assert app.sidebar.metric[0].label == "Output tokens/s"
        assert "Running **0** · waiting **0**" in words(app)


def test_an_open_page_does_not_take_a_core_by_collecting_garbage_each_second():
    assert st.config.get_option("runner.postScriptGC") is False  # AppTest itself never does that


def test_unload_and_load_from_the_bar(app):
    button(app, "Unload").click().run()
    until(app, lambda: session.runtime().status().phase == "empty")
    assert "No model is loaded" in app.info[0].value
    button(app, "Load").click().run()
    until(app, lambda: session.runtime().status().phase == "ready")
    assert app.sidebar.metric


def showing(monkeypatch, status):
    monkeypatch.setattr(type(session.runtime()), "status", lambda self: status)


def test_loading_shows_stage_log_and_cancel(app, monkeypatch):
    spec = session.runtime().default_spec()
    status = EngineStatus(
        phase="loading", stage="Loading weights", since_s=7.4, spec=spec, log=("line 1", "line 2")
    )
    showing(monkeypatch, status)
    app.run()
    assert "Loading weights · 7.0 s" in words(app)
    assert app.sidebar.code[0].value == "line 1\nline 2"
    assert button(app, "Cancel")
    assert "answers begin when it is ready" in app.info[0].value


def test_a_failed_load_shows_cause_log_and_ways_on(app, monkeypatch):
    error = EngineLoadError("Not enough memory.", hint="Lower the KV cache.", log=("torch.OutOfMemoryError",))
    showing(monkeypatch, EngineStatus(phase="failed", spec=session.runtime().default_spec(), error=error))
    app.run()
    assert "Not enough memory" in app.sidebar.error[0].value and "Lower the KV cache" in words(app)
    assert app.sidebar.code[0].value == "torch.OutOfMemoryError"
    assert button(app, "Try again") and button(app, "Other settings")


def test_an_engine_that_cannot_run_here_is_one_line_with_the_command(app, monkeypatch):
    error = EngineUnavailable("This vLLM build needs an NVIDIA GPU.", hint="Run make setup DEVICE=cpu.")
    showing(monkeypatch, EngineStatus(phase="failed", spec=session.runtime().default_spec(), error=error))
    app.run()
    assert "make setup DEVICE\\=cpu" in app.sidebar.warning[0].value
    assert not app.exception and not app.sidebar.error


def test_a_wrong_setting_is_said_in_words(workspace, monkeypatch):
    monkeypatch.setenv("WORKBENCH_MAX_NUM_SEQS", "none")
    app = AppTest.from_file(HOME, default_timeout=20).run()
    assert not app.exception
    assert "WORKBENCH_MAX_NUM_SEQS" in app.error[0].value
    monkeypatch.delenv("WORKBENCH_MAX_NUM_SEQS")


# -- sampling form ------------------------------------------------------------------


def test_stop_texts_are_one_a_line_with_escapes(app):
    turned_to(app, "chat")
    app.text_area(key="chat:new:stop").set_value("END\n\\n\\n\na\\\\b").run()
    send(app, "hi")
    kept = session.chats().conversations.get(app.query_params["c"])
    assert kept.params["stop"] == ["END", "\n\n", "a\\b"]


def test_a_value_that_cannot_be_used_is_named_and_left_out(app):
    turned_to(app, "chat")
    app.text_input(key="chat:new:logit_bias").set_value("{nonsense").run()
    assert "logit\\_bias" in app.error[0].value
    send(app, "hi")
    assert "logit_bias" not in session.chats().conversations.get(app.query_params["c"]).params


def test_reset_brings_the_defaults_back(app):
    turned_to(app, "chat")
    app.number_input(key="chat:new:max_tokens").set_value(7)
    app.number_input(key="chat:new:seed").set_value(5).run()
    app.button(key="chat:new:reset").click().run()
    assert app.number_input(key="chat:new:max_tokens").value == 256
    assert app.number_input(key="chat:new:seed").value is None


# -- figures ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "–"), (0.0853, "85 ms"), (0.9999, "1.0 s"), (9.4, "9.4 s"), (42.4, "42 s"), (185, "3 min 5 s"),
     (7800, "2 h 10 min")],
)  # fmt: skip
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def test_other_figures():
    assert [per_second(value) for value in (None, 0, 0.42, 8.31, 1390)] == ["–", "0", "0.42", "8.3", "1,390"]
    assert [gibibytes(value) for value in (2**28, 4 * 2**30, 141 * 2**30)] == [
        "0.25 GiB",
        "4.0 GiB",
        "141 GiB",
    ]
    assert spark([(2.4, 30.0), (0.2, 10.0), (99.0, 5.0)], seconds=4) == [0, 30.0, 0, 10.0]
