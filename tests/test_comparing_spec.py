"""What a comparison asks: read, refused, made from grids, conversations and tables, and given to a batch."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.comparing.rows import sample_file
from core.comparing.spec import (
    ComparisonSpec,
    PromptItem,
    SetSpec,
    from_conversation,
    grid,
    messages_of,
    params_of,
    read_spec,
    to_prompt_spec,
)
from core.errors import ParameterError, TableError, TemplateError, UnknownColumn
from core.recipes import Recipe
from core.run_spec import PromptSpec
from core.tables.types import Column
from core.types import Message

SETS = [{"name": "cold", "params": {"temperature": 0}}, {"name": "warm", "params": {"temperature": "1.2"}}]


def test_a_specification_survives_json_and_counts_its_answers():
    spec = read_spec(
        {"prompts": [{"messages": "Why?"}, {"messages": "How?"}], "sets": SETS, "seeds": [1, 2, None]}
    )
    assert spec.words == "2 prompts x 2 sets x 3 samples = 12 answers"
    assert spec.sets[1].params == {"temperature": 1.2}
    assert spec.prompts[0].messages == (Message("user", "Why?"),)
    assert read_spec(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompts": []}, "prompts"),
        ({"sets": []}, "sets"),
        ({"seeds": []}, "seeds"),
        ({"surplus": 1}, "surplus"),
        ({"prompts": [{"messages": " \n"}]}, "prompt is empty"),
        ({"prompts": [{"messages": [{"role": "assistant", "content": "Hi"}]}]}, "must be the user's"),
        ({"sets": [SETS[0], SETS[0]]}, "Two sets are called 'cold'"),
        ({"sets": [{"name": "x", "params": {"temprature": 1}}]}, "Did you mean temperature"),
        ({"sets": [{"name": "x", "params": {"n": 2}}]}, "seeds"),
        ({"sets": [{"name": "x", "template": "{{ nothing }}"}]}, "nothing"),
        ({"baseline": 2}, "baseline"),
        ({"seeds": list(range(6000))}, "more than 10,000"),
        ({"seeds": list(range(1300)), "top_logprobs": 1}, "too many to keep"),
    ],
)
def test_what_can_not_be_compared_is_refused_with_its_reason(change, says):
    with pytest.raises((ParameterError, TemplateError), match=says):
        read_spec({"prompts": [{"messages": "Why?"}], "sets": SETS, **change})


def test_text_that_is_no_json_names_the_place():
    with pytest.raises(ParameterError, match="line 1"):
        read_spec('{"prompts": ')


def test_a_set_replaces_the_system_prompt_and_the_question():
    chat = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "Why?"),
    )
    item = PromptItem(messages=chat, values={"tone": "kind"})
    assert messages_of(item, SetSpec(name="x")) == chat
    assert messages_of(item, SetSpec(name="x", system=" ")) == chat[1:]
    changed = messages_of(item, SetSpec(name="x", system="Be long.", template="{{ prompt }} Be {{ tone }}."))
    assert changed == (Message("system", "Be long."), *chat[1:3], Message("user", "Why? Be kind."))


def test_a_samples_seed_comes_before_the_sets_own():
    one = SetSpec(name="x", params={"seed": 7, "top_k": 5})
    assert params_of(one, None) == {"seed": 7, "top_k": 5}
    assert params_of(one, 3) == {"seed": 3, "top_k": 5}


def test_a_grid_has_every_combination_and_says_what_differs():
    base = SetSpec(name="base", params={"temperature": 1, "max_tokens": 9})
    sets = grid(base, {"temperature": ["0", 0.3], "top_p": [0.8, None]})
    assert [one.name for one in sets] == [
        "temperature 0, top_p 0.8", "temperature 0, no top_p",
        "temperature 0.3, top_p 0.8", "temperature 0.3, no top_p",
    ]  # fmt: skip
    assert sets[1].params == {"temperature": 0.0, "max_tokens": 9}
    assert sets[2].params == {"temperature": 0.3, "top_p": 0.8, "max_tokens": 9}


def test_a_grid_goes_over_system_prompts_and_templates():
    long = "You are a pirate who has sailed all seven seas."
    sets = grid(SetSpec(name="base"), {"system": [None, "Be brief.", long], "style": ["chat", "completion"]})
    assert [one.name for one in sets][::2] == [
        "no system, style chat", "system Be brief., style chat", "system 3, style chat",
    ]  # fmt: skip
    assert [one.system for one in sets][::2] == [None, "Be brief.", long]
    assert sets[5].style == "completion"


@given(
    st.lists(st.floats(0, 2), min_size=1, max_size=6, unique=True),
    st.lists(st.text(max_size=40), min_size=1, max_size=6, unique=True),
)
@example([0.3, 0.30000001], ["", " ", "1", "x" * 30])
def test_every_set_of_a_grid_has_a_name_of_its_own(temperatures, systems):
    sets = grid(SetSpec(name="base"), {"temperature": temperatures, "system": systems})
    assert len({one.name for one in sets}) == len(sets) == len(temperatures) * len(systems)
    assert ComparisonSpec(prompts=(PromptItem(messages="Why?"),), sets=sets).sets == sets


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"temperature": []}, "no value"),
        ({"temperature": [1, 1.0]}, "twice"),
        ({"temperatur": [1]}, "Did you mean temperature"),
        ({"seed": range(65)}, "65 sets"),
        ({"top_p": [7]}, "out of range"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(axes, says):
    with pytest.raises(ParameterError, match=says):
        grid(SetSpec(name="base"), axes)


def test_every_question_of_a_conversation_is_a_prompt_with_what_came_before():
    chat = [Message("system", "S"), Message("user", "A"), Message("assistant", "B"), Message("user", "C")]
    first, second = from_conversation([*chat, Message("assistant", "D")])
    assert first.messages == tuple(chat[:2]) and second.messages == tuple(chat)
    with pytest.raises(ParameterError, match="no question"):
        from_conversation(chat[:1])


# -- rows of a table ----------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"text": f"film {n}", "stars": n / 2, "on": None if n == 3 else "x"} for n in range(40)]
    rows[5]["text"] = ""
    path.write_text(
        "\n".join(json.dumps(row) for row in rows) + '\n{"text": "half\\ud800", "stars": 1}\n', "utf-8"
    )
    return path


def test_rows_become_prompts_in_file_order_the_same_for_a_seed(table):
    prompt = PromptSpec(template="Good? {{ text }}", system="Judge.")
    items = sample_file(table, prompt, 8, seed=6, reference_column="stars")
    assert len(items) == 8 and items == sample_file(table, prompt, 8, seed=6, reference_column="stars")
    assert items != sample_file(table, prompt, 8, seed=4, reference_column="stars")
    numbers = [int(item.label.removeprefix("row ")) for item in items]
    assert numbers == sorted(numbers)
    for number, item in zip(numbers, items, strict=True):
        assert item.messages == (Message("system", "Judge."), Message("user", f"Good? film {number - 1}"))
        assert item.reference == f"{(number - 1) / 2:g}" and item.values["text"] == f"film {number - 1}"


def test_blank_prompts_are_passed_over_and_the_first_rows_can_be_asked_for(table):
    items = sample_file(table, PromptSpec(template="{{ text }}"), 7, seed=None)
    assert [item.label for item in items] == ["row 1", "row 2", "row 3", "row 4", "row 5", "row 7", "row 8"]


def test_text_that_no_file_can_hold_is_mended(table):
    items = sample_file(table, PromptSpec(template="{{ text }}"), 1000, reference_column="text")
    spec = ComparisonSpec(prompts=items, sets=(SetSpec(name="x"),))
    assert read_spec(spec.model_dump_json()).prompts[-1].reference == "half?"


@pytest.mark.parametrize(
    ("prompt", "rows", "error"),
    [
        (PromptSpec(template="{{ nothing }}"), 3, UnknownColumn),
        (PromptSpec(template="{{ text }}", turns=("And?",)), 3, TemplateError),
        (PromptSpec(template="{{ text }}", param_columns={"seed": "stars"}), 3, TemplateError),
        (PromptSpec(template="{{ text }}"), 0, ParameterError),
        (PromptSpec(template="{{ text.nothing.at_all }}"), 3, TableError),
    ],
)
def test_what_can_not_be_sampled_is_refused(table, prompt, rows, error):
    with pytest.raises(error):
        sample_file(table, prompt, rows)


def test_rows_too_long_for_a_comparison_are_refused(table, monkeypatch):
    monkeypatch.setattr("core.comparing.rows.MAX_CHARACTERS", 30)
    with pytest.raises(TableError, match="over 30 characters"):
        sample_file(table, PromptSpec(template="{{ text }}"), 8)


# -- on to the batch ------------------------------------------------------------------


def test_a_winning_set_asks_a_batch_for_the_same(table):
    prompt = PromptSpec(template="Good? {{ text }}", system="Judge.")
    (item,) = sample_file(table, prompt, 1, seed=None)
    params = {"temperature": 0.0}
    assert to_prompt_spec(SetSpec(name="x", params=params), item) == (prompt, params)
    other = SetSpec(name="x", system="Be {{ mild }}.", template="Bad? {{ text }}")
    changed, _ = to_prompt_spec(other, item)
    ask = Recipe(changed, [Column(name, "text", "text") for name in item.values]).ask(item.values)
    assert ask.messages == messages_of(item, other)


def test_a_typed_prompt_becomes_a_template_that_says_the_same():
    text = "Say {{ this }} and {% that %}."
    chat = [Message("system", "S"), Message("user", "A"), Message("assistant", "B"), Message("user", text)]
    item = PromptItem(messages=chat)
    prompt, _ = to_prompt_spec(SetSpec(name="x"), item)
    assert Recipe(prompt, []).ask({}).messages == tuple(chat)
