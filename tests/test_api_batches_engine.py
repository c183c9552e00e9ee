"""Batches, presets and /generate on the real engine, with OpenAI's own client."""

import contextlib
import json

import openai
import pytest
from api_serving import serving
from waiting import until

from core.presets import Presets

QUESTION = {"role": "user", "content": "What is the capital of France? Answer in one word."}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def api(engine_runtime):
    with contextlib.ExitStack() as stack:
        server, http = stack.enter_context(serving(engine_runtime))
        client = openai.OpenAI(base_url=f"{server.status().url}/v1", api_key="none")
        yield server, http, stack.enter_context(client)


def test_a_batch_goes_through_the_real_engine(api):
    _server, _http, client = api
    model = client.models.list().data[0].id
    body = {"model": model, "messages": [QUESTION], "temperature": 0, "max_tokens": 12}
    lines = [
        json.dumps(
            {"custom_id": f"q{number}", "method": "POST", "url": CHAT, "body": {**body, "seed": number}}
        )
        for number in range(8)
    ]
    lines[3] = '{"custom_id": "q3", "method"'
    file = client.files.create(file=("questions.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    ended = ("completed", "failed", "cancelled")
    batch = until(lambda: one if (one := client.batches.retrieve(batch.id)).status in ended else None, 120)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 7, 1)
    assert [(error.line, error.code) for error in batch.errors.data] == [(4, "invalid_line")]
    answers = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    assert [one["custom_id"] for one in answers] == [f"q{number}" for number in range(8) if number != 3]
    direct = client.chat.completions.create(**body)
    for one in answers:
        answer = openai.types.chat.ChatCompletion.model_validate(one["response"]["body"])
        assert answer.choices[0].message.content == direct.choices[0].message.content
        assert answer.usage.prompt_tokens == direct.usage.prompt_tokens


def test_generate_gives_what_a_chat_does(api):
    _server, http, client = api
    asked = {"temperature": 0, "max_tokens": 12}
    chat = client.chat.completions.create(model="", messages=[QUESTION], **asked)
    found = http.post("/generate", json={"prompt": QUESTION["content"], **asked}).json()
    assert found["response"] == chat.choices[0].message.content
    assert found["usage"]["completion_tokens"] == chat.usage.completion_tokens
    assert 0 < found["ttft"] < found["time"]
    text = client.completions.create(model="", prompt="The capital of France is", **asked)
    raw = http.post("/generate", json={"prompt": "The capital of France is", "raw": True, **asked}).json()
    assert raw["response"] == text.choices[0].text


def test_a_preset_is_a_model_of_vllms_server(api):
    server, _http, client = api
    presets = Presets(server._store)
    presets.save("four words", {"max_tokens": 4, "temperature": 0, "stop_token_ids": [], "logprobs": 1})
    try:
        (base, *_rest) = [one.id for one in client.models.list()]
        name = f"{base}:four words"
        assert name in [one.id for one in client.models.list()]
        answer = client.chat.completions.create(model=name, messages=[QUESTION])
        assert (answer.usage.completion_tokens, answer.model) == (4, base)
        assert len(answer.choices[0].logprobs.content) == 4
        longer = client.chat.completions.create(model=name, messages=[QUESTION], max_completion_tokens=6)
        assert longer.usage.completion_tokens == 6
        text = client.completions.create(model="four words", prompt="One, two, three, four,")
        assert text.usage.completion_tokens == 4
        with pytest.raises(openai.NotFoundError, match="Did you mean"):
            client.chat.completions.create(model=f"{base}:four word", messages=[QUESTION])
    finally:
        presets.delete("four words")
