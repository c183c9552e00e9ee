"""The form for the structure of answers: what it returns, what it says, what it keeps."""

import json

import pytest
from streamlit.testing.v1 import AppTest

from core import structured
from core.structured import Field

MOOD = Field(name="mood", type="choice", choices=("good", "bad"), description="How it ends")
SCORE = Field(name="score", type="integer")


def form(initial=None):
    def script(initial):
        import streamlit as st

        from pages.parts.structured_form import problem, structured_form

        if not st.checkbox("Elsewhere", key="elsewhere"):
            st.session_state["asked"] = structured_form("form", initial)
            st.session_state["problem"] = problem("form")

    return AppTest.from_function(script, args=(initial,), default_timeout=20).run()


def asked(app):
    assert not app.exception
    return app.session_state["asked"]


def choose(app, kind):
    app.segmented_control[0].set_value(kind)
    return app.run()


def button(app, label):
    return next(found for found in app.button if found.label == label)


def field(app, label):
    return next(found for found in (*app.text_input, *app.selectbox, *app.checkbox) if found.label == label)


def caption(app):
    return " | ".join(element.value.replace("\\", "").replace("**", "") for element in app.caption)


def errors(app):
    return " | ".join(element.value.replace("\\", "") for element in app.error)


def test_it_asks_for_free_text_until_something_is_chosen():
    app = form()
    assert asked(app) is None
    assert app.session_state["problem"] is None
    assert not app.error


def test_choices_are_taken_one_a_line():
    app = choose(form(), "choice")
    assert "no choice yet" in errors(app)
    assert "no choice yet" in app.session_state["problem"]
    app.text_area[0].set_value("yes\n\n no \nyes").run()
    assert asked(app) == {"choice": ["yes", "no"]}
    assert app.session_state["problem"] is None
    assert "The table gets columns: answer, answer_valid." in caption(app)


def test_fields_make_a_schema_without_anyone_writing_one():
    app = choose(form(), "fields")
    field(app, "Name of field 1").set_value("mood")
    field(app, "Type of field 1").set_value("choice")
    field(app, "Description of field 1").set_value("How it ends")
    app.run()
    assert "'mood' has no choices" in errors(app)
    field(app, "Choices of field 1").set_value("good, bad, good").run()
    button(app, "Add a field").click().run()
    field(app, "Name of field 2").set_value("score")
    field(app, "Type of field 2").set_value("integer")
    app.run()
    assert asked(app) == {"json": structured.schema_from_fields([MOOD, SCORE])}
    assert "The table gets columns: answer, answer_mood, answer_score, answer_valid." in caption(app)


def test_a_field_need_not_be_required():
    app = form({"json": structured.schema_from_fields([MOOD, SCORE])})
    next(box for box in app.checkbox if box.key.endswith("2:required")).uncheck().run()
    assert asked(app)["json"]["required"] == ["mood"]


def test_ten_fields_can_be_added_and_any_removed():
    app = choose(form(), "fields")
    for number in range(1, 11):
        field(app, f"Name of field {number}").set_value(f"f{number}")
        button(app, "Add a field").click().run()
    next(found for found in app.button if found.help == "Remove field 3").click().run()
    names = [f"f{number}" for number in range(1, 11) if number != 3]
    assert list(asked(app)["json"]["properties"]) == names
    button(app, "Add a field").click().run()
    assert field(app, "Name of field 11").value == ""


@pytest.mark.parametrize(
    ("entered", "said"),
    [
        ({"Name of field 2": "mood"}, "Two fields are called 'mood'"),
        ({"Description of field 2": "What?"}, "Field 2 has no name"),
    ],
)
def test_fields_that_make_no_sense_are_said_and_not_used(entered, said):
    app = form({"json": structured.schema_from_fields([MOOD])})
    button(app, "Add a field").click().run()
    for label, value in entered.items():
        field(app, label).set_value(value)
    app.run()
    assert said in errors(app)
    assert asked(app) is None


def test_a_field_left_blank_does_not_count():
    app = form({"json": structured.schema_from_fields([MOOD])})
    button(app, "Add a field").click().run()
    assert asked(app) == {"json": structured.schema_from_fields([MOOD])}


@pytest.mark.parametrize(
    "initial",
    [
        {"choice": ["a", "b"]},
        {"json": structured.schema_from_fields([MOOD, SCORE])},
        {"json": structured.schema_from_fields([Field(name="a", type="choice", choices=("x, y", "z"))])},
        {"json": {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}},
        {"json_object": True},
        {"regex": r"\d+"},
        {"grammar": 'root ::= "yes" | "no"'},
    ],
)
def test_what_was_asked_before_comes_back_unchanged(initial):
    assert asked(form(initial)) == initial


def test_fields_can_be_read_as_a_schema_and_back():
    schema = structured.schema_from_fields([MOOD, SCORE])
    app = choose(form({"json": schema}), "json")
    assert '"good"' in app.text_area[0].value
    assert asked(app) == {"json": schema}
    changed = structured.schema_from_fields([MOOD, SCORE, Field(name="why", type="text")])
    app.text_area[0].set_value(json.dumps(changed)).run()
    choose(app, "fields")
    assert field(app, "Name of field 3").value == "why"
    assert asked(app) == {"json": changed}


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("json", '{"type": ', "not JSON"),
        ("json", "[1]", "not a JSON object"),
        ("json", '{"type": "nonsense"}', "nonsense"),
        ("regex", "(a", "(a"),
        ("regex", "", "is empty"),
        ("grammar", "", "is empty"),
    ],
)
def test_what_cannot_be_used_is_explained(kind, text, said):
    app = choose(form(), kind)
    app.text_area[0].set_value(text).run()
    assert said in errors(app)
    assert asked(app) is None
    assert app.session_state["problem"]


def test_a_schema_that_fields_cannot_say_stays_a_schema():
    nested = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    for text in (json.dumps(nested), '{"type": "object", "required": 5}'):
        app = choose(form(), "json")
        app.text_area[0].set_value(text).run()
        choose(app, "fields")
        assert "no field yet" in errors(app)
        choose(app, "json")
        assert app.text_area[0].value == text


def test_an_empty_schema_means_any_object():
    app = choose(form(), "json")
    assert asked(app) == {"json_object": True}


def test_values_outlive_a_look_elsewhere_and_at_other_kinds():
    app = choose(form({"json": structured.schema_from_fields([MOOD])}), "regex")
    app.text_area[0].set_value("a+").run()
    choose(app, "fields")
    field(app, "Name of field 1").set_value("tone").run()
    app.checkbox(key="elsewhere").check().run()
    app.checkbox(key="elsewhere").uncheck().run()
    assert list(asked(app)["json"]["properties"]) == ["tone"]
    choose(app, "regex")
    assert asked(app) == {"regex": "a+"}
