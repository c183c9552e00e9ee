"""Conversations as files: JSON with OpenAI's messages, and Markdown that reads well and can be read back.

In Markdown each message stands behind a comment that no reader sees:

    # The title

    - Model: SmolLM2
    - Parameters: `{"temperature": 0.7}`

    <!-- message: user -->
    ## User

    What is a KV cache?

Contents stay as they are, headings and fences too; a line of a content that looks like such a
comment gets a backslash before it, which reading takes away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core import sampling
from core.errors import WorkbenchError
from core.types import Message, Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name
    "user": "user",
    "assistant": "assistant",
}
_MARK = re.compile(r"<!-- message: (system|user|assistant) -->")
_LIKE_A_MARK = re.compile(r"\\*<!-- message: ")
_HINT = "Import a chat that was exported here, or OpenAI messages as JSON."


class TranscriptError(WorkbenchError):
    """A file that is no conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """One line of messages, a system message first where there is one.

    `params` are validated by `core.sampling`; `options` are those of `core.conversations.ChatOptions`,
    empty where they are as usual.
    """

    messages: tuple[Message, ...]
    title: str = ""
    model: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def read(text: str) -> Transcript:
    """JSON or Markdown, whichever it is. Raises TranscriptError, and ParameterError for its parameters."""
    begins_as_json = text.lstrip("\ufeff \t\r\n").startswith(("{", "["))
    return from_json(text) if begins_as_json else from_markdown(text)


# -- JSON -----------------------------------------------------------------------


def to_json(transcript: Transcript) -> str:
    """One object: title, model, params, messages as OpenAI's."""
    body: dict[str, Any] = {
        "title": transcript.title,
        "model": transcript.model,
        "params": dict(transcript.params),
    }
    if transcript.options:
        body["options"] = dict(transcript.options)
    body["messages"] = [message.as_dict() for message in transcript.messages]
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"


def from_json(text: str) -> Transcript:
    """What `to_json` wrote, an object with "messages", or a bare list of messages. Raises as `read`."""
    try:
        body = _loaded(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise TranscriptError(f"The chat is not valid JSON: {error}.", hint=_HINT) from error
    if isinstance(body, list):
        body = {"messages": body}
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise TranscriptError('The chat has no list of "messages".', hint=_HINT)
    messages = [_message(number, one) for number, one in enumerate(body["messages"], 1)]
    return Transcript(
        title=_title(_text_of(body, "title")),
        model=_text_of(body, "model"),
        params=sampling.validate(_object_of(body, "params")),
        options=_object_of(body, "options"),
        messages=_checked(messages),
    )


def _message(number: int, one: Any) -> Message:
    role = one.get("role") if isinstance(one, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise TranscriptError(
            f"Message {number} has the role {role!r}.", hint="Chats have system, user and assistant messages."
        )
    content = one.get("content")
    if isinstance(content, list):  # OpenAI's parts
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise TranscriptError(f"Message {number} has parts that are not text.", hint="Leave them out.")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise TranscriptError(f"Message {number} has no text.", hint='Give it a "content".')
    return Message(_ROLES[role], content)


def _text_of(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name) or ""
    if not isinstance(value, str):
        raise TranscriptError(f'The chat\'s "{name}" is not text.', hint=_HINT)
    return value


def _object_of(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name) or {}
    if not isinstance(value, dict):
        raise TranscriptError(f'The chat\'s "{name}" is not an object.', hint=_HINT)
    return value


# -- Markdown -------------------------------------------------------------------


def to_markdown(transcript: Transcript) -> str:
    head = [f"# {_title(transcript.title)}".rstrip(), ""]
    if transcript.model:
        head.append(f"- Model: {_title(transcript.model)}")
    if transcript.params:
        head.append(f"- Parameters: {_in_code(transcript.params)}")
    if transcript.options:
        head.append(f"- Options: {_in_code(transcript.options)}")
    lines = [*head, ""] if len(head) > 2 else head
    for message in transcript.messages:
        content = [f"\\{line}" if _LIKE_A_MARK.match(line) else line for line in message.content.split("\n")]
        lines += [f"<!-- message: {message.role} -->", f"## {message.role.capitalize()}", "", *content, ""]
    return "\n".join(lines)


def from_markdown(text: str) -> Transcript:
    """What `to_markdown` wrote. Raises as `read`."""
    lines = text.removeprefix("\ufeff").split("\n")
    if lines[0].endswith("\r"):  # the whole file went through an editor of Windows
        lines = [line.removesuffix("\r") for line in lines]
    marks = [index for index, line in enumerate(lines) if _MARK.fullmatch(line)]
    if not marks:
        raise TranscriptError("The Markdown has no messages.", hint=_HINT)
    head = dict(line[2:].split(": ", 1) for line in lines[: marks[0]] if re.match(r"- \w+: ", line))
    messages = []
    for start, end in zip(marks, [*marks[1:], len(lines)], strict=True):
        role: Any = _MARK.fullmatch(lines[start])[1]
        content = lines[start + 1 : end]
        if content[:1] == [f"## {role.capitalize()}"]:
            content = content[2:]
        if content[-1:] == [""]:
            content = content[:-1]
        told = [line[1:] if line[:1] == "\\" and _LIKE_A_MARK.match(line) else line for line in content]
        messages.append(Message(role, "\n".join(told)))
    return Transcript(
        title=_title(lines[0].removeprefix("#")) if lines[0].startswith("# ") else "",
        model=head.get("Model", ""),
        params=sampling.validate(_from_code(head, "Parameters")),
        options=_from_code(head, "Options"),
        messages=_checked(messages),
    )


def _in_code(value: Mapping[str, Any]) -> str:
    return "`" + json.dumps(dict(value), ensure_ascii=False).replace("`", "\\u0060") + "`"


def _from_code(head: Mapping[str, str], name: str) -> dict[str, Any]:
    words = head.get(name, "{}").strip().strip("`")
    try:
        value = _loaded(words)
    except (ValueError, RecursionError) as error:
        raise TranscriptError(
            f"The line {name!r} is not JSON: {words}", hint="Correct or remove it."
        ) from error
    return _object_of({name: value}, name)


# -- both -----------------------------------------------------------------------


def _checked(messages: list[Message]) -> tuple[Message, ...]:
    """System messages at the start become one; elsewhere models don't take them."""
    told = [message for message in messages if message.role != "system"]
    system = [
        message.content for message in messages[: len(messages) - len(told)] if message.role == "system"
    ]
    if len(told) + len(system) < len(messages):
        raise TranscriptError(
            "A system message stands between the other messages.", hint="Move it to the start of the chat."
        )
    first = [Message("system", "\n\n".join(system))] if system else []
    return (*first, *told)


def _title(text: str) -> str:
    return " ".join(text.split())


def _loaded(text: str) -> Any:
    """JSON can write half of a character (a lone surrogate), which no file and no database takes: U+FFFD."""
    value = json.dumps(json.loads(text), ensure_ascii=False)
    return json.loads(value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
