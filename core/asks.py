"""What one row asks of the model, and how a chat is read from JSON that came from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import TemplateError
from core.types import Message, Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One row's request, before the model's chat template.

    `turns` are user messages still to come, each after the answer to the one before. `params` are
    the row's own, each valid by itself, to be laid over the run's. `text` is set when the prompt
    is plain text to be continued, no chat; `messages` is then empty. `label` is the row's custom_id.
    `adapter` is what the row's cell names, None: the run's.
    """

    messages: tuple[Message, ...]
    turns: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    label: str = ""
    adapter: str | None = None


def encodable(text: str) -> str:
    """`text` with "?" for half a surrogate pair, which JSON can hold and no tokenizer takes.

    >>> encodable("a\\ud800b")
    'a?b'
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def read_json(value: Any, where: str) -> Any:
    """`value`, or what the JSON text in it says. Raises TemplateError that names `where`."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except RecursionError as error:
        raise TemplateError(f"{where}: the JSON is nested too deeply.") from error
    except ValueError as error:
        raise TemplateError(f"{where}: {value[:40]!r} is no JSON: {error}.") from error


def read_messages(value: Any, where: str) -> tuple[Message, ...]:
    """A chat as OpenAI's API has it, or its JSON text: a list of {role, content}, the last from the user.

    Raises TemplateError that names `where` and what is wrong there.
    """
    chat = read_json(value, where)
    if not isinstance(chat, list):
        raise TemplateError(f"{where}: a chat is a list of messages, not {_kind(chat)}.")
    if not chat:
        raise TemplateError(f"{where}: the chat has no messages.")
    messages = tuple(
        _message(item, f"{where}, message {number}") for number, item in enumerate(chat, start=1)
    )
    if messages[-1].role != "user":
        raise TemplateError(
            f"{where}: the last message is the {messages[-1].role}'s.", hint="It must be the user's."
        )
    return messages


def read_texts(value: Any, where: str) -> tuple[str, ...]:
    """A list of texts, or its JSON text; blank ones are left out. Raises TemplateError."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    texts = read_json(value, where)
    if not isinstance(texts, list):
        raise TemplateError(f"{where}: expected a JSON list of texts, not {_kind(texts)}.")
    other = [text for text in texts if not isinstance(text, str)]
    if other:
        raise TemplateError(f"{where}: a list of texts has {_kind(other[0])} in it.")
    return tuple(encodable(text) for text in texts if text.strip())


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise TemplateError(f"{where}: expected an object with role and content, not {_kind(item)}.")
    surplus = [name for name, value in item.items() if name not in ("role", "content") and value]
    if surplus:
        raise TemplateError(f"{where}: {surplus[0]!r} is not supported.", hint="Use role and content only.")
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise TemplateError(f"{where}: role {role!r} is not one of {', '.join(_ROLES)}.")
    return Message(_ROLES[role], encodable(_content(item.get("content"), where)))


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TemplateError(f"{where}: the content is {_kind(content)}, not a text.")
    return "\n".join(_part(part, where) for part in content)  # as vLLM joins them


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text":
        raise TemplateError(f"{where}: content of type {kind!r} is not supported.", hint="Use text only.")
    text = part.get("text")
    if not isinstance(text, str):
        raise TemplateError(f"{where}: a content part of type 'text' has no text.")
    return text


def _kind(value: Any) -> str:
    """What a JSON value is, for people."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence):
        return "a text" if isinstance(value, str) else "a list"
    return "a number"
