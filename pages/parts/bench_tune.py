"""The search for settings: what for, which may change, how long; what it finds, and one click to use it."""

from __future__ import annotations

import streamlit as st
from pydantic import ValidationError

from core import engine_settings
from core.bench import tuning_plan, tuning_search
from core.bench.figures import metric
from core.bench.spec import BenchSpec, Load
from core.bench.tuning_plan import METRICS, TuningPlan
from core.engines import choice
from core.errors import ParameterError, WorkbenchError
from core.types import EngineStatus
from pages.parts import session
from pages.parts.bench_load import goals_form
from pages.parts.bench_tune_result import evidence
from pages.parts.bench_workload import number, workload_form, workload_words
from pages.parts.charts import duration
from pages.parts.engine_in_use import in_use_words
from pages.parts.markdown import plain_text

_KEY = "bench:tune"
_ASKING = f"{_KEY}:asking"
_KINDS = {"throughput": "All at once", "serve": "Requests as they come"}
_LOADS = {"max_concurrency": "Requests at once", "request_rate": "Requests per second"}
_POLL_S = 1.0


def draw() -> None:
    """The search at work, or the form for one; above it what the last one found."""
    st.subheader("Find the best settings", anchor=False)
    st.caption(
        "Loads the model with one setting changed at a time, measures your workload, and keeps what is shown "
        "to be better: beyond the spread of repeats, and once more at the end."
    )
    now = session.tuning().now()
    if now is not None and now.is_live:
        _live(now.group)
        return
    if now is not None:
        _ended()
    _form()


# -- before -----------------------------------------------------------------------


def _form() -> None:
    status = session.runtime().status()
    if status.phase != "ready" or status.spec is None or status.info is None:
        st.info("Load the model first, with the settings that you use now: the search begins with them.")
        return
    with st.container(border=True):
        kind = st.segmented_control(
            "What matters", list(_KINDS), format_func=_KINDS.get, default="throughput", required=True,
            key=f"{_KEY}:kind", persist_state="session",
        )  # fmt: skip
        fields: dict[str, object] = {"kind": kind, "workload": workload_form(_KEY, None, kind)}
        goal = METRICS[0]
        if kind == "serve":
            fields["loads"] = (_load(),)
            fields["goodput"], goal = _goal()
        settings = _settings(status)
        with st.container(horizontal=True, vertical_alignment="bottom"):
            minutes = number(
                f"{_KEY}:minutes", "Minutes", 10, 1, 600,
                "The search ends then; loading the model that stays may come after.",
            )  # fmt: skip
            keep = st.toggle(
                "Leave the best loaded", True, key=f"{_KEY}:keep", persist_state="session",
                help="Off: the settings of before are loaded again at the end.",
            )  # fmt: skip
        plan, problem = _plan(fields, settings, minutes, goal, keep)
        _start(status, plan, problem)


def _load() -> Load:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        over = st.segmented_control(
            "Load", list(_LOADS), format_func=_LOADS.get, default="max_concurrency", required=True,
            key=f"{_KEY}:over", persist_state="session",
        )  # fmt: skip
        if over == "max_concurrency":
            return Load(max_concurrency=number(f"{_KEY}:at-once", "How many", 16, 1))
        return Load(request_rate=number(f"{_KEY}:rate", "How many", 4.0, 0.01))


def _goal() -> tuple[dict[str, float], str]:
    """(limits of a good request, the metric that is to become better)."""
    titles = {name: found.title for name in METRICS if (found := metric(name))}
    chosen = st.selectbox(
        "Search for the best", list(titles), 0, format_func=titles.get, key=f"{_KEY}:metric", width=260,
        persist_state="session",
    )  # fmt: skip
    return (goals_form(_KEY, None) if chosen == "request_goodput" else {}), chosen


def _settings(status: EngineStatus) -> tuple[str, ...]:
    """Those that may change, of what this engine takes here."""
    here = choice.this_machine()
    names = [
        name
        for name in tuning_search.SETTINGS
        if tuning_plan.usable(name, status.spec, here)
        and tuning_search.axes((name,), status.spec, status.info, here)
    ]
    if not names:
        st.caption("This engine has no settings that could be searched.")
        return ()
    chosen = st.pills(
        "What may change", names, format_func=lambda name: engine_settings.BY_NAME[name].title,
        selection_mode="multi", key=f"{_KEY}:settings:{status.spec.engine}", persist_state="session",
        default=[name for name in names if name not in tuning_search.CHANGES_ANSWERS],
        help="In this order. Each further one takes a load and a measurement for every value.",
    )  # fmt: skip
    for name in chosen:
        if name in tuning_search.CHANGES_ANSWERS:
            title = engine_settings.BY_NAME[name].title
            st.caption(f":material/info: {plain_text(title)} also changes the answers, if little.")
    return tuple(name for name in names if name in chosen)


def _plan(
    fields: dict[str, object], settings: tuple[str, ...], minutes: float | None, goal: str, keep: bool
) -> tuple[TuningPlan | None, str]:
    """The plan, or what is wrong with it."""
    if fields["workload"] is None:
        return None, "Choose what is asked first."
    try:
        plan = TuningPlan(
            spec=BenchSpec(**fields),
            settings=settings,
            minutes=float(minutes or 0),
            metric=goal,
            keep="best" if keep else "before",
        )
        status = session.runtime().status()
        if status.spec is not None and status.info is not None:
            tuning_plan.check(plan, status.spec, status.info, choice.this_machine())
    except ValidationError as error:
        return None, error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
    except ParameterError as error:
        return None, str(error)
    return plan, ""


def _start(status: EngineStatus, plan: TuningPlan | None, problem: str) -> None:
    words = in_use_words("The search loads the model again and again, which")
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button(
            "Search", type="primary", icon=":material/play_arrow:", disabled=plan is None, key=f"{_KEY}:start"
        )
        if plan is None:
            st.caption(f":material/info: {plain_text(problem)}")
        else:
            load = f", a load takes about {duration(status.info.load_s)}" if status.info else ""
            st.markdown(
                f"**{plain_text(workload_words(plan.spec.workload))}**, for {plan.minutes:g} minutes{load}"
            )
    if pressed and plan is not None:
        if words:
            st.session_state[_ASKING] = True
        else:
            _go(plan)
    if plan is not None and words and st.session_state.get(_ASKING):
        st.warning(words, icon=":material/warning:")
        with st.container(horizontal=True):
            if st.button("Interrupt and search", key=f"{_KEY}:interrupt"):
                _go(plan)
            st.button(
                "Let it work", type="tertiary", key=f"{_KEY}:let",
                on_click=lambda: st.session_state.pop(_ASKING, None),
            )  # fmt: skip


def _go(plan: TuningPlan) -> None:
    st.session_state.pop(_ASKING, None)
    try:
        session.tuning().start(plan, interrupt=True)  # who is at work was named, or nobody is
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        st.rerun()


# -- while it runs, and after ------------------------------------------------------


@st.fragment(run_every=_POLL_S)
def _live(group: str) -> None:
    """How far it is; when it has ended, what it found in its place."""
    now = session.tuning().now()
    if now is None or now.group != group:
        st.caption("Another search has begun.")
        return
    if not now.is_live:
        _ended()
        if st.button("New search", icon=":material/add:", key=f"{_KEY}:new"):
            st.rerun()
        return
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{plain_text(now.stage)}**", width="stretch")
            st.button(
                "Stop", icon=":material/stop:", on_click=session.tuning().stop, key=f"{_KEY}:stop",
                help="The best so far stands.",
            )  # fmt: skip
        total = 60 * now.plan.minutes
        passed = f"{duration(float(int(now.elapsed_s)))} of {duration(total)}"
        st.progress(min(1.0, now.elapsed_s / total), f"{passed}{_doing()}")
    evidence(now, _KEY)


def _doing() -> str:
    status = session.runtime().status()
    return f" · {plain_text(status.stage)}" if status.phase == "loading" and status.stage else ""


def _ended() -> None:
    now = session.tuning().now()
    if now is None:
        return
    with st.container(border=True):
        if now.state == "failed":
            st.error(plain_text(now.message))
        else:
            found = now.best > 0
            say = st.success if found else st.info
            stopped = "Stopped. " if now.state == "stopped" else ""
            say(f"{stopped}{plain_text(now.words)}", icon=":material/tune:")
            if now.message:
                st.caption(plain_text(now.message))
            if found:
                _use()
        evidence(now, _KEY)


def _use() -> None:
    """Keep the best for the model, and load it where it isn't."""
    words = in_use_words("Loading the model with them")
    if st.button(
        "Use these settings", type="primary", icon=":material/check:", key=f"{_KEY}:use",
        help=f"They are kept for this model and used whenever it is loaded. {words}".strip(),
    ):  # fmt: skip
        try:
            session.tuning().use()
        except WorkbenchError as error:
            st.error(plain_text(str(error)))
        else:
            st.toast("They are kept for this model.", icon=":material/check:")
