"""A comparison in pictures: differences or win rates with their intervals. Pure."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from pages.parts.run_charts import ACCENT

_UNSURE = "#8494A3"  # readable on the light and on the dark background
_ROW_PIXELS = 46
_LABEL_CHARACTERS = 30


@dataclass(frozen=True, slots=True)
class Estimate:
    """A line of the forest: a value, its 95% interval if there is one, what it is of, what it shows."""

    name: str
    value: float
    low: float | None
    high: float | None
    of: str
    verdict: str
    is_shown: bool
    color: str = ACCENT
    """Of what is shown."""


def forest(
    lines: Sequence[Estimate],
    *,
    none: float,
    title: str,
    words: Callable[[float], str],
    tick_format: str = "",
    span: tuple[float, float] | None = None,
) -> go.Figure:
    """A line for each estimate, first on top, against `none`: the value that means no difference.

    What is shown is coloured, what is not is grey. `words` writes a value. Text has the theme's colour.
    """
    places = list(range(len(lines)))
    figure = go.Figure()
    colors = [line.color if line.is_shown else _UNSURE for line in lines]
    for color in dict.fromkeys(colors):
        chosen = [place for place in places if colors[place] == color]
        figure.add_trace(_marks([lines[place] for place in chosen], chosen, color, words))
    figure.add_vline(x=none, line={"color": _UNSURE, "width": 1, "dash": "dot"})
    for place, line in zip(places, lines, strict=True):
        figure.add_annotation(
            x=1, xref="paper", xanchor="left", xshift=12, y=place, showarrow=False, align="left",
            text=f"{words(line.value)} · {line.of}<br>{'<b>' if line.is_shown else ''}{line.verdict}",
            font={"size": 12},
        )  # fmt: skip
    low, high = span or _span(lines, none)
    figure.update_layout(
        height=70 + _ROW_PIXELS * len(lines),
        margin={"l": 10, "r": 170, "t": 10, "b": 10},
        showlegend=False,
    )
    figure.update_xaxes(title=title, range=[low, high], zeroline=False, nticks=6, tickformat=tick_format)
    return figure.update_yaxes(
        tickvals=places,
        ticktext=[_label(line.name) for line in lines],
        range=[len(lines) - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
        automargin=True,
    )


def _marks(
    lines: Sequence[Estimate], places: Sequence[int], color: str, words: Callable[[float], str]
) -> go.Scatter:
    return go.Scatter(
        x=[line.value for line in lines],
        y=list(places),
        mode="markers",
        marker={"color": color, "size": 10},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [0 if line.high is None else line.high - line.value for line in lines],
            "arrayminus": [0 if line.low is None else line.value - line.low for line in lines],
            "color": color,
            "thickness": 2,
            "width": 5,
        },
        text=[_hover(line, words) for line in lines],
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(line: Estimate, words: Callable[[float], str]) -> str:
    if line.low is None or line.high is None:
        return f"{_label(line.name)}: {words(line.value)}, no interval"
    return f"{_label(line.name)}: {words(line.value)} (95%: {words(line.low)} to {words(line.high)})"


def _span(lines: Sequence[Estimate], none: float) -> tuple[float, float]:
    """The axis: all intervals, and the line of no difference, with a little room."""
    ends = [none, *(end for line in lines for end in (line.value, line.low, line.high) if end is not None)]
    low, high = min(ends), max(ends)
    room = (high - low) * 0.08 or 0.5
    return low - room, high + room


def _label(text: str) -> str:
    """Letter by letter: Plotly reads some HTML."""
    line = " ".join(text.split())
    return html.escape(line if len(line) <= _LABEL_CHARACTERS else f"{line[: _LABEL_CHARACTERS - 1]}…")
