"""The scripted engine behaves as an engine does, in miniature."""

from __future__ import annotations

import asyncio
import math

import jinja2
import numpy as np
import pytest

from core import structured
from core.engines.scripted import ScriptedEngine
from core.errors import RequestRejected, TemplateError
from core.types import Completion, Delta, EngineSpec, Message, Request, TokenLogprob


def complete(prompt: str, **params: object) -> Completion:
    engine = ScriptedEngine(EngineSpec(engine="scripted"))
    return asyncio.run(engine.complete(Request(id="1", prompt=prompt, params=params)))


def test_same_prompt_and_seed_answer_the_same() -> None:
    assert complete("red green", seed=1).text == complete("red green", seed=1).text
    assert complete("red green", seed=1).text != complete("red green", seed=2).text
    assert complete("red green", seed=1).text != complete("red blue", seed=1).text


def test_temperature_zero_ignores_the_seed() -> None:
    assert (
        complete("red", temperature=0, seed=1).text
        == complete("red", temperature=0.0, seed=2).text
        == complete("red", temperature=0).text
    )


def test_max_tokens_cuts_with_reason_length() -> None:
    answer = complete("one two three four", max_tokens=2)
    assert (answer.output_tokens, answer.finish_reason) == (2, "length")


def test_ignore_eos_fills_max_tokens() -> None:
    answer = complete("one", max_tokens=40, ignore_eos=True)
    assert (answer.output_tokens, answer.finish_reason) == (40, "length")


def test_stop_text_is_left_out_unless_asked_for() -> None:
    assert complete("one STOP two", stop=["STOP"]).text.endswith("one ")
    assert complete("one STOP two", stop=["STOP"], include_stop_str_in_output=True).text.endswith("one STOP")


def test_too_long_a_prompt_is_rejected_with_its_length() -> None:
    engine = ScriptedEngine(EngineSpec(engine="scripted", max_model_len=16))
    with pytest.raises(RequestRejected, match="20 tokens; the context holds 16"):
        asyncio.run(engine.complete(Request(id="1", prompt=" word" * 20)))


def test_deltas_add_up_to_the_completion() -> None:
    engine = ScriptedEngine(EngineSpec(engine="scripted"), tokens_per_s=10_000)

    async def collect() -> list[Delta | Completion]:
        return [item async for item in engine.stream(Request(id="1", prompt="one two three"))]

    *deltas, completion = asyncio.run(collect())
    assert isinstance(completion, Completion)
    assert "".join(delta.text for delta in deltas) == completion.text
    assert sum(delta.tokens for delta in deltas) == completion.output_tokens == engine.stats().output_tokens
    assert completion.timing.ttft_s <= completion.timing.e2el_s


def test_closing_the_stream_ends_the_request() -> None:
    engine = ScriptedEngine(EngineSpec(engine="scripted"), tokens_per_s=10_000)

    async def read_one() -> int:
        stream = engine.stream(Request(id="1", prompt="one two three"))
        await anext(stream)
        running = engine.stats().running
        await stream.aclose()
        return running

    assert asyncio.run(read_one()) == 1
    assert engine.stats().running == 0


def test_token_ids_and_text_are_the_same_prompt() -> None:
    engine = ScriptedEngine(EngineSpec(engine="scripted"))
    (text,) = engine.render_chat([[Message("user", "naïve café\n\n two  spaces ")]])
    (ids,) = engine.encode([text])
    assert engine.decode(ids) == text
    by_text = asyncio.run(engine.complete(Request(id="1", prompt=text)))
    by_ids = asyncio.run(engine.complete(Request(id="2", prompt=ids)))
    assert by_text.text == by_ids.text


def test_several_answers_differ_and_the_first_is_the_single_one() -> None:
    one = complete("red green", seed=1)
    three = complete("red green", seed=1, n=3, logprobs=0)
    assert three.text == three.samples[0].text == one.text
    assert len({sample.text for sample in three.samples}) == 3
    assert three.output_tokens == sum(sample.output_tokens for sample in three.samples)
    assert (one.samples, one.cumulative_logprob) == ((), None)
    assert three.cumulative_logprob == three.samples[0].cumulative_logprob < 0
    with pytest.raises(RequestRejected, match="n must be 1"):
        complete("red", n=2, temperature=0)


SCHEMA = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 20, "maxLength": 24},
        "age": {"type": "integer", "minimum": 18, "maximum": 19},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
        "label": {"enum": ["x", "y"]},
        "maybe": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 3},
        "node": {"$ref": "#/$defs/node"},
    },
    "required": ["name", "age", "share", "label", "maybe", "tags", "node"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "structure",
    [{"choice": ["yes", "no"]}, {"json": SCHEMA}, {"json_object": True}, {"regex": "plain"}],
    ids=lambda structure: next(iter(structure)),
)
def test_answers_keep_to_their_structure(structure: dict[str, object]) -> None:
    answers = [complete(f"prompt {number}", structured_outputs=structure) for number in range(30)]
    assert all(structured.valid(structure, answer.text) for answer in answers)
    assert len({answer.text for answer in answers}) > 1 or "regex" in structure
    assert answers[0].text == complete("prompt 0", structured_outputs=structure).text


def test_a_structured_answer_can_be_cut_and_then_is_none() -> None:
    answer = complete("a", structured_outputs={"json": SCHEMA}, max_tokens=3)
    assert answer.finish_reason == "length"
    assert structured.valid({"json": SCHEMA}, answer.text) is False


@pytest.mark.parametrize(
    "structure",
    [
        {"regex": "[0-9]+"},
        {"grammar": 'root ::= "a"'},
        {"json": {"type": "string", "pattern": "^[0-9]+$"}},
        {"json": {"not": {}}},
    ],
)
def test_a_structure_it_can_not_keep_to_is_rejected(structure: dict[str, object]) -> None:
    with pytest.raises(RequestRejected, match="can't make up an answer"):
        complete("a", structured_outputs=structure)


def test_scores_are_probabilities_and_depend_on_the_prompt() -> None:
    engine = ScriptedEngine(EngineSpec(engine="scripted"))

    def score(prompt: str) -> list[float]:
        return asyncio.run(engine.score(Request(id="1", prompt=prompt), ["yes", "no", "perhaps"]))

    assert score("red") == score("red") != score("blue")
    assert sum(math.exp(each) for each in score("red")) == pytest.approx(0.9)


def test_a_prefix_seen_before_counts_as_cached() -> None:
    engine = ScriptedEngine(EngineSpec(engine="scripted"))

    def ask(prompt: str) -> int | None:
        return asyncio.run(engine.complete(Request(id="1", prompt=prompt))).cached_tokens

    document = "word " * 40
    assert ask(document + "first question") == 0
    assert ask(document + "second question") == 32
    assert ask("another " + document) == 0
    assert ask("short") == 0
    assert (engine.stats().prefix_queries, engine.stats().prefix_hits) == (42 + 42 + 42 + 1, 32)


def test_tokens_come_with_their_alternatives_by_rank() -> None:
    engine = ScriptedEngine(EngineSpec(engine="scripted"))
    request = Request(id="1", prompt="red green blue", top_logprobs=5)

    async def collect() -> list[Delta | Completion]:
        return [item async for item in engine.stream(request)]

    *deltas, completion = asyncio.run(collect())
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert tuple(entries) == completion.logprobs
    assert [entry.text for entry in entries] == [delta.text for delta in deltas]
    assert completion.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in entries))
    for entry in entries:
        assert [each.rank for each in entry.alternatives] == [1, 2, 3, 4, 5]
        assert sum(math.exp(each.logprob) for each in entry.alternatives) <= 1
        if entry.rank <= 5:
            assert entry.alternatives[entry.rank - 1].token_id == entry.token_id
    assert {entry.rank for entry in entries} != {1}
    assert complete("red green blue").logprobs == ()


def test_zero_alternatives_give_the_tokens_alone() -> None:
    engine = ScriptedEngine(EngineSpec(engine="scripted"))
    answer = asyncio.run(engine.complete(Request(id="1", prompt="red", top_logprobs=0)))
    assert len(answer.logprobs) == answer.output_tokens
    assert all(isinstance(entry, TokenLogprob) and not entry.alternatives for entry in answer.logprobs)


def test_the_next_token_has_a_distribution_of_its_own() -> None:
    engine = ScriptedEngine(EngineSpec(engine="scripted"))

    def ask(prompt: str) -> np.ndarray:
        return asyncio.run(engine.next_logprobs(Request(id="1", prompt=prompt)))

    found = ask("red green")
    assert (found.shape, found.dtype) == ((512,), np.float32)
    assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)
    assert np.array_equal(found, ask("red green"))
    assert not np.array_equal(found, ask("red blue"))
    assert len(engine.pieces(range(512))) == 512


def test_pieces_are_the_text() -> None:
    engine = ScriptedEngine(EngineSpec(engine="scripted"))
    (text,) = engine.render_chat([[Message("user", "naïve café\n\n two  spaces ")]])
    (ids,) = engine.encode([text])
    pieces = engine.pieces(ids)
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.token_id for piece in pieces] == ids
    assert [piece.text.strip() for piece in pieces if piece.special] == ["<user>", "<assistant>"]


def test_the_chat_template_is_the_one_that_renders() -> None:
    engine = ScriptedEngine(EngineSpec(engine="scripted"))
    chat = [Message("system", "Be {{ brief }}."), Message("user", "Hi")]
    template = jinja2.Template(engine.chat_template, keep_trailing_newline=True)
    (text,) = engine.render_chat([chat])
    assert text == "<system>\nBe {{ brief }}.\n<user>\nHi\n<assistant>\n"
    assert text == template.render(messages=[message.as_dict() for message in chat])
    (other,) = engine.render_chat([chat], {"enable_thinking": False})
    assert other == text + "<no-thinking>\n"
    with pytest.raises(TemplateError, match="messages"):
        engine.render_chat([chat], {"messages": []})


def test_a_beam_search_answers_in_one_piece() -> None:
    engine = ScriptedEngine(EngineSpec(engine="scripted"))

    async def collect(**params: object) -> list[Delta | Completion]:
        return [item async for item in engine.stream(Request(id="1", prompt="one two", params=params))]

    delta, completion = asyncio.run(collect(beam_width=4))
    assert (delta.text, delta.tokens) == (completion.text, completion.output_tokens)
    assert completion.text == complete("one two", beam_width=4, seed=3).text
    assert completion.text != complete("one two", beam_width=4, length_penalty=2.0).text
    assert engine.stats().running == 0
