"""Before a benchmark: what is measured, under which load, how often; and what that will take."""

from __future__ import annotations

import streamlit as st
from pydantic import ValidationError

from core.bench.outlook import Outlook, longest, outlook
from core.bench.spec import METRICS, BenchSpec
from core.errors import ParameterError, WorkbenchError
from pages.parts import bench_files, bench_nav, session
from pages.parts.bench_load import goals_form, load_form, numbers
from pages.parts.bench_workload import number, workload_form, workload_words
from pages.parts.charts import counted, duration
from pages.parts.markdown import plain_text

_KINDS = {"throughput": "Throughput", "serve": "Serving", "latency": "Latency"}
_ABOUT = {
    "throughput": "All requests at once: the most tokens per second that this engine gives.",
    "serve": "Requests arrive as from users: how long each waits, and how much load is too much.",
    "latency": "One small batch, again and again: the shortest time it takes.",
}
_METRICS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}


def draw() -> None:
    """The form. What is wrong with it is said where Start is."""
    key, initial = bench_nav.draft_key(), bench_nav.initial()
    kind = st.segmented_control(
        "Measure", list(_KINDS), format_func=_KINDS.get, default=initial.kind if initial else "throughput",
        required=True, key=f"{key}:kind", persist_state="session",
    )  # fmt: skip
    st.caption(_ABOUT[kind])
    fields: dict[str, object] = {"kind": kind}
    problem = ""
    fields["workload"] = workload_form(key, initial, kind)
    try:
        if kind == "serve":
            fields["loads"], fields["sweep"] = load_form(key, initial)
            with st.expander("Goals for a good request", icon=":material/flag:"):
                fields["goodput"] = goals_form(key, initial)
        if kind == "latency":
            fields |= _batches(key, initial)
        fields |= _often(key, initial, kind)
    except ParameterError as error:
        problem = str(error)
    spec = None
    if fields["workload"] is None:
        problem = problem or "Choose what is asked first."
    elif not problem:
        spec, problem = _checked(fields)
    _go(spec, problem)


def _batches(key: str, initial: BenchSpec | None) -> dict[str, object]:
    start = initial or BenchSpec(kind="latency")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        return {
            "batch_size": number(f"{key}:batch-size", "Requests in a batch", start.batch_size, 1),
            "num_iters": number(f"{key}:iters", "Batches measured", start.num_iters, 1, 1000),
            "num_iters_warmup": number(
                f"{key}:iters-warmup", "Batches before that", start.num_iters_warmup, 0, None,
                "They warm the engine up, and count nowhere.",
            ),
        }  # fmt: skip


def _often(key: str, initial: BenchSpec | None, kind: str) -> dict[str, object]:
    """Repeats and seed in sight, the rest behind a fold. Raises ParameterError."""
    start = initial or BenchSpec(kind=kind)
    found: dict[str, object] = {}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        found["repeats"] = number(
            f"{key}:repeats", "Repeats", start.repeats, 1, 100,
            "Each point is measured so often: only repeats tell whether a difference is one. Three are good.",
        )  # fmt: skip
        found["seed"] = number(
            f"{key}:seed", "Seed", start.seed, 0, 2**31,
            "The same seed asks the same at the same times; each repeat counts on from it.",
        )  # fmt: skip
        found["name"] = st.text_input(
            "Name", start.name, key=f"{key}:name", width=280, placeholder="By what is asked",
            persist_state="session",
        ).strip()  # fmt: skip
    with st.expander("More", icon=":material/tune:"):
        found |= _more(key, start, kind)
    return found


def _more(key: str, start: BenchSpec, kind: str) -> dict[str, object]:
    found: dict[str, object] = {}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if kind != "latency":
            found["num_warmups"] = number(
                f"{key}:warmups", "Warm-up requests", start.num_warmups, 0, 10_000,
                "Sent before each point; they count nowhere.",
            )  # fmt: skip
        temperature = number(
            f"{key}:temperature", "Temperature", float(start.params.get("temperature", 1.0)), 0.0, 2.0,
            "0 always takes the likeliest token.",
        )  # fmt: skip
        percentiles = st.text_input(
            "Percentiles", ", ".join(f"{one:g}" for one in start.metric_percentiles),
            key=f"{key}:percentiles", width=200, persist_state="session",
            help="Of each latency, with commas between. 99: all but one in a hundred stay under it.",
        )  # fmt: skip
    others = {name: value for name, value in start.params.items() if name != "temperature"}
    found["params"] = {"temperature": temperature, **others}
    if others:
        st.caption(plain_text("Also asked: " + ", ".join(f"{name} {others[name]}" for name in others)))
    found["metric_percentiles"] = numbers(percentiles, whole=False, what="percentile")
    if kind == "serve":
        found["percentile_metrics"] = tuple(
            st.pills(
                "Latencies that are written down", METRICS, format_func=_METRICS.get,
                selection_mode="multi", default=start.percentile_metrics, key=f"{key}:metrics",
                persist_state="session",
            )
        )  # fmt: skip
    if kind != "latency":
        found["ignore_eos"] = st.toggle(
            "Answers go on to their full length", start.ignore_eos, key=f"{key}:ignore-eos",
            persist_state="session",
            help="Where a length is given: the model's own end is passed over, so that every run does the "
            "same work.",
        )  # fmt: skip
    return found


def _checked(fields: dict[str, object]) -> tuple[BenchSpec | None, str]:
    """The specification, or what is wrong."""
    workload = fields["workload"]
    if not fields["name"] and workload.kind in ("table", "sharegpt"):
        fields = {**fields, "name": f"{_KINDS[fields['kind']]}: {bench_files.files().name_of(workload.path)}"}
    try:
        return BenchSpec(**fields), ""
    except ValidationError as error:
        return None, error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
    except WorkbenchError as error:
        return None, str(error)


def _go(spec: BenchSpec | None, problem: str) -> None:
    """What will be done, about how long, and Start."""
    runtime = session.runtime()
    info = runtime.status().info
    if spec is not None and info is not None and (longest(spec.workload) or 0) > info.max_model_len:
        problem = (
            f"A request of {longest(spec.workload):,} tokens does not fit: the context holds "
            f"{info.max_model_len:,}. Ask for less, or load the model with a longer context."
        )
        spec = None
    elif spec is not None and info is None:
        problem = "Load a model first: a benchmark measures the engine that is loaded."
    others = {name: count for name, count in runtime.in_use().items() if name != "benchmarks"}
    if others and not problem:
        st.warning(
            f"The engine is in use ({plain_text(', '.join(others))}): what you measure now is what is left.",
            icon=":material/warning:",
        )
    with st.container(horizontal=True, vertical_alignment="center"):
        start = st.button(
            "Start", type="primary", icon=":material/play_arrow:", key="bench:start",
            disabled=spec is None or info is None,
        )  # fmt: skip
        if problem:
            st.caption(f":material/info: {plain_text(problem)}")
        else:
            st.markdown(_words(spec))
    if start and spec is not None:
        try:
            bench_nav.follow(session.benchmarks().start(spec))
        except WorkbenchError as error:
            st.error(plain_text(str(error)))
        else:
            st.rerun()


def _words(spec: BenchSpec) -> str:
    """What will be done, and about how long."""
    status = session.runtime().status()
    expected = outlook(spec, status.info.model, status.spec.engine, session.benchmarks().recent())
    if spec.kind == "latency":
        what = (
            f"{spec.num_iters:,} batches of {counted(spec.batch_size, 'prompt')}, "
            f"{spec.workload.input_len:,} tokens in, {spec.workload.output_len:,} out"
        )
    else:
        what = workload_words(spec.workload)
    most = "at most " if expected.is_bound else ""
    times = "" if expected.points == 1 else f", {most}{expected.points:,} times"
    return f"**{plain_text(what)}**{times}{_time_words(expected)}"


def _time_words(expected: Outlook) -> str:
    if expected.seconds is None:
        return " :gray[· how long is known once something alike was measured]"
    about = "at most" if expected.is_bound else "about"
    return f", {about} {duration(max(1.0, expected.seconds))}"
