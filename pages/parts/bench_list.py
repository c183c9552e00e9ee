"""All benchmarks of this workspace, the newest first."""

from __future__ import annotations

import streamlit as st

from core.bench import engines, tuning
from core.bench.records import BenchView
from pages.parts import bench_import, bench_nav, session
from pages.parts.bench_words import KINDS, asked_words, headline, state_badge
from pages.parts.charts import counted
from pages.parts.markdown import plain_text

_WIDTHS = (4.6, 2.4, 2.2, 1.8)
_GROUPS = {engines.GROUP: "of a comparison of engines", tuning.GROUP: "of a search for settings"}
_SEARCH_FROM = 8
_MOST = 300


def draw() -> None:
    views = session.benchmarks().recent(_MOST)
    if not views:
        st.info(
            "Nothing was measured yet. Start a benchmark, or import a file that vllm bench wrote.",
            icon=":material/speed:",
        )
        st.button(
            "Run a benchmark", icon=":material/play_arrow:", on_click=bench_nav.go, args=(bench_nav.RUN,)
        )
    else:
        _list(views)
    with st.expander("Import results of vllm bench", icon=":material/upload_file:", key="bench:import"):
        bench_import.draw()


def _list(views: tuple[BenchView, ...]) -> None:
    shown = _search(views)
    st.caption(f"{counted(len(views), 'benchmark')} in this workspace")
    titles = ("Benchmark", "Model", "Result", "")
    for cell, title in zip(st.columns(_WIDTHS, gap="small"), titles, strict=True):
        cell.caption(title)
    for view in shown:
        _row(view)
    if not shown:
        st.caption("None is called so.")


def _search(views: tuple[BenchView, ...]) -> list[BenchView]:
    if len(views) < _SEARCH_FROM:
        return list(views)
    text = st.text_input(
        "Search", key="bench:search", placeholder="Search names, models and engines",
        icon=":material/search:", label_visibility="collapsed",
    ).casefold()  # fmt: skip
    return [view for view in views if text in f"{view.name} {_model(view)} {_engine(view)}".casefold()]


def _row(view: BenchView) -> None:
    with st.container(border=True):
        name, model, result, actions = st.columns(_WIDTHS, gap="small", vertical_alignment="center")
        baseline = " :violet-badge[baseline]" if view.is_baseline else ""
        with name.container(gap=None):
            st.markdown(f"**{plain_text(view.name)}**{state_badge(view)}{baseline}")
            words = [KINDS.get(view.kind, view.kind)]
            words += [asked_words(view)] if view.spec else []
            words += ["imported"] if view.source else []
            words += [_GROUPS[start] for start in _GROUPS if view.spec and view.spec.group.startswith(start)]
            words.append(view.created_at.astimezone().strftime("%d %b, %H:%M"))
            st.caption(plain_text(" · ".join(words)))
        with model.container(gap=None):
            st.markdown(plain_text(_model(view) or "–"))
            st.caption(plain_text(_engine(view)))
        figure, what = headline(view)
        with result.container(gap=None):
            st.markdown(f"**{figure}**")
            st.caption(what or "nothing measured")
        actions.button(
            "Open", key=f"bench:open:{view.benchmark_id}", on_click=bench_nav.open_result,
            args=(view.benchmark_id,),
        )  # fmt: skip


def _model(view: BenchView) -> str:
    return str(view.environment.get("model") or "")


def _engine(view: BenchView) -> str:
    """vllm 0.32.0. Some engines have their name in what they call their version."""
    engine, version = (str(view.environment.get(name) or "") for name in ("engine", "engine_version"))
    letters = version.replace("-", "").replace(".", "").lower()
    return version if engine and letters.startswith(engine) else f"{engine} {version}".strip()
