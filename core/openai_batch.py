"""OpenAI Batch files: a line of input into an Ask, a row's result into a line of output.

In, one line a request, staged as a table with the columns `COLUMNS`:

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}

Out, one line a request in the same order:

    {"id": ..., "custom_id": "a", "response": {"status_code": 200, ..., "body": {...}}, "error": null}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core import sampling
from core.asks import Ask, encodable, read_json, read_messages
from core.errors import ParameterError, TemplateError
from core.run_spec import BatchLinesSpec, BatchModelSpec
from core.tables.types import Column
from core.tables.writers import whole_file

COLUMNS = ("custom_id", "method", "url", "body")
ASKED = ("body", "url", "method")
"""The columns that decide the answer; the custom_id is only a label."""

_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# Fields that don't change the answer.
_IGNORED = frozenset(
    {"model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)
# Unsupported fields, with the values under which they ask for nothing. null asks for nothing anywhere.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "top_logprobs": (0,),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
}
_STRUCTURES = {
    "structured_outputs": None,
    "response_format": None,
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}


def is_batch(columns: Sequence[Column]) -> bool:
    """Whether a table with these columns was staged from an OpenAI Batch file."""
    kinds = {column.name: column.kind for column in columns}
    return set(COLUMNS) <= set(kinds) and kinds["body"] == "json"


def read_line(row: Mapping[str, Any], allowed: BatchLinesSpec | None = None) -> Ask | None:
    """What one line asks, None when its prompt is blank. `row` has at least the columns `ASKED`.

    With `allowed` the line asks that url and one of those models; without, its model's name is left unread.
    Raises TemplateError or ParameterError that names the field.
    """
    if row["method"] != "POST":
        raise TemplateError(f"method: {row['method']!r} is not supported.", hint="Batch requests are POST.")
    if row["url"] not in (_CHAT, _COMPLETIONS):
        raise TemplateError(f"url: {row['url']!r} is not supported.", hint=f"Use {_CHAT} or {_COMPLETIONS}.")
    body = read_json(row["body"], "body")
    if not isinstance(body, Mapping):
        raise TemplateError("body: expected an object with the request's fields.")
    model = _model(row["url"], body, allowed) if allowed else BatchModelSpec()
    asked = {name: value for name, value in body.items() if value is not None and name not in _IGNORED}
    about = {"label": str(row.get("custom_id") or ""), "adapter": model.adapter}
    if row["url"] == _CHAT:
        messages = read_messages(asked.pop("messages", []), "messages")
        blank = not messages[-1].content.strip()
        return None if blank else Ask(messages, params=_params(asked, model.params), **about)
    prompt = asked.pop("prompt", None)
    if not isinstance(prompt, str):
        raise TemplateError("prompt: expected one text.", hint="Write a line for each prompt.")
    if not prompt.strip():
        return None
    return Ask((), params=_params(asked, model.params), text=encodable(prompt), **about)


def _model(url: str, body: Mapping[str, Any], allowed: BatchLinesSpec) -> BatchModelSpec:
    """What the line's model stands for; without one, the loaded model. Raises TemplateError."""
    if url != allowed.url:
        raise TemplateError(f"url: {url!r} is not the batch's endpoint.", hint=f"It is {allowed.url}.")
    name = body.get("model")
    if not name:
        return BatchModelSpec()
    found = allowed.models.get(name) if isinstance(name, str) else None
    if found is None:
        raise TemplateError(f"body: there is no model {str(name)[:80]!r} here.", hint="See /v1/models.")
    return found


def _params(asked: dict[str, Any], otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters among a body's other fields; `otherwise` fills in what they leave out.

    Raises ParameterError for what isn't one.
    """
    raw = dict(otherwise)
    if any(name in asked for name in _STRUCTURES):
        raw.pop("structured_outputs", None)
    given: set[str] = set()
    structures = [(name, asked.pop(name)) for name in _STRUCTURES if name in asked]
    for name, value in asked.items():
        if name in _NEUTRAL and value in _NEUTRAL[name]:
            continue
        if name == "max_completion_tokens":
            name = "max_tokens"
        if name == "logprobs":
            value = _logprobs(value)
        if name == "stop" and isinstance(value, str):
            value = [value]
        if name in _NEUTRAL or name not in sampling.BY_NAME:
            raise ParameterError(
                f"body: {name}={json.dumps(value)[:80]} is not supported.", hint="Leave it out."
            )
        if name in given and raw[name] != value:
            raise ParameterError("body: max_tokens and max_completion_tokens differ.", hint="Give one.")
        raw[name] = value
        given.add(name)
    wanted = [found for name, value in structures if (found := _structure(name, value)) is not None]
    if len(wanted) > 1:
        raise ParameterError(
            "body: the answer's structure is given more than once.",
            hint=f"Give one of {', '.join(_STRUCTURES)}.",
        )
    return sampling.validate({**raw, **({"structured_outputs": wanted[0]} if wanted else {})})


def _logprobs(value: Any) -> int | None:
    """Only the logprob of the answer is kept; in chats it is asked for with true, else with 0."""
    if value is True or value == 0:
        return None if value is False else 0
    raise ParameterError(
        f"body: logprobs={value!r} is not supported.",
        hint="Only the answer's own logprob is kept, none of others.",
    )


def _structure(name: str, value: Any) -> Any:
    """What `structured_outputs` of vLLM says the same; None for free text. Raises ParameterError."""
    if name == "structured_outputs":
        return value
    if name != "response_format":
        return {_STRUCTURES[name]: value}
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    schema = value.get("json_schema") if kind == "json_schema" else None
    if isinstance(schema, Mapping) and isinstance(schema.get("schema"), Mapping):
        return {"json": schema["schema"]}
    raise ParameterError(
        f"body: response_format={json.dumps(value)[:80]} is not supported.",
        hint="Its type is text, json_object, or json_schema with a schema.",
    )


def result_line(
    *,
    run_id: str,
    row: int,
    model: str,
    status: str | None,
    custom_id: str | None = None,
    url: str | None = None,
    answer: str | None = None,
    error: str | None = None,
    finish_reason: str | None = None,
    prompt_tokens: int | None = None,
    output_tokens: int | None = None,
    samples: Sequence[Mapping[str, Any]] | None = None,
    logprob: float | None = None,
    finished_at: float | None = None,
) -> str:
    """One row's line, as OpenAI's Batch API writes it, without the line's end.

    `status` None: the row has no result yet; "expired": nor will it get one. `samples`: the n
    answers, where n > 1 (text, finish_reason, and logprob if known). `finished_at`: seconds since
    1970. The ids follow from `run_id` and `row`: the same result is always the same line. A known
    logprob of an answer is the choice's `cumulative_logprob`, which OpenAI doesn't have.
    """
    digest = hashlib.blake2b(f"{run_id}/{row}".encode(), digest_size=12).hexdigest()
    line: dict[str, Any] = {"id": f"batch_req_{digest}", "custom_id": custom_id, "response": None}
    if status != "ok":
        code, otherwise = _ERRORS[status]
        line["error"] = {"code": code, "message": error or otherwise}
        return _dump(line)
    answers = samples or [{"text": answer, "finish_reason": finish_reason, "logprob": logprob}]
    chat = url != _COMPLETIONS
    body = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{digest}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(finished_at or 0),
        "model": model,
        "choices": [_choice(index, answer, chat) for index, answer in enumerate(answers)],
        "usage": {
            "prompt_tokens": prompt_tokens or 0,
            "completion_tokens": output_tokens or 0,
            "total_tokens": (prompt_tokens or 0) + (output_tokens or 0),
        },
        "system_fingerprint": None,
    }
    line["response"] = {"status_code": 200, "request_id": f"req_{digest}", "body": body}
    line["error"] = None
    return _dump(line)


_ERRORS = {
    "error": ("request_failed", "The request failed."),
    "skipped": ("request_skipped", "The prompt is empty."),
    "expired": ("batch_expired", "The batch's completion window was over before this request was run."),
    None: ("request_not_run", "The request has not been run yet."),
}


def _choice(index: int, answer: Mapping[str, Any], chat: bool) -> dict[str, Any]:
    text = answer["text"] or ""
    content = {"message": {"role": "assistant", "content": text, "refusal": None}} if chat else {"text": text}
    # OpenAI knows no "abort"; such an answer is cut short, as one at max_tokens is
    finish_reason = "stop" if answer.get("finish_reason") == "stop" else "length"
    choice = {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}
    if answer.get("logprob") is not None:
        choice["cumulative_logprob"] = answer["logprob"]
    return choice


def _dump(value: Any) -> str:
    return encodable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a line for each row, which holds what `result_line` takes, and return their number.

    The file appears under its name when it is whole. Raises TableError.
    """
    count = 0
    with whole_file(Path(path)) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        for row in rows:
            stream.write(result_line(**row) + "\n")
            count += 1
    return count
