"""What this is, the ways in, the machine and the engine, recent runs."""

from __future__ import annotations

import streamlit as st

from core import machine
from core.errors import WorkbenchError
from core.store import RunRecord
from core.types import EngineStatus
from pages.parts import session
from pages.parts.charts import device_words, duration, gibibytes
from pages.parts.engine_settings import open_settings
from pages.parts.markdown import plain_text

_WAYS_IN = (
    ("Chat", "pages/chat.py", ":material/chat:", "Talk with the model, with your own parameters."),
    ("Compare", "pages/compare.py", ":material/compare:", "Prompts under parameter sets, side by side."),
    ("Batch", "pages/batch.py", ":material/table_rows:", "A file of prompts in, a table of answers out."),
    ("Models", "pages/models.py", ":material/deployed_code:", "Get models, see what fits, load another one."),
    ("Benchmark", "pages/benchmark.py", ":material/speed:", "How fast is it, and how fast could it be?"),
    ("API", "pages/api.py", ":material/api:", "The same model for programs, as OpenAI's API."),
)  # fmt: skip
_WAYS_A_ROW = 3
_STATES = {
    "finished": ":green-badge[finished]",
    "running": ":blue-badge[running]",
    "queued": ":blue-badge[waiting]",
    "paused": ":orange-badge[paused]",
    "stopped": ":orange-badge[stopped]",
    "interrupted": ":orange-badge[interrupted]",
    "failed": ":red-badge[failed]",
}


@st.cache_data(ttl=60, show_spinner=False)
def _machine() -> machine.Machine:
    return machine.describe()


def _ways_in() -> None:
    there = [way for way in _WAYS_IN if session.page_exists(way[1])]
    for start in range(0, len(there), _WAYS_A_ROW):
        for cell, way in zip(st.columns(_WAYS_A_ROW), there[start : start + _WAYS_A_ROW], strict=False):
            title, page, icon, words = way
            with cell.container(border=True, height="stretch"):
                st.page_link(page, label=f"**{title}**", icon=icon)
                st.caption(words)


def _what_is_missing(status: EngineStatus, here: machine.Machine) -> None:
    """One line on what stands in the way, and the way out."""
    problem = (
        machine.why_no_vllm(here)
        if (status.spec or session.runtime().default_spec()).engine == "vllm"
        else None
    )
    if problem:
        st.warning(plain_text(problem), icon=":material/build:")
    elif status.phase == "failed":
        cause = status.error.message if isinstance(status.error, WorkbenchError) else str(status.error)
        st.error(f"The engine could not be loaded. {plain_text(cause)}", icon=":material/error:")
        if st.button("Try other settings", icon=":material/tune:"):
            open_settings()
    elif status.phase == "empty":
        st.info(
            "No model is loaded. Load one in the sidebar to chat, compare or run.", icon=":material/info:"
        )
    elif status.phase in ("loading", "restarting"):
        st.info(
            "The model is being loaded. You can write and send already: answers begin when it is ready.",
            icon=":material/hourglass_top:",
        )


def _at_a_glance(status: EngineStatus, here: machine.Machine) -> None:
    left, right = st.columns(2)
    with left.container(border=True, height="stretch"):
        st.markdown("**Machine**")
        for gpu in here.gpus:
            st.markdown(f"{plain_text(gpu.name)}, {gibibytes(gpu.memory_bytes)}")
        st.markdown(plain_text(here.cpu))
        st.caption(
            f"{here.cores} cores · {gibibytes(here.memory_bytes)} memory, "
            f"{gibibytes(here.available_bytes)} free · {'no NVIDIA GPU · ' if not here.gpus else ''}"
            f"{plain_text(here.os)}"
        )
    with right.container(border=True, height="stretch"):
        st.markdown("**Engine**")
        info = status.info
        if info is None:
            st.markdown({"failed": "Not loaded", "empty": "Not loaded"}.get(status.phase, "Loading…"))
            return
        st.markdown(plain_text(info.model))
        words = [
            f"{plain_text(device_words(info.device))}, {plain_text(info.dtype)}",
            f"{info.max_model_len:,} tokens of context",
            f"{info.batch_slots:,} requests at once",
            f"loaded in {duration(info.load_s)}",
            f"version {plain_text(info.engine_version)}",
        ]
        st.caption(" · ".join(words))


@st.fragment(run_every=2)
def _recent_runs() -> None:
    runs = session.store().runs(limit=8)
    if not runs:
        st.caption("No run yet. Start one on the batch page: every run is kept and listed here.")
    for run in runs:
        _run_line(run)


def _run_line(run: RunRecord) -> None:
    name, state, progress = st.columns([5, 2, 3], vertical_alignment="center")
    label = f"{plain_text(run.name)} &nbsp; :gray[{run.created_at.astimezone():%-d %b %H&#58;%M}]"
    if session.page_exists("pages/batch.py"):
        name.page_link("pages/batch.py", label=label, query_params={"run": run.run_id})
    else:
        name.markdown(label)
    state.markdown(_STATES.get(run.state, run.state))
    errors = f", {run.errors:,} errors" if run.errors else ""
    progress.progress(
        min(run.done / run.rows, 1.0) if run.rows else 0.0, f"{run.done:,} of {run.rows:,} rows{errors}"
    )


st.title("vLLM Workbench", anchor=False)
st.markdown(
    "Put a language model to work on a whole table of prompts, on your own machine. "
    "Try it in a chat, choose the sampling parameters side by side, then run it over every row."
)
_ways_in()
status = session.runtime().status()
_what_is_missing(status, _machine())
_at_a_glance(status, _machine())
st.subheader("Recent runs", anchor=False)
_recent_runs()
