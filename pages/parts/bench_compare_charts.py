"""Benchmarks beside each other in pictures. Pure: a comparison or a history in, a figure out."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from core.bench import report
from core.bench.differences import NO_DIFFERENCE, ONE_REPEAT, Comparison, Line
from core.bench.figures import Figure, Metric
from core.bench.history import Place
from pages.parts.compare_charts import Estimate, forest
from pages.parts.run_charts import ACCENT

# told apart on the light and on the dark background, by people who see no red and green too
COLORS = (ACCENT, "#C77A1E", "#5B6EE1", "#A24B9C", "#8494A3", "#B8A038", "#3F8FBF", "#C4526B")
_WORSE = "#D1494B"
_HEIGHT = 340
_LABEL_CHARACTERS = 36


def differences_chart(comparison: Comparison, lines: Sequence[Line], place: int) -> go.Figure | None:
    """The benchmark at `place` against the baseline: each metric's difference as a share, with its interval.

    None where there is nothing to divide by.
    """
    estimates = []
    for line in lines:
        found, base = line.differences[place], line.figures[comparison.baseline]
        if found is None or found.share is None or base is None:
            continue
        low, high = (None if end is None else end / base.value for end in (found.low, found.high))
        of = "higher is better" if line.metric.better == "higher" else "lower is better"
        is_shown = found.verdict not in (NO_DIFFERENCE, ONE_REPEAT)
        verdict = "one repeat" if found.verdict == ONE_REPEAT else found.verdict
        color = _WORSE if found.verdict == "worse" else ACCENT
        estimates.append(Estimate(line.metric.title, found.share, low, high, of, verdict, is_shown, color))
    if not estimates:
        return None
    return forest(
        estimates,
        none=0,
        title=f"Difference to {_label(comparison.names[comparison.baseline])}",
        words=report.share_in_words,
        tick_format="+.0%",
    )


def over_loads(
    names: Sequence[str], titles: Sequence[str], rows: Sequence[Sequence[Figure | None]], metric: Metric
) -> go.Figure:
    """A metric at each load: `rows[load][benchmark]`, with its 95% interval where there is one."""
    figure = go.Figure()
    for place, name in enumerate(names):
        at = [index for index, row in enumerate(rows) if row[place] is not None]
        found = [one for index in at if (one := rows[index][place]) is not None]
        if found:
            figure.add_trace(_trace(name, [titles[index] for index in at], found, metric, COLORS[place % 8]))
    figure.update_layout(
        height=_HEIGHT,
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        yaxis={"title": axis_title(metric), "rangemode": "tozero", "tickformat": ","},
        xaxis={"type": "category"},
        barmode="group",
        bargap=0.3,
        showlegend=len(names) > 1,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def _trace(name: str, titles: Sequence[str], found: Sequence[Figure], metric: Metric, color: str) -> go.Bar:
    return go.Bar(
        name=_label(name),
        x=[html.escape(title) or "all" for title in titles],
        y=[one.value for one in found],
        marker={"color": color, "line": {"width": 0}},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [0 if one.high is None else one.high - one.value for one in found],
            "arrayminus": [0 if one.low is None else one.value - one.low for one in found],
            "thickness": 1.5,
            "width": 4,
            "color": "#8494A3",
        },
        text=[report.number(one.value) for one in found],
        textposition="inside",
        insidetextanchor="start",  # at the foot of the bar, away from the interval
        textfont={"color": "white"},
        customdata=[
            f"{report.in_words(one.value, metric)}<br>{html.escape(report.spread_in_words(one))}"
            for one in found
        ],
        hovertemplate=f"{_label(name)}: %{{customdata}}<extra></extra>",
    )


def history_chart(places: Sequence[Place], metric: Metric) -> go.Figure:
    """Each repeat of each benchmark over time, a colour for each model and engine.

    A dotted line leads the eye from repeat to repeat. Where engine, settings or versions changed, the
    place is ringed and says what.
    """
    figure = go.Figure()
    for index, series in enumerate(dict.fromkeys(place.series for place in places)):
        own = [place for place in places if place.series == series]
        figure.add_trace(_repeats(own, series, metric, COLORS[index % 8]))
        changed = [place for place in own if place.changes]
        if changed:
            figure.add_trace(_ringed(changed, COLORS[index % 8]))
    figure.update_layout(
        height=_HEIGHT,
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        yaxis={"title": axis_title(metric), "rangemode": "tozero", "tickformat": ","},
        xaxis={"title": "Measured on (UTC)"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        showlegend=True,
    )
    return figure


def _repeats(places: Sequence[Place], series: str, metric: Metric, color: str) -> go.Scatter:
    each = [(place, value) for place in places for value in place.values]
    return go.Scatter(
        name=_label(series),
        x=[place.created_at for place, _value in each],
        y=[value for _place, value in each],
        mode="lines+markers",
        line={"color": color, "width": 1, "dash": "dot"},
        marker={"color": color, "size": 9},
        customdata=[
            f"{_label(place.name)}: {report.in_words(value, metric)}{_changes(place)}"
            for place, value in each
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _ringed(places: Sequence[Place], color: str) -> go.Scatter:
    return go.Scatter(
        x=[place.created_at for place in places],
        y=[max(place.values) for place in places],
        mode="markers",
        marker={"symbol": "circle-open", "size": 18, "color": color, "line": {"width": 2}},
        customdata=[f"{_label(place.name)}{_changes(place)}" for place in places],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )


def _changes(place: Place) -> str:
    return "".join(f"<br>{html.escape(change)}" for change in place.changes)


def axis_title(metric: Metric) -> str:
    """The metric with its unit: "TTFT, p99 (ms)", "Output tokens/s"."""
    return metric.title if metric.title.endswith("/s") else f"{metric.title} ({metric.unit})"


def _label(text: str) -> str:
    """Letter by letter on one line: Plotly reads some HTML."""
    line = " ".join(text.split())
    return html.escape(line if len(line) <= _LABEL_CHARACTERS else f"{line[: _LABEL_CHARACTERS - 1]}…")
