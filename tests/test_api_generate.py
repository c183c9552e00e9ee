"""POST /generate and the names of models, over HTTP on the scripted engine."""

import json

import httpx
import pytest
from api_serving import serving
from test_adapters import make_adapter
from waiting import until

from core.adapters.registry import Adapters
from core.api.body_params import filled
from core.api.records import KeyLimits
from core.presets import Presets
from core.store import Store
from core.types import Priority

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


@pytest.fixture
def fast(make_scripted_runtime):
    return make_scripted_runtime()


@pytest.fixture
def client(fast):
    with serving(fast) as (_server, client):
        yield client


@pytest.fixture
def presets(fast):
    store = Store(fast.settings.catalogue_path)
    yield Presets(store)
    store.close()


def answer(client, **body):
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def error(client, status=400, **body):
    response = client.post("/generate", json=body)
    assert response.status_code == status, response.text
    return response.json()["error"]


def events(response):
    lines = [line for line in response.text.splitlines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


# -- prompt in, answer out -----------------------------------------------------------


def test_a_prompt_is_answered_with_its_figures(client):
    found = answer(client, prompt="Name three rivers", max_tokens=4)
    assert found["response"].endswith("Name three rivers")
    assert (found["finish_reason"], found["model"]) == ("stop", "scripted")
    usage = found["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] > 4
    assert 0 < found["ttft"] <= found["time"]
    cut = answer(client, prompt="Name three rivers", max_tokens=2)
    assert (cut["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 2)


def test_a_prompt_is_a_message_unless_it_is_raw(client):
    asked = answer(client, prompt="Hello")
    message = {"role": "user", "content": "Hello"}
    assert answer(client, messages=[message])["response"] == asked["response"]
    instructed = answer(client, prompt="Hello", system="Be short.")
    opening = {"role": "system", "content": "Be short."}
    assert answer(client, messages=[opening, message])["response"] == instructed["response"]
    continued = answer(client, prompt="Hello", raw=True)
    assert len({asked["response"], instructed["response"], continued["response"]}) == 3
    assert continued["usage"]["prompt_tokens"] == 1


def test_null_asks_for_nothing_and_one_stop_text_may_stand_alone(client):
    assert answer(client, prompt="Hi", temperature=None, stop=None, model=None, stream=None)["response"]
    whole = answer(client, prompt="alpha [1] omega")
    stopped = answer(client, prompt="alpha [1] omega", stop="[1]")
    assert stopped["response"] == whole["response"].partition("[1]")[0]


def test_several_answers_and_their_likelihood(client):
    found = answer(client, prompt="Hi", n=3, logprobs=0)
    assert len(found["samples"]) == 3
    assert found["samples"][0]["response"] == found["response"]
    assert sum(one["completion_tokens"] for one in found["samples"]) == found["usage"]["completion_tokens"]
    assert found["logprob"] < 0 and "logprob" not in answer(client, prompt="Hi")


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "either prompt or messages"),
        ({"prompt": "a", "messages": []}, "prompt", "either prompt or messages"),
        ({"prompt": " "}, "prompt", "empty"),
        ({"prompt": ["a"]}, "prompt", "not a text"),
        ({"prompt": "a", "temprature": 1}, "temprature", "Did you mean temperature?"),
        ({"promt": "a"}, "promt", "Did you mean prompt?"),
        ({"prompt": "a", "priority": 0}, "priority", "no parameter 'priority'"),
        ({"prompt": "a", "temperature": -1}, "temperature", "out of range: 0 to 100"),
        ({"prompt": "a", "max_tokens": "many"}, "max_tokens", "'many'"),
        ({"prompt": "a", "stream": "yes"}, "stream", "true or false"),
        ({"prompt": "a", "stream": True, "n": 2}, "n", "Only one answer"),
        ({"prompt": "a", "raw": True, "system": "b"}, "raw", "without messages and system"),
        ({"messages": [{"role": "user"}]}, "messages", "message 1"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "the user's"),
        ({"prompt": "a", "model": 7}, "model", "not a text"),
        ({"prompt": "a", "n": 2, "temperature": 0}, "n", "temperature"),
    ],
)
def test_what_is_wrong_is_named(client, body, param, words):
    found = error(client, **body)
    assert (found["type"], found["param"]) == ("invalid_request_error", param)
    assert words in found["message"]


def test_a_body_that_is_no_object_is_refused(client):
    for content in (b"", b"{", b"[1]", b'"a"', b"\xff", b"[" * 100_000):
        response = client.post("/generate", content=content)
        assert response.status_code == 400 and "JSON" in response.json()["error"]["message"]


def test_a_prompt_over_the_context_is_refused_by_the_engine(client):
    for stream in (False, True):
        assert "8192" in error(client, prompt="word " * 9000, stream=stream)["message"]


# -- streaming ------------------------------------------------------------------------


def test_a_stream_brings_the_same_answer_in_pieces(client):
    whole = answer(client, prompt="one two three", seed=1)
    *pieces, last = events(
        client.post("/generate", json={"prompt": "one two three", "seed": 1, "stream": True})
    )
    assert len(pieces) == whole["usage"]["completion_tokens"] > 1
    assert "".join(piece["response"] for piece in pieces) == whole["response"]
    assert last["response"] == "" and last["finish_reason"] == "stop"
    # the second time, the prompt may come from the cache
    assert last["usage"] | {"cached_tokens": 0} == whole["usage"] | {"cached_tokens": 0}


def test_who_goes_away_frees_the_engine(runtime):
    long = {"prompt": "Go on", "max_tokens": 5000, "min_tokens": 5000}
    with serving(runtime) as (server, client):
        with client.stream("POST", "/generate", json={**long, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            until(lambda: runtime.status().stats.running == 1)
        until(lambda: runtime.status().stats.running == 0)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/generate", json=long, timeout=0.5)
        until(lambda: runtime.status().stats.running == 0)
        until(lambda: not server.live())


def test_a_request_can_be_ended_by_who_runs_the_server(runtime):
    body = {"prompt": "Go on", "max_tokens": 5000, "min_tokens": 5000, "stream": True}
    with serving(runtime) as (server, client), client.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        (live,) = until(server.live)
        assert (live.endpoint, live.model) == ("/generate", "scripted")
        server.abort(live.request_id)
        rest = [line for line in lines if line]
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "aborted"
        assert rest[-1] == "data: [DONE]"
        until(lambda: runtime.status().stats.running == 0)


def test_it_comes_after_chats_and_before_batches_by_the_keys_priority(fast, monkeypatch):
    seen = []
    engine, complete = fast.engine, fast.engine.complete

    async def noted(request):
        seen.append(request.priority)
        return await complete(request)

    monkeypatch.setattr(engine, "complete", noted)
    with serving(fast) as (server, client):
        client.post("/generate", json={"prompt": "Hi"})
        for priority in (0, 9):
            _key, secret = server.keys.create(f"key {priority}", KeyLimits(priority=priority))
            headers = {"Authorization": f"Bearer {secret}"}
            assert client.post("/generate", json={"prompt": "Hi"}, headers=headers).status_code == 200
    assert seen == [Priority.API + 5, Priority.API, Priority.API + 9]
    assert min(seen) > Priority.COMPARE and max(seen) < Priority.BATCH


# -- names of models ------------------------------------------------------------------


def test_presets_and_adapters_are_models(fast, client, presets, tmp_path):
    adapters = Adapters(fast.settings, presets._store)
    adapters.add("red", make_adapter(tmp_path / "red", base="scripted"))
    adapters.add("other", make_adapter(tmp_path / "other", base="owner/Another"))
    presets.save("short", {"max_tokens": 2})
    listed = client.get("/v1/models").json()["data"]
    assert [one["id"] for one in listed] == ["scripted", "red", "scripted:short"]
    assert {one["parent"] for one in listed} == {None, "scripted"}
    assert client.get("/v1/models/scripted:short").json()["id"] == "scripted:short"
    lengths = {
        name: answer(client, prompt="a b c", model=name)["usage"]["completion_tokens"]
        for name in ("scripted", "scripted:short", "short", "red", "red:short")
    }
    assert lengths == {"scripted": 4, "scripted:short": 2, "short": 2, "red": 5, "red:short": 2}
    assert "[red]" in answer(client, prompt="a b c", model="red")["response"]


def test_a_preset_fills_in_and_never_overrides(client, presets):
    presets.save("short", {"max_tokens": 2, "stop": ["omega"]})
    asked = {"prompt": "alpha beta omega", "model": "short"}
    assert answer(client, **asked, max_tokens=3)["usage"]["completion_tokens"] == 3
    assert answer(client, **asked, max_tokens=9)["response"].endswith("alpha beta ")
    assert answer(client, **asked, max_tokens=None)["usage"]["completion_tokens"] == 2


def test_a_name_that_something_else_has_is_not_the_presets(fast, client, presets, tmp_path):
    Adapters(fast.settings, presets._store).add("red", make_adapter(tmp_path / "red", base="scripted"))
    presets.save("red", {"max_tokens": 2})
    presets.save("scripted", {"max_tokens": 2})
    assert "[red]" in answer(client, prompt="a b c", model="red")["response"]
    assert answer(client, prompt="a b c", model="scripted")["usage"]["completion_tokens"] == 4
    assert answer(client, prompt="a b c", model="scripted:red")["usage"]["completion_tokens"] == 2


def test_an_unknown_model_is_a_404_with_the_nearest_name(client, presets):
    presets.save("careful", {"temperature": 0})
    found = error(client, 404, prompt="a", model="scripted:carefull")
    assert (found["code"], found["param"]) == ("model_not_found", "model")
    assert "Did you mean 'scripted:careful'?" in found["message"]
    assert client.get("/v1/models/nobody").status_code == 404


@pytest.mark.parametrize(
    ("path", "params", "body", "added"),
    [
        (CHAT, {"temperature": 0.1, "seed": 3}, {}, {"temperature": 0.1, "seed": 3}),
        (CHAT, {"temperature": 0.1, "seed": 3}, {"temperature": 1, "seed": None}, {"seed": 3}),
        (CHAT, {"max_tokens": 5}, {"max_completion_tokens": 9}, {}),
        (CHAT, {"logprobs": 2}, {}, {"logprobs": True, "top_logprobs": 2}),
        (CHAT, {"logprobs": 2}, {"logprobs": False}, {}),
        (COMPLETIONS, {"logprobs": 2}, {}, {"logprobs": 2}),
        (CHAT, {"beam_width": 3}, {}, {"use_beam_search": True, "n": 3}),
        (CHAT, {"beam_width": 3}, {"n": 1}, {}),
        (CHAT, {"structured_outputs": {"regex": "a"}}, {"response_format": {"type": "text"}}, {}),
        (RESPONSES, {"max_tokens": 5, "top_p": 0.5, "n": 2, "min_tokens": 1}, {},
         {"max_output_tokens": 5, "top_p": 0.5}),
        (RESPONSES, {"max_tokens": 5}, {"max_output_tokens": 9}, {}),
        ("/v1/embeddings", {"temperature": 0.1}, {}, {}),
    ],
)  # fmt: skip
def test_what_a_preset_adds_to_a_body_for_vllm(path, params, body, added):
    assert filled(path, body, params) == added
