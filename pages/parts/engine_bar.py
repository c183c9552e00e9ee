"""The engine at a glance, in the sidebar of every page."""

from __future__ import annotations

import re

import streamlit as st

from core.engines import choice
from core.errors import EngineUnavailable, WorkbenchError
from core.types import EngineSpec, EngineStatus
from pages.parts import session
from pages.parts.charts import device_words, duration, gibibytes, per_second, spark
from pages.parts.engine_in_use import in_use_words
from pages.parts.engine_settings import open_settings
from pages.parts.markdown import plain_text

_POLL_S = 1.0
_SEEN, _ASKING, _REFUSED = "engine_bar:seen", "engine_bar:asking", "engine_bar:refused"
_LOG_LINES = 40
_LOG_PREFIX = re.compile(r"^(\([^)]*\) )?INFO \S+ \S+ \[[^\]]*\] ")  # INFO 11-21 04:44:06 [file.py:12]


def engine_bar() -> None:
    """Draw the bar, which keeps itself up to date."""
    st.session_state[_SEEN] = _identity(session.runtime().status())
    _bar()


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
            if refused := st.session_state.get(_REFUSED):
                st.error(plain_text(refused))
            with st.container(horizontal=True):
                st.button("Load", type="primary", icon=":material/play_arrow:", on_click=_load)
                _settings_button()


def _identity(status: EngineStatus) -> tuple[object, ...]:
    return status.phase, status.info


def _ready(status: EngineStatus) -> None:
    info, stats = status.info, status.stats
    st.markdown(f"**{plain_text(info.model)}**", wrap=False)
    st.caption(plain_text(device_words(info.device)), wrap=False)
    if reason := choice.why_not_vllm(status.spec.engine):
        st.caption(f":material/info: Not vLLM: {plain_text(reason)}")
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
        st.button("Unload", type="tertiary", icon=":material/eject:", on_click=_unload)
    if st.session_state.get(_ASKING):
        _ask()


def _ask() -> None:
    """Before an unload that would interrupt somebody; nothing is asked once that has ended."""
    words = in_use_words("Unloading")
    st.warning(words or "Nothing is at work any more.", icon=":material/warning:")
    with st.container(horizontal=True):
        st.button("Unload anyway" if words else "Unload now", on_click=_unload, args=(True,))
        st.button("Keep it", type="tertiary", on_click=_keep)


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
    """To the load form; the state is set before the page changes, so the click is not lost to a poll."""
    if st.button("Other settings", type="tertiary", icon=":material/tune:", key="engine_bar:settings"):
        open_settings()


def _log(lines: tuple[str, ...]) -> None:
    """The newest lines, without what every line begins with: the sidebar is narrow."""
    with st.expander("Engine log"), st.container(height=240, border=False, autoscroll=True):
        shown = [_LOG_PREFIX.sub("", line) for line in lines[-_LOG_LINES:]]
        st.code("\n".join(shown) or "Nothing yet.", language=None, wrap_lines=True)


def _unload(anyway: bool = False) -> None:
    st.session_state[_ASKING] = not anyway and bool(session.runtime().in_use())
    if not st.session_state[_ASKING]:
        session.runtime().unload()


def _keep() -> None:
    st.session_state[_ASKING] = False


def _load() -> None:
    _try(None)


def _load_again() -> None:
    _try(session.runtime().status().spec)


def _try(spec: EngineSpec | None) -> None:
    """Load `spec`, or what the environment and the kept settings ask for; a refusal is shown in the bar."""
    try:
        session.runtime().load(spec or session.first_spec())
    except WorkbenchError as error:
        st.session_state[_REFUSED] = str(error)
    else:
        st.session_state.pop(_REFUSED, None)
