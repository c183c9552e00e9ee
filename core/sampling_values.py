"""The values of sampling parameters: from what was written or entered to the parameter's own type. Pure.

A parser raises ValueError, TypeError or OverflowError for what it can't read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from core import structured

Kind = Literal["float", "int", "bool", "text_list", "int_list", "map", "structured"]


def _parse_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    return float(value)


def _parse_int(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError(value)
    number = float(value)
    if number != int(number):
        raise ValueError(value)
    return int(value) if isinstance(value, str) and value.lstrip("+-").isdigit() else int(number)


def _parse_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise ValueError(value)


def _parse_text_list(value: Any) -> list[str]:
    """A list of strings; one string is one item, a JSON array in a string is read as such."""
    if isinstance(value, str):
        value = _json_or(value, [value])
    if not isinstance(value, list | tuple):
        raise ValueError(value)
    if not all(isinstance(item, str) for item in value):
        raise ValueError(value)
    return [item for item in value if item]


def _parse_int_list(value: Any) -> list[int]:
    if isinstance(value, str):
        value = _json_or(value, [part for part in value.split(",") if part.strip()])
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    return [_parse_int(item) for item in value]


def _parse_map(value: Any) -> dict[int, float]:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, dict):
        raise ValueError(value)
    return {_parse_int(key): _parse_float(number) for key, number in value.items()}


def _parse_structured(value: Any) -> dict[str, Any]:
    """A mapping or its JSON; so may the schema in it be. Raises ParameterError for what it asks for."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        raise ValueError(value)
    result = {name: list(part) if isinstance(part, tuple) else part for name, part in value.items()}
    if isinstance(result.get("json"), str):
        result["json"] = json.loads(result["json"])
    structured.check(result)
    return result


def _json_or(text: str, otherwise: Any) -> Any:
    if not text.lstrip().startswith("["):
        return otherwise
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return otherwise


PARSERS: dict[Kind, Callable[[Any], Any]] = {
    "float": _parse_float,
    "int": _parse_int,
    "bool": _parse_bool,
    "text_list": _parse_text_list,
    "int_list": _parse_int_list,
    "map": _parse_map,
    "structured": _parse_structured,
}
KIND_WORDS: dict[Kind, str] = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "text_list": "a text or a list of texts",
    "int_list": "a list of token ids",
    "map": "a JSON object of token id to number",
    "structured": "a JSON object with one of json, regex, choice, grammar, json_object",
}
