"""Tokens, alternatives and distributions of real vLLM, on the engine that all tests share."""

from __future__ import annotations

import asyncio
import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core.engines.vllm_distribution import Question
from core.errors import RequestRejected
from core.runtime import Runtime
from core.types import Completion, Delta, Message, Request, TokenLogprob

pytestmark = pytest.mark.engine

_ids = itertools.count()


def request(prompt: Any, top_logprobs: int | None = None, **params: Any) -> Request:
    return Request(id=f"tokens-{next(_ids)}", prompt=prompt, params=params, top_logprobs=top_logprobs)


def ask(runtime: Runtime, question: str) -> str:
    return runtime.engine.render_chat([[Message("user", question)]])[0]


def stream(runtime: Runtime, wanted: Request) -> list[Delta | Completion]:
    async def collect() -> list[Delta | Completion]:
        return [item async for item in runtime.engine.stream(wanted)]

    return runtime.run(collect())


def test_each_token_comes_with_its_alternatives(engine_runtime: Runtime) -> None:
    wanted = request(ask(engine_runtime, "Write '你好 🤗' twice."), 5, temperature=1.2, seed=3, max_tokens=40)
    *deltas, completion = stream(engine_runtime, wanted)
    assert all(len(delta.logprobs) == delta.tokens for delta in deltas)
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert tuple(entries) == completion.logprobs
    assert len(entries) == completion.output_tokens
    assert completion.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in entries), abs=1e-3)
    for entry in entries:
        assert [each.rank for each in entry.alternatives] == [1, 2, 3, 4, 5]
        by_likelihood = sorted(entry.alternatives, key=lambda each: -each.logprob)
        assert [each.logprob for each in by_likelihood] == [each.logprob for each in entry.alternatives]
        assert (entry.rank <= 5) == (entry.token_id in [each.token_id for each in entry.alternatives])
    assert any(entry.rank > 1 for entry in entries)
    written = "".join(entry.text for entry in entries if entry.text != "<|im_end|>")
    assert written.startswith(completion.text)


def test_alternatives_do_not_hang_on_streaming(engine_runtime: Runtime) -> None:
    prompt = ask(engine_runtime, "Name a colour.")
    whole = engine_runtime.run(
        engine_runtime.engine.complete(request(prompt, 3, temperature=0, max_tokens=8))
    )
    *_, streamed = stream(engine_runtime, request(prompt, 3, temperature=0, max_tokens=8))
    assert [entry.text for entry in whole.logprobs] == [entry.text for entry in streamed.logprobs]
    without = engine_runtime.run(engine_runtime.engine.complete(request(prompt, temperature=0, max_tokens=8)))
    assert (without.text, without.logprobs, without.cumulative_logprob) == (whole.text, (), None)


def test_sampling_parameters_leave_the_models_own_probabilities_alone(engine_runtime: Runtime) -> None:
    prompt = ask(engine_runtime, "Name a colour.")
    (plain,) = stream(engine_runtime, request(prompt, 4, max_tokens=1, temperature=0))[-1].logprobs
    params = {"temperature": 0.3, "top_k": 1, "repetition_penalty": 2.0, "presence_penalty": 1.0}
    (shaped,) = stream(engine_runtime, request(prompt, 4, max_tokens=1, **params))[-1].logprobs
    assert likelihoods(shaped) == pytest.approx(likelihoods(plain), abs=0.2)


def likelihoods(entry: TokenLogprob) -> dict[int, float]:
    return {each.token_id: each.logprob for each in entry.alternatives}


def test_the_distribution_holds_every_token(engine_runtime: Runtime) -> None:
    engine = engine_runtime.engine
    prompt = ask(engine_runtime, "What is the capital of France?")
    found = engine_runtime.run(engine.next_logprobs(request(prompt)))
    assert (found.shape, found.dtype) == ((49152,), np.float32)
    assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1, abs=1e-3)
    (first,) = stream(engine_runtime, request(prompt, 20, max_tokens=1, temperature=0))[-1].logprobs
    for each in first.alternatives:
        assert found[each.token_id] == pytest.approx(each.logprob, abs=0.2)
    assert found.max() == pytest.approx(first.logprob, abs=0.2)
    (longer,) = engine.encode([prompt + "The capital of France is"])
    after = engine_runtime.run(engine.next_logprobs(request(longer)))
    assert engine.pieces([int(after.argmax())])[0].text == " Paris"
    with pytest.raises(RequestRejected, match="the context holds 8192"):
        engine_runtime.run(engine.next_logprobs(request([1] * 8192)))


def test_the_newer_model_runner_is_asked_for_the_place_behind_the_prompt(engine_runtime: Runtime) -> None:
    """It runs on GPUs alone: what is asked is held against vLLM's own checks, and what comes back is read."""
    config = engine_runtime.engine._engine.vllm_config
    newer = SimpleNamespace(model_config=config.model_config, use_v2_model_runner=True)
    question = Question(newer, [5, 6, 7])
    question.params.verify(config.model_config, None, None, None)
    assert question.token_ids == [5, 6, 7, 7]
    assert question.params.prompt_logprob_start == 2
    assert question.params.prompt_logprob_token_ids.shape == (1, 49152)
    scores = np.log(np.full((1, 49152), 1 / 49152, dtype=np.float32))
    read = question.read(SimpleNamespace(prompt_token_id_logprobs=scores))
    assert (read.shape, read.dtype) == ((49152,), np.float32)
    with pytest.raises(RequestRejected, match="too busy"):
        question.read(SimpleNamespace(prompt_token_id_logprobs=None))


def test_scores_and_alternatives_at_once_do_not_mix(engine_runtime: Runtime) -> None:
    """vLLM's sampler for the CPU gives one step's requests either chosen tokens or alternatives."""
    engine = engine_runtime.engine
    prompt = ask(engine_runtime, "Which colour has the sky?")
    choices = [f"{colour} as ever" for colour in ("blue", "red", "green", "grey")]
    alone = engine_runtime.run(engine.score(request(prompt), choices))
    distribution = engine_runtime.run(engine.next_logprobs(request(prompt)))

    async def together() -> list[Any]:
        answers = [engine.complete(request(prompt, 5, max_tokens=30, ignore_eos=True)) for _ in range(3)]
        found = [engine.next_logprobs(request(prompt)) for _ in range(3)]
        scores = [engine.score(request(prompt), choices) for _ in range(8)]
        return await asyncio.gather(*scores, *found, *answers)

    results = engine_runtime.run(together())
    for found in results[:8]:
        assert found == pytest.approx(alone, abs=0.4)
    for found in results[8:11]:
        assert np.abs(np.exp(found) - np.exp(distribution)).max() < 0.1
    for completion in results[11:]:
        for entry in completion.logprobs:
            assert [each.rank for each in entry.alternatives] == [1, 2, 3, 4, 5]
            assert all(math.isfinite(each.logprob) for each in entry.alternatives)
