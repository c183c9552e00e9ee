"""One point, request by request and second by second, and the conditions it was measured under."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from core.bench import metrics
from core.bench.command_line import command_line
from core.bench.records import BenchView, Point, PointSummary
from core.errors import WorkbenchError
from pages.parts import bench_charts, bench_roofline, session
from pages.parts.bench_words import LATENCIES
from pages.parts.charts import counted
from pages.parts.markdown import plain_text
from pages.parts.run_charts import cache_chart

_CONFIG = {"displayModeBar": False}
_ERRORS = 5
_VIEWS = {
    "speed": "Speed",
    "latency": "Latencies",
    "requests": "Requests",
    "engine": "Engine",
    "limit": "Limit",
    "conditions": "Conditions",
}
Charts = list[tuple[str, go.Figure]]


def draw(view: BenchView, summary: PointSummary) -> None:
    """The choice of what to see of the point, and that."""
    key = f"bench:{view.benchmark_id}:{summary.number}"
    chosen = st.segmented_control(
        "Details", list(_VIEWS), format_func=_VIEWS.get, default="speed", required=True,
        key=f"bench:{view.benchmark_id}:details", label_visibility="collapsed", persist_state="session",
    )  # fmt: skip
    if chosen == "conditions":
        _conditions(view)
        return
    if chosen == "limit":
        bench_roofline.draw(view, summary)
        return
    goals = tuple((view.spec.goodput if view.spec else {}).items())
    try:
        said, charts = _seen(view.benchmark_id, summary.number, chosen, goals)
    except WorkbenchError as error:
        st.warning(plain_text(str(error)))
        return
    for words in said:
        st.caption(words)
    for start in range(0, len(charts), 2):
        pair = charts[start : start + 2]
        places = [st.container()] if len(charts) == 1 else st.columns(2)
        for column, (title, figure) in zip(places, pair, strict=False):
            with column:
                st.caption(title)
                st.plotly_chart(figure, key=f"{key}:{chosen}:{title}", config=_CONFIG, alt=title)


# the pictures are kept, not the point: a large one has millions of times. It never changes once it is there.
@st.cache_data(max_entries=32, show_spinner="Reading the requests")
def _seen(
    benchmark_id: str, number: int, chosen: str, goals: tuple[tuple[str, float], ...]
) -> tuple[list[str], Charts]:
    """Sentences in Markdown, and charts with their titles. Raises BenchError when the file is gone."""
    point = session.benchmarks().point(benchmark_id, number)
    if chosen == "speed":
        charts = _speed(point)
    elif chosen == "latency":
        charts = _latencies(point, dict(goals))
    else:
        charts = _requests(point) if chosen == "requests" else _engine(point)
    said = _said(point) if chosen in ("requests", "engine") else []
    return ([*said] if charts else [*said, _missing(point, chosen)]), charts


def _said(point: Point) -> list[str]:
    """Why requests failed, and what the prefix cache spared: Markdown."""
    errors = Counter(record.error for record in point.records if record.error)
    said = [
        f":red[{counted(count, 'request')} failed:] {plain_text(error[:300])}"
        for error, count in errors.most_common(_ERRORS)
    ]
    known = [record for record in point.records if record.cached_tokens is not None]
    cached = sum(record.cached_tokens for record in known)
    if cached:
        read = sum(record.input_len for record in known)
        said.append(
            f"{cached:,} of {read:,} prompt tokens ({cached / read:.0%}) came from the prefix cache and were "
            "not computed again: total tokens/s counts them, output tokens/s does not."
        )
    return said


def _missing(point: Point, chosen: str) -> str:
    if not point.records:
        return "The file does not tell. vllm bench writes each request with --save-detailed."
    if chosen == "latency":
        return "Here answers come whole: single tokens were not timed. A serving benchmark times them."
    return "It was too short to be looked at more than once."


def _speed(point: Point) -> Charts:
    if len(point.samples) > 2:
        return [("Output tokens/s over time", bench_charts.output_rate(point.samples))]
    per_second = metrics.per_second(point.records)
    if len(per_second) > 1:
        figure = bench_charts.output_rate_of_records(per_second)
        return [("Output tokens/s over time, from the requests", figure)]
    return []


def _latencies(point: Point, goals: Mapping[str, float]) -> Charts:
    """From the records themselves: each value counts once. `goals` in ms."""
    charts: Charts = []
    for name, (title, help) in LATENCIES.items():
        values = metrics.milliseconds(point.records, name)
        if values:
            of = "gaps" if name == "itl" else "requests"
            figure = bench_charts.distribution(np.asarray(values), of=of, limit_ms=goals.get(name))
            charts.append((f"{title}: {help.split(': ')[0].lower()} ({len(values):,} {of})", figure))
    times = point.result.get("latencies")
    if "avg_latency" in point.result and times:
        charts.insert(0, ("Batch latency: each batch in order", bench_charts.batch_latencies(times)))
    return charts


def _requests(point: Point) -> Charts:
    timed = [record for record in point.records if record.e2el_s is not None or not record.ok]
    if not timed:
        return []
    most = bench_charts.MOST_REQUESTS
    first = f"the first {most} of " if len(timed) > most else ""
    return [
        (f"Each request over time: {first}{counted(len(timed), 'request')}", bench_charts.timeline(timed))
    ]


def _engine(point: Point) -> Charts:
    samples = bench_charts.thinned(point.samples)
    if len(samples) < 3:
        return []
    seconds = [sample.at_s for sample in samples]
    charts: Charts = [("Requests in the engine", bench_charts.engine_load(samples))]
    usage = [sample.kv_cache_usage for sample in samples]
    hits = bench_charts.hit_rates(samples)
    if sum(one is not None for one in usage) > 1:
        charts.append(("KV cache in use and prefix cache hits", cache_chart(seconds, usage, hits)))
    for title, figure in (
        ("Processor in use", bench_charts.device_use(samples)),
        ("Memory in use", bench_charts.device_memory(samples)),
        ("Power of the GPUs", bench_charts.device_power(samples)),
    ):
        if figure is not None:
            charts.append((title, figure))
    return charts


def _conditions(view: BenchView) -> None:
    """What was asked, of what, on which machine."""
    rows = [
        {"": name.replace("_", " "), "Value": _written(value)}
        for name, value in _flat(view.environment)
        if value not in (None, "", {}, [])
    ]
    if rows:
        st.dataframe(rows, hide_index=True)
    if view.spec is None:
        return
    if line := command_line(view.spec):
        st.caption("The same from the command line; --model and --engine say on what")
        st.code(line, language="shell", wrap_lines=True)
    with st.expander("The specification"):
        st.json(view.spec.model_dump(mode="json"), expanded=1)


def _flat(environment: object, before: str = "") -> list[tuple[str, object]]:
    """Nested names in one line: settings.max_num_seqs."""
    found: list[tuple[str, object]] = []
    for name, value in dict(environment).items():
        full = f"{before}{name}"
        found += _flat(value, f"{full}: ") if isinstance(value, dict) and value else [(full, value)]
    return found


def _written(value: object) -> str:
    text = ", ".join(str(one) for one in value) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
