"""Benchmarks side by side: what differs between them, and what that did, with the spread of repeats."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.bench import differences, report, subjects
from core.bench.differences import Comparison, Line
from core.bench.records import BenchView
from core.errors import BenchError
from pages.parts import session
from pages.parts.bench_compare_charts import differences_chart, over_loads
from pages.parts.markdown import plain_text

_MOST = 8
_LISTED = 200
_CONFIG = {"displayModeBar": False}
_PICKED = "bench:compare:picked"


def pick(ids: Sequence[str]) -> None:
    """Have the next drawing compare these, for callbacks of other parts."""
    st.session_state[_PICKED] = list(ids)
    st.session_state["bench:compare:turn"] = st.session_state.get("bench:compare:turn", 0) + 1


def draw() -> None:
    """The choice, then everything that two or more of them say together."""
    st.subheader("Compare", anchor=False)
    st.caption("Models, settings, engines, machines or versions, held against one of them.")
    views = [view for view in session.benchmarks().recent(_LISTED) if view.points]
    if len(views) < 2:
        st.info(
            "Two benchmarks are needed. Measure another one, or import a file of vLLM's in Results.",
            icon=":material/compare_arrows:",
        )
        return
    chosen, baseline, threshold = _choice(views)
    if len(chosen) < 2:
        st.caption("Choose two or more.")
        return
    try:
        found = _compared(
            tuple(chosen),
            tuple(_stamp(view) for view in views if view.benchmark_id in chosen),
            baseline,
            threshold,
        )
    except BenchError as error:  # deleted by somebody since the list was read
        st.error(plain_text(str(error)))
        return
    _draw(found)


def _choice(views: Sequence[BenchView]) -> tuple[list[str], int, float]:
    """(ids, place of the baseline among them, the least share of a regression)."""
    by_id = {view.benchmark_id: view for view in views}
    turn = st.session_state.get("bench:compare:turn", 0)
    picked = [one for one in st.session_state.get(_PICKED, ()) if one in by_id]
    words = {one: _words(view) for one, view in by_id.items()}
    chosen = st.multiselect(
        "Benchmarks", list(by_id), default=picked or _first(views), format_func=words.get,
        max_selections=_MOST, key=f"bench:compare:chosen:{turn}", persist_state="session",
    )  # fmt: skip
    if len(chosen) < 2:
        return chosen, 0, differences.THRESHOLD
    with st.container(horizontal=True, vertical_alignment="bottom"):
        marked = next((place for place, one in enumerate(chosen) if by_id[one].is_baseline), 0)
        baseline = st.selectbox(
            "Baseline", chosen, marked, format_func=words.get, width=420,
            key=f"bench:compare:baseline:{turn}:{'/'.join(chosen)}",
            help="What the others are held against.",
        )  # fmt: skip
        percent = st.number_input(
            "Regression from (%)", 0.0, 100.0, 100 * differences.THRESHOLD, 1.0, width=180, format="%g",
            key="bench:compare:threshold", persist_state="session",
            help="Worse than the baseline beyond the interval, and by this much or more, is a regression.",
        )  # fmt: skip
    return chosen, chosen.index(baseline), percent / 100


def _first(views: Sequence[BenchView]) -> list[str]:
    """The baseline and the newest one, else the two newest that ask the same, else nothing."""
    newest = views[0]
    others = [view for view in views[1:] if view.is_baseline] or [
        view
        for view in views[1:]
        if differences.workload_key(view)
        and differences.workload_key(view) == differences.workload_key(newest)
    ]
    return [others[0].benchmark_id, newest.benchmark_id] if others else []


def _words(view: BenchView) -> str:
    when = view.created_at.astimezone().strftime("%d %b, %H:%M")
    return f"{view.name or view.benchmark_id} · {when}{' · baseline' if view.is_baseline else ''}"


def _stamp(view: BenchView) -> tuple[str, str, int]:
    """Changes with whatever the comparison shows of it."""
    return view.name, view.state, len(view.points)


@st.cache_data(max_entries=16, show_spinner="Reading the results")
def _compared(
    ids: tuple[str, ...], stamps: tuple[tuple[str, str, int], ...], baseline: int, threshold: float
) -> Comparison:
    """Kept for as long as what `stamps` say of them holds."""
    found = [subjects.kept(session.benchmarks(), one) for one in ids]
    return differences.compare(found, baseline, threshold)


def _draw(found: Comparison) -> None:
    for text in found.warnings:
        st.warning(plain_text(text), icon=":material/info:")
    _regressions(found)
    _conditions(found)
    if found.loads:
        _loads(found)
    if found.unmatched:
        st.caption(plain_text(f"Measured in one of them only: {', '.join(found.unmatched)}."))
    with st.container(horizontal=True):
        for label, suffix, mime, write in (
            ("Report", "html", "text/html", report.comparison_html),
            ("Markdown", "md", "text/markdown", report.comparison_markdown),
        ):
            st.download_button(
                label, lambda write=write: write(found), f"comparison.{suffix}", mime,
                icon=":material/download:", on_click="ignore", key=f"bench:compare:{suffix}",
            )  # fmt: skip


def _regressions(found: Comparison) -> None:
    regressions = found.regressions
    if not regressions:
        return
    parts = [
        f"{found.names[place]}: {line.metric.title}{at.where} "
        f"{report.share_in_words(line.differences[place].share)}"
        for at, line, place in regressions
        if line.metric.is_main
    ]
    more = len(regressions) - len(parts[:6])
    said = "; ".join(parts[:6]) + (f"; and {more} more" if more > 0 else "")
    st.error(
        plain_text(f"Worse than {found.names[found.baseline]}: {said}."), icon=":material/trending_down:"
    )


def _conditions(found: Comparison) -> None:
    st.markdown("**What differs between them**")
    different = [one for one in found.conditions if one.differs]
    if different:
        st.dataframe(_condition_rows(found, different), hide_index=True)
    else:
        st.caption("Nothing that is known: same model, engine, settings, machine and workload.")
    alike = [one for one in found.conditions if not one.differs]
    if alike:
        with st.expander(f"What is the same ({len(alike)})"):
            st.dataframe(_condition_rows(found, alike), hide_index=True)


def _condition_rows(found: Comparison, conditions: Sequence[differences.Condition]) -> list[dict[str, str]]:
    return [
        {"Of": one.group, "What": one.name}
        | {name: "–" if value is None else value for name, value in zip(found.names, one.values, strict=True)}
        for one in conditions
    ]


def _loads(found: Comparison) -> None:
    metrics = {line.metric.name: line.metric for at in found.loads for line in at.lines}
    if not metrics:
        st.caption("No figure was measured in two of them.")
        return
    name = st.selectbox(
        "Figure", list(metrics), format_func=lambda one: metrics[one].title, width=300,
        key="bench:compare:metric", persist_state="session",
    )  # fmt: skip
    st.caption(plain_text(metrics[name].help))
    rows = [
        next((line.figures for line in at.lines if line.metric.name == name), (None,) * len(found.names))
        for at in found.loads
    ]
    titles = [at.title for at in found.loads]
    chart = over_loads(found.names, titles, rows, metrics[name])
    st.plotly_chart(chart, config=_CONFIG, key="bench:compare:over-loads")
    place = 0
    if len(found.loads) > 1:
        place = st.selectbox(
            "Load", range(len(titles)), format_func=lambda one: titles[one] or "all at once", width=300,
            key=f"bench:compare:load:{'/'.join(found.ids)}",
        )  # fmt: skip
    all_figures = st.toggle("All figures", key="bench:compare:all", persist_state="session")
    lines = [line for line in found.loads[place].lines if line.metric.is_main or all_figures]
    _table(found, lines)
    _forests(found, lines)


def _table(found: Comparison, lines: Sequence[Line]) -> None:
    rows = []
    for line in lines:
        row = {"Figure": line.metric.title}
        columns = list(zip(found.names, line.figures, line.differences, strict=True))
        for name, figure, _change in columns:
            row[name] = "–" if figure is None else report.in_words(figure.value, line.metric)
        for name, _figure, change in columns:
            if change is not None:
                share = report.share_in_words(change.share)
                row[f"{name} against it"] = f"{share}, {change.verdict}" if share else change.verdict
        for name, figure, _change in columns:
            if figure is not None:
                row[f"{name}, 95%"] = report.spread_in_words(figure)
        rows.append(row)
    st.dataframe(rows, hide_index=True)


def _forests(found: Comparison, lines: Sequence[Line]) -> None:
    for place, name in enumerate(found.names):
        chart = None if place == found.baseline else differences_chart(found, lines, place)
        if chart is not None:
            st.markdown(f"**{plain_text(name)}** against {plain_text(found.names[found.baseline])}")
            st.plotly_chart(chart, config=_CONFIG, key=f"bench:compare:forest:{found.ids[place]}")
    st.caption(
        "95% intervals over repeats (Welch). Of twenty figures that are alike, about one shows a difference "
        "by chance."
    )
