"""The API's hours in pictures. Pure: figures from HourStats. Text and grid have the theme's colours."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from core.api.records import HourStats
from pages.parts.run_charts import ACCENT

_FAILED, _SLOW = "#D1494B", "#C77A1E"
_HEIGHT = 220
_HOUR_MS = 3_600_000
Clock = Callable[[dt.datetime], dt.datetime]
"""A time in the reader's zone."""


def requests(hours: Sequence[HourStats], clock: Clock) -> go.Figure:
    """Answered and other requests by the hour, on top of each other."""
    answered = [hour.requests - hour.errors for hour in hours]
    return _figure(
        [
            _bars("Answered", hours, answered, ACCENT, clock),
            _bars("Refused or failed", hours, [hour.errors for hour in hours], _FAILED, clock),
        ],
        "Requests an hour",
    )


def tokens(hours: Sequence[HourStats], clock: Clock, now: dt.datetime) -> go.Figure:
    """Output tokens/s, the mean of each hour; of the hour that runs, of its part until `now`."""
    rates = [hour.output_tokens / _seconds(hour, now) for hour in hours]
    return _figure([_bars("Output", hours, rates, ACCENT, clock, ",.2f")], "Output tokens/s")


def latencies(hours: Sequence[HourStats], clock: Clock, *, first_token: bool) -> go.Figure:
    """Median and 95th percentile in seconds; hours without an answer are gaps."""
    p50 = [hour.p50_ttft_s if first_token else hour.p50_s for hour in hours]
    p95 = [hour.p95_ttft_s if first_token else hour.p95_s for hour in hours]
    lines = [
        _line("p50", hours, p50, ACCENT, clock),
        _line("p95", hours, p95, _SLOW, clock),
    ]
    return _figure(lines, "Seconds")


def _seconds(hour: HourStats, now: dt.datetime) -> float:
    """How much of the hour is over: 1 at least, 3600 at most."""
    return min(3600.0, max(1.0, (now - hour.hour).total_seconds()))


def _middles(hours: Sequence[HourStats], clock: Clock) -> list[dt.datetime]:
    # without its zone, or Plotly would turn it into UTC
    return [clock(hour.hour + dt.timedelta(minutes=30)).replace(tzinfo=None) for hour in hours]


def _bars(
    name: str,
    hours: Sequence[HourStats],
    values: Sequence[float],
    color: str,
    clock: Clock,
    number: str = ",",
) -> go.Bar:
    return go.Bar(
        name=name,
        x=_middles(hours, clock),
        y=list(values),
        width=_HOUR_MS * 0.9,
        marker={"color": color, "line": {"width": 0}},
        customdata=_spans(hours, clock),
        hovertemplate=f"%{{customdata}}<br>{name}: %{{y:{number}}}<extra></extra>",
    )


def _line(
    name: str, hours: Sequence[HourStats], values: Sequence[float | None], color: str, clock: Clock
) -> go.Scatter:
    return go.Scatter(
        name=name,
        x=_middles(hours, clock),
        y=list(values),
        mode="lines+markers",  # an hour between two without answers is a point
        line={"color": color, "width": 2},
        marker={"color": color, "size": 6},
        customdata=_spans(hours, clock),
        hovertemplate=f"%{{customdata}}<br>{name}: %{{y:.2f}} s<extra></extra>",
    )


def _spans(hours: Sequence[HourStats], clock: Clock) -> list[str]:
    return [
        f"{clock(hour.hour):%-d %b %H:%M} to {clock(hour.hour + dt.timedelta(hours=1)):%H:%M}"
        for hour in hours
    ]


def _figure(traces: Sequence[go.Bar | go.Scatter], y: str) -> go.Figure:
    return go.Figure(traces).update_layout(
        height=_HEIGHT,
        barmode="stack",
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={"title": None, "tickangle": 0, "nticks": 6, "tickformat": "%H:%M\n%-d %b"},
        yaxis={"title": y, "rangemode": "tozero", "tickformat": "~s" if y != "Seconds" else ""},
        showlegend=len(traces) > 1,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        hovermode="closest",
    )
