"""One table of parameters: parsing, ranges, what is said when a value can't be used."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import sampling
from core.errors import ParameterError

DOCS = Path(__file__).parents[1] / "docs" / "sampling.md"


@pytest.mark.parametrize(
    ("assignments", "params"),
    [
        (["temperature=0"], {"temperature": 0.0}),
        (["max_tokens=32", "ignore_eos=true"], {"max_tokens": 32, "ignore_eos": True}),
        (["stop=END"], {"stop": ["END"]}),
        (["stop=END", "stop=###"], {"stop": ["END", "###"]}),
        (['stop=["a", "b"]'], {"stop": ["a", "b"]}),
        (["stop=[not json"], {"stop": ["[not json"]}),
        (["stop=a=b"], {"stop": ["a=b"]}),
        (["stop_token_ids=1,2"], {"stop_token_ids": [1, 2]}),
        (['logit_bias={"12": -100}'], {"logit_bias": {12: -100.0}}),
        (["seed=18446744073"], {"seed": 18446744073}),
        ([" top_k = 40"], {"top_k": 40}),
        (["n=3", "logprobs=0"], {"n": 3, "logprobs": 0}),
        (['structured_outputs={"choice": ["a", "b"]}'], {"structured_outputs": {"choice": ["a", "b"]}}),
        (
            ['structured_outputs={"json": "{\\"type\\": \\"object\\"}"}'],
            {"structured_outputs": {"json": {"type": "object"}}},
        ),
    ],
)
def test_assignments(assignments, params):
    assert sampling.parse_assignments(assignments) == params


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("temperature", "name=value"),
        ("=1", "name=value"),
        ("temprature=1", "Did you mean temperature?"),
        ("zzz=1", "Known parameters"),
        ("temperature=hot", "a number"),
        ("temperature=-0.1", "0 to 100"),
        ("temperature=nan", "out of range"),
        ("top_p=0", "above 0"),
        ("top_p=1.1", "up to 1"),
        ("max_tokens=0", "1 or more"),
        ("max_tokens=1.5", "a whole number"),
        ("ignore_eos=maybe", "true or false"),
        ("logit_bias=[1]", "JSON object"),
        ("n=0", "1 to 128"),
        ("logprobs=-1", "0 to 20"),
        ("structured_outputs=yes", "a JSON object with one of"),
        ('structured_outputs=["a"]', "a JSON object with one of"),
        ("structured_outputs={}", "exactly one of"),
        ('structured_outputs={"json": "{"}', "a JSON object with one of"),
        ('structured_outputs={"choice": ["a", "a"]}', "given twice"),
        pytest.param('structured_outputs={"json": ' + "[" * 100_000, "a JSON object with", id="deep"),
    ],
)
def test_a_value_that_can_not_be_used_is_explained(assignment, says):
    with pytest.raises(ParameterError) as caught:
        sampling.parse_assignments([assignment])
    assert says in str(caught.value)


def test_given_twice_is_refused():
    with pytest.raises(ParameterError, match="twice"):
        sampling.parse_assignments(["temperature=0", "temperature=1"])


def test_min_tokens_over_max_tokens_is_refused():
    with pytest.raises(ParameterError, match="min_tokens"):
        sampling.validate({"min_tokens": 9, "max_tokens": 8})


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"n": 2, "temperature": 0}, "would all be the same"),
        ({"structured_outputs": {"choice": ["a"]}, "ignore_eos": True}, "exclude each other"),
        ({"beam_width": 4, "n": 2}, "beam_width and n=2 exclude each other"),
        ({"beam_width": 4, "structured_outputs": {"choice": ["a"]}}, "beam search knows no structured"),
        ({"beam_width": 4, "stop": ["END"]}, "beam search knows no stop"),
        ({"beam_width": 4, "repetition_penalty": 1.1}, "beam search knows no repetition_penalty"),
    ],
)
def test_values_that_contradict_each_other_are_refused(params, said):
    with pytest.raises(ParameterError, match=said):
        sampling.validate(params)


def test_beam_search_takes_what_it_honours_and_what_is_off():
    params = {
        "beam_width": 4, "length_penalty": 0.8, "temperature": 0, "top_p": 0.9, "seed": 1, "ignore_eos": True,
        "n": 1, "min_tokens": 0, "stop": [], "repetition_penalty": 1, "max_tokens": 20, "logprobs": 0,
    }  # fmt: skip
    assert sampling.validate(params)["beam_width"] == 4
    assert sampling.validate({**sampling.defaults(), "beam_width": 2})["length_penalty"] == 1


def test_a_schema_keeps_the_order_of_its_properties():
    schema = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}}
    params = sampling.validate({"structured_outputs": {"json": json.dumps(schema)}})
    again = sampling.parse_assignments(sampling.as_assignments(params))
    assert list(again["structured_outputs"]["json"]["properties"]) == ["z", "a"]


def test_the_models_own_defaults_win_over_the_tables():
    defaults = sampling.defaults({"temperature": 0.6, "top_k": 20, "do_sample": True, "eos_token_id": 2})
    assert (defaults["temperature"], defaults["top_k"], defaults["top_p"]) == (0.6, 20, 1.0)


def test_a_models_odd_value_does_not_stop_anybody():
    assert sampling.defaults({"temperature": "warm", "top_p": None})["temperature"] == 1.0


def test_every_default_is_a_value_the_table_accepts():
    assert sampling.validate(sampling.defaults()) == sampling.defaults()


@pytest.mark.parametrize(
    "row", [row for row in sampling.PARAMETERS if row.low is not None], ids=lambda row: row.name
)
def test_every_slider_stays_inside_the_range(row):
    assert row.parse(row.low) == row.low
    assert row.parse(row.high) == row.high


@given(
    st.sampled_from(sampling.PARAMETERS),
    st.one_of(st.text(max_size=20), st.floats(), st.integers(), st.none()),
)
def test_any_input_gives_a_value_or_a_parameter_error(row, value):
    try:
        parsed = row.parse(value)
    except ParameterError as error:
        assert row.name in error.message
    else:
        assert parsed is None or row.parse(parsed) == parsed


def test_assignments_of_params_give_the_same_params_again():
    params = {
        "temperature": 0.7, "max_tokens": 8, "skip_special_tokens": False, "seed": 3,
        "stop": ["\n", "[END]", "a=b", "终"],
        "stop_token_ids": [1, 2], "logit_bias": {12: -100.0},
        "n": 2, "logprobs": 0, "structured_outputs": {"choice": ["ja, gern", "nein\n"]},
    }  # fmt: skip
    assert sampling.parse_assignments(sampling.as_assignments(params)) == params


def test_the_docs_page_is_the_table():
    assert DOCS.read_text(encoding="utf-8").strip() == sampling.as_markdown().strip()
