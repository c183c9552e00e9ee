"""OpenAI Batch files in and out, the output checked with OpenAI's own client."""

import json

import duckdb
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from core import openai_batch, tables
from core.errors import ParameterError, TableError, TemplateError
from core.recipes import Recipe
from core.run_spec import PromptSpec
from core.tables.types import Column
from core.types import Message

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def read(body, url=CHAT):
    return openai_batch.read_line({"method": "POST", "url": url, "body": body, "custom_id": "a"})


def params(**fields):
    return read({"model": "m", "messages": HELLO, **fields}).params


# -- in ---------------------------------------------------------------------------


def test_a_file_is_recognised_and_read_from_its_lines(tmp_path):
    path = tmp_path / "batch.jsonl"
    lines = [
        {"custom_id": "1", "method": "POST", "url": CHAT, "body": {"messages": HELLO, "max_tokens": 5}},
        {
            "custom_id": "2",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": "很久以前", "n": None},
        },
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    with duckdb.connect() as connection:
        columns = tables.stage(path, connection).columns
        cells = connection.execute(
            "SELECT * EXCLUDE (_row, _line, _problem, _raw, _cells) FROM input"
        ).fetchall()
    assert openai_batch.is_batch(columns)
    recipe = Recipe(PromptSpec(mode="openai"), columns)
    names = [column.name for column in columns]
    rows = [dict(zip(names, map(tables.decode, columns, row), strict=True)) for row in cells]
    chat, text = map(recipe.ask, rows)
    assert (chat.label, chat.messages, chat.params, chat.text) == (
        "1",
        (Message("user", "hello"),),
        {"max_tokens": 5},
        None,
    )
    assert (text.label, text.messages, text.params, text.text) == ("2", (), {}, "很久以前")
    # the custom_id decides nothing: equal bodies can share an answer
    assert recipe.variables == ("body", "url", "method")
    assert recipe.order_fixed


def test_other_tables_are_no_batch_file():
    names = openai_batch.COLUMNS
    assert not openai_batch.is_batch([Column(name, "text", "text") for name in names])
    assert not openai_batch.is_batch([Column(name, "json", "text") for name in names[1:]])


@pytest.mark.parametrize("field", ["system", "turns_column", "param_columns"])
def test_nothing_can_be_added_to_what_a_batch_file_asks(field):
    value = {"system": "x", "turns_column": "url", "param_columns": {"seed": "url"}}[field]
    with pytest.raises(TemplateError, match=field):
        Recipe(
            PromptSpec(mode="openai", **{field: value}),
            [Column(name, "json", "text") for name in openai_batch.COLUMNS],
        )


def test_parameters_come_from_the_body():
    asked = {
        "temperature": 0, "top_p": 0.9, "seed": 7, "stop": "[1]", "presence_penalty": 1,
        "frequency_penalty": -1, "logit_bias": {"42": -100}, "top_k": 5, "min_p": 0.1,
        "repetition_penalty": 1.1, "max_completion_tokens": 9,
    }  # fmt: skip
    assert params(**asked) == {
        "temperature": 0.0, "top_p": 0.9, "seed": 7, "stop": ["[1]"], "presence_penalty": 1.0,
        "frequency_penalty": -1.0, "logit_bias": {42: -100.0}, "top_k": 5, "min_p": 0.1,
        "repetition_penalty": 1.1, "max_tokens": 9,
    }  # fmt: skip
    assert params(max_tokens=9, max_completion_tokens=9) == {"max_tokens": 9}
    assert params(n=3, logprobs=True) == {"n": 3, "logprobs": 0}
    assert params(logprobs=False, top_logprobs=0) == {}


def test_what_changes_nothing_is_accepted():
    assert params(user="u", metadata={"a": "b"}, store=True, stream=False, tools=[], tool_choice="auto") == {}
    assert params(temperature=None, audio=None, something_new=None) == {}


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            {"json": SCHEMA},
        ),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_json": SCHEMA, "response_format": {"type": "text"}}, {"json": SCHEMA}),
    ],
)
def test_the_structure_of_the_answer(fields, structure):
    assert params(**fields).get("structured_outputs") == structure


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tools": [{"type": "function"}]}, "tools="),
        ({"stream": True}, "stream="),
        ({"audio": {"voice": "x"}}, "audio="),
        ({"temprature": 1}, "temprature=1"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"temperature": -1}, "temperature=-1"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens and max_completion_tokens differ"),
        ({"top_logprobs": 5}, "top_logprobs=5"),
        ({"logprobs": 5}, "logprobs=5"),
        ({"response_format": {"type": "json_schema"}}, "response_format="),
        ({"response_format": "json"}, "response_format="),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "more than once"),
    ],
)
def test_what_is_not_supported_fails_the_row_and_is_named(fields, reason):
    with pytest.raises(ParameterError) as caught:
        params(**fields)
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"method": "GET"}, "method: 'GET'"),
        ({"method": None}, "method: None"),
        ({"url": "/v1/embeddings"}, "url: '/v1/embeddings'"),
        ({"body": None}, "body: expected an object"),
        ({"body": "hi"}, "body: 'hi' is no JSON"),
        ({"body": {}}, "messages: the chat has no messages"),
        ({"body": {"messages": "hi"}}, "messages: 'hi' is no JSON"),
        ({"body": {"messages": [{"role": "tool", "content": "x"}]}}, "messages, message 1: role 'tool'"),
        ({"url": "/v1/completions", "body": {"prompt": ["a", "b"]}}, "prompt: expected one text"),
        ({"url": "/v1/completions", "body": {"messages": HELLO}}, "prompt: expected one text"),
    ],
)
def test_a_line_that_is_no_request_says_why(line, reason):
    row = {"method": "POST", "url": CHAT, "body": {"messages": HELLO}, "custom_id": "a", **line}
    with pytest.raises(TemplateError) as caught:
        openai_batch.read_line(row)
    assert reason in caught.value.message


def test_a_prompt_in_a_chat_line_is_named():
    with pytest.raises(ParameterError, match="prompt="):
        params(prompt="x")


def test_a_blank_prompt_is_skipped():
    assert read({"messages": [{"role": "user", "content": " "}]}) is None
    assert read({"prompt": "\n"}, "/v1/completions") is None


# -- out --------------------------------------------------------------------------

ROW = {
    "run_id": "r", "row": 0, "model": "m", "custom_id": "a", "url": CHAT, "status": "ok", "answer": "好",
    "finish_reason": "stop", "prompt_tokens": 7, "output_tokens": 3, "finished_at": 1700000000.9,
}  # fmt: skip


def line(**changes):
    return json.loads(openai_batch.result_line(**{**ROW, **changes}))


def test_an_answer_is_a_chat_completion_by_openais_client():
    written = line()
    assert list(written) == ["id", "custom_id", "response", "error"]
    assert (written["custom_id"], written["error"]) == ("a", None)
    assert written["id"].startswith("batch_req_")
    assert written["response"]["status_code"] == 200
    assert written["response"]["request_id"]
    completion = ChatCompletion.model_validate(written["response"]["body"], strict=True)
    assert completion.choices[0].message.content == "好"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.created == 1700000000
    assert completion.model == "m"
    assert completion.usage.total_tokens == 10
    assert completion.model_extra == {}
    assert completion.choices[0].model_extra == {}


def test_several_answers_are_several_choices():
    samples = [
        {"text": "x", "finish_reason": "stop", "output_tokens": 1, "logprob": -0.5},
        {"text": "y", "finish_reason": "length", "output_tokens": 2, "logprob": None},
    ]
    completion = ChatCompletion.model_validate(line(samples=samples)["response"]["body"], strict=True)
    found = [(choice.index, choice.message.content, choice.finish_reason) for choice in completion.choices]
    assert found == [(0, "x", "stop"), (1, "y", "length")]
    assert [choice.model_extra for choice in completion.choices] == [{"cumulative_logprob": -0.5}, {}]


def test_a_completions_line_gets_a_text_completion():
    completion = Completion.model_validate(line(url="/v1/completions")["response"]["body"], strict=True)
    assert completion.object == "text_completion"
    assert completion.choices[0].text == "好"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"status": "error", "error": "too long", "url": None},
            {"code": "request_failed", "message": "too long"},
        ),
        ({"status": "skipped"}, {"code": "request_skipped", "message": "The prompt is empty."}),
        ({"status": None}, {"code": "request_not_run", "message": "The request has not been run yet."}),
    ],
)
def test_a_row_without_an_answer_has_an_error(changes, error):
    written = line(answer=None, **changes)
    assert written["response"] is None
    assert written["error"] == error
    assert written["custom_id"] == "a"


def test_ids_follow_from_run_and_row():
    assert line() == line()
    assert len({line()["id"], line(row=1)["id"], line(run_id="s")["id"]}) == 3


def test_a_file_of_results_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "out.jsonl"
    assert openai_batch.write(path, (ROW | {"row": row, "answer": "a\u2028\n"} for row in range(3))) == 3
    written = path.read_bytes().decode("utf-8").split("\n")
    assert written.pop() == ""
    assert [json.loads(text)["response"]["body"]["choices"][0]["message"]["content"] for text in written] == [
        "a\u2028\n"
    ] * 3

    def failing():
        yield ROW
        raise RuntimeError("the run went away")

    with pytest.raises(RuntimeError):
        openai_batch.write(path, failing())
    assert path.read_bytes().decode("utf-8").split("\n")[:-1] == written
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(TableError, match="no-folder"):
        openai_batch.write(tmp_path / "no-folder" / "out.jsonl", [ROW])


def test_the_format_goes_by_its_name_only(tmp_path):
    assert tables.export_format(tmp_path / "a.jsonl") == "jsonl"
    assert tables.export_format(tmp_path / "a.jsonl", "openai-batch") == "openai-batch"
    with pytest.raises(ValueError, match="openai_batch"):  # never as a workbook under that name
        tables.write(tmp_path / "a.jsonl", [], [], format="openai-batch")
