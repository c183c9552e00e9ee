"""What the model thought and what it says, by every family's marks, wherever the text breaks off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.reasoning import PARSERS, Reasoned, opened_by, split

WHOLE = {
    "think": "<think>\nT one\n</think>\n\nA two",
    "think_opened": "T one\n</think>\n\nA two",
    "hunyuan_a13b": "<think>\nT one\n</think>\n<answer>\nA two</answer>",
    "thinking": "<thinking>T one</thinking>A two",
    "reasoning": " <reasoning>T one</reasoning> A two",
    "mistral": "[THINK]T one[/THINK]A two",
    "seed_oss": "<seed:think>T one</seed:think>A two",
    "minimax_m3": "<mm:think>T one</mm:think>A two",
    "kimi": "◁think▷T one◁/think▷A two",
    "kimi_k3": "<|open|>think<|sep|>T one<|close|>think<|sep|><|open|>response<|sep|>A two"
    "<|close|>response<|sep|><|close|>message<|sep|>",
    "gpt_oss": "<|channel|>analysis<|message|>T one<|end|>"
    "<|start|>assistant<|channel|>final<|message|>A two<|return|>",
    "gemma4": "<|channel>thought\nT one<channel|>A two",
    "cohere": "<|START_THINKING|>T one<|END_THINKING|><|START_RESPONSE|>A two<|END_RESPONSE|>",
    "granite": "Here is my thought process: T one Here's my response: A two",
}


@pytest.mark.parametrize("parser", PARSERS)
def test_each_parser_reads_its_own_marks(parser):
    assert split(WHOLE[parser], parser) == Reasoned("T one", "A two")


@pytest.mark.parametrize("parser", [name for name, parser in PARSERS.items() if parser.automatic])
def test_auto_finds_the_marks_by_itself(parser):
    assert split(WHOLE[parser]) == Reasoned("T one", "A two")
    assert split(WHOLE["think_opened"]) == Reasoned("T one", "A two")


@pytest.mark.parametrize("parser", PARSERS)
def test_a_growing_text_is_open_until_its_closing_mark(parser):
    text = WHOLE[parser]
    states = [split(text[:end], parser) for end in range(text.index("T one") + 5, len(text) + 1)]
    opened = [state.is_open for state in states]
    assert opened == sorted(opened, reverse=True) and opened[0] and not opened[-1]
    assert all(state.answer == "" for state in states if state.is_open)
    assert all(state.reasoning.startswith("T one") for state in states)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<think>\n\n</think>\n\nA", Reasoned("", "A")),
        ("<think>T</think>", Reasoned("T", "")),
        ("<think>T</think>A <think>no</think>", Reasoned("T", "A <think>no</think>")),
        ("<think>T</think>\n<think>U</think>\nA", Reasoned("T\n\nU", "A")),
        ("analysisWe think.assistantfinalA", Reasoned("We think.", "A")),
        ("analysisWe think", Reasoned("We think", "", is_open=True)),
        ("<|channel|>final<|message|>A<|return|>", Reasoned("", "A")),
        ("analysis of the text", Reasoned("", "analysis of the text")),
        ("`<think>` opens, `</think>` closes.", Reasoned("", "`<think>` opens, `</think>` closes.")),
        ("It ends with '</think>'.", Reasoned("", "It ends with '</think>'.")),
        ("Say <think>x</think>.", Reasoned("", "Say <think>x</think>.")),
        ("<answer>A</answer>", Reasoned("", "<answer>A</answer>")),
        ("Here is my response: A", Reasoned("", "Here is my response: A")),
        ("  A\n", Reasoned("", "  A\n")),
        ("", Reasoned("", "")),
    ],
)  # fmt: skip
def test_auto_takes_nothing_for_thoughts_that_is_none(text, found):
    assert split(text) == found


def test_the_prompt_tells_that_an_answer_begins_inside():
    assert opened_by("<|im_start|>assistant\n<think>\n") and opened_by("...[THINK]")
    assert not opened_by("<think>\n\n</think>\n\n") and not opened_by("")
    assert split("T one", begins_inside=True) == Reasoned("T one", "", is_open=True)
    for thought in ("T one", "the tag <think> opens"):
        assert split(f"{thought}\n</think>\nA", begins_inside=True) == Reasoned(thought, "A")
        assert split(f"{thought}\n</think>\nA", "think_opened") == Reasoned(thought, "A")


def test_none_parts_nothing():
    assert split(WHOLE["think"], "none") == Reasoned("", WHOLE["think"])


MARKS = st.sampled_from(
    ["<think>", "</think>", "<|end|>", "assistantfinal", "[THINK]", "[/THINK]", " ", "\n", "`"]
)


@given(st.lists(MARKS | st.text(max_size=4), max_size=12).map("".join), st.sampled_from(["auto", *PARSERS]))
def test_no_text_is_made_up_or_told_twice(text, parser):
    found = split(text, parser)
    assert found.answer in text
    assert all(thought in text for thought in found.reasoning.split("\n\n"))
    assert len(found.reasoning) + len(found.answer) <= len(text) + 2 * text.count(
        "<"
    )  # "\n\n" between thoughts
    assert not (found.is_open and found.answer)
