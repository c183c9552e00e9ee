"""The sampling parameters as widgets: defaults, groups, resets, presets, what the engine can't do."""

from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from core.cli.app import app as command_line
from pages.parts import session

HOME = Path(__file__).parents[1] / "Home.py"
pytestmark = pytest.mark.usefixtures("workspace")


def draw():
    import streamlit as st

    from pages.parts.sampling_form import sampling_form

    st.session_state["params"] = sampling_form(
        "form", st.session_state.get("config"), main=st.session_state.get("main")
    )


def form(**state):
    made = AppTest.from_function(draw, default_timeout=20)
    for name, value in state.items():
        made.session_state[name] = value
    return made.run()


def params(made):
    assert not made.exception
    return made.session_state["params"]


def test_untouched_values_follow_the_model_and_touched_ones_stay():
    made = form()
    assert params(made)["temperature"] == 1.0
    made.slider(key="form:top_p").set_value(0.5).run()
    made.session_state["config"] = {"temperature": 0.6, "top_p": 0.9, "top_k": 20}
    made.run()
    found = params(made)
    assert (found["temperature"], found["top_p"], found["top_k"]) == (0.6, 0.5, 20)
    assert not {"seed", "ignore_eos", "beam_width", "spaces_between_special_tokens"} & set(found)


def test_a_widget_that_misses_the_sessions_value_still_shows_it():
    """max_tokens became 1, its minimum, when a rerun overtook the value on its way to the browser."""
    made = form()
    assert made.number_input("form:max_tokens").proto.default == 256
    assert made.slider("form:temperature").proto.default == [1.0]
    assert made.checkbox("form:skip_special_tokens").proto.default is True


@pytest.mark.parametrize("main", [None, ("temperature", "max_tokens")])
def test_each_group_has_its_sentence_and_is_reset_by_itself(main):
    made = form(config={"temperature": 0.6, "repetition_penalty": 1.2}, main=main)
    assert [one.label for one in made.expander] == [
        "Sampling", "Penalties", "Length and stopping", "Output", "Advanced",
    ]  # fmt: skip
    assert "How much the answer may repeat itself or the prompt." in [one.value for one in made.caption]
    made.slider(key="form:repetition_penalty").set_value(1.5)
    made.slider(key="form:top_p").set_value(0.5)
    made.text_input(key="form:allowed_token_ids").set_value("3, 5").run()
    assert (params(made)["repetition_penalty"], params(made)["allowed_token_ids"]) == (1.5, [3, 5])
    assert made.button(key="form:reset:output").disabled
    marked = [one.label for one in made.expander if one.label.endswith(":material/edit:")]
    assert [label.split()[0] for label in marked] == ["Sampling", "Penalties", "Advanced"]
    made.button(key="form:reset:penalties").click().run()
    assert (params(made)["repetition_penalty"], params(made)["top_p"]) == (1.2, 0.5)
    assert made.button(key="form:reset:penalties").disabled
    made.button(key="form:reset").click().run()
    assert params(made)["top_p"] == 1.0 and "allowed_token_ids" not in params(made)


def test_values_that_contradict_each_other_are_said_and_one_is_left_out():
    made = form()
    made.number_input(key="form:beam_width").set_value(4)
    made.number_input(key="form:min_tokens").set_value(999).run()
    assert "min_tokens" not in params(made) and params(made)["beam_width"] == 4
    made.number_input(key="form:min_tokens").set_value(0)
    made.text_area(key="form:stop").set_value("END").run()
    assert params(made)["stop"] == ["END"] and "beam_width" not in params(made)
    assert "beam search knows no stop" in made.error[0].value


def test_what_the_engine_can_not_do_is_disabled_with_its_reason(monkeypatch):
    runtime = session.runtime()
    runtime.load()
    runtime.wait_ready(20)
    made = form()
    made.number_input(key="form:beam_width").set_value(4).run()
    assert params(made)["beam_width"] == 4
    status = runtime.status()
    info = replace(
        status.info,
        cannot={"beam_search": "This engine has no search"},
        cannot_params={"min_p": "It knows no min_p", "stop": "It stops nowhere"},
    )
    lacking = replace(status, info=info)
    monkeypatch.setattr(runtime, "status", lambda: lacking)
    made.run()
    assert (
        made.number_input(key="form:beam_width").disabled and made.slider(key="form:length_penalty").disabled
    )
    assert not made.number_input(key="form:max_tokens").disabled
    assert "beam_width" not in params(made)
    assert "This engine has no search" in [one.value for one in made.caption]
    assert made.slider(key="form:min_p").disabled and made.text_area(key="form:stop").disabled
    assert not {"min_p", "stop"} & set(params(made))
    assert "It knows no min\\_p" in [one.value for one in made.caption]


def test_what_is_entered_becomes_a_preset_and_comes_back_from_it():
    made = form()
    made.slider(key="form:temperature").set_value(0.2)
    made.number_input(key="form:min_tokens").set_value(3).run()
    made.text_input(key="form:preset:name").set_value(" Strict ").run()
    made.button(key="form:preset:save").click().run()
    saved = session.presets().find("Strict").params
    assert (saved["temperature"], saved["min_tokens"]) == (0.2, 3)
    made.slider(key="form:temperature").set_value(1.5)
    made.number_input(key="form:max_tokens").set_value(7).run()
    made.selectbox(key="form:preset").set_value("Strict").run()
    made.button(key="form:preset:use").click().run()
    assert params(made) == saved
    made.button(key="form:preset:delete").click().run()
    assert session.presets().list() == [] and not [one for one in made.selectbox if one.key == "form:preset"]


def test_a_preset_sets_the_whole_form_and_says_what_is_set_elsewhere():
    session.presets().save("Data", {"n": 3, "structured_outputs": {"choice": ["a"]}, "top_k": 7})
    made = form(config={"temperature": 0.6})
    made.slider(key="form:temperature").set_value(1.5).run()
    made.selectbox(key="form:preset").set_value("Data").run()
    assert "Not part of this form: n, structured\\_outputs." in [one.value for one in made.caption]
    made.button(key="form:preset:use").click().run()
    assert (params(made)["top_k"], params(made)["temperature"]) == (7, 0.6)


def test_a_preset_that_went_in_another_tab_does_no_harm():
    session.presets().save("Strict", {"top_k": 7})
    made = form()
    made.selectbox(key="form:preset").set_value("Strict").run()
    session.presets().delete("Strict")
    made.run()
    assert params(made)["top_k"] == 0
    made.text_input(key="form:preset:name").set_value("x" * 99).run()
    made.button(key="form:preset:save").click().run()
    assert "can't be named" in made.toast[0].value.replace("&#39;", "'")


def test_a_preset_of_one_page_is_on_the_others_and_on_the_command_line():
    app = AppTest.from_file(HOME, default_timeout=20).run()
    app.switch_page("pages/chat.py").run()
    app.text_input(key="chat:new:preset:name").set_value("Strict").run()
    app.button(key="chat:new:preset:save").click().run()
    assert "Strict" in CliRunner().invoke(command_line, ["presets", "list"]).stdout
    app.switch_page("pages/compare.py").run()
    offered = [one.options for one in app.selectbox if one.key.endswith(":preset")]
    assert offered and all("Strict" in options for options in offered)
    assert not app.exception
