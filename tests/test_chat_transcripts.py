"""Chats as files: what is written is read back as it was, and what is no chat says what is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import transcripts
from core.errors import ParameterError, WorkbenchError
from core.transcripts import Transcript
from core.types import Message

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
NASTY = st.sampled_from(
    ["# One\n\n## User\n", "```python\n# Code\n```", "<!-- message: user -->", "\\<!-- message: user -->",
     "a\r\nb\r", "\n\n", " ", "- Model: x", "---", "<!-- message: assistant -->\n## Assistant\n\nnot I", "`"]
)  # fmt: skip
CONTENTS = st.lists(WORDS | NASTY, max_size=4).map("\n".join)
LINES = WORDS.map(lambda text: " ".join(text.split()))
TURNS = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), CONTENTS), min_size=1, max_size=5)
SYSTEM = st.lists(st.builds(Message, st.just("system"), CONTENTS), max_size=1)
TRANSCRIPTS = st.builds(
    Transcript,
    title=LINES,
    model=LINES,
    params=st.sampled_from(
        [{}, {"temperature": 0.5, "stop": ["`", "</s>\n", "终"]}, {"logit_bias": {7: -1.0}}]
    ),
    options=st.sampled_from([{}, {"style": "a`b", "n": 2}]),
    messages=st.builds(lambda system, turns: (*system, *turns), SYSTEM, TURNS),
)


@given(TRANSCRIPTS)
def test_json_is_read_back_as_it_was(transcript):
    assert transcripts.read(transcripts.to_json(transcript)) == transcript


@given(TRANSCRIPTS)
def test_markdown_is_read_back_as_it_was(transcript):
    assert transcripts.read(transcripts.to_markdown(transcript)) == transcript


@given(TRANSCRIPTS)
def test_both_can_be_written_to_a_file(transcript):
    transcripts.to_json(transcript).encode()
    transcripts.to_markdown(transcript).encode()


TALK = Transcript(
    title="Cats",
    model="SmolLM2",
    params={"temperature": 0.5},
    messages=(
        Message("system", "Be brief."),
        Message("user", "# What?\n\nA cat"),
        Message("assistant", "Yes."),
    ),
)


def test_json_has_openais_messages():
    assert json.loads(transcripts.to_json(TALK)) == {
        "title": "Cats",
        "model": "SmolLM2",
        "params": {"temperature": 0.5},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "# What?\n\nA cat"},
            {"role": "assistant", "content": "Yes."},
        ],
    }


def test_markdown_reads_well():
    assert (
        transcripts.to_markdown(TALK)
        == """\
# Cats

- Model: SmolLM2
- Parameters: `{"temperature": 0.5}`

<!-- message: system -->
## System

Be brief.

<!-- message: user -->
## User

# What?

A cat

<!-- message: assistant -->
## Assistant

Yes.
"""
    )


def test_markdown_survives_an_editor_of_windows():
    assert transcripts.read("\ufeff" + transcripts.to_markdown(TALK).replace("\n", "\r\n")) == TALK


def test_a_bare_list_of_messages_is_a_chat():
    body = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "refusal": None}]
    assert transcripts.read(json.dumps(body)) == Transcript(
        messages=(Message("user", "Hi"), Message("assistant", "Hello"))
    )


def test_openais_other_forms_are_read():
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    body = {"messages": [{"role": "developer", "content": "S"}, {"role": "user", "content": parts}]}
    read = transcripts.from_json(json.dumps(body))
    assert read.messages == (Message("system", "S"), Message("user", "What is this?"))


def test_several_system_messages_at_the_start_become_one():
    body = [
        {"role": "system", "content": "A"},
        {"role": "system", "content": "B"},
        {"role": "user", "content": "Q"},
    ]
    assert transcripts.from_json(json.dumps(body)).messages[0] == Message("system", "A\n\nB")


def test_half_a_character_does_no_harm():
    message = '{"role": "user", "content": "\\ud83d \\ud83d\\ude00"}'
    text = f'{{"params": {{"stop": ["\\udfff"]}}, "messages": [{message}]}}'
    read = transcripts.read(text)
    assert read.messages == (Message("user", "\ufffd 😀"),) and read.params == {"stop": ["\ufffd"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no messages"),
        ("# Notes\n\n## User\n\nnot exported here", "no messages"),
        ("{", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("{}", 'no list of "messages"'),
        ('{"messages": "hi"}', 'no list of "messages"'),
        ("[1]", "Message 1 has the role None"),
        ('[{"role": ["user"], "content": "hi"}]', "Message 1 has the role"),
        ('[{"role": "user", "content": ""}, {"role": "tool", "content": "4"}]', "Message 2 has the role"),
        ('[{"role": "assistant", "content": null}]', "Message 1 has no text"),
        ('[{"role": "user", "content": [{"type": "image_url"}]}]', "parts that are not text"),
        ('[{"role": "user", "content": "Q"}, {"role": "system", "content": "S"}]', "system message stands"),
        ('{"messages": [], "title": 5}', '"title" is not text'),
        ('{"messages": [], "params": 5}', '"params" is not an object'),
        ("# T\n\n- Parameters: `{`\n\n<!-- message: user -->\n## User\n\nQ\n", "'Parameters' is not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_chat_says_what_is_wrong(text, words):
    with pytest.raises(WorkbenchError, match=words) as caught:
        transcripts.read(text)
    assert caught.value.hint


def test_parameters_are_checked():
    with pytest.raises(ParameterError, match="temperature"):
        transcripts.read('{"messages": [], "params": {"temperature": "hot"}}')
