"""One benchmark: its points, what they mean, and what can be done with it."""

from __future__ import annotations

import streamlit as st

from core.bench.records import BenchView, PointSummary
from core.errors import BenchError
from pages.parts import bench_actions, bench_details, bench_nav, bench_sweep_charts, session
from pages.parts.bench_words import (
    about,
    latency_rows,
    main_figures,
    metric_words,
    point_title,
    state_badge,
)
from pages.parts.charts import counted, metric_cells
from pages.parts.markdown import plain_text

_CONFIG = {"displayModeBar": False}
_FIGURE_PIXELS = 132
_MOST_LINES = 24
_MESSAGES = {
    "running": ("It is being measured; what is done is here.", st.info),
    "stopped": ("It was stopped: what was done until then is kept.", st.info),
    "interrupted": ("Its process ended before it was done. The finished points are kept.", st.warning),
    "failed": ("It could not go on.", st.error),
}
_COLUMNS = {
    "output_throughput": "Output tokens/s",
    "tokens_per_second": "Total tokens/s",
    "request_throughput": "Requests/s",
    "requests_per_second": "Requests/s ",
    "avg_latency": "Batch latency",
    "request_goodput": "Goodput/s",
    "median_ttft_ms": "TTFT",
    "p99_ttft_ms": "TTFT p99",
    "median_tpot_ms": "TPOT",
    "p99_tpot_ms": "TPOT p99",
    "median_e2el_ms": "E2EL",
}


def draw(benchmark_id: str) -> None:
    """The benchmark, or that it is gone."""
    try:
        view = session.benchmarks().view(benchmark_id)
    except BenchError as error:
        st.error(plain_text(str(error)))
        st.button("All results", icon=":material/arrow_back:", on_click=bench_nav.open_result, args=(None,))
        return
    _header(view)
    if not view.points:
        if view.state == "complete":
            st.caption("It has no points.")
        return
    if len(view.points) > 1:
        _table(view)
    if len({point.load for point in view.points}) > 1:
        _sweep(view)
    point = _choose(view)
    _figures(view, point)
    bench_details.draw(view, point)


def _header(view: BenchView) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "All results", icon=":material/arrow_back:", type="tertiary", on_click=bench_nav.open_result,
            args=(None,),
        )  # fmt: skip
        st.space("stretch")
        bench_actions.draw(view)
    baseline = " :violet-badge[baseline]" if view.is_baseline else ""
    st.subheader(f"{plain_text(view.name)}{state_badge(view)}{baseline}", anchor=False)
    st.caption(about(view))
    if beside := view.environment.get("beside"):
        names = ", ".join(str(name) for name in beside) if isinstance(beside, dict) else str(beside)
        st.warning(f"The engine was in use while this was measured: {plain_text(names)}.")
    if view.state in _MESSAGES:
        words, say = _MESSAGES[view.state]
        say(f"{words} {plain_text(view.message)}".strip())
    elif view.message:  # it is complete, and the disk too full to say so
        st.warning(plain_text(view.message))


def _table(view: BenchView) -> None:
    """A line for each point; what was measured at none is left out."""
    rows = [_row(view, point) for point in view.points]
    filled = [title for title in rows[0] if any(row[title] != "–" for row in rows)]
    height = "content" if len(rows) <= _MOST_LINES else "auto"
    st.dataframe([{title: row[title] for title in filled} for row in rows], hide_index=True, height=height)


def _sweep(view: BenchView) -> None:
    """Latency against throughput, and throughput at each load."""
    metrics = {
        field: f"{name.upper()}, {words}"
        for name in ("ttft", "tpot", "itl", "e2el")
        for field, words in _statistics(view, name)
    }
    left, right = st.columns(2)
    with left:
        if metrics:
            fields = list(metrics)
            preferred = next((field for field in fields if field == "p99_ttft_ms"), fields[0])
            chosen = st.selectbox(
                "Latency", fields, fields.index(preferred), format_func=metrics.get,
                key=f"bench:{view.benchmark_id}:sweep-metric", width=200, label_visibility="collapsed",
            )  # fmt: skip
            st.caption(f"{metrics[chosen]} against output tokens/s: right and low is good")
            goal = view.spec.goodput.get(chosen.split("_")[1]) if view.spec else None
            gain = view.spec.sweep.least_gain if view.spec and view.spec.sweep else 0.05
            figure = bench_sweep_charts.latency_against_throughput(
                view.points, chosen, of=metrics[chosen], limit_ms=goal, least_gain=gain
            )
            st.plotly_chart(figure, key=f"bench:{view.benchmark_id}:sweep", config=_CONFIG,
                            alt="Latency against throughput")  # fmt: skip
    with right:
        st.space("medium")
        st.caption("Output tokens/s at each load, a mark for each repeat")
        st.plotly_chart(
            bench_sweep_charts.throughput_over_load(view.points), key=f"bench:{view.benchmark_id}:loads",
            config=_CONFIG, alt="Output tokens per second at each load",
        )  # fmt: skip


def _statistics(view: BenchView, name: str) -> list[tuple[str, str]]:
    """(field, words) of one latency's figures that were measured at some point, the highest last."""
    found = []
    for field in view.points[0].result:
        statistic, _, rest = field.partition("_")
        if rest == f"{name}_ms" and (statistic in ("mean", "median") or statistic[1:2].isdigit()):
            found.append((field, statistic))
    return [pair for pair in found if any(point.result.get(pair[0]) is not None for point in view.points)]


def _row(view: BenchView, point: PointSummary) -> dict[str, str]:
    load = point.load.title if point.load else "All"
    row = {"Load": load, "Repeat": f"{point.repeat + 1}" if _repeats(view) > 1 else "–"}
    row |= {title: metric_words(field, point.result.get(field)) for field, title in _COLUMNS.items()}
    failed = point.result.get("failed")
    row["Failed"] = f"{failed:,}" if failed else "–"
    row[" "] = "–" if point.is_whole else "cut short"
    return row


def _repeats(view: BenchView) -> int:
    return len({point.repeat for point in view.points})


def _choose(view: BenchView) -> PointSummary:
    """The point whose requests are looked at."""
    if len(view.points) == 1:
        return view.points[0]
    points = {point.number: point for point in view.points}
    chosen = st.selectbox(
        f"Look at one of {counted(len(points), 'point')}", list(points),
        format_func=lambda number: point_title(points[number], _repeats(view)),
        key=f"bench:{view.benchmark_id}:point", width=340,
    )  # fmt: skip
    return points[chosen]


def _figures(view: BenchView, point: PointSummary) -> None:
    figures = main_figures(view.kind, point.result)
    for place, (title, words, help) in zip(metric_cells(len(figures), _FIGURE_PIXELS), figures, strict=True):
        place.metric(title, words, help=help)
    if not point.is_whole:
        st.caption(":material/info: This point was stopped before its last request.")
    rows = latency_rows(point.result)
    if rows:
        st.dataframe(rows, hide_index=True)
    elif percentiles := point.result.get("percentiles"):
        st.dataframe(
            [{f"p{share}": metric_words("avg_latency", value) for share, value in percentiles.items()}],
            hide_index=True,
        )
