"""What every engine must do, whichever it is: one suite for all of them.

What `info.cannot` and `info.cannot_params` leave out works, and what they name is refused for that reason.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import re
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any, get_args

import numpy as np
import pytest
from engine_contract import ENGINES, REAL, Subject

from core import sampling
from core.bench import workloads
from core.bench.spec import BenchSpec, RandomWorkload
from core.errors import EngineDied, ParameterError, RequestRejected, TemplateError
from core.types import ChatPrompt, Completion, Delta, Feature, LoraAdapter, Message, Request

_ids = itertools.count()
STORY = ChatPrompt((Message("user", "Tell me a story about a fox and a hare."),))
TEXT = "Once upon a time there was a fox who"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.engine] if name in REAL else [], id=name) for name in ENGINES
    ],
)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with ENGINES[request.param](request) as subject:
        yield subject


def asking(
    prompt: Any, *, top: int | None = None, adapter: LoraAdapter | None = None, **params: Any
) -> Request:
    return Request(
        id=f"contract-{next(_ids)}", prompt=prompt, params=params, top_logprobs=top, adapter=adapter
    )


def complete(subject: Subject, prompt: Any, **options: Any) -> Completion:
    return subject.run(subject.engine.complete(asking(prompt, **options)))


def streamed(subject: Subject, prompt: Any, **options: Any) -> tuple[list[Delta], Completion]:
    async def collect() -> list[Delta | Completion]:
        return [item async for item in subject.engine.stream(asking(prompt, **options))]

    *deltas, completion = subject.run(collect())
    assert isinstance(completion, Completion)
    assert all(isinstance(delta, Delta) for delta in deltas)
    return deltas, completion


def able(subject: Subject, feature: Feature) -> bool:
    return feature not in subject.engine.info.cannot


def until_idle(subject: Subject) -> None:
    end = time.monotonic() + 10
    while (stats := subject.engine.stats()).running + stats.waiting and time.monotonic() < end:
        time.sleep(0.02)
    assert (stats.running, stats.waiting) == (0, 0)


def test_it_says_what_it_is(subject: Subject) -> None:
    info = subject.engine.info
    assert info.model and info.device and info.engine_version
    assert 0 < info.batch_slots <= info.max_num_seqs
    assert info.max_model_len > 64
    assert set(info.cannot) <= set(get_args(Feature))
    assert set(info.cannot_params) <= set(sampling.BY_NAME)
    assert all(reason.endswith(".") for reason in (*info.cannot.values(), *info.cannot_params.values()))
    if subject.engine.spec.engine != "openai":  # a server keeps its template to itself
        assert info.has_chat_template == (subject.engine.chat_template is not None)
    assert subject.engine.spec.engine in ("scripted", "vllm", "transformers", "llamacpp", "openai")


def test_a_stream_is_deltas_and_then_the_answer(subject: Subject) -> None:
    before = subject.engine.stats()
    deltas, answer = streamed(subject, STORY, temperature=0, max_tokens=12, ignore_eos=True)
    assert "".join(delta.text for delta in deltas) == answer.text != ""
    assert sum(delta.tokens for delta in deltas) == answer.output_tokens == 12
    assert answer.finish_reason == "length"
    assert len(deltas) > 2
    times = [delta.at_s for delta in deltas]
    assert times == sorted(times)
    timing = answer.timing
    assert timing.sent_s <= timing.first_token_s == times[0] <= timing.last_token_s == times[-1]
    whole = complete(subject, STORY, temperature=0, max_tokens=12, ignore_eos=True)
    assert (whole.text, whole.prompt_tokens, whole.output_tokens) == (answer.text, answer.prompt_tokens, 12)
    assert 0 < whole.timing.ttft_s <= whole.timing.e2el_s
    assert (whole.samples, whole.logprobs, whole.cumulative_logprob) == ((), (), None)
    until_idle(subject)
    after = subject.engine.stats()
    assert after.output_tokens - before.output_tokens == 24
    assert after.prompt_tokens - before.prompt_tokens == 2 * answer.prompt_tokens


def test_chance_is_reproducible_by_its_seed_and_absent_at_temperature_zero(subject: Subject) -> None:
    texts = [complete(subject, STORY, seed=seed, max_tokens=10).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    greedy = [complete(subject, STORY, temperature=0, seed=seed, max_tokens=8).text for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def test_a_stop_text_ends_the_answer(subject: Subject) -> None:
    plain = complete(subject, STORY, temperature=0, max_tokens=24, ignore_eos=True).text
    stop = plain.split()[3]
    deltas, cut = streamed(subject, STORY, temperature=0, max_tokens=24, stop=[stop, "never said"])
    assert (cut.text, cut.finish_reason) == (plain.partition(stop)[0], "stop")
    assert "".join(delta.text for delta in deltas) == cut.text
    if "include_stop_str_in_output" not in subject.engine.info.cannot_params:
        kept = complete(
            subject, STORY, temperature=0, max_tokens=24, stop=[stop], include_stop_str_in_output=True
        )
        assert kept.text == plain.partition(stop)[0] + stop


def test_parameters_change_what_is_likely(subject: Subject) -> None:
    if subject.engine.spec.engine == "scripted":
        pytest.skip("the scripted engine has no distribution that parameters could change")
    refused = subject.engine.info.cannot_params
    greedy = complete(subject, STORY, temperature=0, max_tokens=12).text
    narrow: list[dict[str, Any]] = [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}]
    for params in narrow:
        if not refused.keys() & params:
            assert complete(subject, STORY, temperature=2.0, seed=3, max_tokens=12, **params).text == greedy
    if "repetition_penalty" not in refused:
        assert complete(subject, STORY, temperature=0, max_tokens=12, repetition_penalty=5.0).text != greedy
    long = complete(subject, STORY, temperature=0, max_tokens=24).text
    for name in ("presence_penalty", "frequency_penalty"):
        if name not in refused:
            assert complete(subject, STORY, temperature=0, max_tokens=24, **{name: 2}).text != long
    if "bad_words" not in refused:
        word = greedy.split()[1].strip(",.")
        assert word not in complete(subject, STORY, temperature=0, max_tokens=12, bad_words=[word]).text
    if "min_tokens" not in refused:
        short = ChatPrompt((Message("user", "Say only: yes"),))
        assert complete(subject, short, temperature=0, min_tokens=12, max_tokens=14).output_tokens >= 12


def test_single_tokens_can_be_chosen_by_their_ids(subject: Subject) -> None:
    refused = subject.engine.info.cannot_params
    if subject.engine.spec.engine == "scripted" or not able(subject, "tokens"):
        pytest.skip("its tokens have no ids here, or no part in its answers")
    (ids,) = subject.engine.encode([complete(subject, STORY, temperature=0, max_tokens=8).text])
    first = ids[0]
    if "logit_bias" not in refused:
        other = complete(subject, STORY, temperature=0, max_tokens=1, logit_bias={str(first): -100})
        assert subject.engine.encode([other.text])[0][:1] != [first]
    if "allowed_token_ids" not in refused:
        only = complete(subject, STORY, temperature=1.0, max_tokens=4, allowed_token_ids=[first])
        assert subject.engine.encode([only.text])[0] == [first] * 4
    if "stop_token_ids" not in refused:
        ended = complete(subject, STORY, temperature=0, max_tokens=8, stop_token_ids=[ids[2]])
        assert (ended.finish_reason, ended.output_tokens) == ("stop", 3)
        assert ended.text == subject.engine.decode(ids[:2])


def test_several_answers_to_one_prompt(subject: Subject) -> None:
    answer = complete(subject, STORY, n=3, max_tokens=10, ignore_eos=True, logprobs=0)
    assert len({sample.text for sample in answer.samples}) == 3 == len(answer.samples)
    assert answer.output_tokens == sum(sample.output_tokens for sample in answer.samples) == 30
    assert (answer.text, answer.cumulative_logprob) == (
        answer.samples[0].text,
        answer.samples[0].cumulative_logprob,
    )
    assert all(sample.cumulative_logprob < 0 for sample in answer.samples)
    assert answer.timing.ttft_s <= answer.timing.e2el_s
    with pytest.raises(RequestRejected, match="n must be 1"):
        complete(subject, STORY, n=2, temperature=0)


def test_requests_at_the_same_time_each_get_their_own_answer(subject: Subject) -> None:
    prompts = [ChatPrompt((Message("user", f"{word} " * 3 * place),)) for place, word in
               enumerate(("Blue", "Seven", "Paris", "Fish", "Rain", "Gold"), 1)]  # fmt: skip

    async def all_at_once() -> list[Completion]:
        return await asyncio.gather(
            *(subject.engine.complete(asking(prompt, seed=1, max_tokens=4 + place, ignore_eos=True))
              for place, prompt in enumerate(prompts))
        )  # fmt: skip

    answers = subject.run(all_at_once())
    assert [answer.output_tokens for answer in answers] == [4, 5, 6, 7, 8, 9]
    alone = [complete(subject, prompt, seed=1, max_tokens=1, ignore_eos=True) for prompt in prompts]
    assert [answer.prompt_tokens for answer in answers] == [answer.prompt_tokens for answer in alone]
    # in one batch, sums of floats may differ in their last bits: once in a while that turns a token
    same = sum(one.text == many.text[: len(one.text)] for one, many in zip(alone, answers, strict=True))
    assert same >= 4


def test_an_answer_nobody_wants_any_more_is_not_written(subject: Subject) -> None:
    async def leave() -> int:
        stream = subject.engine.stream(asking(STORY, max_tokens=400, ignore_eos=True))
        await anext(stream)
        running = subject.engine.stats().running
        await stream.aclose()
        return running

    assert subject.run(leave()) == 1
    until_idle(subject)
    written = subject.engine.stats().output_tokens
    pending = subject.spawn(subject.engine.complete(asking(STORY, max_tokens=400, ignore_eos=True)))
    end = time.monotonic() + 10
    while not subject.engine.stats().running and time.monotonic() < end:
        time.sleep(0.005)
    pending.cancel()
    with pytest.raises(CancelledError):
        pending.result(10)
    until_idle(subject)
    assert subject.engine.stats().output_tokens - written < 400


def test_a_prompt_that_does_not_fit_is_refused_with_figures(subject: Subject) -> None:
    limit = subject.engine.info.max_model_len
    for prompt in (" fox" * (limit + 5), ChatPrompt((Message("user", " fox" * (limit + 5)),))):
        with pytest.raises(RequestRejected) as refusal:
            complete(subject, prompt)
        figures = [int(figure.replace(",", "")) for figure in re.findall(r"[\d,]*\d", refusal.value.message)]
        assert limit in figures
        assert max(figures) > limit
    assert complete(subject, STORY, max_tokens=1).output_tokens == 1


def test_an_answer_ends_where_the_context_does(subject: Subject) -> None:
    if not able(subject, "tokens"):
        pytest.skip("its tokens can't be counted here")
    limit = subject.engine.info.max_model_len
    if subject.engine.spec.engine == "vllm" and limit > 2048:
        pytest.skip("the shared engine reads so long a prompt for half a minute")
    (ids,) = subject.engine.encode([" fox" * (limit - 3)])
    answer = complete(subject, ids[: limit - 3], max_tokens=50, ignore_eos=True)
    assert (answer.prompt_tokens, answer.output_tokens, answer.finish_reason) == (limit - 3, 3, "length")


def test_an_empty_prompt_is_refused_and_costs_nobody_else(subject: Subject) -> None:
    with pytest.raises(RequestRejected):
        complete(subject, [])
    assert complete(subject, STORY, max_tokens=1).output_tokens == 1


def test_tokens_are_the_model_s_own(subject: Subject) -> None:
    engine, text = subject.engine, "naïve café\n\n two  spaces 漢字"
    if not able(subject, "tokens"):
        for ask in (lambda: engine.encode([text]), lambda: engine.decode([1]), lambda: engine.pieces([1])):
            with pytest.raises(RequestRejected, match=re.escape(engine.info.cannot["tokens"])):
                ask()
        return
    ids, others = engine.encode([text, TEXT])
    assert engine.decode(ids) == text
    pieces = engine.pieces(others)
    assert [piece.token_id for piece in pieces] == others
    assert "".join(piece.text for piece in pieces) == TEXT
    assert engine.encode([]) == []
    by_ids = complete(subject, others, temperature=0, max_tokens=6)
    assert by_ids.prompt_tokens == len(others)
    if able(subject, "completion"):
        by_text = complete(subject, TEXT, temperature=0, max_tokens=6)
        assert by_text.text == by_ids.text


def test_a_benchmark_s_random_prompts_are_as_long_as_asked_for(subject: Subject) -> None:
    engine = subject.engine
    workload = RandomWorkload(num_prompts=2, input_len=33, output_len=3)
    spec = BenchSpec(kind="throughput", workload=workload)
    if not able(subject, "tokens"):
        with pytest.raises(ParameterError, match=re.escape(engine.info.cannot["tokens"])):
            workloads.plan(spec, engine)
        return
    planned = workloads.plan(spec, engine)
    assert not any(piece.special for request in planned for piece in engine.pieces(request.token_ids))
    size = engine.info.vocabulary_size
    for request in planned:
        assert size is None or max(request.token_ids) < size
        answer = complete(subject, request.token_ids, max_tokens=3)
        assert answer.prompt_tokens == 33


def test_a_chat_is_rendered_as_the_model_wants_it(subject: Subject) -> None:
    engine = subject.engine
    chat = (Message("system", "You are terse."), Message("user", "Name a colour."))
    by_chat = complete(subject, ChatPrompt(chat), temperature=0, max_tokens=6)
    assert by_chat.output_tokens <= 6
    if not able(subject, "tokens"):
        return
    (text,) = engine.render_chat([chat])
    assert "Name a colour." in text
    (ids,) = engine.encode([text])
    assert by_chat.prompt_tokens == len(ids)
    assert complete(subject, ids, temperature=0, max_tokens=6).text == by_chat.text
    if able(subject, "chat_options"):
        (shorter,) = engine.render_chat([chat], {"add_generation_prompt": False})
        assert text.startswith(shorter) and len(shorter) < len(text)
        optional = complete(subject, ChatPrompt(chat, {"enable_thinking": False}), max_tokens=2)
        assert optional.output_tokens <= 2
    with pytest.raises(TemplateError):
        engine.render_chat([chat], {"messages": []})


def test_tokens_come_with_their_probabilities(subject: Subject) -> None:
    if not able(subject, "top_logprobs"):
        with pytest.raises(RequestRejected, match=re.escape(subject.engine.info.cannot["top_logprobs"])):
            complete(subject, STORY, top=3)
        return
    deltas, answer = streamed(subject, STORY, top=3, seed=4, temperature=1.5, max_tokens=8, ignore_eos=True)
    assert tuple(entry for delta in deltas for entry in delta.logprobs) == answer.logprobs
    assert len(answer.logprobs) == answer.output_tokens == 8
    for entry in answer.logprobs:
        assert len(entry.alternatives) == 3
        assert [each.rank for each in entry.alternatives] == [1, 2, 3]
        values = [each.logprob for each in entry.alternatives]
        assert values == sorted(values, reverse=True)
        assert math.fsum(map(math.exp, values)) <= 1.001
        assert entry.logprob <= values[0]
        if entry.rank <= 3:
            # equal ones may stand in any order
            assert entry.alternatives[entry.rank - 1].logprob == pytest.approx(entry.logprob, abs=1e-4)
    summed = complete(subject, STORY, top=0, temperature=0, max_tokens=4)
    assert summed.cumulative_logprob == pytest.approx(
        math.fsum(entry.logprob for entry in summed.logprobs), abs=1e-4
    )
    assert all(not entry.alternatives for entry in summed.logprobs)


def test_choices_are_scored(subject: Subject) -> None:
    engine = subject.engine
    choices = [" Paris", " London", " Paris, of course"]
    question = asking("The capital of France is")
    if not able(subject, "score"):
        with pytest.raises(RequestRejected, match=re.escape(engine.info.cannot["score"])):
            subject.run(engine.score(question, choices))
        return
    scores = subject.run(engine.score(question, choices))
    assert all(score < 0 for score in scores)
    assert math.fsum(map(math.exp, scores)) <= 1.001
    assert scores == pytest.approx(subject.run(engine.score(question, choices)), abs=0.2)
    with pytest.raises(RequestRejected, match="empty"):
        subject.run(engine.score(question, []))
    if engine.spec.engine != "scripted":
        assert subject.run(engine.score(question, [" Paris", " teapot"]))[0] > -4
        assert subject.run(engine.score(question, [" teapot", " Paris"]))[0] < -8


def test_the_next_token_s_distribution(subject: Subject) -> None:
    engine, question = subject.engine, asking("The capital of France is")
    if not able(subject, "distribution"):
        with pytest.raises(RequestRejected, match=re.escape(engine.info.cannot["distribution"])):
            subject.run(engine.next_logprobs(question))
        return
    found = subject.run(engine.next_logprobs(question))
    assert (found.ndim, found.dtype) == (1, np.float32)
    assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1, abs=1e-3)
    if engine.spec.engine != "scripted":
        likeliest = complete(subject, question.prompt, temperature=0, max_tokens=1).text
        assert engine.pieces([int(found.argmax())])[0].text == likeliest


def test_answers_keep_to_a_structure_or_it_is_refused(subject: Subject) -> None:
    structure = {"choice": ["red", "green"]}
    if able(subject, "structured_outputs"):
        assert (
            complete(subject, STORY, structured_outputs=structure, max_tokens=8).text in structure["choice"]
        )
    else:
        reason = subject.engine.info.cannot["structured_outputs"]
        with pytest.raises(RequestRejected, match=re.escape(reason)):
            complete(subject, STORY, structured_outputs=structure)


def test_a_beam_search_answers_in_one_piece_or_is_refused(subject: Subject) -> None:
    if able(subject, "beam_search"):
        deltas, answer = streamed(subject, STORY, beam_width=2, max_tokens=6)
        assert [(delta.text, delta.tokens) for delta in deltas] == [(answer.text, answer.output_tokens)]
    else:
        with pytest.raises(RequestRejected, match=re.escape(subject.engine.info.cannot["beam_search"])):
            complete(subject, STORY, beam_width=2)


def test_adapters_change_the_answer_or_are_refused(subject: Subject) -> None:
    if able(subject, "adapters"):
        assert subject.adapter is not None, "give the contract an adapter to try"
        plain = complete(subject, STORY, temperature=0, max_tokens=12)
        adapted = complete(subject, STORY, temperature=0, max_tokens=12, adapter=subject.adapter)
        assert plain.text != adapted.text
    else:
        with pytest.raises(RequestRejected, match=re.escape(subject.engine.info.cannot["adapters"])):
            complete(subject, STORY, adapter=LoraAdapter("none", "nowhere", 1))


VALUES = {
    "float": 0.5,
    "int": 3,
    "text_list": ["x"],
    "int_list": [1],
    "map": {"1": 1.0},
    "structured": {"choice": ["a"]},
}


def test_parameters_it_does_not_take_are_refused_for_its_reason(subject: Subject) -> None:
    for name, reason in subject.engine.info.cannot_params.items():
        row = sampling.BY_NAME[name]
        value = not row.default if row.kind == "bool" else VALUES[row.kind]
        with pytest.raises(RequestRejected, match=re.escape(reason)):
            complete(subject, STORY, **{name: value})
    assert complete(subject, STORY, max_tokens=1, **{
        name: sampling.BY_NAME[name].default
        for name in subject.engine.info.cannot_params
        if sampling.BY_NAME[name].default is not None
    }).output_tokens == 1  # fmt: skip


def test_only_one_answer_can_be_streamed(subject: Subject) -> None:
    with pytest.raises(RequestRejected, match="Only one answer can be streamed"):
        streamed(subject, STORY, n=2)
    subject.run(subject.engine.check())


def test_its_death_is_told_and_it_can_be_closed(subject: Subject) -> None:
    """The last one: it may leave no engine behind."""
    if subject.kill is None:
        pytest.skip("it has no process of its own, or one that other tests need")
    engine = subject.engine
    pending = subject.spawn(engine.complete(asking(STORY, max_tokens=900, ignore_eos=True)))
    end = time.monotonic() + 10
    while not engine.stats().running and time.monotonic() < end:
        time.sleep(0.005)
    subject.kill()
    with pytest.raises(EngineDied):
        pending.result(10)
    with pytest.raises(EngineDied):
        subject.run(engine.check())
    with pytest.raises(EngineDied):
        complete(subject, STORY)
    for _twice in range(2):
        subject.run(engine.close())
