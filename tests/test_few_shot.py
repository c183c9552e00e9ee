"""Examples from a second table."""

import json

import pytest

from core.errors import ParameterError, TableError, TemplateError, UnknownColumn
from core.few_shot import load_examples
from core.run_spec import ExampleSpec, PromptSpec
from core.tables import ReadOptions

TEMPLATE = PromptSpec(template="Review: {{ text }}")


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\ngood,pos\nbad,\n,neg\n 很好 ,正面\nawful,neg\nshort\n", encoding="utf-8")
    return path


def test_the_first_rows_with_a_prompt_and_an_answer(reviews):
    assert load_examples(reviews, TEMPLATE, "label", count=2) == (
        ExampleSpec(user="Review: good", assistant="pos"),
        ExampleSpec(user="Review: ", assistant="neg"),
    )
    blank_aware = PromptSpec(template="{{ text }}")
    assert [
        (found.user, found.assistant) for found in load_examples(reviews, blank_aware, "label", count=9)
    ] == [
        ("good", "pos"),
        (" 很好 ", "正面"),
        ("awful", "neg"),
    ]


def test_a_seed_chooses_by_chance_and_the_same_each_time(tmp_path):
    path = tmp_path / "many.csv"
    path.write_text("text,label\n" + "".join(f"t{n},l{n}\n" for n in range(1000)))
    chosen = load_examples(path, TEMPLATE, "label", count=5, seed=1)
    assert chosen == load_examples(path, TEMPLATE, "label", count=5, seed=1)
    assert chosen != load_examples(path, TEMPLATE, "label", count=5, seed=2)
    assert chosen != load_examples(path, TEMPLATE, "label", count=5)
    assert len(set(chosen)) == 5
    assert all(example.user[9:] == example.assistant[1:] for example in chosen)


def test_fields_and_answers_that_are_values(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        {"a": "x", "n": 1, "right": {"b": [1, "好"]}},
        {"a": "y", "n": 2, "right": None},
        {"a": "z", "right": 0},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    prompt = PromptSpec(mode="fields", instruction="Judge.", fields=("n", "a"), system="{{ not_used_here }}")
    assert load_examples(path, prompt, "right", count=3) == (
        ExampleSpec(user='Judge.\n\n{"n": 1, "a": "x"}', assistant='{"b": [1, "好"]}'),
        ExampleSpec(user='Judge.\n\n{"n": null, "a": "z"}', assistant="0"),
    )


def test_rows_that_fail_or_have_a_problem_are_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 0, "right": "no"}\nnot json\n{"n": 4, "right": "yes"}\n')
    examples = load_examples(path, PromptSpec(template="{{ 8 // n }}"), "right", count=2)
    assert examples == (ExampleSpec(user="2", assistant="yes"),)


def test_read_options_are_followed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text|label\ngrün|ja\n".encode("latin-1"))
    options = ReadOptions(encoding="latin-1", delimiter="|")
    (example,) = load_examples(path, TEMPLATE, "label", count=1, options=options)
    assert example == ExampleSpec(user="Review: grün", assistant="ja")


@pytest.mark.parametrize(
    ("prompt", "answer", "count", "error", "reason"),
    [
        (TEMPLATE, "label", 0, ParameterError, "0 examples"),
        (TEMPLATE, "label", 65, ParameterError, "65 examples"),
        (TEMPLATE, "lable", 1, UnknownColumn, "'lable'"),
        (PromptSpec(template="{{ review }}"), "label", 1, UnknownColumn, "'review'"),
        (PromptSpec(mode="messages", messages_column="text"), "label", 1, TemplateError, "'messages'"),
        (PromptSpec(template=" "), "label", 1, TableError, "reviews.csv holds no example"),
        (PromptSpec(template="{{ text }}" + "x" * 80_000), "label", 3, TableError, "first 3 examples"),
    ],
)
def test_what_cannot_be_had_is_said(reviews, prompt, answer, count, error, reason):
    with pytest.raises(error) as caught:
        load_examples(reviews, prompt, answer, count=count)
    assert reason in caught.value.message
