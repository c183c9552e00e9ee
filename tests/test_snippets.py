"""The Python and the curl that make the same request: run against a server with the real clients."""

import ast
import json
import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import snippets
from core.types import Message

CHAT = [Message("system", 'It\'s "kind" $HOME `x` \\n'), Message("user", "多行\nzwei 😀 'q'")]
SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"enum": [None, True, 1.5]}}}
EVERYTHING = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "seed": 5, "repetition_penalty": 1.1,
    "presence_penalty": 0.5, "frequency_penalty": -0.5, "max_tokens": 64, "stop": ["\n", "'EN\"D"],
    "min_tokens": 2, "stop_token_ids": [7], "include_stop_str_in_output": True, "skip_special_tokens": False,
    "spaces_between_special_tokens": False, "bad_words": ["no"], "logit_bias": {12: -100.0},
    "allowed_token_ids": [1, 2], "n": 2, "logprobs": 0, "structured_outputs": {"json": SCHEMA},
}  # fmt: skip
EVERYTHING_SENT = {
    **EVERYTHING,
    "model": "m", "logit_bias": {"12": -100.0}, "logprobs": True, "top_logprobs": 3,
    "messages": [message.as_dict() for message in CHAT], "chat_template_kwargs": {"enable_thinking": False},
}  # fmt: skip


def from_python(code):
    """The request of the Python, as the client would send it, without running it."""
    call = ast.parse(code).body[-1].iter.value
    body = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    return {**body.pop("extra_body", {}), **body}


def from_curl(code):
    return json.loads(shlex.split(code)[-1])


@pytest.fixture
def server(httpserver):
    """Gives the address to ask, and a list with the bodies that came."""
    bodies = []
    answers = {
        "/v1/chat/completions": {"message": {"role": "assistant", "content": "hello"}},
        "/v1/completions": {"text": "hello"},
    }
    for path, answer in answers.items():

        def reply(request, answer=answer):
            from werkzeug import Response

            bodies.append(request.get_json())
            choices = [{"index": n, "finish_reason": "stop", **answer} for n in range(bodies[-1].get("n", 1))]
            reply = {"id": "1", "object": "x", "created": 1, "model": "m", "choices": choices}
            return Response(json.dumps(reply), mimetype="application/json")

        httpserver.expect_request(path, method="POST").respond_with_handler(reply)
    return httpserver.url_for("/v1"), bodies


def test_the_python_asks_a_server_with_openais_own_client(server, capsys):
    url, bodies = server
    options = {"template_options": {"enable_thinking": False}, "top_logprobs": 3}
    code = snippets.python(CHAT, EVERYTHING, "m", url, **options)
    assert len(ast.parse(code).body) == 2
    exec(code, {})
    exec(snippets.python("a text", {"temperature": 0.0}, "m", url), {})
    assert capsys.readouterr().out == "hello\nhello\nhello\n"
    assert bodies == [
        EVERYTHING_SENT,
        {"model": "m", "prompt": "a text", "max_tokens": 256, "temperature": 0.0},
    ]


def test_the_curl_asks_a_server_from_a_shell(server):
    url, bodies = server
    options = {"template_options": {"enable_thinking": False}, "top_logprobs": 3}
    for code in (
        snippets.curl(CHAT, EVERYTHING, "m", url, **options),
        snippets.curl("a text", {"temperature": 0.0}, "m", url),
    ):
        done = subprocess.run(["sh", "-c", code], capture_output=True, text=True, timeout=20, check=True)
        assert "hello" in done.stdout
    assert bodies == [
        EVERYTHING_SENT,
        {"model": "m", "prompt": "a text", "max_tokens": 256, "temperature": 0.0},
    ]


def test_a_key_is_read_from_the_environment(server, httpserver, monkeypatch):
    url, bodies = server
    monkeypatch.setenv("OPENAI_API_KEY", "wb-secret")
    python, curl = (write("p", {}, "m", url, needs_key=True) for write in (snippets.python, snippets.curl))
    assert "wb-" not in python + curl
    exec(python, {})
    subprocess.run(["sh", "-c", curl], capture_output=True, timeout=20, check=True)
    assert bodies == [{"model": "m", "prompt": "p", "max_tokens": 256}] * 2
    keys = [request.headers["Authorization"] for request, _answer in httpserver.log]
    assert keys == ["Bearer wb-secret"] * 2


@pytest.mark.parametrize(
    ("params", "sent"),
    [
        ({}, {"max_tokens": 256}),
        ({"presence_penalty": 0.0, "ignore_eos": False, "seed": None, "max_tokens": 9}, {"max_tokens": 9}),
        # without the model's own defaults nobody knows what a server would take in their place
        ({"top_k": 0, "top_p": 1.0}, {"max_tokens": 256, "top_k": 0, "top_p": 1.0}),
        (
            {"beam_width": 4, "temperature": 0.5, "seed": 1},
            {"max_tokens": 256, "use_beam_search": True, "n": 4},
        ),
    ],
)
def test_what_asks_for_nothing_is_left_out(params, sent):
    body = from_curl(snippets.curl("p", params, "m", "u"))
    assert (
        body == from_python(snippets.python("p", params, "m", "u")) == {"model": "m", "prompt": "p", **sent}
    )


def test_neutral_values_stay_where_the_model_has_its_own():
    body = from_curl(
        snippets.curl("p", {"top_k": 0, "top_p": 1.0}, "m", "u", generation_config={"top_k": 20})
    )
    assert body["top_k"] == 0 and "top_p" not in body


def test_probabilities_are_asked_for_as_each_endpoint_has_them():
    assert from_curl(snippets.curl(CHAT, {"logprobs": 4}, "m", "u"))["logprobs"] is True
    assert from_curl(snippets.curl("p", {"logprobs": 4}, "m", "u"))["logprobs"] == 0
    assert from_curl(snippets.curl("p", {}, "m", "u", top_logprobs=4))["logprobs"] == 4


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=9),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
)


@given(st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), st.text()), max_size=3),
       st.dictionaries(st.text(max_size=5), VALUES, min_size=1, max_size=3))  # fmt: skip
def test_any_text_and_any_option_arrives_as_it_was(messages, options):
    expected = {
        "model": "m",
        "messages": [message.as_dict() for message in messages],
        "max_tokens": 256,
        "chat_template_kwargs": options,
    }
    for write, read in ((snippets.python, from_python), (snippets.curl, from_curl)):
        assert read(write(messages, {}, "m", "u", template_options=options)) == expected


@pytest.mark.engine
@pytest.mark.parametrize("asked", [CHAT, "a text"], ids=["chat", "completion"])
@pytest.mark.parametrize(
    "params", [EVERYTHING, {"beam_width": 3, "length_penalty": 0.5}], ids=["all", "beams"]
)
def test_vllms_own_server_understands_every_name(asked, params):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    kind = CompletionRequest if isinstance(asked, str) else ChatCompletionRequest
    body = from_curl(snippets.curl(asked, params, "m", "u", template_options={"x": 1}, top_logprobs=3))
    assert set(body) <= set(kind.model_fields)  # others would be taken and dropped
    request = kind.model_validate(body)
    if "beam_width" in params:
        beams = request.to_beam_search_params(64, {})
        assert request.use_beam_search and (beams.beam_width, beams.length_penalty) == (3, 0.5)
        return
    made = request.to_sampling_params(64, {})
    for name, value in params.items():
        if name not in ("logprobs", "structured_outputs"):
            assert getattr(made, name) == value
    assert made.structured_outputs.json == SCHEMA and made.logprobs == 3
