"""The engine at a glance, in the sidebar of every page."""

from __future__ import annotations

import re

import streamlit as st

from core.errors import EngineUnavailable, WorkbenchError
from core.types import EngineStatus
from pages.parts import session
from pages.parts.charts import device_words, duration, gibibytes, per_second, spark
from pages.parts.engine_settings import open_settings, settings_dialog_if_open
from pages.parts.markdown import plain_text

_POLL_S = 1.0
_SEEN = "engine_bar:seen"
_LOG_LINES = 40
_LOG_PREFIX = re.compile(r"^(\([^)]*\) )?INFO \S+ \S+ \[[^\]]*\] ")  # INFO 11-21 04:44:06 [file.py:12]


def engine_bar() -> None:
    """Draw the bar, which keeps itself up to date, and the settings dialog when it is open."""
    st.session_state[_SEEN] = _identity(session.runtime().status())
    _bar()
    settings_dialog_if_open()


@st.fragment(run_every=_POLL_S)
def _bar() -> None:
    status = session.runtime().status()
    seen = _identity(status)
    if st.session_state.get(_SEEN) != seen:
        st.rerun()  # the pages have more to say when an engine came or went
    match status.phase:
        case "ready":
            _ready(status)
        case "loading" | "restarting" | "unloading":
            _working(status)
        case "failed":
            _failed(status)
        case "empty":
            st.markdown("**No model is loaded**")
            with st.container(horizontal=True):
                st.button("Load", type="primary", icon=":material/play_arrow:", on_click=_load)
                _settings_button()


def _identity(status: EngineStatus) -> tuple[object, ...]:
    return status.phase, status.info


def _ready(status: EngineStatus) -> None:
    info, stats = status.info, status.stats
    st.markdown(f"**{plain_text(info.model)}**", wrap=False)
    st.caption(plain_text(device_words(info.device)), wrap=False)
    st.caption(f"Context {info.max_model_len:,} tokens", wrap=False)
    st.metric(
        "Output tokens/s",
        per_second(status.output_tokens_per_s),
        chart_data=spark(status.rates),
        chart_type="area",
        help="Tokens generated in the last second, for everybody. The chart: the last minute.",
    )
    st.caption(f"Running **{stats.running:,}** · waiting **{stats.waiting:,}**", wrap=False)
    if info.kv_cache_tokens:
        used = min(max(stats.kv_cache_usage or 0.0, 0.0), 1.0)
        st.progress(used, f":small[KV cache **{used:.0%}** used]")
        size = f" · {gibibytes(info.kv_cache_bytes)}" if info.kv_cache_bytes else ""
        st.caption(f"of {info.kv_cache_tokens:,} tokens{size}", wrap=False)
    with st.container(horizontal=True):
        _settings_button()
        st.button("Unload", type="tertiary", icon=":material/eject:", on_click=session.runtime().unload)


def _working(status: EngineStatus) -> None:
    doing = {"loading": "Loading", "restarting": "Restarting", "unloading": "Unloading"}[status.phase]
    # a folder's last part: the whole path would not fit
    model = f" {plain_text(status.spec.model.rstrip('/').rpartition('/')[2])}" if status.spec else ""
    st.markdown(f":material/hourglass_top: **{doing}{model}**", wrap=False)
    st.caption(f"{plain_text(status.stage) or '…'} · {duration(float(int(status.since_s)))}", wrap=False)
    _log(status.log)
    if status.phase != "unloading":
        st.button("Cancel", icon=":material/close:", on_click=session.runtime().cancel_load)


def _failed(status: EngineStatus) -> None:
    error = status.error
    message = error.message if isinstance(error, WorkbenchError) else str(error)
    hint = error.hint if isinstance(error, WorkbenchError) else ""
    if isinstance(error, EngineUnavailable):
        st.warning(f"{plain_text(message)} {plain_text(hint)}")
    else:
        st.error(f"**The engine could not be loaded.** {plain_text(message)}")
        if hint:
            st.caption(plain_text(hint))
    _log(getattr(error, "log", ()) or status.log)
    with st.container(horizontal=True):
        st.button("Try again", icon=":material/refresh:", on_click=_load_again)
        _settings_button()


def _settings_button() -> None:
    if st.button("Other settings", type="tertiary", icon=":material/tune:"):
        open_settings()
        st.rerun()  # the dialog belongs to the page, not to this fragment


def _log(lines: tuple[str, ...]) -> None:
    """The newest lines, without what every line begins with: the sidebar is narrow."""
    with st.expander("Engine log"), st.container(height=240, border=False, autoscroll=True):
        shown = [_LOG_PREFIX.sub("", line) for line in lines[-_LOG_LINES:]]
        st.code("\n".join(shown) or "Nothing yet.", language=None, wrap_lines=True)


def _load() -> None:
    session.runtime().load()


def _load_again() -> None:
    runtime = session.runtime()
    runtime.load(runtime.status().spec)
