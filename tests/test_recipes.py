"""What a row becomes: the messages, the later turns and the row's own parameters."""

import datetime
import decimal
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ParameterError, TemplateError, UnknownColumn
from core.recipes import Recipe, field_text
from core.run_spec import ExampleSpec, PromptSpec
from core.tables.types import Column
from core.types import Message


def columns(*names, kind="text"):
    return [Column(name, kind, "text") for name in names]


def recipe(*names, **prompt):
    return Recipe(PromptSpec(**prompt), columns(*names))


def test_a_template_with_everything_around_it():
    made = recipe(
        "title", "text", "lang", "temp",
        system="Answer in {{ lang }}.",
        template="{{ text }}",
        turns=("And {{ title }}?", "{{ lang }}: sure?"),
        examples=(ExampleSpec(user="2+2", assistant="4"),),
        param_columns={"temperature": "temp"},
    )  # fmt: skip
    ask = made.ask({"title": "T", "text": "hello", "lang": "German", "temp": "0.5"})
    assert ask.messages == (
        Message("system", "Answer in German."),
        Message("user", "2+2"),
        Message("assistant", "4"),
        Message("user", "hello"),
    )
    assert ask.turns == ("And T?", "German: sure?")
    assert ask.params == {"temperature": 0.5}
    assert made.variables == ("lang", "text", "title", "temp")
    assert made.order_fixed


def test_a_blank_prompt_asks_nothing_and_a_blank_system_prompt_is_left_out():
    made = recipe("s", "p", system="{{ s }}", template="{{ p }}", turns=("more",))
    assert made.ask({"s": "x", "p": " \n"}) is None
    assert made.ask({"s": " ", "p": "q"}).messages == (Message("user", "q"),)


def test_a_blank_later_turn_is_left_out():
    made = recipe("p", "t", template="{{ p }}", turns=("{{ t }}", "last"))
    assert made.ask({"p": "q", "t": ""}).turns == ("last",)


# -- fields ---------------------------------------------------------------------


def test_fields_come_as_json_behind_the_instruction_in_the_order_asked_for():
    made = recipe("评论", "n", "x", mode="fields", instruction="好还是坏？", fields=("评论", "n"))
    row = {"评论": '他说"好"', "n": 1.5}
    assert made.ask(row).messages == (Message("user", '好还是坏？\n\n{"评论": "他说\\"好\\"", "n": 1.5}'),)
    assert made.ask(row, ("n", "评论")).messages[-1].content.endswith('{"n": 1.5, "评论": "他说\\"好\\""}')
    assert made.fields == ("评论", "n")
    assert not made.order_fixed
    assert recipe("a", mode="fields", fields=("a",)).order_fixed


def test_columns_of_the_instruction_are_read_before_the_fields():
    made = recipe(
        "a", "b", "c", "s", mode="fields", fields=("a", "b"), instruction="Is {{ c }} so?", system="{{ s }}"
    )
    assert made.variables == ("s", "c", "a", "b")
    assert made.leading == ("s", "c")
    assert made.ask({"a": "1", "b": None, "c": "{{ a }}", "s": ""}).messages == (
        Message("user", 'Is {{ a }} so?\n\n{"a": "1", "b": null}'),
    )


def test_an_instruction_may_hold_json():
    made = recipe("a", mode="fields", fields=("a",), instruction='Write {"x": {"y": 1}}')
    assert made.ask({"a": "1"}).messages[-1].content == 'Write {"x": {"y": 1}}\n\n{"a": "1"}'


def test_a_row_whose_fields_are_all_blank_is_skipped():
    made = recipe("a", "b", mode="fields", fields=("a", "b"), instruction="Sum up.")
    assert made.ask({"a": " ", "b": None}) is None
    assert made.ask({"a": " ", "b": 0}) is not None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
any_text = st.text(st.characters() | st.sampled_from("\ud800\udbff"))  # halves of surrogate pairs as well


@given(
    st.dictionaries(any_text.filter(str.strip), values | any_text, min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_the_json_of_a_row_reads_back_as_the_row_whatever_its_names_and_order(row, random):
    made = recipe(*row, mode="fields", fields=tuple(row), instruction="Judge:")
    order = random.sample(list(row), len(row))
    ask = made.ask(row, order)
    if ask is None:
        assert not any(str(value or "").strip() for value in row.values())
        return
    content = ask.messages[-1].content
    content.encode("utf-8")  # whatever goes to a tokenizer has to be encodable
    read = json.loads(content.removeprefix("Judge:\n\n"))
    assert read == row
    assert list(read) == order


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (decimal.Decimal("1.10"), "1.10"),
        (math.inf, '"inf"'),
        ([1.0, math.nan], '[1.0, "nan"]'),
        ({1: {datetime.date(2024, 1, 2): math.inf}}, '{"1": {"2024-01-02": "inf"}}'),
        (datetime.date(2024, 1, 2), '"2024-01-02"'),
        (b"\x00\xff", '"00ff"'),
        (True, "true"),
    ],
)
def test_what_json_lacks_becomes_text(value, text):
    assert field_text("a", value) == f'"a": {text}'


# -- chats ----------------------------------------------------------------------

CHAT = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]


@pytest.mark.parametrize("cell", [CHAT, json.dumps(CHAT)])
def test_a_chat_gets_the_system_prompt_and_the_examples_in_front(cell):
    made = recipe(
        "chat", "s", mode="messages", messages_column="chat", system="{{ s }}",
        examples=(ExampleSpec(user="u", assistant="v"),),
    )  # fmt: skip
    said = [(message.role, message.content) for message in made.ask({"chat": cell, "s": "S"}).messages]
    assert said == [
        ("system", "S"), ("user", "u"), ("assistant", "v"),
        ("user", "a"), ("assistant", "b"), ("user", "c"),
    ]  # fmt: skip
    assert made.variables == ("s", "chat")


def test_a_chat_keeps_its_own_system_prompt():
    made = recipe(
        "chat",
        mode="messages",
        messages_column="chat",
        system="no",
        examples=({"user": "u", "assistant": "v"},),
    )
    chat = [{"role": "developer", "content": "own"}, {"role": "user", "content": "hi"}]
    assert [message.content for message in made.ask({"chat": chat}).messages] == ["own", "u", "v", "hi"]


def test_text_parts_of_a_message_are_joined():
    made = recipe("chat", mode="messages", messages_column="chat")
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert made.ask({"chat": [{"role": "user", "content": parts}]}).messages == (Message("user", "one\ntwo"),)


@pytest.mark.parametrize("cell", [None, " ", '[{"role": "user", "content": " "}]'])
def test_a_blank_chat_is_skipped(cell):
    assert recipe("chat", mode="messages", messages_column="chat").ask({"chat": cell}) is None


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("hello", "no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"role": "user", "content": "x"}', "a list of messages, not an object"),
        ("3", "not a number"),
        ("[]", "no messages"),
        ('["x"]', "message 1: expected an object with role and content, not a text"),
        ('[{"role": "tool", "content": "x"}]', "message 1: role 'tool'"),
        ('[{"role": ["user"], "content": "x"}]', "role ['user']"),
        ('[{"role": "user"}]', "the content is nothing"),
        ('[{"role": "user", "content": 1}]', "the content is a number"),
        ('[{"role": "user", "content": [{"type": "image_url"}]}]', "type 'image_url'"),
        ('[{"role": "user", "content": "x", "tool_calls": [1]}]', "'tool_calls' is not supported"),
        ('[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]', "the assistant's"),
    ],
)
def test_a_broken_chat_says_what_is_wrong_and_where(cell, reason):
    made = recipe("chat", mode="messages", messages_column="chat")
    with pytest.raises(TemplateError) as caught:
        made.ask({"chat": cell})
    assert caught.value.message.startswith("Column 'chat'")
    assert reason in caught.value.message


# -- turns and parameters from columns ------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "turns"),
    [(None, ()), (" ", ()), ('["why?", " ", "and?"]', ("why?", "and?")), (["why?"], ("why?",)), ("[]", ())],
)
def test_turns_from_a_column(cell, turns):
    made = recipe("p", "t", template="{{ p }}", turns_column="t")
    assert made.ask({"p": "q", "t": cell}).turns == turns
    assert made.variables == ("p", "t")


@pytest.mark.parametrize("cell", ["why?", '"why?"', "[1]", '{"a": 1}'])
def test_turns_that_are_no_list_of_texts_fail_the_row(cell):
    with pytest.raises(TemplateError, match="Column 't'"):
        recipe("p", "t", template="{{ p }}", turns_column="t").ask({"p": "q", "t": cell})


def test_parameters_from_columns_leave_out_blank_cells():
    made = recipe(
        "p",
        "t",
        "s",
        "m",
        template="{{ p }}",
        param_columns={"temperature": "t", "stop": "s", "max_tokens": "m"},
    )
    assert made.ask({"p": "q", "t": "", "s": None, "m": "7"}).params == {"max_tokens": 7}
    assert made.ask({"p": "q", "t": 0, "s": "END", "m": 7}).params == {
        "temperature": 0.0,
        "stop": ["END"],
        "max_tokens": 7,
    }
    assert made.variables == ("p", "t", "s", "m")


def test_a_bad_parameter_names_its_column_and_value():
    made = recipe("p", "how hot", template="{{ p }}", param_columns={"temperature": "how hot"})
    with pytest.raises(ParameterError, match="Column 'how hot': temperature='very' is not a number"):
        made.ask({"p": "q", "how hot": "very"})
    with pytest.raises(ParameterError, match=r"Column 'how hot': temperature=-1\.0 is out of range"):
        made.ask({"p": "q", "how hot": "-1"})


# -- what can't work is refused before the run -----------------------------------------


@pytest.mark.parametrize(
    ("prompt", "error", "reason"),
    [
        ({"template": "{{ q }}"}, UnknownColumn, "'q'"),
        ({"template": "x", "system": "{{ q }}"}, UnknownColumn, "'q'"),
        ({"template": "x", "turns": ("{{ q }}",)}, UnknownColumn, "'q'"),
        ({"template": "x", "turns_column": "q"}, UnknownColumn, "'q'"),
        ({"template": "x", "turns": ("y",), "turns_column": "a"}, TemplateError, "twice"),
        ({"template": "x", "param_columns": {"seed": "q"}}, UnknownColumn, "'q'"),
        ({"template": "x", "param_columns": {"sead": "a"}}, ParameterError, "'sead'"),
        ({"mode": "fields"}, TemplateError, "No fields"),
        ({"mode": "fields", "fields": ("q",)}, UnknownColumn, "'q'"),
        ({"mode": "fields", "fields": ("a", "a")}, TemplateError, "twice"),
        ({"mode": "fields", "fields": ("a",), "instruction": "{{ q }}"}, UnknownColumn, "'q'"),
        ({"mode": "messages"}, TemplateError, "No column"),
        ({"mode": "messages", "messages_column": "q"}, UnknownColumn, "'q'"),
        ({"mode": "openai"}, TemplateError, "no OpenAI Batch file"),
    ],
)
def test_a_specification_that_cannot_work(prompt, error, reason):
    with pytest.raises(error) as caught:
        recipe("a", "b", **prompt)
    assert reason in caught.value.message


def test_half_a_surrogate_pair_does_not_reach_the_tokenizer():
    made = recipe("p", template="{{ p }}", system="{{ p }}", turns=("{{ p }}",))
    ask = made.ask({"p": "a\ud800b"})
    assert [message.content for message in ask.messages] == ["a?b", "a?b"]
    assert ask.turns == ("a?b",)
