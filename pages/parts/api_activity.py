"""What the API was asked: by the hour, how it ended, the latest requests."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import streamlit as st

from core.api.records import HourStats
from core.api.usage import KEPT_DAYS, RequestRecord
from pages.parts import api_charts, session
from pages.parts.api_words import end_words, local
from pages.parts.charts import metric_cells, short_number

_POLL_S = 5.0
_SPANS = {24: "24 hours", 7 * 24: "7 days", 30 * 24: "30 days"}
_CONFIG = {"displayModeBar": False}
_LATEST = 50
_CHART_PIXELS = 410


@st.fragment(run_every=_POLL_S)
def draw() -> None:
    """Keeps itself up to date."""
    usage = session.api().usage
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("By the hour", anchor=False, width="stretch")
        hours_back = st.segmented_control(
            "Time", list(_SPANS), format_func=_SPANS.get, required=True, default=24, key="api:span",
            label_visibility="collapsed", persist_state="session",
        )  # fmt: skip
    now = dt.datetime.now(dt.UTC)
    since = now - dt.timedelta(hours=hours_back - 1)
    hours = usage.hours(since)
    if not any(hour.requests for hour in hours):
        st.caption(f"Nobody asked in the last {_SPANS[hours_back]}. Requests are kept for {KEPT_DAYS} days.")
        return
    _totals(hours, usage.statuses(hours[0].hour))
    _charts(hours, now)
    st.subheader("Latest requests", anchor=False)
    _table(usage.latest(_LATEST))


def _totals(hours: Sequence[HourStats], statuses: dict[int, int]) -> None:
    requests, errors = sum(hour.requests for hour in hours), sum(hour.errors for hour in hours)
    figures = (
        ("Requests", requests, "Answered, refused and failed ones. Health checks are not counted."),
        ("Refused or failed", errors, "Those with a status of 400 or more; 499: the client went away."),
        ("Prompt tokens", sum(hour.prompt_tokens for hour in hours), "With those from the prefix cache."),
        ("Output tokens", sum(hour.output_tokens for hour in hours), "Tokens that were generated."),
    )  # fmt: skip
    for cell, (title, value, words) in zip(metric_cells(len(figures), 150), figures, strict=True):
        cell.metric(title, short_number(value), help=f"{words} Exactly {value:,}.")
    ends = [f"{count:,} × {end_words(status)}" for status, count in statuses.items() if status >= 400]
    if ends:
        st.caption(" · ".join(ends))


def _charts(hours: Sequence[HourStats], now: dt.datetime) -> None:
    charts = (
        ("Requests", api_charts.requests(hours, local)),
        ("Output tokens/s, mean of the hour", api_charts.tokens(hours, local, now)),
        ("Time to the first token", api_charts.latencies(hours, local, first_token=True)),
        ("Time to the whole answer", api_charts.latencies(hours, local, first_token=False)),
    )
    # beside each other where there is room: columns would squeeze them
    for cell, (title, figure) in zip(metric_cells(len(charts), _CHART_PIXELS), charts, strict=True):
        cell.markdown(f"**{title}**")
        cell.plotly_chart(figure, key=f"api:chart:{title}", config=_CONFIG)
    st.caption("p50: half of the answered requests were faster; p95: 95 of 100 were.")


def _table(latest: Sequence[RequestRecord]) -> None:
    names = {key.key_id: key.name for key in session.api().keys.list(revoked=True)}
    st.dataframe(
        {
            "When": [f"{local(one.at):%-d %b %H:%M:%S}" for one in latest],
            "Key": [names.get(one.key_id, "deleted") if one.key_id else "–" for one in latest],
            "Endpoint": [one.endpoint for one in latest],
            "Model": [one.model for one in latest],
            "End": [end_words(one.status) for one in latest],
            "Seconds": [one.duration_s for one in latest],
            "First token, s": [one.ttft_s for one in latest],
            "Prompt tokens": [one.prompt_tokens for one in latest],
            "Output tokens": [one.output_tokens for one in latest],
        },
        column_config={
            name: st.column_config.NumberColumn(format="%.2f") for name in ("Seconds", "First token, s")
        },
        hide_index=True,
        key="api:latest",
    )
