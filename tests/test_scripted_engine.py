"""The scripted engine behaves as an engine does, in miniature."""

from __future__ import annotations

import asyncio

import pytest

from core.engines.scripted import ScriptedEngine
from core.errors import RequestRejected
from core.types import Completion, Delta, EngineSpec, Message, Request


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
