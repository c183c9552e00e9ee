"""The values of engine settings: from what was written or entered to the setting's own type. Pure.

A parser raises ValueError, TypeError or OverflowError for what it can't read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from core.sampling_values import PARSERS as _NUMBERS

Kind = Literal["int", "float", "bool", "text", "bytes", "json"]
_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
          "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def _parse_text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(value)
    return value.strip()


def parse_bytes(value: Any) -> int:
    """A number of bytes, or a text such as "400 MiB" or "2.5GiB"."""
    if isinstance(value, bool):
        raise ValueError(value)
    if not isinstance(value, str):
        return int(value)
    found = _SIZE.fullmatch(value.strip())
    if found is None or found[2].lower() not in _UNITS:
        raise ValueError(value)
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _parse_json(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(value)
    return dict(value)


def size_text(size_bytes: float) -> str:
    """1 MiB, 2.5 GiB."""
    number, unit = (
        (size_bytes / (1 << 30), "GiB") if size_bytes >= 1 << 30 else (size_bytes / (1 << 20), "MiB")
    )
    return f"{number:.4g} {unit}"


PARSERS: dict[Kind, Callable[[Any], Any]] = {
    "int": _NUMBERS["int"],
    "float": _NUMBERS["float"],
    "bool": _NUMBERS["bool"],
    "text": _parse_text,
    "bytes": parse_bytes,
    "json": _parse_json,
}
KIND_WORDS: dict[Kind, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "text": "a text",
    "bytes": "a size, such as 400MiB or a number of bytes",
    "json": "a JSON object",
}
