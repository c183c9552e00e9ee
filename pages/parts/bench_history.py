"""A figure of the same workload over time and versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import streamlit as st

from core.bench import figures, history
from core.bench.differences import workload_key
from core.bench.records import BenchView
from core.bench.report import number
from core.bench.spec import Load
from pages.parts import session
from pages.parts.bench_compare_charts import axis_title, history_chart
from pages.parts.bench_words import KINDS, asked_words
from pages.parts.charts import counted

_LISTED = 500
_CONFIG = {"displayModeBar": False}
_FIRST = ("output_throughput", "avg_latency")


def draw() -> None:
    """The workload, the load and the figure to follow; a chart; a table of what changed when."""
    st.subheader("History", anchor=False)
    st.caption("Benchmarks that ask the same, over time: what another version or setting did to speed.")
    views = [view for view in session.benchmarks().recent(_LISTED) if view.points and view.spec]
    keys = [workload_key(view) for view in views]
    counts = Counter(keys)
    newest = {key: views[keys.index(key)] for key in counts}
    repeated = [key for key, many in counts.most_common() if many > 1]
    if not repeated:
        st.info(
            "Nothing was measured twice yet. Run a benchmark again: its history will be drawn here.",
            icon=":material/timeline:",
        )
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        place = st.selectbox(
            "Workload", range(len(repeated)), width=460, key="bench:history:workload",
            format_func=lambda one: f"{_words(newest[repeated[one]])} ({counts[repeated[one]]})",
        )  # fmt: skip
        alike = [view for view, key in zip(views, keys, strict=True) if key == repeated[place]][::-1]
        loads = history.loads(alike)
        at = 0
        if len(loads) > 1:
            at = st.selectbox(
                "Load", range(len(loads)), width=220, key=f"bench:history:load:{place}",
                format_func=lambda one: loads[one].title if loads[one] else "all at once",
            )  # fmt: skip
        load = loads[at] if loads else None
        name = _figure_of(alike, load)
    if name is None:
        st.caption("None of them was measured to its end.")
    else:
        _history(alike, load, name)


def _figure_of(alike: Sequence[BenchView], load: Load | None) -> str | None:
    names = [name for name in history.metric_names(alike, load) if figures.metric(name)]
    if not names:
        return None
    first = next((names.index(name) for name in _FIRST if name in names), 0)
    return st.selectbox(
        "Figure", names, first, width=240, key=f"bench:history:metric:{alike[0].kind}",
        format_func=lambda one: figures.metric(one).title,
    )  # fmt: skip


def _history(alike: Sequence[BenchView], load: Load | None, name: str) -> None:
    metric = figures.metric(name)
    places = history.history(alike, load, name)
    st.plotly_chart(history_chart(places, metric), config=_CONFIG, key="bench:history:chart")
    st.caption(
        f"{counted(len(places), 'benchmark')}, a dot for each repeat. Ringed: engine, settings, versions "
        "or machine are not as in the one before."
    )
    st.dataframe(
        [
            {
                "Measured": place.created_at.astimezone().strftime("%d %b %Y, %H:%M"),
                "Name": place.name,
                "Model and engine": place.series,
                axis_title(metric): ", ".join(number(value) for value in place.values),
                "Changed since the one before": "; ".join(place.changes),
                "Baseline": "yes" if place.is_baseline else "",
            }
            for place in reversed(places)
        ],
        hide_index=True,
    )


def _words(view: BenchView) -> str:
    return f"{KINDS.get(view.kind, view.kind)}, {asked_words(view)}"
