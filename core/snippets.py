"""The code that makes the same request of any OpenAI-compatible server: Python and curl. Pure.

Messages go to /v1/chat/completions. A text, such as a prompt in another style than the model's own,
goes to /v1/completions. Parameters that OpenAI's API lacks are vLLM's, under vLLM's names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.sampling import BY_NAME
from core.types import Message

# what openai's client takes as arguments of its own; the rest goes into extra_body
_ARGUMENTS = frozenset({
    "model", "messages", "prompt", "temperature", "top_p", "n", "seed", "stop", "max_tokens",
    "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs",
})  # fmt: skip
# where these are left out, a server takes them from the model's generation_config
_MODELS_OWN = frozenset({"temperature", "top_p", "top_k", "min_p", "repetition_penalty"})
_NOT_IN_BEAMS = _MODELS_OWN | {"seed", "beam_width"}
_WIDTH = 88
KEY_VARIABLE = "OPENAI_API_KEY"
KEY_HEADER = f'  -H "Authorization: Bearer ${KEY_VARIABLE}" \\\n'
"""The line of a curl command that takes the key from there."""


def python(
    asked: Sequence[Message] | str,
    params: Mapping[str, Any],
    model: str,
    base_url: str,
    *,
    template_options: Mapping[str, Any] | None = None,
    top_logprobs: int | None = None,
    generation_config: Mapping[str, Any] | None = None,
    needs_key: bool = False,
) -> str:
    """Two statements with the `openai` package, which print the answer.

    `params` are of `core.sampling`, `template_options` further variables of the chat template,
    `generation_config` is the model's own, None where it isn't known; `base_url` ends with /v1. A key is
    never written out: what `needs_key` reads it from KEY_VARIABLE, as OpenAI's own client does.
    """
    body = _body(asked, params, model, template_options, top_logprobs, generation_config)
    arguments = {name: value for name, value in body.items() if name in _ARGUMENTS}
    extra = {name: value for name, value in body.items() if name not in _ARGUMENTS}
    if extra:
        arguments["extra_body"] = extra
    endpoint, text = (
        ("completions", "text") if isinstance(asked, str) else ("chat.completions", "message.content")
    )
    key = "" if needs_key else ', api_key="EMPTY"'
    lines = [
        "from openai import OpenAI",
        "",
        f"for choice in OpenAI(base_url={as_text(base_url)}{key}).{endpoint}.create(",
        *(f"    {name}={_written(value, 4, _scalar)}," for name, value in arguments.items()),
        ").choices:",
        f"    print(choice.{text})",
    ]
    return "\n".join(lines) + "\n"


def curl(
    asked: Sequence[Message] | str,
    params: Mapping[str, Any],
    model: str,
    base_url: str,
    *,
    template_options: Mapping[str, Any] | None = None,
    top_logprobs: int | None = None,
    generation_config: Mapping[str, Any] | None = None,
    needs_key: bool = False,
) -> str:
    """One command for a POSIX shell, which prints the server's JSON; arguments as of `python`."""
    body = _body(asked, params, model, template_options, top_logprobs, generation_config)
    url = f"{base_url}/{'completions' if isinstance(asked, str) else 'chat/completions'}"
    key = KEY_HEADER if needs_key else ""
    return f"curl {quoted(url)} -H 'Content-Type: application/json' \\\n{key}  -d {quoted(as_json(body))}\n"


def as_json(value: Any, indent: int = 0) -> str:
    """JSON for people: what is long has an item a line, further lines begin at `indent`."""
    return _written(value, indent, as_text)


def quoted(text: str) -> str:
    """As one word of a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def as_text(value: Any) -> str:
    """A string's literal, which is the same in JSON, Python and JavaScript; of other values their JSON."""
    return json.dumps(value, ensure_ascii=False)


def _body(
    asked: Sequence[Message] | str,
    params: Mapping[str, Any],
    model: str,
    template_options: Mapping[str, Any] | None,
    top_logprobs: int | None,
    generation_config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The request as the API has it. A parameter that asks for nothing is left out."""
    is_chat = not isinstance(asked, str)
    body: dict[str, Any] = {"model": model}
    body["messages" if is_chat else "prompt"] = [m.as_dict() for m in asked] if is_chat else asked
    # the API's own default is all that fits the context
    body["max_tokens"] = params.get("max_tokens") or BY_NAME["max_tokens"].default
    with_beams = params.get("beam_width") is not None
    left_out = _NOT_IN_BEAMS if with_beams else frozenset()
    kept = _MODELS_OWN if generation_config is None else _MODELS_OWN & generation_config.keys()
    for name, value in params.items():
        if name in kept or value not in (None, BY_NAME[name].default):
            body |= {} if name in left_out else {name: value}
    if with_beams:
        body |= {"use_beam_search": True, "n": params["beam_width"]}
    if "logit_bias" in body:
        body["logit_bias"] = {str(token): bias for token, bias in body["logit_bias"].items()}
    if top_logprobs is not None or "logprobs" in body:
        body["logprobs"] = True if is_chat else top_logprobs or 0
    if top_logprobs is not None and is_chat:
        body["top_logprobs"] = top_logprobs
    if template_options and is_chat:
        body["chat_template_kwargs"] = dict(template_options)
    return body


def _written(value: Any, indent: int, scalar: Callable[[Any], str]) -> str:
    """A value as Python or JSON, which `scalar` decides; long ones with an item a line."""
    if isinstance(value, Mapping):
        opening, closing, parts = "{", "}", list(value.values())
        items = [f"{as_text(name)}: {_written(part, indent + 4, scalar)}" for name, part in value.items()]
    elif isinstance(value, list | tuple):
        opening, closing, parts = "[", "]", value
        items = [_written(part, indent + 4, scalar) for part in value]
    else:
        return scalar(value)
    line = opening + ", ".join(items) + closing
    is_flat = not any(isinstance(part, Mapping | list | tuple) for part in parts)
    if is_flat or ("\n" not in line and indent + len(line) <= _WIDTH):
        return line
    inner = f"\n{' ' * (indent + 4)}"
    return opening + inner + f",{inner}".join(items) + f"\n{' ' * indent}{closing}"


def _scalar(value: Any) -> str:
    return as_text(value) if isinstance(value, str) else repr(value)
