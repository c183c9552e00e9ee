"""What can be done with a benchmark: again, changed, downloaded, reported, renamed, held others against."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from core.bench import report
from core.bench.records import BenchView, Point
from core.errors import WorkbenchError
from pages.parts import bench_compare, bench_nav, session
from pages.parts.actions import attempt
from pages.parts.markdown import plain_text

_POPOVER_PIXELS = 360
_NOT_A_NAME = re.compile(r"[^\w.-]+")


def draw(view: BenchView) -> None:
    """The buttons, side by side."""
    if view.state == "running":
        st.button(
            "Watch it", icon=":material/monitoring:", on_click=bench_nav.go, args=(bench_nav.RUN,),
            key="bench:watch",
        )  # fmt: skip
    elif view.spec is not None:
        if st.button("Repeat", icon=":material/replay:", help="Measure the same on what is loaded now"):
            _repeat(view)
        st.button(
            "Change", icon=":material/edit:", on_click=bench_nav.fill, args=(view.spec,),
            help="Set up another one that starts from this one",
        )  # fmt: skip
    if view.points:
        st.button(
            "Compare", icon=":material/compare_arrows:", on_click=_compare, args=(view,),
            help="Hold it against the baseline, or against others",
        )  # fmt: skip
        _export_menu(view)
    _more_menu(view)


def _repeat(view: BenchView) -> None:
    try:
        # by itself: it is no part of the comparison of engines, or the search, that this one was
        benchmark_id = session.benchmarks().start(view.spec.model_copy(update={"group": ""}))
    except WorkbenchError as error:
        st.toast(plain_text(str(error)), icon=":material/error:")
        return
    bench_nav.follow(benchmark_id)
    bench_nav.open_result(None)
    bench_nav.go(bench_nav.RUN)
    st.rerun()


def _compare(view: BenchView) -> None:
    baseline = next((one.benchmark_id for one in session.benchmarks().recent() if one.is_baseline), None)
    others = [] if baseline in (None, view.benchmark_id) else [baseline]
    bench_compare.pick([*others, view.benchmark_id])
    bench_nav.go(bench_nav.COMPARE)


def _export_menu(view: BenchView) -> None:
    stem = _NOT_A_NAME.sub("-", view.name).strip("-.")[:60] or "benchmark"
    with (
        st.popover("Export", icon=":material/download:", key=f"bench:export:{view.benchmark_id}"),
        st.container(width=_POPOVER_PIXELS),
    ):
        gone = [point for point in view.points if not _file(view, point.number).is_file()]
        if gone:
            st.warning("Files of this benchmark are gone: only its summary is left.")
            return
        several = len(view.points) > 1
        for label, ending, mime, make, about in (
            (
                "JSON",
                "jsonl" if several else "json",
                "application/json",
                as_json,
                "As vllm bench writes it"
                + (", a line for each point" if several else "")
                + ": tools that read those read this.",
            ),
            ("Report, HTML", "html", "text/html", _html, "One page that opens anywhere, without a network."),
            ("Report, Markdown", "md", "text/markdown", _markdown, "Tables for pasting."),
        ):
            st.download_button(
                label, data=_lazily(make, view), file_name=f"{stem}.{ending}", mime=mime, help=about,
                icon=":material/download:", on_click="ignore", width="stretch",
                key=f"bench:download:{ending}:{view.benchmark_id}",
            )  # fmt: skip


def _lazily(make: Callable[[BenchView], str], view: BenchView) -> Callable[[], bytes]:
    """Made when somebody clicks, not each time the page is drawn."""
    return lambda: make(view).encode()


def _file(view: BenchView, number: int) -> Path:
    return session.benchmarks().path(view.benchmark_id, number)


def as_json(view: BenchView) -> str:
    """The file of the one point, or one JSON document a line, as `vllm bench serve --append-result`."""
    texts = [_file(view, point.number).read_text(encoding="utf-8") for point in view.points]
    return texts[0] if len(texts) == 1 else "".join(f"{json.dumps(json.loads(text))}\n" for text in texts)


def _points(view: BenchView) -> list[Point]:
    return [session.benchmarks().point(view.benchmark_id, point.number) for point in view.points]


def _html(view: BenchView) -> str:
    return report.to_html(view, _points(view))


def _markdown(view: BenchView) -> str:
    return report.to_markdown(view, _points(view))


def _more_menu(view: BenchView) -> None:
    identity = view.benchmark_id
    with (
        st.popover("", icon=":material/more_horiz:", key=f"bench:more:{identity}", help="Rename, delete"),
        st.container(width=_POPOVER_PIXELS),
    ):
        with st.form(f"bench:rename:{identity}", border=False):
            name = st.text_input("Name", view.name)
            if st.form_submit_button("Rename"):
                attempt(lambda: session.benchmarks().rename(identity, name))
        if view.is_baseline:
            if st.button("No baseline any more", icon=":material/flag:", key="bench:baseline"):
                attempt(lambda: session.benchmarks().set_baseline(None))
        elif view.points and st.button(
            "Make it the baseline", icon=":material/flag:", key="bench:baseline",
            help="Others are held against it: what got worse is marked.",
        ):  # fmt: skip
            attempt(lambda: session.benchmarks().set_baseline(identity))
        _delete(view)


def _delete(view: BenchView) -> None:
    asked = f"bench:delete:{view.benchmark_id}"
    if view.state == "running":
        st.caption("It is being measured: stop it before you delete it.")
    elif not st.session_state.get(asked):
        st.button(
            "Delete", icon=":material/delete:", key=f"{asked}:ask", on_click=_ask, args=(asked, True),
        )  # fmt: skip
    else:
        st.markdown("Delete it with all its measurements? There is no way back.")
        with st.container(horizontal=True):
            st.button("Yes", type="primary", key=f"{asked}:yes", on_click=_delete_now, args=(view, asked))
            st.button("No", key=f"{asked}:no", on_click=_ask, args=(asked, False))


def _ask(name: str, asked: bool) -> None:
    st.session_state[name] = asked


def _delete_now(view: BenchView, asked: str) -> None:
    st.session_state.pop(asked, None)
    try:
        session.benchmarks().delete(view.benchmark_id)
    except WorkbenchError as error:
        st.toast(plain_text(str(error)), icon=":material/error:")
        return
    if bench_nav.followed() == view.benchmark_id:
        bench_nav.follow(None)
    bench_nav.open_result(None)
