"""Beam search on real vLLM, on the engine that all tests share."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest

from core.engines import vllm_beams
from core.errors import RequestRejected
from core.runtime import Runtime
from core.types import Completion, Delta, Message, Priority, Request

pytestmark = pytest.mark.engine

_ids = itertools.count()


def request(prompt: Any, top_logprobs: int | None = None, **params: Any) -> Request:
    return Request(id=f"beam-{next(_ids)}", prompt=prompt, params=params, top_logprobs=top_logprobs)


def ask(runtime: Runtime, question: str) -> str:
    return runtime.engine.render_chat([[Message("user", question)]])[0]


def complete(runtime: Runtime, wanted: Request) -> Completion:
    return runtime.run(runtime.engine.complete(wanted))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_answer_comes_whole_and_is_likelier_than_the_greedy_one(engine_runtime: Runtime) -> None:
    prompt = ask(engine_runtime, "Tell me about the sea.")
    params = {"max_tokens": 12, "ignore_eos": True, "logprobs": 0}

    async def collect() -> list[Delta | Completion]:
        found = engine_runtime.engine.stream(request(prompt, 3, beam_width=4, **params))
        return [item async for item in found]

    delta, searched = engine_runtime.run(collect())
    assert (delta.text, delta.tokens, delta.logprobs) == (searched.text, 12, searched.logprobs)
    assert (searched.output_tokens, searched.finish_reason, searched.samples) == (12, "length", ())
    assert searched.text == "".join(entry.text for entry in searched.logprobs)
    assert all([each.rank for each in entry.alternatives] == [1, 2, 3] for entry in searched.logprobs)
    assert searched.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in searched.logprobs))
    greedy = complete(engine_runtime, request(prompt, temperature=0, **params))
    # the greedy path is one of those that a search weighs; a little is left to half precision
    assert searched.cumulative_logprob > greedy.cumulative_logprob - 0.3
    assert searched.prompt_tokens == greedy.prompt_tokens


def test_a_search_ends_where_the_model_ends(engine_runtime: Runtime) -> None:
    prompt = ask(engine_runtime, "What is the capital of France?")
    answer = complete(engine_runtime, request(prompt, beam_width=3, max_tokens=12, temperature=0.9, seed=4))
    assert answer.text == "The capital of France is Paris."
    assert (answer.finish_reason, answer.cumulative_logprob, answer.logprobs) == ("stop", None, ())
    assert answer.timing.ttft_s == answer.timing.e2el_s


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0])
def test_a_search_ends_early_with_the_same_answer(
    engine_runtime: Runtime, monkeypatch: pytest.MonkeyPatch, length_penalty: float
) -> None:
    engine = engine_runtime.engine
    prompt = ask(engine_runtime, "What is the capital of France?")
    params = {"beam_width": 3, "max_tokens": 24, "length_penalty": length_penalty, "logprobs": 0}
    before = engine._counters.steps
    early = complete(engine_runtime, request(prompt, **params))
    steps = engine._counters.steps - before
    monkeypatch.setattr(vllm_beams.Paths, "_best_to_come", lambda *_: math.inf)
    full = complete(engine_runtime, request(prompt, **params))
    assert (early.text, early.finish_reason) == (full.text, "stop")
    assert early.cumulative_logprob == pytest.approx(full.cumulative_logprob, abs=0.3)
    assert steps < 20 and engine._counters.steps - before - steps >= 24


def test_a_higher_length_penalty_gives_no_shorter_an_answer(engine_runtime: Runtime) -> None:
    prompt = ask(engine_runtime, "Say hello.")

    def length(penalty: float) -> int:
        wanted = request(prompt, beam_width=3, max_tokens=12, length_penalty=penalty)
        return complete(engine_runtime, wanted).output_tokens

    assert length(-5.0) < length(5.0) == 12


def test_a_search_keeps_to_the_context(engine_runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_runtime.engine
    monkeypatch.setattr(engine, "info", dataclasses.replace(engine.info, max_model_len=64))
    (ids,) = engine.encode(["word " * 90])
    answer = complete(engine_runtime, request(ids[:61], beam_width=2, max_tokens=50, ignore_eos=True))
    assert (answer.output_tokens, answer.finish_reason) == (3, "length")
    with pytest.raises(RequestRejected, match="the context holds 64"):
        complete(engine_runtime, request(ids[:64], beam_width=2))


def test_every_path_has_its_requests_priority(
    engine_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_runtime.engine
    seen: list[int] = []
    generate = engine._engine.generate

    def watched(*args: Any, priority: int, **named: Any) -> Any:
        seen.append(priority)
        return generate(*args, priority=priority, **named)

    monkeypatch.setattr(engine._engine, "generate", watched)
    wanted = request("Once upon a time", beam_width=2, max_tokens=3)
    complete(engine_runtime, dataclasses.replace(wanted, priority=Priority.COMPARE))
    assert seen == [Priority.COMPARE] * 5


def test_cancelling_a_search_ends_all_its_paths(engine_runtime: Runtime) -> None:
    engine = engine_runtime.engine
    future = engine_runtime.spawn(
        engine.complete(request("Once upon", beam_width=8, max_tokens=2000, ignore_eos=True))
    )
    wait_for(lambda: engine._live == 8)
    future.cancel()
    with pytest.raises(CancelledError):
        future.result()
    wait_for(lambda: engine._live == 0)
    assert engine._turns.alternatives == 0
    assert not engine._engine.output_processor.request_states
    assert complete(engine_runtime, request("Hello", max_tokens=2, ignore_eos=True)).output_tokens == 2


def test_an_engine_without_beam_search_says_so(
    engine_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_runtime.engine
    assert "beam_search" not in engine.info.cannot
    without = dataclasses.replace(engine.info, cannot={"beam_search": "This engine has no beam search."})
    monkeypatch.setattr(engine, "info", without)
    with pytest.raises(RequestRejected, match="no beam search"):
        complete(engine_runtime, request("Hello", beam_width=2))
