"""Figures as pages write them, and the series behind small charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

SPARK_SECONDS = 60


def spark(rates: Sequence[tuple[float, float]], seconds: int = SPARK_SECONDS) -> list[float]:
    """(seconds ago, value) -> one value a second, oldest first; 0 where nothing was measured."""
    points = [0.0] * seconds
    for ago, value in rates:
        if 0 <= ago < seconds:
            points[seconds - 1 - int(ago)] = round(value, 1)
    return points


def duration(seconds: float | None) -> str:
    """85 ms, 1.2 s, 42 s, 3 min 5 s, 2 h 10 min; "–" when not measured."""
    if seconds is None:
        return "–"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def per_second(value: float | None) -> str:
    """Three figures at most: 0.42, 8.3, 41, 1,390; "–" when not measured."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def counted(number: int, noun: str) -> str:
    """1 row, 1,019 rows."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def gibibytes(size_bytes: int) -> str:
    """0.37 GiB, 4.0 GiB, 141 GiB."""
    size = size_bytes / 2**30
    return f"{size:.2f} GiB" if size < 1 else f"{size:.1f} GiB" if size < 100 else f"{size:.0f} GiB"


def device_words(device: str) -> str:
    """The device for a person; the scripted engine has none, which "none" alone would not explain."""
    return "no model, scripted answers" if device == "none" else device


def short_number(value: int) -> str:
    """950, 12.3 k, 4.1 M, 1.2 G: for places where the exact number stands in the help."""
    for least, unit, sign in ((10**9, 10**9, "G"), (10**6, 10**6, "M"), (10**4, 10**3, "k")):
        if value >= least:
            return f"{value / unit:.1f} {sign}"
    return f"{value:,}"


def short_value(value: Any) -> str:
    """A parameter's value in a few characters: 0.7, on, none."""
    if value is None or value == [] or value == {}:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"


def metric_cells(count: int, pixels: int = 118) -> list[Any]:
    """Places for metrics side by side, which wrap where the page is narrow: columns would cut the figures."""
    row = st.container(horizontal=True)
    return [row.container(width=pixels) for _cell in range(count)]
