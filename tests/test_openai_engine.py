"""Servers with OpenAI's API as engines: what is found out and sent, and what may go wrong. No vLLM here."""

import asyncio
import gzip
import threading
import time

import batch_runs
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from core.chat_templates import fit
from core.endpoints import secret_name
from core.engines import openai_client
from core.errors import EngineDied, EngineLoadError, EngineNotReady, ParameterError, RequestRejected
from core.inspector import inspect
from core.planning.forecast import forecast
from core.run_spec import Instructions, OverflowSpec
from core.runtime import Runtime
from core.secrets import Secrets
from core.types import ChatPrompt, Completion, Delta, EngineSpec, Message, Request
from tests.openai_server import FakeServer, error, event, reply

KEY = "sk-secret-0123456789"
ASKED = ChatPrompt((Message("system", "Be short."), Message("user", "Count.")))


@pytest.fixture
def server(httpserver):
    return FakeServer(httpserver)


@pytest.fixture
def runtime(settings):
    runtime = Runtime(settings)
    yield runtime
    runtime.close()


@pytest.fixture
def load(runtime):
    """Loads a model of a server, and gives the engine."""

    def make(server, model="small", **values):
        runtime.load(EngineSpec(engine="openai", model=model, base_url=server.base_url, **values))
        engine = runtime.wait_ready(30)
        server.asked.clear()
        server.paths.clear()
        return engine

    return make


def request(prompt=ASKED, top_logprobs=None, **params):
    return Request(id="test", prompt=prompt, params=params, top_logprobs=top_logprobs)


def complete(runtime, asked):
    return runtime.run(runtime.engine.complete(asked))


def items(runtime, asked):
    async def gather():
        return [item async for item in runtime.engine.stream(asked)]

    return runtime.run(gather())


# -- what a server can do ------------------------------------------------------------


def test_a_plain_server_streams_and_counts(runtime, server, load):
    engine = load(server)
    *deltas, completion = items(runtime, request(temperature=0.2, max_tokens=50, stop=["END"]))
    assert [delta.text for delta in deltas] == server.words
    assert all(isinstance(delta, Delta) and delta.tokens == 1 for delta in deltas)
    assert isinstance(completion, Completion) and completion.text == "One two three."
    assert (completion.finish_reason, completion.prompt_tokens, completion.output_tokens) == ("stop", 7, 3)
    assert completion.cached_tokens == 4
    timing = completion.timing
    assert timing.sent_s <= timing.first_token_s <= timing.last_token_s
    (asked,) = server.asked
    assert asked["messages"] == [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "Count."},
    ]  # fmt: skip
    assert (asked["temperature"], asked["max_tokens"], asked["stop"]) == (0.2, 50, ["END"])
    assert complete(runtime, request(max_tokens=2)).finish_reason == "length"
    stats = engine.stats()
    assert (stats.running, stats.prompt_tokens, stats.output_tokens) == (0, 14, 5)


def test_what_it_can_not_is_said_and_refused(runtime, server, load):
    engine = load(server)
    assert set(engine.info.cannot) == {
        "tokens", "chat_options", "completion", "structured_outputs", "score", "beam_search", "top_logprobs",
        "distribution", "adapters",
    }  # fmt: skip
    for call in (
        lambda: engine.encode(["text"]), lambda: engine.decode([1]), lambda: engine.pieces([1]),
        lambda: engine.render_chat([ASKED.messages]),
    ):  # fmt: skip
        with pytest.raises(RequestRejected, match="how it cuts text into tokens"):
            call()
    refused = [
        request("plain text"), request([1, 2, 3]), request(top_logprobs=2), request(logprobs=0), request(""),
        request(ChatPrompt(ASKED.messages, {"enable_thinking": False})), request(beam_width=2),
        request(structured_outputs={"choice": ["a", "b"]}), request(min_p=0.2), request(top_k=5),
    ]  # fmt: skip
    for asked in refused:
        with pytest.raises(RequestRejected):
            complete(runtime, asked)
    assert server.asked == []


def test_a_parameter_at_rest_is_left_out_where_it_can_not_be_sent(runtime, server, load):
    server.strict = True
    engine = load(server)
    assert "top_k" in engine.info.cannot_params and "temperature" not in engine.info.cannot_params
    complete(runtime, request(top_k=0, min_p=0.0, repetition_penalty=1.0, n=1, skip_special_tokens=True))
    assert set(server.asked[0]) == {"model", "messages", "max_tokens", "stream", "stream_options"}


def test_a_parameter_that_is_taken_in_silence_is_looked_at(server, load):
    """llama.cpp knows min_p; a server that only doesn't mind it is not believed."""
    server.honours = {"top_k"}
    engine = load(server)
    assert "top_k" not in engine.info.cannot_params
    assert "without a word" in engine.info.cannot_params["min_p"]


def test_a_server_that_refuses_what_others_take(runtime, server, load):
    """OpenAI's reasoning models: no temperature, and another name for max_tokens."""
    server.max_tokens, server.strict = "max_completion_tokens", True
    server.before = lambda asked: (
        error(400, "Unsupported value: temperature")
        if asked.path.endswith("completions") and "temperature" in asked.get_json()
        else None
    )
    engine = load(server)
    assert "refuses this parameter" in engine.info.cannot_params["temperature"]
    assert "top_p" not in engine.info.cannot_params
    assert complete(runtime, request(temperature=1.0, max_tokens=2)).text == "One two "
    assert server.asked[-1]["max_completion_tokens"] == 2 and "max_tokens" not in server.asked[-1]
    with pytest.raises(RequestRejected, match="temperature"):
        complete(runtime, request(temperature=0.0))


def test_schemas_go_into_response_format(runtime, server, load):
    server.honours = {"response_format"}
    engine = load(server)
    assert "structured_outputs" not in engine.info.cannot
    schema = {"type": "object", "properties": {"size": {"type": "string", "enum": ["big"]}}}
    assert complete(runtime, request(structured_outputs={"json": schema})).text == '{"size": "big"}'
    assert server.asked[0]["response_format"]["json_schema"]["schema"] == schema
    with pytest.raises(RequestRejected, match="regex"):
        complete(runtime, request(structured_outputs={"regex": "a+"}))


def test_several_answers_are_several_requests(runtime, server, load):
    load(server)
    completion = complete(runtime, request(n=3, temperature=2.0, seed=5))
    assert [sample.text for sample in completion.samples] == ["Hot 5", "Hot 6", "Hot 7"]
    assert completion.output_tokens == 3 and completion.text == "Hot 5"
    assert all("n" not in asked for asked in server.asked)


def test_reasoning_that_is_kept_apart_goes_between_marks(runtime, server, load):
    load(server)
    server.thoughts = ["Hm, ", "numbers."]
    *deltas, completion = items(runtime, request())
    assert completion.text == "<think>\nHm, numbers.\n</think>\n\nOne two three."
    assert "".join(delta.text for delta in deltas) == completion.text


def test_without_usage_the_chunks_are_counted(runtime, server, load):
    server.usage = False
    load(server)
    completion = complete(runtime, request())
    assert (completion.output_tokens, completion.cached_tokens) == (3, None)


# -- loading -------------------------------------------------------------------------


def test_a_model_by_name_or_the_only_one(runtime, httpserver, load):
    server = FakeServer(httpserver, [{"id": "a", "max_model_len": 500}])
    assert load(server, "embedded").info.max_model_len == 500
    assert load(server, "a", max_model_len=300, max_num_seqs=7).info.max_model_len == 300
    assert runtime.engine.info.batch_slots == 7
    with pytest.raises(EngineLoadError, match="no model 'b'") as missing:
        load(server, "b")
    assert "It has a." in str(missing.value)


def test_what_was_found_out_is_kept(runtime, server, load):
    load(server)
    runtime.load(EngineSpec(engine="openai", model="small", base_url=server.base_url))
    runtime.wait_ready(10)
    assert server.asked == []
    assert set(server.paths) == {"/v1/models"}


def test_an_unknown_context_is_said(server, load):
    info = load(server).info
    assert info.max_model_len == 32_768 and "assumed" in info.settings["notes"][0]


@pytest.mark.parametrize(
    ("base_url", "words"),
    [("http://127.0.0.1:9/v1", "can't be reached"), ("not an address", "no address")],
)
def test_what_can_not_be_loaded(runtime, base_url, words):
    runtime.load(EngineSpec(engine="openai", model="small", base_url=base_url))
    with pytest.raises(EngineLoadError, match=words):
        runtime.wait_ready(20)


def test_the_key_goes_to_its_server_and_nowhere_else(runtime, server, load, settings, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-private")
    server.key = KEY
    Secrets(settings).save(secret_name(server.base_url), KEY)
    with caplog.at_level("DEBUG"):
        engine = load(server)
        complete(runtime, request())
    assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
    assert not [
        sent for sent in server.headers if "Openai-Organization" in sent or "OpenAI-Organization" in sent
    ]
    assert KEY not in repr(engine.info) + repr(engine.spec) + repr(runtime.status()) + caplog.text
    kept = [path for path in settings.home.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert kept == [settings.home / "secrets.json"]

    server.key = "sk-changed"  # the server's words repeat the key that it got
    with pytest.raises(RequestRejected, match="does not accept the key") as refused:
        complete(runtime, request())
    server.key = None
    server.before = lambda asked: error(400, f"bad request with Bearer {KEY}")
    with pytest.raises(RequestRejected, match=r"\(key\)") as told:
        complete(runtime, request())
    assert KEY not in str(refused.value) + str(told.value)


def test_without_a_key_no_key_of_the_environment_is_sent(server, load, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    load(server)
    assert "sk-of-somebody-else" not in str(server.headers)


# -- what goes wrong -----------------------------------------------------------------


def test_a_busy_server_is_asked_again(runtime, server, load):
    load(server)
    answers = iter(
        [error(429, "slow down", **{"Retry-After": "0"}), error(503, "full", **{"Retry-After": "0"})]
    )
    server.before = lambda asked: next(answers, None) if asked.path.endswith("completions") else None
    assert complete(runtime, request()).text == "One two three."
    assert len(server.paths) == 4  # the third try, and a look at the server that said 503


@pytest.mark.parametrize(
    "refusal",
    [
        error(429, "come back", **{"Retry-After": "86400"}),
        reply({"error": {"message": "You have no money", "code": "insufficient_quota"}}, 429),
        error(404, "The model does not exist"),
        error(400, "Bad"),
        error(500, "Oops"),
        error(302, "moved", Location="http://127.0.0.1:9/elsewhere"),
        reply({"detail": [{"loc": ["body"], "msg": "wrong"}]}, 422),
        Response("<html>Bad Gateway</html>", 400),
    ],
    ids=lambda response: str(response.status_code),
)
def test_what_asking_again_would_not_mend_is_refused_at_once(runtime, server, load, refusal):
    load(server)
    server.before = lambda asked: refusal if asked.path.endswith("completions") else None
    with pytest.raises(RequestRejected):
        complete(runtime, request())
    assert server.paths.count("/v1/chat/completions") == 1
    server.before = lambda asked: None
    assert complete(runtime, request()).text == "One two three."


@pytest.mark.parametrize(
    "answer",
    [
        Response("<html>Hello</html>", content_type="text/html"),
        reply(["a", "list"]),
        Response(b"data: [1, 2]\n\n", content_type="text/event-stream"),
        Response(b"data: {broken\n\n", content_type="text/event-stream"),
        Response(event({"choices": [{"delta": {"content": "Half"}}]}), content_type="text/event-stream"),
        Response(event({"choices": "none", "usage": 3}), content_type="text/event-stream"),
        Response(event({"error": {"message": "The engine is on fire"}}), content_type="text/event-stream"),
        Response(b"", content_type="text/event-stream"),
    ],
    ids=["html", "list", "list in stream", "broken", "no end", "odd", "error", "empty"],
)  # fmt: skip
def test_what_is_no_answer_is_refused(runtime, server, load, answer):
    load(server)
    server.before = lambda asked: answer if asked.path.endswith("completions") else None
    with pytest.raises(RequestRejected):
        complete(runtime, request())


def test_odd_values_inside_an_answer_do_no_harm(runtime, server, load):
    load(server)
    chunks = [
        {"choices": [None, 5]},
        {
            "choices": [
                {"delta": {"content": 7, "role": "assistant"}, "token_ids": ["x", True], "logprobs": 3}
            ]
        },
        {
            "choices": [{"delta": {"content": "Fine"}, "finish_reason": "novel"}],
            "usage": {"prompt_tokens": -4},
        },
    ]
    body = b"".join(map(event, chunks))
    server.before = lambda asked: (
        Response(body, content_type="text/event-stream") if asked.path.endswith("completions") else None
    )
    completion = complete(runtime, request())
    assert (completion.text, completion.finish_reason, completion.prompt_tokens) == ("Fine", "stop", 0)


def test_an_endless_answer_is_cut_off(runtime, server, load, monkeypatch):
    load(server)
    monkeypatch.setattr(openai_client, "MOST_BYTES", 2_000)
    server.words = ["word "] * 1_000
    with pytest.raises(RequestRejected, match="longer than"):
        complete(runtime, request(max_tokens=1_000))


def test_compressed_answers_are_not_unpacked(runtime, server, load):
    load(server)
    packed = gzip.compress(b"0" * 10_000)
    server.before = lambda asked: Response(packed, headers={"Content-Encoding": "gzip"})
    with pytest.raises(RequestRejected, match="compressed"):
        complete(runtime, request())


def test_a_stream_that_breaks_is_asked_for_again_unless_somebody_read_it(runtime, server, load):
    load(server)
    broken = 0

    def begin():
        nonlocal broken
        broken += 1
        yield event({"choices": [{"index": 0, "delta": {"content": "One "}}]})
        raise ConnectionError("cut")

    server.before = lambda asked: (
        Response(begin(), headers={"Content-Length": "5000"}, content_type="text/event-stream")
        if asked.path.endswith("completions") and broken < 1
        else None
    )
    with pytest.raises(RequestRejected, match="broke off"):
        items(runtime, request())
    broken = 0
    assert complete(runtime, request()).text == "One two three."
    assert broken == 1


def test_stopping_closes_the_connection(runtime, server, load):
    load(server)
    server.words, server.pause_s = ["word "] * 200, 0.02

    async def first():
        stream = runtime.engine.stream(request(max_tokens=200))
        item = await anext(stream)
        await stream.aclose()
        return item

    assert runtime.run(first()).text == "word "
    assert runtime.engine.stats().running == 0

    async def cancelled():
        task = asyncio.create_task(runtime.engine.complete(request(max_tokens=200)))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert runtime.run(cancelled())
    assert runtime.engine.stats().running == 0


# -- without tokens, in the rest of the house ------------------------------------------


def test_a_prompt_without_tokens_is_the_conversation(server, load):
    engine = load(server)
    chat = [*ASKED.messages, Message("assistant", "One."), Message("user", "Go on.")]
    prompt = fit(chat, engine, 100, options={"a": 1})
    assert (prompt.prompt, prompt.tokens, prompt.dropped) == (ChatPrompt(tuple(chat), {"a": 1}), None, ())
    assert fit(chat, engine, 100, style="ChatML").prompt.startswith("<|im_start|>system\nBe short.")
    with pytest.raises(RequestRejected, match="can't go on"):
        fit(chat, engine, 100, continued="One, ")
    seen = inspect(chat, engine, 100)
    assert (seen.pieces, seen.prompt_tokens, seen.messages, seen.template) == (None, None, tuple(chat), None)


def run_table(runtime, settings, tmp_path, rows, instructions):
    """Stage a table, forecast it and run it: (forecast, progress, rows of the exported table)."""
    table = tmp_path / "table.csv"
    table.write_text("text\n" + "\n".join(rows) + "\n", encoding="utf-8")
    with batch_runs.opened(runtime) as (_runtime, store, jobs):
        run = jobs.stage(table, instructions=instructions)
        expected = forecast(run, runtime.engine, store)
        jobs.start(run.run_id)
        progress = jobs.wait(run.run_id, timeout_s=60)
        run.export(tmp_path / "out.csv")
    return expected, progress, batch_runs.read_csv(tmp_path / "out.csv")


def test_a_batch_without_tokens(runtime, server, load, settings, tmp_path):
    load(server, max_num_seqs=4)
    instructions = Instructions(template="Say {{ text }}", turns=("And more",), params={"max_tokens": 9})
    expected, progress, rows = run_table(runtime, settings, tmp_path, ["a", "b", "c", "d"], instructions)
    assert (expected.requests, expected.prompt_tokens, expected.over_limit, expected.cached_share) == (
        4,
        None,
        0,
        None,
    )
    assert progress.state == "finished" and progress.counts.ok == 4
    assert [row["answer"] for row in rows] == ["One two three."] * 4
    assert {row["answer_prompt_tokens"] for row in rows} == {"14"}  # of both turns, as the server counts
    talks = {asked["messages"][0]["content"]: asked for asked in server.asked if len(asked["messages"]) == 3}
    assert [one["role"] for one in talks["Say b"]["messages"]] == ["user", "assistant", "user"]


def test_long_prompts_can_not_be_cut_where_nobody_counts(runtime, server, load, settings, tmp_path):
    load(server)
    instructions = Instructions(template="{{ text }}", overflow=OverflowSpec(action="left"))
    with pytest.raises(ParameterError, match="can't be cut"):
        run_table(runtime, settings, tmp_path, ["a"], instructions)


# -- a server that goes away ------------------------------------------------------------


def test_a_batch_waits_for_a_server_that_is_gone(runtime, settings, tmp_path, free_port):
    """Rows that were under way when the server ended are asked again when it is back."""
    http = HTTPServer(port=free_port)
    http.start()
    server = FakeServer(http)
    server.pause_s = 0.02
    runtime.load(
        EngineSpec(
            engine="openai", model="small", base_url=f"http://localhost:{free_port}/v1", max_num_seqs=2
        )
    )
    runtime.wait_ready(30)
    seen = []

    def outage():
        while server.asked and len(server.asked) < before + 6:
            time.sleep(0.01)
        http.stop()
        deadline = time.monotonic() + 20
        while runtime.status().phase != "restarting" and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(1.5)
        seen.append(runtime.status())
        again = HTTPServer(port=free_port)
        again.start()
        seen.append(again)
        FakeServer(again)

    before = len(server.asked)
    thread = threading.Thread(target=outage)
    thread.start()
    try:
        rows = [f"row {number}" for number in range(40)]
        asked = Instructions(template="{{ text }}", params={"max_tokens": 9})
        _expected, progress, found = run_table(runtime, settings, tmp_path, rows, asked)
    finally:
        thread.join()
        for one in (http, *seen[1:]):
            if one.is_running():
                one.stop()
    status = seen[0]
    assert status.phase == "restarting" and "localhost" in status.stage
    assert (progress.state, progress.counts.ok) == ("finished", 40)
    assert [row["answer"] for row in found] == ["One two three."] * 40


def test_an_engine_whose_server_went_says_so_and_an_unload_ends_the_wait(runtime, free_port):
    http = HTTPServer(port=free_port)
    http.start()
    FakeServer(http)
    runtime.load(EngineSpec(engine="openai", model="small", base_url=f"http://localhost:{free_port}/v1"))
    engine = runtime.wait_ready(30)
    http.stop()
    with pytest.raises(EngineDied, match="can't be reached"):
        complete(runtime, request())
    with pytest.raises(EngineDied):
        runtime.run(engine.check())
    deadline = time.monotonic() + 10
    while "Waiting for" not in runtime.status().stage and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "Waiting for localhost" in runtime.status().stage
    runtime.unload()
    with pytest.raises(EngineNotReady):
        runtime.wait_ready(10)
    assert runtime.status().phase == "empty"


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
