"""Real vLLM on the CPU with the embedded model, through the runtime. One engine for all tests."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from concurrent.futures import CancelledError
from typing import Any

import pytest

from core.errors import EngineLoadError, RequestRejected, TemplateError
from core.runtime import Runtime
from core.types import Completion, Delta, EngineSpec, Message, Priority, Request

pytestmark = pytest.mark.engine

_ids = itertools.count()


def request(prompt: Any, priority: Priority = Priority.CHAT, **params: Any) -> Request:
    return Request(id=f"test-{next(_ids)}", prompt=prompt, params=params, priority=priority)


def ask(runtime: Runtime, question: str) -> str:
    return runtime.engine.render_chat([[Message("user", question)]])[0]


def complete(runtime: Runtime, prompt: Any, **params: Any) -> Completion:
    return runtime.run(runtime.engine.complete(request(prompt, **params)))


def wait_idle(runtime: Runtime) -> None:
    end = time.monotonic() + 10
    while runtime.status().stats.running and time.monotonic() < end:
        time.sleep(0.02)
    assert runtime.status().stats.running == 0


def test_info_tells_what_was_loaded(engine_runtime: Runtime) -> None:
    info = engine_runtime.engine.info
    assert info.model == "SmolLM2-135M-Instruct"
    assert info.device.startswith("CPU, ")
    assert (info.max_model_len, info.batch_slots, info.max_num_seqs) == (8192, 32, 40)
    assert info.kv_cache_bytes == 400 << 20
    assert info.kv_cache_bytes // 23_040 - 32 <= info.kv_cache_tokens <= info.kv_cache_bytes // 23_040
    assert info.has_chat_template
    assert info.settings["block_size"] == 32
    assert any("Loading weights took" in line for line in engine_runtime.status().log)


def test_a_known_question_gets_its_answer(engine_runtime: Runtime) -> None:
    answer = complete(engine_runtime, ask(engine_runtime, "What is the capital of France?"), temperature=0)
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    assert 0 < answer.timing.ttft_s <= answer.timing.e2el_s


def test_stream_and_complete_give_the_same_answer(engine_runtime: Runtime) -> None:
    prompt = ask(engine_runtime, "Count from one to five.")

    async def collect() -> list[Delta | Completion]:
        stream = engine_runtime.engine.stream(request(prompt, temperature=0, max_tokens=24))
        return [item async for item in stream]

    *deltas, streamed = engine_runtime.run(collect())
    whole = complete(engine_runtime, prompt, temperature=0, max_tokens=24)
    assert isinstance(streamed, Completion)
    assert "".join(delta.text for delta in deltas) == streamed.text == whole.text
    assert sum(delta.tokens for delta in deltas) == streamed.output_tokens == whole.output_tokens == 24
    assert streamed.finish_reason == whole.finish_reason == "length"
    assert streamed.prompt_tokens == whole.prompt_tokens == len(engine_runtime.engine.encode([prompt])[0])
    assert len(deltas) > 12
    assert [delta.at_s for delta in deltas] == sorted(delta.at_s for delta in deltas)


def test_text_and_its_token_ids_are_the_same_prompt(engine_runtime: Runtime) -> None:
    prompt = ask(engine_runtime, "Name a colour.")
    (ids,) = engine_runtime.engine.encode([prompt])
    by_text = complete(engine_runtime, prompt, temperature=0, max_tokens=8)
    by_ids = complete(engine_runtime, ids, temperature=0, max_tokens=8)
    assert (by_text.text, by_text.prompt_tokens) == (by_ids.text, len(ids))


def test_parameters_reach_the_engine(engine_runtime: Runtime) -> None:
    prompt = ask(engine_runtime, "Tell me a story.")
    seeded = [complete(engine_runtime, prompt, seed=seed, max_tokens=16).text for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]
    assert complete(engine_runtime, prompt, ignore_eos=True, max_tokens=30).output_tokens == 30
    plain = complete(engine_runtime, prompt, temperature=0, max_tokens=30).text
    stop = plain.split()[3]
    stopped = complete(engine_runtime, prompt, temperature=0, max_tokens=30, stop=[stop])
    assert (stopped.text, stopped.finish_reason) == (plain.partition(stop)[0], "stop")
    (first, *_), *_ = engine_runtime.engine.encode([plain])
    biased = complete(engine_runtime, prompt, temperature=0, max_tokens=30, logit_bias={str(first): -100})
    assert biased.text != plain


def test_repeated_prefix_comes_from_the_cache(engine_runtime: Runtime) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 20
    complete(engine_runtime, prompt, max_tokens=1)
    again = complete(engine_runtime, prompt, max_tokens=1)
    assert again.prompt_tokens - 32 <= again.cached_tokens < again.prompt_tokens


@pytest.mark.parametrize(
    ("prompt", "params", "said"),
    [
        ("word " * 9000, {}, r"The prompt has 90\d\d tokens; the context holds 8192"),
        ("", {}, "prompt is empty"),
        ([], {}, "prompt is empty"),
        ([10**9], {}, "out of vocabulary"),
        ("Hello", {"temperature": -1}, "temperature"),
        ("Hello", {"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    ],
)
def test_bad_request_is_rejected_with_its_cause(
    engine_runtime: Runtime, prompt: Any, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestRejected, match=said):
        complete(engine_runtime, prompt, **params)
    assert complete(engine_runtime, "Still there?", max_tokens=1).output_tokens == 1


def test_closing_a_stream_frees_its_slot(engine_runtime: Runtime) -> None:
    engine = engine_runtime.engine

    async def read_two() -> None:
        stream = engine.stream(request("Once upon a time", max_tokens=4000, ignore_eos=True))
        await anext(stream)
        await anext(stream)
        assert engine.stats().running == 1
        await stream.aclose()

    engine_runtime.run(read_two())
    wait_idle(engine_runtime)


def test_cancelling_a_completion_frees_its_slot_and_no_other(engine_runtime: Runtime) -> None:
    engine = engine_runtime.engine
    kept = engine_runtime.spawn(engine.complete(request("I stay", max_tokens=60, ignore_eos=True)))
    gone = engine_runtime.spawn(engine.complete(request("I go", max_tokens=4000, ignore_eos=True)))
    end = time.monotonic() + 10
    while engine_runtime.status().stats.running < 2 and time.monotonic() < end:
        time.sleep(0.01)
    gone.cancel()
    with pytest.raises(CancelledError):
        gone.result()
    assert kept.result(60).output_tokens == 60
    wait_idle(engine_runtime)


def test_chat_overtakes_a_full_batch(engine_runtime: Runtime) -> None:
    engine = engine_runtime.engine
    done: list[str] = []

    async def batch(number: int) -> None:
        await engine.complete(request(f"Row {number}", Priority.BATCH, max_tokens=8, ignore_eos=True))
        done.append("row")

    async def chat() -> None:
        await engine.complete(request("Hello", max_tokens=4, ignore_eos=True))
        done.append("chat")

    async def both() -> None:
        rows = [asyncio.create_task(batch(number)) for number in range(3 * engine.info.max_num_seqs)]
        while not engine.stats().waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await chat()
        await asyncio.gather(*rows)

    engine_runtime.run(both())
    # it may have to wait for a first row to end, never for the rows that were waiting before it
    assert done.index("chat") <= engine.info.max_num_seqs


def test_counters_and_rates_count_every_token(engine_runtime: Runtime) -> None:
    before = engine_runtime.status().stats
    answer = complete(engine_runtime, "Count me", ignore_eos=True, max_tokens=40)
    after = engine_runtime.status().stats
    assert after.output_tokens - before.output_tokens == answer.output_tokens
    assert after.prompt_tokens - before.prompt_tokens == answer.prompt_tokens
    end = time.monotonic() + 10
    while not any(rate for _, rate in engine_runtime.status().rates) and time.monotonic() < end:
        time.sleep(0.1)
    assert any(rate for _, rate in engine_runtime.status().rates)


def test_tokens_round_trip_from_many_threads(engine_runtime: Runtime) -> None:
    engine = engine_runtime.engine
    texts = [f"naïve café {number} 漢字 🙂" for number in range(200)]

    async def encode_in_threads() -> list[list[list[int]]]:
        return await asyncio.gather(*(asyncio.to_thread(engine.encode, texts) for _ in range(8)))

    first, *others = engine_runtime.run(encode_in_threads())
    assert all(other == first for other in others)
    assert [engine.decode(ids) for ids in first] == texts
    assert engine.encode([]) == []


def test_chat_template_refusal_is_a_template_error(
    engine_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_runtime.engine
    system = engine.render_chat([[Message("system", "Be brief."), Message("user", "Hi")]])[0]
    assert "Be brief." in system and system.endswith("<|im_start|>assistant\n")
    monkeypatch.setattr(
        engine._tokenizer._tokenizer, "chat_template", "{{ raise_exception('only users here') }}"
    )
    with pytest.raises(TemplateError, match="only users here"):
        engine.render_chat([[Message("user", "Hi")]])
    monkeypatch.setattr(engine._tokenizer._tokenizer, "chat_template", None)
    with pytest.raises(TemplateError, match="no chat template"):
        engine.render_chat([[Message("user", "Hi")]])


def test_the_parents_environment_is_as_before(engine_runtime: Runtime) -> None:
    assert engine_runtime.engine
    assert "libiomp5" not in os.environ.get("LD_PRELOAD", "")
    assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("/nowhere/model", "There is no model '/nowhere/model'"),
        ("{empty}", "config.json is missing"),
        ("{strange}", "strange can't be loaded: .*abacus"),
    ],
)
def test_a_model_that_is_none_fails_with_its_cause(
    engine_runtime: Runtime, tmp_path: Any, model: str, said: str
) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text('{"model_type": "abacus", "architectures": ["AbacusForCausalLM"]}')
    (strange / "model.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    runtime = Runtime(engine_runtime.settings.model_copy(update={"home": tmp_path / "home"}))
    runtime.load(EngineSpec(model=model.format(empty=tmp_path / "empty", strange=strange)))
    with pytest.raises(EngineLoadError, match=said) as caught:
        runtime.wait_ready(60)
    assert caught.value.hint
    assert runtime.status().phase == "failed"
    runtime.close()
