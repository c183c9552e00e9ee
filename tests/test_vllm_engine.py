"""Real vLLM on the CPU with the embedded model, through the runtime. One engine for all tests."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from checkpoints import checkpoint
from waiting import until

from core import structured
from core.engines import vllm_params, vllm_structures
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
    assert info.batch_ahead == 8
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


def test_several_answers_to_one_prompt(engine_runtime: Runtime) -> None:
    prompt = ask(engine_runtime, "Tell me a story.")
    answer = complete(engine_runtime, prompt, n=3, seed=5, max_tokens=12, ignore_eos=True, logprobs=0)
    assert len(answer.samples) == 3 == len({sample.text for sample in answer.samples})
    assert answer.output_tokens == 36
    assert (answer.text, answer.cumulative_logprob) == (
        answer.samples[0].text,
        answer.samples[0].cumulative_logprob,
    )
    assert all(sample.cumulative_logprob < 0 for sample in answer.samples)
    one = complete(engine_runtime, prompt, max_tokens=2)
    assert (one.samples, one.cumulative_logprob) == ((), None)

    async def stream() -> None:
        async for _ in engine_runtime.engine.stream(request(prompt, n=2)):
            pass

    with pytest.raises(RequestRejected, match="Only one answer can be streamed"):
        engine_runtime.run(stream())


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "alive": {"type": "boolean"},
    },
    "required": ["name", "age", "alive"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "structure",
    [
        {"choice": ['say "hi"', "naïve 漢字"]},
        {"regex": "[0-9]{4}-[0-9]{2}"},
        {"json": PERSON},
        {"grammar": 'root ::= "red" | "green"'},
    ],
)
def test_an_answer_keeps_to_its_structure(engine_runtime: Runtime, structure: dict[str, Any]) -> None:
    prompt = ask(engine_runtime, "Who was Ada Lovelace?")
    answer = complete(engine_runtime, prompt, structured_outputs=structure, max_tokens=60, seed=1)
    assert answer.finish_reason == "stop"
    assert structured.valid(structure, answer.text) is not False
    if "json" in structure:
        assert list(structured.parsed(structure, answer.text)) == ["name", "age", "alive"]
        assert answer.text.startswith('{"name":"')
    if "grammar" in structure:
        assert answer.text in ("red", "green")


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        ({"regex": "(?=a)b"}, "Lookahead is not supported"),
        ({"regex": "[^\\s\\S]"}, "no answer can have the structure"),
        ({"json": {"allOf": [{"type": "string"}, {"minLength": 3}]}}, "not supported by xgrammar"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum greater than maximum"),
        ({"grammar": "root ::= nothing"}, '"nothing" is not defined'),
        ({"grammar": "root ::= root"}, "no answer can have the structure"),
        ({"grammar": "root ::= ((("}, "Invalid grammar"),
    ],
)
def test_a_structure_the_engine_can_not_use_costs_its_own_request_only(
    engine_runtime: Runtime, structure: dict[str, Any], said: str
) -> None:
    for _again in range(2):
        with pytest.raises(RequestRejected, match=said):
            complete(engine_runtime, "Hello", structured_outputs=structure)
    assert complete(engine_runtime, "Still there?", max_tokens=1).output_tokens == 1


def test_a_structure_that_takes_for_ever_is_refused_while_others_are_answered(
    engine_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_structures, "_TRIAL_S", 0.3)
    slow = {"grammar": "root ::= " + " ".join(['"a"?'] * 150)}
    engine = engine_runtime.engine
    rows = [engine_runtime.spawn(engine.complete(request("Row", structured_outputs=slow))) for _ in range(5)]
    assert complete(engine_runtime, "Hello", max_tokens=1).output_tokens == 1
    for row in rows:
        with pytest.raises(RequestRejected, match="does not get ready for this structure"):
            row.result(30)
    wait_idle(engine_runtime)


@pytest.fixture(scope="module")
def reference(embedded_model: Path) -> Callable[[list[int], list[int]], list[float]]:
    """transformers' own forward pass: the log-probabilities of the second tokens after the first."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(embedded_model, dtype=torch.bfloat16)

    def log_probabilities(prompt: list[int], answer: list[int]) -> list[float]:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        each = torch.log_softmax(logits.float(), -1)
        return [each[place, token].item() for place, token in enumerate(answer)]

    return log_probabilities


def score(runtime: Runtime, prompt: Any, choices: list[str]) -> list[float]:
    return runtime.run(runtime.engine.score(request(prompt), choices))


QUESTIONS = {
    "Is the sky blue? Answer yes or no.": ["yes", "no", "Yes", "No."],
    "Name a city in France.": ["Paris", "Paris is a city in France.", "Marseille", "New York City"],
    "Positive or negative: 'I loved it'?": ["positive", "negative", "very positive", "<|im_end|>"],
}


@pytest.mark.parametrize("forced", [False, True], ids=["asked for", "forced in turn"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_scores_are_the_models_own_log_probabilities(
    engine_runtime: Runtime,
    reference: Callable[[list[int], list[int]], list[float]],
    monkeypatch: pytest.MonkeyPatch,
    question: str,
    forced: bool,
) -> None:
    monkeypatch.setattr(vllm_params, "_asks_for_tokens", lambda: not forced)
    choices = QUESTIONS[question]
    prompt, (end,), *answers = engine_runtime.engine.encode(
        [ask(engine_runtime, question), "<|im_end|>", *choices]
    )
    expected = []
    for answer in answers:
        goes_on = any(other != answer and other[: len(answer)] == answer for other in answers)
        expected.append(sum(reference(prompt, [*answer, end] if goes_on else answer)))
    found = score(engine_runtime, prompt, choices)
    # a logit of 16 has steps of 0.125 in bfloat16; a token left out makes a difference above 1
    assert found == pytest.approx(expected, abs=0.4)
    assert sum(math.exp(each) for each in found) <= 1


def test_scores_do_not_hang_on_who_else_is_asking(engine_runtime: Runtime) -> None:
    engine = engine_runtime.engine
    prompt = ask(engine_runtime, "Which colour has the sky?")
    few, many = ["blue", "red"], ["blue", "red", *(f"colour {number}" for number in range(200))]
    alone = score(engine_runtime, prompt, few)

    async def together() -> list[Any]:
        others = [engine.complete(request(prompt, max_tokens=20, logprobs=0)) for _ in range(4)]
        scores = [engine.score(request(prompt), choices) for choices in (few, many, few)]
        return await asyncio.gather(*scores, *others)

    first, longer, second, *completions = engine_runtime.run(together())
    for found in (first, second, longer[:2]):
        assert found == pytest.approx(alone, abs=0.2)
    assert len(longer) == 202
    assert all(completion.cumulative_logprob < 0 for completion in completions)


def test_cancelling_a_score_frees_its_slots(engine_runtime: Runtime) -> None:
    choices = [f"{number} is my answer" for number in range(100, 900)]
    before = engine_runtime.engine.stats().output_tokens
    future = engine_runtime.spawn(engine_runtime.engine.score(request("Which number?"), choices))
    until(lambda: engine_runtime.engine.stats().output_tokens > before)  # a few of hundreds of requests
    assert not future.done()
    future.cancel()
    with pytest.raises(CancelledError):
        future.result()
    wait_idle(engine_runtime)


@pytest.mark.parametrize(
    ("prompt", "choices", "said"),
    [
        ("Hello", [], "there is none"),
        ("Hello", ["yes", ""], "A choice is empty"),
        (
            "word " * 8180,
            ["this goes beyond the end of the context, by some words at least"],
            "context holds",
        ),
    ],
)
def test_choices_that_can_not_be_scored_are_rejected(
    engine_runtime: Runtime, prompt: str, choices: list[str], said: str
) -> None:
    with pytest.raises(RequestRejected, match=said):
        score(engine_runtime, prompt, choices)


def test_repeated_prefix_comes_from_the_cache(engine_runtime: Runtime) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 20
    complete(engine_runtime, prompt, max_tokens=1)
    again = complete(engine_runtime, prompt, max_tokens=1)
    assert again.prompt_tokens - 32 <= again.cached_tokens < again.prompt_tokens
    before = engine_runtime.status().stats
    third = complete(engine_runtime, prompt, max_tokens=1)
    after = engine_runtime.status().stats
    assert after.prefix_hits - before.prefix_hits == third.cached_tokens
    assert after.prefix_queries - before.prefix_queries == third.prompt_tokens


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
    checkpoint(strange, model_type="abacus", architectures=["AbacusForCausalLM"])
    (tmp_path / "empty").mkdir()
    runtime = Runtime(engine_runtime.settings.model_copy(update={"home": tmp_path / "home"}))
    runtime.load(EngineSpec(model=model.format(empty=tmp_path / "empty", strange=strange)))
    with pytest.raises(EngineLoadError, match=said) as caught:
        runtime.wait_ready(60)
    assert caught.value.hint
    assert runtime.status().phase == "failed"
    runtime.close()
