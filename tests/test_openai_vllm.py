"""vLLM's own server, over the engine that the tests share, as an engine: it answers as that one does."""

import asyncio
import time

import batch_runs
import pytest

from core.chat import Chats
from core.errors import RequestRejected
from core.run_spec import Instructions
from core.runtime import Runtime
from core.settings import load_settings
from core.store import Store
from core.types import ChatPrompt, Completion, EngineSpec, LoraAdapter, Message, Request
from tests.vllm_server import vllm_server

ASKED = (Message("user", "What is the capital of France?"),)
GREEDY = {"temperature": 0.0, "max_tokens": 24}


@pytest.fixture(scope="module")
def served(engine_runtime):
    with vllm_server(engine_runtime) as served:
        yield served


@pytest.fixture(scope="module")
def remote(served, tmp_path_factory):
    """A runtime whose engine is the server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("remote-home")))
        runtime = Runtime(load_settings())
        runtime.load(EngineSpec(engine="openai", model=served.model, base_url=served.base_url))
        runtime.wait_ready(120)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def ids(engine_runtime):
    engine = engine_runtime.engine
    return engine.encode(engine.render_chat([ASKED]))[0]


def ask(runtime, prompt, params, top_logprobs=None):
    asked = Request(id=f"ask-{time.monotonic_ns()}", prompt=prompt, params=params, top_logprobs=top_logprobs)
    return runtime.run(runtime.engine.complete(asked))


def test_everything_that_vllm_can_is_found_out(remote):
    info = remote.engine.info
    assert set(info.cannot) == {"beam_search", "distribution", "adapters"}
    assert set(info.cannot_params) == {"beam_width", "length_penalty"}
    assert (info.max_model_len, info.batch_slots) == (8192, 64)
    assert remote.engine._can.context == 8192  # from /tokenize: a router's list of models leaves it out
    assert info.engine_version.startswith("vLLM 0.") and info.has_chat_template


def test_its_tokens_are_the_models_own(remote, engine_runtime, ids):
    ours, theirs = engine_runtime.engine, remote.engine
    texts = ["Hello, world", "naïve café 日本", " two  spaces", ""]
    assert theirs.encode(texts) == ours.encode(texts)
    chats = [ASKED, (Message("system", "Be calm."), *ASKED)]
    assert theirs.render_chat(chats) == ours.render_chat(chats)
    assert theirs.encode(theirs.render_chat(chats)) == ours.encode(ours.render_chat(chats))
    assert theirs.pieces(ids) == ours.pieces(ids)
    assert theirs.decode(ids) == ours.decode(ids)


def test_a_conversation_its_text_and_its_tokens_are_one_prompt(remote, engine_runtime, ids):
    (text,) = engine_runtime.engine.render_chat([ASKED])
    expected = ask(engine_runtime, ids, GREEDY)
    for prompt in (ids, text, ChatPrompt(ASKED)):
        found = ask(remote, prompt, GREEDY)
        assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
        assert (found.prompt_tokens, found.output_tokens) == (len(ids), expected.output_tokens)
        assert 0 < found.timing.ttft_s <= found.timing.e2el_s
    assert found.cached_tokens > 0
    assert ask(engine_runtime, ChatPrompt(ASKED), GREEDY).text == expected.text


def test_a_stream_has_the_tokens_with_their_probabilities(remote, engine_runtime, ids):
    async def gather():
        asked = Request(id="stream", prompt=ids, params=GREEDY, top_logprobs=3)
        return [item async for item in remote.engine.stream(asked)]

    *deltas, completion = remote.run(gather())
    expected = ask(engine_runtime, ids, GREEDY, top_logprobs=3)
    assert isinstance(completion, Completion) and len(deltas) > 3
    assert "".join(delta.text for delta in deltas) == completion.text == expected.text
    assert sum(delta.tokens for delta in deltas) == completion.output_tokens == expected.output_tokens
    for found, wanted in zip(completion.logprobs, expected.logprobs, strict=True):
        assert (found.token_id, found.rank) == (wanted.token_id, wanted.rank)
        assert found.logprob == pytest.approx(wanted.logprob, abs=0.05)
        assert [one.text for one in found.alternatives] == [one.text for one in wanted.alternatives]


def test_parameters_act_there(remote, ids):
    assert ask(remote, ids, {**GREEDY, "stop": ["France"]}).text == "The capital of "
    assert "Paris" not in ask(remote, ids, {**GREEDY, "bad_words": [" Paris", "Paris"]}).text
    assert ask(remote, ids, {**GREEDY, "structured_outputs": {"choice": ["maybe", "never"]}}).text in (
        "maybe",
        "never",
    )
    hot = {"temperature": 2.0, "top_k": 1, "max_tokens": 8}
    assert ask(remote, ids, hot).text == ask(remote, ids, {**GREEDY, "max_tokens": 8}).text
    seeded = {"temperature": 1.5, "seed": 7, "max_tokens": 12}
    assert ask(remote, ids, seeded).text == ask(remote, ids, seeded).text
    several = ask(remote, ids, {"temperature": 1.0, "n": 3, "max_tokens": 6, "ignore_eos": True})
    assert [sample.output_tokens for sample in several.samples] == [6, 6, 6] and several.output_tokens == 18
    assert ask(remote, ChatPrompt(ASKED), {**GREEDY, "max_tokens": 100_000}).text  # as much as there is room
    assert ask(remote, ids, {**GREEDY, "logprobs": 0}).cumulative_logprob < 0


def test_scores_are_the_engines_own(remote, engine_runtime, ids):
    choices = ["Paris", "Paris, of course", "London"]
    asked = Request(id="score", prompt=ids)
    found = remote.run(remote.engine.score(asked, choices))
    expected = engine_runtime.run(engine_runtime.engine.score(asked, choices))
    assert found == pytest.approx(expected, abs=0.15)


def test_what_is_too_long_or_not_there_is_refused(remote, ids):
    with pytest.raises(RequestRejected, match=r"9000 tokens; the context holds 8192"):
        ask(remote, [5] * 9_000, GREEDY)
    with pytest.raises(RequestRejected, match="8192"):
        ask(remote, ChatPrompt((Message("user", "word " * 9_000),)), GREEDY)
    for prompt in ("", []):
        with pytest.raises(RequestRejected, match="empty"):
            ask(remote, prompt, GREEDY)
    adapter = LoraAdapter("poet", "/nowhere", 1)
    with pytest.raises(RequestRejected, match="models of their own"):
        remote.run(remote.engine.complete(Request(id="a", prompt=ids, adapter=adapter)))


def test_stopping_an_answer_stops_it_there(remote, served, ids):
    async def stopped():
        stream = remote.engine.stream(
            Request(id="long", prompt=ids, params={"max_tokens": 4_000, "ignore_eos": True})
        )
        await anext(stream)
        at_work = served.requests
        await stream.aclose()
        for _ in range(100):
            if not served.requests:
                return at_work
            await asyncio.sleep(0.05)
        raise AssertionError("the server goes on")

    assert remote.run(stopped()) == 1


def test_a_chat_goes_on_through_it(remote):
    store = Store(remote.settings.catalogue_path)
    chats = Chats(remote, store)
    try:
        conversation = chats.create().conversation_id
        (first,) = chats.send(conversation, "Name one fruit.", {"temperature": 0, "max_tokens": 3})
        settle(chats, conversation)
        cut = chats.conversations.message(first)
        assert (cut.state, cut.details["finish_reason"], cut.details["output_tokens"]) == (
            "complete",
            "length",
            3,
        )
        chats.go_on(first, {"temperature": 0, "max_tokens": 4})
        settle(chats, conversation)
        longer = chats.conversations.message(first)
        assert longer.content.startswith(cut.content) and longer.details["output_tokens"] > 3
    finally:
        chats.close()
        store.close()


def settle(chats, conversation):
    deadline = time.monotonic() + 30
    while chats.live(conversation):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_batch_through_it_is_the_batch_of_the_engine(remote, engine_runtime, tmp_path):
    rows = [f"What is {number} plus {number}?" for number in range(8)]
    instructions = Instructions(template="{{ text }}", params={"temperature": 0, "max_tokens": 12})
    answers = {}
    for name, runtime in (("remote", remote), ("here", engine_runtime)):
        table = tmp_path / f"{name}.csv"
        table.write_text("text\n" + "\n".join(rows) + "\n", encoding="utf-8")
        with batch_runs.opened(runtime) as batches:
            run = batches.jobs.stage(table, instructions=instructions)
            assert batch_runs.finish(batches.jobs, run).counts.ok == 8
            run.export(tmp_path / f"{name}-out.csv")
        answers[name] = batch_runs.read_csv(tmp_path / f"{name}-out.csv")
    for found, expected in zip(answers["remote"], answers["here"], strict=True):
        assert found["answer_prompt_tokens"] == expected["answer_prompt_tokens"]
    same = sum(
        found["answer"] == expected["answer"]
        for found, expected in zip(answers["remote"], answers["here"], strict=True)
    )
    assert same >= 6  # which rows share a step differs, and with it the last bits of a CPU's sums
