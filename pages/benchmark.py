"""Measure the loaded engine, look at what came out, compare, tune. `?bench=ID` opens one benchmark."""

from __future__ import annotations

import streamlit as st

from core.errors import BenchError
from pages.parts import (
    bench_compare,
    bench_engines,
    bench_history,
    bench_list,
    bench_live,
    bench_nav,
    bench_result,
    bench_setup,
    bench_tune,
    session,
)


def _run() -> None:
    """The benchmark at work, or else the form; above it how the one ended that was watched."""
    at_work = bench_live.at_work()
    if at_work is not None:
        bench_nav.follow(at_work.benchmark_id)
        bench_live.draw(at_work.benchmark_id)
        return
    followed = bench_nav.followed()
    if followed is not None:
        try:
            bench_live.ended(session.benchmarks().view(followed))
        except BenchError:  # deleted meanwhile
            bench_nav.follow(None)
    bench_setup.draw()


def _results() -> None:
    opened = bench_nav.opened()
    if opened is None:
        bench_list.draw()
    else:
        bench_result.draw(opened)


_SECTIONS = {
    bench_nav.RUN: ("Run", _run),
    bench_nav.RESULTS: ("Results", _results),
    bench_nav.COMPARE: ("Compare", bench_compare.draw),
    "history": ("History", bench_history.draw),
    "engines": ("Engines", bench_engines.draw),
    "tune": ("Tune", bench_tune.draw),
}

st.title("Benchmark", anchor=False)
chosen = bench_nav.section({name: title for name, (title, _draw) in _SECTIONS.items()})
_SECTIONS[chosen][1]()
