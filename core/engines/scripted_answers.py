"""What the scripted engine answers: a fixed function of the prompt's text and the parameters."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from core import structured
from core.engines.scripted_tokens import TOKEN, digest_of, share, token_logprobs
from core.errors import RequestRejected
from core.types import FinishReason, Sample

_ECHOED_TOKENS = 12
_ITEMS = 2
_OPTIONAL_LEVELS = 6


def samples(prompt: str, params: Mapping[str, Any], room: int) -> list[Sample]:
    """The n answers, `room` tokens at most in each. Raises RequestRejected."""
    n = params.get("n", 1)
    if n > 1 and params.get("temperature") == 0:
        raise RequestRejected("n must be 1 at temperature 0.", hint="Change the parameters.")
    return [_sample(prompt, params, room, index) for index in range(n)]


def _sample(prompt: str, params: Mapping[str, Any], room: int, index: int) -> Sample:
    key = f"{prompt}\x00{params.get('seed')}" if params.get("temperature", 1.0) else prompt
    if "beam_width" in params:
        key = f"{prompt}\x00{params['beam_width']} beams\x00{params.get('length_penalty', 1.0)}"
    digest = digest_of(f"{key}\x00{index}" if index else key)
    structure = params.get("structured_outputs")
    if structure is None:
        echo = re.sub(r"<(system|user|assistant|no-thinking)>", " ", prompt).split()[-_ECHOED_TOKENS:]
        tokens = [f"scripted-{digest[:8]}", *(f" {word}" for word in echo)]
    else:
        tokens = TOKEN.findall(_structured_text(structure, digest))
    most = min(params.get("max_tokens", 256), room)
    least = most if params.get("ignore_eos") else min(params.get("min_tokens", 0), most)
    while structure is None and len(tokens) < least:
        tokens.append(f" {digest[len(tokens) % 56 :][:8]}")
    cut = len(tokens) > most or params.get("ignore_eos")
    text, finish_reason = _cut_at_stop("".join(tokens[:most]), params, "length" if cut else "stop")
    written = TOKEN.findall(text)
    cumulative = None
    if params.get("logprobs") is not None:
        cumulative = math.fsum(entry.logprob for entry in token_logprobs(written, 0))
    return Sample(
        text=text,
        finish_reason=finish_reason,
        output_tokens=len(written),
        cumulative_logprob=cumulative,
    )


def _cut_at_stop(
    text: str, params: Mapping[str, Any], finish_reason: FinishReason
) -> tuple[str, FinishReason]:
    found = [(text.index(stop), stop) for stop in params.get("stop") or () if stop in text]
    if not found:
        return text, finish_reason
    at, stop = min(found)
    return text[: at + len(stop)] if params.get("include_stop_str_in_output") else text[:at], "stop"


def scores(prompt: str, choices: Sequence[str]) -> list[float]:
    """Log-probabilities of the choices, which together leave a tenth to all other answers."""
    weights = [0.05 + share(digest_of(f"{prompt}\x00{choice}")) for choice in choices]
    return [math.log(0.9 * weight / sum(weights)) for weight in weights]


def _structured_text(structure: Mapping[str, Any], digest: str) -> str:
    ((kind, value),) = structure.items()
    if kind == "choice":
        return value[int(digest[:8], 16) % len(value)]
    if kind == "regex" and re.escape(value) == value:
        return value
    if kind == "json_object":
        return json.dumps({"scripted": digest[:8]})
    if kind == "json":
        text = json.dumps(_json_value(value, value, digest, 0), ensure_ascii=False)
        if structured.valid(structure, text):
            return text
    raise RequestRejected(
        f"The scripted engine can't make up an answer for this {kind}.",
        hint="It knows choices, texts without wildcards, and plain JSON schemas; load a model for others.",
    )


def _json_value(whole: Mapping[str, Any], schema: Any, digest: str, level: int) -> Any:
    """A value by the types of the schema; whether it keeps to all the rest is for the caller to check."""
    while isinstance(schema, Mapping) and "$ref" in schema:
        schema = structured.target(whole, schema["$ref"])
    if not isinstance(schema, Mapping):
        return f"scripted-{digest[:8]}"
    number = int(digest[:8], 16)
    for keyword in ("enum", "anyOf", "oneOf"):
        if schema.get(keyword):
            chosen = schema[keyword][number % len(schema[keyword])]
            return chosen if keyword == "enum" else _json_value(whole, chosen, digest_of(digest), level + 1)
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            required = schema.get("required", ())
            return {
                name: _json_value(whole, part, digest_of(digest + name), level + 1)
                for name, part in schema.get("properties", {}).items()
                if name in required or level < _OPTIONAL_LEVELS
            }
        case "array":
            least, most = schema.get("minItems", 0), schema.get("maxItems", _ITEMS)
            count = max(least, min(_ITEMS, most) if level < _OPTIONAL_LEVELS else 0)
            item = schema.get("items", {})
            return [
                _json_value(whole, item, digest_of(f"{digest}{place}"), level + 1) for place in range(count)
            ]
        case "integer":
            low = math.ceil(schema.get("minimum", 0))
            return low + number % (math.floor(schema.get("maximum", low + 99)) - low + 1 or 1)
        case "number":
            low = schema.get("minimum", 0)
            return low + round(share(digest) * (schema.get("maximum", low + 100) - low), 2)
        case "boolean":
            return bool(number % 2)
        case "null":
            return None
    text = f"scripted {digest[:8]}".ljust(schema.get("minLength", 0), "x")
    return text[: schema.get("maxLength", len(text))]
