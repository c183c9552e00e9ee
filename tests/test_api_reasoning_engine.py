"""Models that think, on the real engine: what was thought stands apart from the answer in the API's chats."""

import json
import shutil

import openai
import pytest
from api_serving import serving

from core.errors import EngineLoadError
from core.runtime import Runtime
from core.settings import load_settings
from core.types import ChatPrompt, EngineSpec, Message, Request

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
END = "</think>"


@pytest.fixture(scope="module")
def thinking_model(embedded_model, tmp_path_factory):
    """The embedded model with two tokens that it never writes renamed to those around thoughts."""
    folder = tmp_path_factory.mktemp("models") / "thinker"
    shutil.copytree(embedded_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for weights in embedded_model.glob("*.safetensors"):
        (folder / weights.name).symlink_to(weights)
    text = (folder / "tokenizer.json").read_text()
    text = text.replace('"<gh_stars>"', '"<think>"').replace('"<issue_start>"', f'"{END}"')
    (folder / "tokenizer.json").write_text(text)
    return folder


@pytest.fixture(scope="module")
def thinking(thinking_model, tmp_path_factory):
    """The runtime and OpenAI's client of the model with vLLM's parser for DeepSeek R1's kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("home")))
        runtime = Runtime(load_settings())
        spec = EngineSpec(
            model=str(thinking_model), max_num_seqs=8, max_model_len=512, kv_cache_memory_bytes=64 << 20,
            reasoning_parser="deepseek_r1",
        )  # fmt: skip
        runtime.load(spec)
        try:
            runtime.wait_ready(280)
            with serving(runtime) as (server, _http):
                url = f"{server.status().url}/v1"
                with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
                    yield runtime, client
        finally:
            runtime.close()


def end_of_thought(thinking_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(thinking_model).get_vocab()[END]


def thought(message):
    """vLLM 0.32 calls it reasoning, earlier ones reasoning_content."""
    found = message.model_dump()
    return found.get("reasoning") or found.get("reasoning_content")


def test_what_is_thought_stands_apart_from_the_answer(thinking):
    runtime, client = thinking
    model = runtime.engine.info.model
    asked = {"model": model, "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    message = client.chat.completions.create(**asked).choices[0].message
    assert thought(message) and not message.content  # it has not ended its thought
    pieces = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(thought(piece) or "" for piece in pieces) == thought(message)
    assert not any(piece.content for piece in pieces)


def test_a_structure_holds_for_the_answer_after_the_thought(thinking, thinking_model):
    runtime, client = thinking
    choices = ["Paris", "London"]
    answer = client.chat.completions.create(
        model=runtime.engine.info.model,
        messages=QUESTION,
        max_tokens=12,
        temperature=0,
        logit_bias={str(end_of_thought(thinking_model)): 100},  # it thinks of nothing
        extra_body={"structured_outputs": {"choice": choices}},
    )
    assert answer.choices[0].message.content.strip() in choices
    assert not (thought(answer.choices[0].message) or "").strip()


def test_the_workbench_itself_gets_a_structure_from_the_start(thinking):
    """With the parser in the engine, its batches would think first, and then be no JSON."""
    runtime, _client = thinking
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    params = {"max_tokens": 40, "temperature": 0, "structured_outputs": {"json": schema}}
    prompt = ChatPrompt((Message("user", QUESTION[0]["content"]),))
    answer = runtime.run(runtime.engine.complete(Request(id="own", prompt=prompt, params=params)))
    assert set(json.loads(answer.text)) == {"n"}


@pytest.mark.parametrize(
    ("parser", "words"),
    [("qwen33", "no reasoning parser 'qwen33'"), ("deepseek_r1", "is not for this model")],
)
def test_a_parser_that_can_not_be_used_is_said_before_the_load(settings, embedded_model, parser, words):
    runtime = Runtime(settings)
    try:
        runtime.load(EngineSpec(model=str(embedded_model), reasoning_parser=parser))
        with pytest.raises(EngineLoadError, match=words):
            runtime.wait_ready(60)
    finally:
        runtime.close()
