"""Values in a few words; which words of an answer another one does not have."""

from __future__ import annotations

from typing import Any

from core.comparing.words import changed_words

__all__ = ["changed_words", "short_value"]


def short_value(value: Any) -> str:
    """A parameter's value in a few characters: 0.7, on, "END"."""
    if value is None or value == [] or value == {}:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
