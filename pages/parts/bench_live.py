"""The benchmark at work, whoever started it: output tokens/s over time, how far it is, and Stop."""

from __future__ import annotations

import streamlit as st

from core.bench.records import BenchView, Progress
from core.errors import BenchError
from pages.parts import bench_charts, bench_nav, session
from pages.parts.bench_words import about, headline, state_badge
from pages.parts.charts import counted, duration, metric_cells, per_second
from pages.parts.markdown import plain_text

_POLL_S = 1.0
_WINDOW_S = 3.0
_LOOKED_AT = 20
_FIGURE_PIXELS = 132
_CONFIG = {"displayModeBar": False}


def at_work() -> BenchView | None:
    """The benchmark that this process works on, else the newest that another one does."""
    benchmarks = session.benchmarks()
    own = benchmarks.at_work()
    if own is not None and (view := benchmarks.view(own)).state == "running":
        return view
    return next((view for view in benchmarks.recent(_LOOKED_AT) if view.state == "running"), None)


@st.fragment(run_every=_POLL_S)
def draw(benchmark_id: str) -> None:
    """How far it is. The page is drawn anew once it has ended."""
    try:
        view = session.benchmarks().view(benchmark_id)
    except BenchError:  # deleted in another window
        view = None
    if view is None or view.state != "running":
        st.rerun()
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{plain_text(view.name)}** :blue-badge[measuring]", width="stretch")
            st.button(
                "Stop", icon=":material/stop:", key="bench:stop", on_click=_stop, args=(benchmark_id,),
                help="What is done is kept; of the point at work, what has been answered.",
            )  # fmt: skip
        st.caption(about(view))
        if view.points:
            st.caption(f"{counted(len(view.points), 'point')} measured, {' '.join(headline(view))}")
        if view.progress is None:
            st.caption("Another process of this machine measures it; its points come here as they are done.")
        else:
            _progress(view.progress)


def _progress(progress: Progress) -> None:
    share = progress.done / progress.total if progress.total else 0.0
    st.progress(min(share, 1.0), plain_text(progress.stage))
    samples = progress.samples
    since_zero = bench_charts.from_zero(samples)
    rates = bench_charts.rates(since_zero, lambda sample: sample.output_tokens, _WINDOW_S)
    now = samples[-1] if samples else None
    cells = (
        ("Output tokens/s", per_second(rates[-1] if rates else None), "Over the last three seconds."),
        ("Done", f"{progress.done:,} of {progress.total:,}" if progress.total else "–", None),
        ("Failed", f"{progress.failed:,}", "Requests without an answer."),
        ("Running", f"{now.running:,}" if now else "–", "Requests that the engine works on."),
        ("Waiting", f"{now.waiting:,}" if now else "–", "Requests that wait in the engine."),
        ("Since", duration(float(int(progress.elapsed_s))), "Since this point began."),
    )
    for place, (title, words, help) in zip(metric_cells(len(cells), _FIGURE_PIXELS), cells, strict=True):
        place.metric(title, words, help=help)
    if len(samples) > 1:
        st.caption("Output tokens/s over time")
        st.plotly_chart(
            bench_charts.output_rate(samples), key="bench:live:rate", config=_CONFIG,
            alt="Output tokens per second over time",
        )  # fmt: skip


def _stop(benchmark_id: str) -> None:
    session.benchmarks().stop(benchmark_id)


def ended(view: BenchView) -> None:
    """How the benchmark ended that this browser session has watched."""
    with st.container(border=True), st.container(horizontal=True, vertical_alignment="center"):
        with st.container(gap=None):
            figure, what = headline(view)
            st.markdown(f"**{plain_text(view.name)}**{state_badge(view)} {figure} {what}")
            if view.message:
                st.caption(plain_text(view.message))
        st.button(
            "See the result", type="primary", icon=":material/query_stats:", key="bench:see",
            on_click=bench_nav.open_result, args=(view.benchmark_id,),
        )  # fmt: skip
        st.button("Hide", type="tertiary", key="bench:hide", on_click=bench_nav.follow, args=(None,))
