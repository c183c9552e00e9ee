"""Engines in one picture: one workload on transformers, llama.cpp and vLLM, on one's own machine."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.bench import engines, report, subjects
from core.bench.engines import Contender, Entry, LineUp
from core.bench.figures import RATES
from core.bench.records import BenchView
from core.errors import BenchError, WorkbenchError
from pages.parts import session
from pages.parts.bench_compare_charts import over_loads
from pages.parts.charts import counted
from pages.parts.engine_in_use import in_use_words
from pages.parts.markdown import plain_text

_CONFIG = {"displayModeBar": False}
_LISTED = 300
_EMBEDDED = "embedded"
_STATES = {
    "waiting": ("Waiting", "gray"),
    "loading": ("Loading", "blue"),
    "measuring": ("Measuring", "blue"),
    "done": ("Done", "green"),
    "failed": ("Failed", "red"),
    "stopped": ("Stopped", "orange"),
}


def draw() -> None:
    """The comparison at work, or the form for one; below it the last picture, or the one chosen."""
    st.subheader("Engines in one picture", anchor=False)
    st.caption("The same model and prompts on each engine, with one request alone and with many at once.")
    now = session.bench_engines().now()
    if now is not None and now.is_live:
        _live(now.group)
        return
    if now is not None:
        _ended(now)
    _form()
    _pictures()


# -- before -----------------------------------------------------------------------


def _form() -> None:
    with st.container(border=True):
        models, ggufs = _models()
        with st.container(horizontal=True, vertical_alignment="bottom"):
            loaded = session.runtime().status().spec
            first = list(models).index(loaded.model) if loaded and loaded.model in models else 0
            model = st.selectbox(
                "Model", list(models), first, format_func=models.get, width=340, key="bench:engines:model"
            )
            file = _gguf(model, ggufs)
            at_once = st.number_input(
                "At once", 2, 1024, 32, width=120, key="bench:engines:at-once", persist_state="session",
                help="Requests in flight in the second measurement; in the first it is one.",
            )  # fmt: skip
        lengths = _lengths()
        contenders = session.bench_engines().contenders(model, file)
        chosen = _who(contenders)
        asked = engines.specs(at_once=int(at_once), **lengths)
        requests = sum(spec.workload.num_prompts for spec in asked) * lengths["repeats"]
        st.caption(
            f"Loads each engine in turn, {counted(requests, 'request')} each; the model that is loaded now "
            "comes back at the end."
        )
        if words := in_use_words("Comparing engines"):
            st.warning(words, icon=":material/info:")
        st.button(
            "Compare engines", icon=":material/play_arrow:", type="primary", disabled=len(chosen) < 2,
            on_click=_start, args=(asked, chosen), key="bench:engines:start",
            help="Two engines at least" if len(chosen) < 2 else None,
        )  # fmt: skip
    if problem := st.session_state.pop("bench:engines:problem", None):
        st.error(plain_text(problem))


def _models() -> tuple[dict[str, str], dict[str, str]]:
    """(folders, GGUF files) of the library that can be loaded: what a spec takes -> name."""
    found = [one for one in session.library().list() if one.problem is None]
    folders = {one.model: one.name for one in found if one.format != "gguf"}
    return {_EMBEDDED: folders.get(_EMBEDDED, "Embedded model"), **folders}, {
        one.model: one.name for one in found if one.format == "gguf"
    }


def _gguf(model: str, ggufs: dict[str, str]) -> str | None:
    """The file for llama.cpp; of the embedded model it is known."""
    if model == _EMBEDDED:
        return model
    suggested = engines.gguf_of(model, session.library())
    return st.selectbox(
        "For llama.cpp", list(ggufs), list(ggufs).index(suggested) if suggested in ggufs else None,
        format_func=ggufs.get, placeholder="No GGUF file", width=300, key=f"bench:engines:gguf:{model}",
        help="A GGUF file of the same model. Mostly it is quantized, which makes it faster and less exact.",
    )  # fmt: skip


def _lengths() -> dict[str, int]:
    with st.expander("Lengths and repeats"), st.container(horizontal=True):
        fields = (
            ("input_len", "Prompt tokens", 128, 1, 100_000),
            ("output_len", "Answer tokens", 64, 2, 100_000),
            ("repeats", "Repeats", 3, 1, 20),
            ("seed", "Seed", 0, 0, 2**31),
        )
        return {
            name: int(
                st.number_input(
                    title, low, high, first, width=140, key=f"bench:engines:{name}", persist_state="session"
                )
            )
            for name, title, first, low, high in fields
        }


def _who(contenders: Sequence[Contender]) -> list[Contender]:
    chosen = []
    for one in contenders:
        with st.container(horizontal=True, vertical_alignment="center"):
            if one.obstacle is None:
                wanted = st.checkbox(one.title, True, key=f"bench:engines:with:{one.title}")
                st.caption(plain_text(engines.settings_words(one.spec)))
                chosen += [one] if wanted else []
            else:
                st.markdown(
                    f":orange[:material/block:] {plain_text(one.title)}&#58; {plain_text(one.obstacle)}"
                )
    return chosen


def _start(specs: Sequence, chosen: Sequence[Contender]) -> None:
    try:
        session.bench_engines().start(specs, chosen)
    except WorkbenchError as error:
        st.session_state["bench:engines:problem"] = str(error)


# -- while it runs, and after ------------------------------------------------------


@st.fragment(run_every=1.0)
def _live(group: str) -> None:
    """How far each engine is; when all are done, the picture in its place."""
    now = session.bench_engines().now()
    if now is None or now.group != group:
        st.caption("Another comparison has begun.")
        return
    with st.container(border=True):
        for entry in now.entries:
            _entry(entry)
        if now.is_live:
            st.button(
                "Stop",
                icon=":material/stop:",
                on_click=session.bench_engines().stop,
                key="bench:engines:stop",
            )
    if not now.is_live:
        _ended(now)
        if st.button("New comparison", icon=":material/add:", key="bench:engines:new"):
            st.rerun()
        _picture(_members().get(group, ()), group)


def _entry(entry: Entry) -> None:
    words, color = _STATES[entry.state]
    with st.container(horizontal=True, vertical_alignment="center", height=36, border=False):
        st.markdown(f"**{plain_text(entry.title)}** :{color}-badge[{words}] {_how_far(entry)}")


def _how_far(entry: Entry) -> str:
    if entry.state == "loading":
        return plain_text(session.runtime().status().stage)
    if entry.state == "measuring" and entry.benchmark_ids:
        try:
            progress = session.benchmarks().view(entry.benchmark_ids[-1]).progress
        except BenchError:  # deleted meanwhile
            return ""
        if progress is not None:
            return plain_text(f"{progress.stage}, {progress.done:,} of {progress.total:,}")
    return plain_text(entry.message)


def _ended(now: LineUp) -> None:
    if now.message:
        st.warning(plain_text(now.message), icon=":material/info:")
    for entry in now.entries:
        if entry.state == "failed":
            st.error(f"{plain_text(entry.title)}: {plain_text(entry.message)}")


def _members() -> dict[str, tuple[BenchView, ...]]:
    return engines.groups(session.benchmarks().recent(_LISTED))


def _pictures() -> None:
    found = _members()
    if not found:
        return
    group = st.selectbox(
        "Measured", list(found), format_func=lambda one: _group_words(found[one]), width=460,
        key=f"bench:engines:group:{next(iter(found))}",
    )  # fmt: skip
    _picture(found[group], group)


def _group_words(views: Sequence[BenchView]) -> str:
    when = views[0].created_at.astimezone().strftime("%d %b %Y, %H:%M")
    return f"{when}: {', '.join(dict.fromkeys(engines.engine_title(view) for view in views))}"


def _picture(views: Sequence[BenchView], group: str) -> None:
    """Bars for each engine at each load, then under what conditions each was measured."""
    try:
        found = [subjects.kept(session.benchmarks(), view.benchmark_id) for view in views]
    except BenchError as error:  # deleted meanwhile
        st.error(plain_text(str(error)))
        return
    bars = engines.picture(found)
    if not bars:
        st.caption("Nothing was measured to its end.")
        return
    names = list(dict.fromkeys(bar.title for bar in bars))
    loads = list(dict.fromkeys(bar.load for bar in bars))
    at = {(bar.load, bar.title): bar.figure for bar in bars}
    rows = [[at.get((load, name)) for name in names] for load in loads]
    titles = [load.title if load else "all at once" for load in loads]
    metric = RATES["output_throughput"]
    st.markdown("**Output tokens/s of each engine**")
    st.plotly_chart(
        over_loads(names, titles, rows, metric), config=_CONFIG, key=f"bench:engines:chart:{group}"
    )
    table = []
    for name in names:
        view = next(subject.view for subject in found if engines.engine_title(subject.view) == name)
        row = {"Engine": name}
        for load, title in zip(loads, titles, strict=True):
            figure = at.get((load, name))
            row[title] = "–" if figure is None else report.in_words(figure.value, metric)
        for key, title in (("dtype", "Weights"), ("model", "Model"), ("engine_version", "Version")):
            row[title] = str(view.environment.get(key) or "–")
        for load, title in zip(loads, titles, strict=True):
            figure = at.get((load, name))
            row[f"{title}, 95%"] = "–" if figure is None else report.spread_in_words(figure)
        table.append(row)
    st.dataframe(table, hide_index=True)
    with st.container(horizontal=True):
        for label, suffix, mime, write in (
            ("Report", "html", "text/html", report.engines_html),
            ("Markdown", "md", "text/markdown", report.engines_markdown),
        ):
            st.download_button(
                label, lambda write=write: write(found, bars), f"engines.{suffix}", mime, on_click="ignore",
                icon=":material/download:", key=f"bench:engines:{suffix}:{group}",
            )  # fmt: skip
