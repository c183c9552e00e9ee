"""OpenAI's API on the real engine, asked by OpenAI's own client and by plain HTTP."""

import json
import os
import signal
import threading

import httpx
import jsonschema
import openai
import pytest
from api_serving import serving
from waiting import until

from core.api.records import KeyLimits
from core.presets import Presets
from core.store import Store
from core.types import ChatPrompt, Message, Priority, Request

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ENDLESS = {"max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def api(engine_runtime):
    """The server and a plain client."""
    with serving(engine_runtime) as found:
        yield found


@pytest.fixture(scope="module")
def client(api):
    """OpenAI's own, without a second try."""
    server, _http = api
    with openai.OpenAI(base_url=f"{server.status().url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(engine_runtime):
    return engine_runtime.engine.info.model


def requests_inside(engine_runtime):
    return len(engine_runtime.engine.client().output_processor.request_states)


def test_a_chat_answers_what_the_workbench_itself_gets(client, model, engine_runtime):
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=24, temperature=0)
    prompt = ChatPrompt((Message("user", QUESTION[0]["content"]),))
    request = Request(id="same", prompt=prompt, params={"max_tokens": 24, "temperature": 0})
    own = engine_runtime.run(engine_runtime.engine.complete(request))
    assert answer.choices[0].message.content == own.text
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        own.prompt_tokens, own.output_tokens
    )  # fmt: skip
    assert answer.model == model and answer.choices[0].finish_reason == own.finish_reason


def test_a_streamed_chat_is_the_same_text_and_tells_its_usage(client, model):
    asked = {"model": model, "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and len(chunks) > 5
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_plain_server_sent_events(api, model):
    _server, http = api
    body = {"model": model, "messages": QUESTION, "max_tokens": 8, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    assert {json.loads(event)["object"] for event in events[:-1]} == {"chat.completion.chunk"}


def test_completions_with_log_probabilities(client, model):
    answer = client.completions.create(
        model=model, prompt=["One, two,", "Red, green,"], max_tokens=4, logprobs=2, temperature=0
    )
    assert len(answer.choices) == 2
    for choice in answer.choices:
        assert len(choice.logprobs.tokens) == 4 and max(choice.logprobs.token_logprobs) <= 0
        assert "".join(choice.logprobs.tokens) == choice.text
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=3, logprobs=True, top_logprobs=5, temperature=0
    )
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 3 and all(len(token.top_logprobs) == 5 for token in tokens)


def test_structured_output_follows_its_schema(client, model):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "rivers": {"type": "integer"}},
        "required": ["city", "rivers"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": schema}},
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content), schema)


def test_a_model_without_tools_says_so_and_a_named_tool_is_called_all_the_same(client, model):
    weather = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    asked = {"model": model, "messages": QUESTION, "tools": [weather], "max_tokens": 60}
    with pytest.raises(openai.BadRequestError, match="tool"):
        client.chat.completions.create(**asked, tool_choice="auto")
    answer = client.chat.completions.create(
        **asked, tool_choice={"type": "function", "function": {"name": "weather"}}
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_responses(client, model):
    answer = client.responses.create(model=model, input="Say hello.", max_output_tokens=12)
    assert answer.output_text and answer.usage.output_tokens <= 12


def test_tokenize_and_back(api, model):
    _server, http = api
    tokens = http.post("/tokenize", json={"model": model, "prompt": "Hello there"}).json()["tokens"]
    assert http.post("/detokenize", json={"model": model, "tokens": tokens}).json()["prompt"] == "Hello there"


def test_models_metrics_and_health(api, client, model):
    _server, http = api
    assert next(iter(client.models.list())).id == model
    assert client.models.retrieve(model).id == model
    metrics = http.get("/metrics")
    assert metrics.status_code == 200 and "vllm:generation_tokens_total" in metrics.text
    assert http.get("/health").status_code == 200


def test_what_is_wrong_with_a_request_is_told_in_openais_form(api, client, model):
    _server, http = api
    with pytest.raises(openai.NotFoundError, match="nothing-like-it"):
        client.chat.completions.create(model="nothing-like-it", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.completions.create(model=model, prompt="word " * 20_000, max_tokens=5)
    with pytest.raises(openai.BadRequestError, match="at most"):
        client.completions.create(model=model, prompt="x", n=1000, temperature=1)
    with pytest.raises(openai.BadRequestError, match="at most"):
        client.completions.create(model=model, prompt="x", logprobs=5000)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=model, input="x")
    for refused in (
        http.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"}),
        http.post("/v1/chat/completions", json=[]),
        http.post("/v1/chat/completions", json={"model": model, "messages": "no list"}),
        http.post("/v1/chat/completions", json={"model": 7, "messages": QUESTION}),
        http.get("/v1/chat/completions"),
        http.post("/v1/embeddings", json={"model": model, "input": "x"}),
    ):
        assert 400 <= refused.status_code < 500
        assert set(refused.json()["error"]) >= {"message", "type", "param", "code"}, refused.text


def test_a_model_may_be_left_out_or_carry_a_preset(api, model, engine_runtime):
    _server, http = api
    store = Store(engine_runtime.settings.catalogue_path)
    Presets(store).save("brief", {"max_tokens": 3, "temperature": 0})
    store.close()
    body = {"messages": QUESTION, "ignore_eos": True}
    counts = {
        name: http.post("/v1/chat/completions", json={**body, **more}).json()["usage"]["completion_tokens"]
        for name, more in (
            ("preset", {"model": f"{model}:brief"}),
            ("alone", {"model": "brief"}),
            ("overridden", {"model": "brief", "max_tokens": 5}),
            ("without", {"max_tokens": 4}),
        )
    }
    assert counts == {"preset": 3, "alone": 3, "overridden": 5, "without": 4}


def test_what_was_used_is_booked_as_it_was_told(api, client, model):
    server, _http = api
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=9, extra_body={"ignore_eos": True}
    )
    booked = until(
        lambda: server.usage.flush() or [one for one in server.usage.latest(1) if one.output_tokens == 9]
    )[0]
    assert (booked.endpoint, booked.model, booked.status) == ("/v1/chat/completions", model, 200)
    assert (booked.prompt_tokens, booked.output_tokens) == (
        answer.usage.prompt_tokens, answer.usage.completion_tokens
    )  # fmt: skip
    assert 0 < booked.ttft_s <= booked.duration_s


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(api, model, engine_runtime, stream):
    server, _http = api
    body = {"model": model, "messages": QUESTION, "stream": stream, **ENDLESS}
    url = f"{server.status().url}/v1/chat/completions"
    with (
        pytest.raises(httpx.ReadTimeout),
        httpx.Client(timeout=1) as leaving,
        leaving.stream("POST", url, json=body) as answer,
    ):
        for number, _line in enumerate(answer.iter_lines()):
            if number > 6:
                raise httpx.ReadTimeout("seen enough")
    until(lambda: not server.live() and requests_inside(engine_runtime) == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_live_request_is_seen_and_ended_on_the_page(api, model, engine_runtime, stream):
    server, http = api
    found = []
    body = {"model": model, "messages": QUESTION, "stream": stream, **ENDLESS}
    asking = threading.Thread(target=lambda: found.append(http.post("/v1/chat/completions", json=body)))
    asking.start()
    live = until(lambda: [one for one in server.live() if one.output_tokens > 4])
    assert live[0].state == "generating" and live[0].model == model and live[0].prompt_tokens > 5
    server.abort(live[0].request_id)
    asking.join(30)
    assert '"finish_reason":"abort"' in found[0].text
    until(lambda: not server.live() and requests_inside(engine_runtime) == 0)


def test_priority_comes_from_the_key_and_from_nothing_that_is_sent(engine_runtime, model, monkeypatch):
    seen = []
    engine = engine_runtime.engine.client()
    generate = engine.generate

    def watched(*arguments, **named):
        seen.append(named["priority"])
        return generate(*arguments, **named)

    monkeypatch.setattr(engine, "generate", watched)
    with serving(engine_runtime, api_require_key=True) as (server, http):
        for number, limits in enumerate((KeyLimits(priority=0), KeyLimits(priority=7))):
            _key, secret = server.keys.create(f"priority {number}", limits)
            headers = {"Authorization": f"Bearer {secret}", "X-Vllm-Priority": "-50"}
            body = {"model": model, "prompt": "x", "max_tokens": 1, "priority": -100}
            assert http.post("/v1/completions", json=body, headers=headers).status_code == 200
    assert seen == [Priority.API, Priority.API + 7]


def test_after_the_engines_death_clients_are_told_to_come_again_and_served_again(api, model, engine_runtime):
    server, http = api
    url, found = f"{server.status().url}/v1/completions", {}

    def ask(stream):
        found[stream] = httpx.post(url, json={"prompt": "Go on", "stream": stream, **ENDLESS}, timeout=60)

    asking = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
    for one in asking:
        one.start()
    until(lambda: len(server.live()) == 2 and all(one.output_tokens for one in server.live()))
    os.kill(engine_runtime._guard.pids[0], signal.SIGKILL)
    for one in asking:
        one.join(30)
    assert found[False].status_code == 503 and int(found[False].headers["Retry-After"]) > 0
    assert '"error"' in found[True].text  # its status was sent long ago
    short = {"prompt": "One, two,", "max_tokens": 3}
    refused = http.post("/v1/completions", json=short)
    assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
    assert http.get("/health").status_code == 503
    until(lambda: http.post("/v1/completions", json=short).status_code == 200, timeout_s=120)
    assert server.status().phase == "serving" and http.get("/health").status_code == 200
