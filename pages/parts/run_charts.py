"""A run in pictures. The functions that make a figure are pure; those that draw take what they made."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from core import browse
from core.runs import Run
from pages.parts.charts import counted

# all readable on the light and on the dark background
ACCENT = "#178A7E"
_SECOND = "#C77A1E"
_LIMIT = "#D1494B"
_HEIGHT = 220
_CONFIG = {"displayModeBar": False}
_REASONS = {"stop": "Finished (stop)", "length": "Cut off (length)", "abort": "Stopped (abort)"}
_LABEL_CHARACTERS = 32
_FEW_TOKENS = 6


def _figure(
    *traces: go.Bar | go.Scatter,
    x: str,
    y: str,
    height: int = _HEIGHT,
    yaxis: Mapping[str, Any] | None = None,
    **more: Any,
) -> go.Figure:
    """`yaxis` and `more` of the layout."""
    layout = {
        "height": height,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "xaxis": {"title": x, "rangemode": "tozero"},
        "yaxis": {"title": y, "rangemode": "tozero", "tickformat": ",", **(yaxis or {})},
        "showlegend": False,
        "bargap": 0.05,
        **more,
    }
    return go.Figure(traces, layout)  # to update it afterwards takes four times as long, and some are live


def length_histogram(
    edges: Sequence[int],
    counts: Sequence[int],
    limit: int | None = None,
    *,
    what: str = "Prompt tokens",
    limit_name: str = "Context",
) -> go.Figure:
    """Rows by length. `counts[i]` rows have `edges[i]` to `edges[i + 1] - 1` tokens; `limit` is drawn in.

    A limit far beyond the data is named at the edge, since drawing it would flatten the rest.
    """
    spans = list(pairwise(edges))
    named = [f"{low:,}" if high - low == 1 else f"{low:,} to {high - 1:,}" for low, high in spans]
    # where each bar is one number of tokens, it stands on that number
    shift = 0.5 if all(high - low == 1 for low, high in spans) else 0
    bars = go.Bar(
        x=[(low + high) / 2 - shift for low, high in spans],
        y=list(counts),
        width=[high - low for low, high in spans],
        marker={"color": ACCENT, "line": {"width": 0}},
        customdata=named,
        hovertemplate="%{customdata} tokens: %{y:,} rows<extra></extra>",
    )
    figure = _figure(bars, x=what, y="Rows")
    figure.update_layout(bargap=0)
    # the axis starts at 0 only where the data are near it
    start, end = (0 if edges[0] < edges[-1] / 2 else edges[0]), edges[-1]
    if limit is not None:
        label = {"text": f"{limit_name} {limit:,}", "showarrow": False, "font": {"color": _LIMIT}}
        if limit <= 3 * end:
            end = max(end, limit * 1.02)
            figure.add_vline(x=limit, line={"color": _LIMIT, "width": 2, "dash": "dash"})
            place = {"x": limit, "xanchor": "right" if limit > (start + end) / 2 else "left"}
        else:
            label["text"] += " →"
            place = {"x": 1, "xref": "paper", "xanchor": "right"}
        figure.add_annotation(y=1, yref="paper", yanchor="bottom", **label, **place)
        figure.update_layout(margin={"t": 28})
    ticks = {"dtick": 1} if end - start <= _FEW_TOKENS else {"nticks": 6}  # no fractions of a token
    return figure.update_xaxes(range=[start - shift, end - shift], tickformat=",d", tickangle=0, **ticks)


def finish_reason_bar(reasons: Sequence[tuple[str, int]]) -> go.Figure:
    """Rows by why their answers ended."""
    named = [(_REASONS.get(reason, reason), rows) for reason, rows in reasons]
    return _ranked(named, [_SECOND if reason == "length" else ACCENT for reason, _rows in reasons])


def answer_bar(answers: Sequence[tuple[str, int]]) -> go.Figure:
    """Rows by answer, for answers that are few and short: labels, choices."""
    return _ranked(answers, [ACCENT] * len(answers))


def _ranked(items: Sequence[tuple[str, int]], colors: Sequence[str]) -> go.Figure:
    """Horizontal bars, the first on top, each with its share.

    Placed by number and labelled apart: Plotly would take "1" for a number and merge equal labels.
    """
    total = sum(rows for _name, rows in items) or 1
    places = list(range(len(items)))
    bars = go.Bar(
        x=[rows for _name, rows in items],
        y=places,
        orientation="h",
        width=0.7,
        marker={"color": list(colors)},
        text=[_share(rows / total) for _name, rows in items],
        textposition="outside",
        cliponaxis=False,
        customdata=[html.escape(name) for name, _rows in items],
        hovertemplate="%{customdata}: %{x:,} rows, %{text}<extra></extra>",
    )
    figure = _figure(bars, x="Rows", y="", height=80 + 32 * len(items))
    labels = [_label(name) for name, _rows in items]
    figure.update_yaxes(
        tickvals=places, ticktext=labels, range=[len(items) - 0.5, -0.5], automargin=True, showgrid=False
    )
    most = max((rows for _name, rows in items), default=1)
    return figure.update_xaxes(tickformat="~s", nticks=4, tickangle=0, range=[0, most * 1.25])


def _share(value: float) -> str:
    """42%, and never 0% or 100% for what is not quite that."""
    if 0 < value < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= value < 1 else f"{value:.0%}"


def _label(text: str) -> str:
    """One line that Plotly shows letter by letter: it reads some HTML."""
    line = " ".join(text.split()) or "(empty)"
    return html.escape(line if len(line) <= _LABEL_CHARACTERS else f"{line[: _LABEL_CHARACTERS - 1]}…")


# -- over time --------------------------------------------------------------------


def rate_chart(
    seconds: Sequence[float], rates: Sequence[float | None], what: str = "Output tokens/s"
) -> go.Figure:
    """A rate over the seconds at work; None: not measured."""
    line = go.Scatter(
        x=list(seconds),
        y=list(rates),
        mode="lines",
        fill="tozeroy",
        line={"color": ACCENT, "width": 2},
        hovertemplate=f"%{{y:,.1f}} {what.lower()} at %{{x:,.0f}} s<extra></extra>",
    )
    return _figure(line, x="Seconds at work", y=what)


def rows_per_s(seconds: Sequence[float], done: Sequence[int], window_s: float = 10.0) -> list[float | None]:
    """Rows/s at each sample, over the `window_s` before it; None for the first and after no time.

    >>> rows_per_s([0, 5, 10, 20], [0, 10, 20, 20])
    [None, 2.0, 2.0, 0.0]
    """
    rates: list[float | None] = []
    start = 0
    for index, now in enumerate(seconds):
        while start + 1 < index and now - seconds[start + 1] >= window_s:
            start += 1
        passed = now - seconds[start]
        rates.append((done[index] - done[start]) / passed if passed > 0 else None)
    return rates


def cache_chart(
    seconds: Sequence[float],
    kv_cache_usage: Sequence[float | None],
    prefix_hit_rate: Sequence[float | None] = (),
) -> go.Figure:
    """Share of the KV cache in use and of prompt tokens found in it (0 to 1), over the seconds at work."""
    series = (("KV cache in use", kv_cache_usage, ACCENT), ("Prefix cache hits", prefix_hit_rate, _SECOND))
    lines = [
        go.Scatter(
            x=list(seconds),
            y=list(shares),
            name=name,
            mode="lines",
            connectgaps=True,  # in a second without a new prompt there is no share of hits
            line={"color": color, "width": 2},
            hovertemplate=f"{name}: %{{y:.0%}} at %{{x:,.0f}} s<extra></extra>",
        )
        for name, shares, color in series
        if _is_curve(shares)
    ]
    return _figure(
        *lines,
        x="Seconds at work",
        y="Share",
        yaxis={"range": [0, 1.02], "tickformat": ".0%"},
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )


def _is_curve(values: Sequence[float | None]) -> bool:
    """Whether there are two points to draw a line between."""
    return sum(value is not None for value in values) > 1


# -- drawing ------------------------------------------------------------------------


def draw_progress(
    seconds: Sequence[float],
    done: Sequence[int],
    output_tokens_per_s: Sequence[float | None],
    kv_cache_usage: Sequence[float | None] = (),
    prefix_hit_rate: Sequence[float | None] = (),
    *,
    key: str,
) -> None:
    """Tokens/s and rows/s, then the cache where it was measured. The lists are parallel, oldest first."""
    if len(seconds) < 2:
        return
    tokens, rows = st.columns(2)
    with tokens:
        _plot(rate_chart(seconds, output_tokens_per_s), f"{key}-tokens", "Output tokens/s over time")
    with rows:
        figure = rate_chart(seconds, rows_per_s(seconds, done), "Rows/s")
        _plot(figure, f"{key}-rows", "Rows/s over time")
    if _is_curve(kv_cache_usage) or _is_curve(prefix_hit_rate):
        figure = cache_chart(seconds, kv_cache_usage, prefix_hit_rate)
        _plot(figure, f"{key}-cache", "KV cache in use and prefix cache hits over time")


@st.cache_resource(max_entries=8, show_spinner=False)
def _figures(run_id: str, stamp: tuple[Any, ...], _run: Run) -> tuple[Any, ...]:
    with _run.connect() as connection:
        return browse.lengths(connection), browse.finish_reasons(connection), browse.answer_counts(connection)


def draw_results(run: Run, *, context: int | None = None, max_tokens: int | None = None) -> None:
    """Lengths of prompts and answers, why answers ended, and how often each was given. Raises RunBusy."""
    with run.connect() as connection:
        stamp = browse.stamp(connection)
    lengths, reasons, answers = _figures(run.run_id, stamp, run)
    shown: list[tuple[str, go.Figure]] = []
    if lengths.prompt:
        figure = length_histogram(lengths.prompt.edges, lengths.prompt.counts, context)
        shown.append(("Length of the prompts", figure))
    if lengths.output:
        edges, counts = lengths.output.edges, lengths.output.counts
        figure = length_histogram(edges, counts, max_tokens, what="Output tokens", limit_name="Max tokens")
        shown.append(("Length of the answers", figure))
    if reasons:
        shown.append(("Why answers ended", finish_reason_bar(reasons)))
    if answers:
        title = f"Answers given ({counted(len(answers), 'different one')})"
        shown.append((title, answer_bar(answers)))
    for start in range(0, len(shown), 2):
        for column, (title, figure) in zip(st.columns(2), shown[start : start + 2], strict=False):
            with column:
                st.caption(title)
                _plot(figure, f"chart-{run.run_id}-{title}", title)


def _plot(figure: go.Figure, key: str, alt: str) -> None:
    st.plotly_chart(figure, key=key, config=_CONFIG, alt=alt)
