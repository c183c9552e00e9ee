"""The points of a benchmark in pictures, from their summaries. Pure.

Nothing is averaged over repeats: each repeat is drawn by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import plotly.graph_objects as go

from core.bench import knee
from core.bench.records import PointSummary
from pages.parts.bench_charts import LIMIT, QUIET, frame, short_ms
from pages.parts.charts import per_second
from pages.parts.run_charts import ACCENT

_GOOD = "rgba(46, 160, 110, 0.12)"


def swept(points: Sequence[PointSummary]) -> Literal["request_rate", "max_concurrency"] | None:
    """What differs between the loads; None where there are not two."""
    loads = [point.load for point in points if point.load is not None]
    for over in ("request_rate", "max_concurrency"):
        if len({getattr(load, over) for load in loads}) > 1:
            return over
    return None


def latency_against_throughput(
    points: Sequence[PointSummary],
    metric: str,
    *,
    of: str,
    limit_ms: float | None = None,
    least_gain: float = 0.05,
) -> go.Figure:
    """Output tokens/s against a latency (`metric`, such as "p99_ttft_ms"); each repeat is a line of its own.

    Marked are the knee, where the loads were swept far enough, and the loads up to which 90% of the
    requests reached their goals. `limit_ms`: the goal of this very metric.
    """
    drawn = [
        point
        for point in points
        if point.load is not None
        and point.result.get(metric) is not None
        and point.result.get("output_throughput") is not None
    ]
    figure = frame(x="Output tokens/s", y=f"{of} (ms)", height=340).update_xaxes(tickformat=",")
    for place, repeat in enumerate(sorted({point.repeat for point in drawn})):
        line = [point for point in drawn if point.repeat == repeat]
        figure.add_trace(_sweep_line(line, metric, is_first=place == 0))
    if over := swept(drawn):
        _mark_loads(figure, drawn, metric, over, least_gain)
    if limit_ms is not None:
        _mark_goal(figure, limit_ms, max((point.result[metric] for point in drawn), default=0.0))
    return figure


def _mark_goal(figure: go.Figure, limit_ms: float, most_ms: float) -> None:
    """A goal far above everything measured is named at the edge, since drawing it would flatten the rest."""
    words, place = f"goal {short_ms(limit_ms)}", {"y": limit_ms, "yanchor": "bottom"}
    if limit_ms <= 2 * most_ms:
        figure.add_hline(y=limit_ms, line={"color": LIMIT, "width": 1.5, "dash": "dash"})
    else:
        words, place = f"{words} ↑", {"y": 1, "yref": "paper", "yanchor": "top"}
    figure.add_annotation(
        x=1, xref="paper", xanchor="right", showarrow=False, text=words, font={"size": 11, "color": LIMIT},
        **place,
    )  # fmt: skip


def _mark_loads(
    figure: go.Figure, points: Sequence[PointSummary], metric: str, over: str, least_gain: float
) -> None:
    """The knee and the region of good requests, over the loads with their repeats pooled."""
    loads = knee.load_points(points, over)
    turn = knee.knee(loads, least_gain)
    if turn is not None:
        at = next(point for point in points if knee.load_of(point.load, over) == loads[turn].load)
        figure.add_annotation(
            x=at.result["output_throughput"], y=at.result[metric], text=f"knee: {at.load.title}",
            showarrow=True, arrowhead=2, arrowcolor=QUIET, ax=-70, ay=-46,
        )  # fmt: skip
    region = knee.goodput_region(loads)
    if region is not None:
        last = next(load for load in loads if load.load == region[1])
        figure.add_vrect(x0=0, x1=last.output_throughput, fillcolor=_GOOD, line_width=0, layer="below")
        figure.add_annotation(
            x=0, xanchor="left", y=1, yref="paper", yanchor="bottom", showarrow=False,
            text="shaded: 90% of the requests reach their goals", font={"size": 11, "color": QUIET},
        )  # fmt: skip
        figure.update_layout(margin={"t": 28})


def _sweep_line(points: Sequence[PointSummary], metric: str, *, is_first: bool) -> go.Scatter:
    words = [
        f"{point.load.title}, repeat {point.repeat + 1}<br>{per_second(point.result['output_throughput'])} "
        f"output tokens/s<br>{short_ms(point.result[metric])}"
        for point in points
    ]
    return go.Scatter(
        x=[point.result["output_throughput"] for point in points],
        y=[point.result[metric] for point in points],
        mode="lines+markers+text" if is_first else "lines+markers",
        text=[_short_load(point) for point in points],
        textposition="top left",
        textfont={"size": 11, "color": QUIET},
        line={"color": ACCENT, "width": 2 if is_first else 1},
        marker={"size": 9, "color": ACCENT},
        hovertext=words,
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _short_load(point: PointSummary) -> str:
    load = point.load
    if load.request_rate is not None:
        return f"{load.request_rate:g}/s"
    return "all" if load.max_concurrency is None else f"{load.max_concurrency:,}"


def throughput_over_load(points: Sequence[PointSummary]) -> go.Figure:
    """Output tokens/s at each load, each repeat a mark of its own."""
    drawn = [point for point in points if point.load and point.result.get("output_throughput") is not None]
    loads = list(dict.fromkeys(point.load.title for point in drawn))
    marks = go.Scatter(
        x=[loads.index(point.load.title) for point in drawn],
        y=[point.result["output_throughput"] for point in drawn],
        mode="markers",
        marker={"size": 10, "color": ACCENT},
        hovertext=[f"{point.load.title}: {per_second(point.result['output_throughput'])}" for point in drawn],
        hovertemplate="%{hovertext} output tokens/s<extra></extra>",
    )
    figure = frame(marks, x="", y="Output tokens/s", height=340).update_yaxes(tickformat=",")
    shown = [_short_load(next(point for point in drawn if point.load.title == title)) for title in loads]
    return figure.update_xaxes(tickvals=list(range(len(loads))), ticktext=shown, rangemode="normal")
