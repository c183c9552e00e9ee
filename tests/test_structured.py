"""Structures of answers: what may be asked for, what an answer is held against, what becomes columns."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import structured
from core.errors import ParameterError
from core.structured import Field

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value"],
        }
    },
    "$ref": "#/$defs/node",
}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "exactly one of"),
        ({"choice": ["a"], "regex": "a"}, "exactly one of"),
        ({"chioce": ["a"]}, "exactly one of"),
        ("choice", "exactly one of"),
        ({"choice": []}, "no list of texts"),
        ({"choice": "yes"}, "no list of texts"),
        ({"choice": ["yes", ""]}, "no list of texts"),
        ({"choice": ["yes", "yes"]}, "'yes' is given twice"),
        ({"choice": [str(number) for number in range(1001)]}, "1,001 choices; the most is 1,000"),
        ({"choice": ["\ud800"]}, "can't be written as JSON"),
        ({"regex": "(a"}, "can't be used: missing"),
        ({"regex": ""}, "regex is empty"),
        ({"regex": 5}, "can't be used"),
        ({"regex": "a?" * 2001}, "4,004 characters; the most is 4,000"),
        ({"grammar": "  "}, "grammar is empty"),
        ({"json_object": False}, "can only be true"),
        ({"json": [1]}, "no JSON object"),
        ({"json": {"type": "text"}}, "'text' is not valid"),
        ({"json": {"properties": {"a": {"pattern": "("}}}}, "can't be used: '(' is not"),
        ({"json": {"description": "x" * 32_000}}, "32,019 characters; the most is 32,000"),
        ({"json": {"enum": [float]}}, "can't be written as JSON"),
        ({"json": nested(70)}, "64 levels deep"),
        ({"json": nested(100_000)}, "can't be written as JSON"),
        ({"json": {"$ref": "http://127.0.0.1/schema"}}, "refers to 'http://127.0.0.1/schema'"),
        ({"json": {"$ref": "#/$defs/none"}}, "nothing at '#/$defs/none'"),
        ({"json": {"$ref": "#"}}, "leads back to itself"),
        ({"json": {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}}, "leads back to itself"),
        ({"json": {"properties": {"default": {"$ref": "file:///etc/passwd"}}}}, "refers to 'file:"),
    ],
)
def test_what_can_not_be_asked_for_is_explained(asked: Any, said: str) -> None:
    with pytest.raises(ParameterError) as caught:
        structured.check(asked)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "right", "wrong"),
    [
        ({"choice": ["yes", "no"]}, ["yes", "no"], ["Yes", "yes ", "", "yesno"]),
        ({"regex": "[0-9]{4}"}, ["1984"], ["19845", "a1984", "198", "1984\n"]),
        ({"json_object": True}, ["{}", '{"a": [1]}'], ["[]", "1", "", "{", '{"a": NaN}']),
        (
            {"json": PERSON},
            ['{"name": "Ada"}', ' {"name":"Ada","age":36}\n'],
            ['{"name": "Ada", "age": "36"}', '{"name": "Ada", "x": 1}', "{}", '{"name": "Ad', "null"],
        ),
        ({"json": TREE}, ['{"value":1,"next":[{"value":2}]}'], ['{"value":1,"next":[{}]}', "[" * 100_000]),
        (
            {"json": {"patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False}},
            ['{"n_a": 1}'],
            ['{"n_a": "1"}', '{"a": 1}'],
        ),
        ({"json": {"type": "string", "pattern": "^[a-z]+$"}}, ['"abc"'], ['"ABC"', "1"]),
        ({"json": {"const": {"$ref": "http://x"}}}, ['{"$ref": "http://x"}'], ["{}"]),
    ],
)
def test_answers_are_held_against_the_structure(asked: Any, right: list[str], wrong: list[str]) -> None:
    structured.check(asked)
    assert [structured.valid(asked, answer) for answer in right] == [True] * len(right)
    assert [structured.valid(asked, answer) for answer in wrong] == [False] * len(wrong)


def test_a_grammar_is_for_the_engine_to_judge() -> None:
    structured.check({"grammar": 'root ::= "a"'})
    assert structured.valid({"grammar": 'root ::= "a"'}, "a") is None


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({"regex": "(a|a)+(b|b)+c"}, "a" * 40 + "b" * 40),
        ({"json": {"type": "string", "pattern": "^(a|a)+(b|b)+c$"}}, json.dumps("a" * 40 + "b" * 40)),
    ],
)
def test_a_pattern_that_takes_for_ever_on_a_cut_answer_is_given_up(asked: Any, answer: str) -> None:
    structured.check(asked)
    began = time.monotonic()
    assert structured.valid(asked, answer) in (None, False)
    assert time.monotonic() - began < 10  # not a speed: without a limit it takes for ever


def test_the_json_of_an_answer() -> None:
    assert structured.parsed({"json": PERSON}, '{"name": "Ada"}') == {"name": "Ada"}
    assert structured.parsed({"json_object": True}, '{"name"') is None
    assert structured.parsed({"choice": ["1"]}, "1") is None


def test_columns_are_the_top_level_properties_in_order() -> None:
    schema = {
        "$defs": {"score": {"type": "number"}},
        "properties": {
            "z": {"type": "string"},
            "a": {"type": ["integer", "null"]},
            "score": {"$ref": "#/$defs/score"},
            "ok": {"type": "boolean"},
            "tags": {"type": "array"},
            "inner": {"type": "object"},
            "label": {"enum": ["x", "y"]},
            "year": {"enum": [1999, 2000, None]},
            "any": {},
            "either": {"type": ["string", "integer"]},
            "always": True,
        },
    }
    structured.check({"json": schema})
    assert structured.columns({"json": schema}) == (
        ("z", "text"),
        ("a", "integer"),
        ("score", "number"),
        ("ok", "boolean"),
        ("tags", "list"),
        ("inner", "object"),
        ("label", "text"),
        ("year", "integer"),
        ("any", "text"),
        ("either", "text"),
        ("always", "text"),
    )
    assert structured.columns({"json": TREE}) == (("value", "integer"), ("next", "list"))
    assert structured.columns({"choice": ["a"]}) == ()


FIELDS = st.builds(
    Field,
    name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    type=st.sampled_from(["text", "integer", "number", "boolean", "list"]),
    description=st.text(st.characters(codec="utf-8"), max_size=8),
    required=st.booleans(),
)
CHOICES = st.builds(
    Field,
    name=st.text("abcdef", min_size=9, max_size=12),
    type=st.just("choice"),
    choices=st.lists(st.text("xyz, ", min_size=1), min_size=1, max_size=4, unique=True).map(tuple),
)


@given(st.lists(st.one_of(FIELDS, CHOICES), min_size=1, max_size=6, unique_by=lambda field: field.name))
def test_fields_make_a_schema_that_gives_the_fields_again(fields: list[Field]) -> None:
    schema = structured.schema_from_fields(fields)
    structured.check({"json": schema})
    assert structured.fields_from_schema(schema) == tuple(fields)
    assert [name for name, _type in structured.columns({"json": schema})] == [field.name for field in fields]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([], "no field yet"),
        ([Field("a", "text"), Field("a", "integer")], "'a' is given twice"),
        ([Field("", "text")], "no name"),
        ([Field("a", "choice")], "'a' has no choices"),
    ],
)
def test_fields_that_make_no_schema_are_explained(fields: list[Field], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        structured.schema_from_fields(fields)
