"""Whether the API serves, where, and what keeps programs from using it; Start and Stop."""

from __future__ import annotations

import streamlit as st

from core.api.records import ApiStatus
from core.errors import WorkbenchError
from pages.parts import session
from pages.parts.charts import counted
from pages.parts.markdown import plain_text

_POLL_S = 1.0
_ASKING, _REFUSED = "api:asking", "api:refused"
_BADGES = {
    "stopped": ("Off", ":material/power_settings_new:", "gray"),
    "starting": ("Starting", ":material/hourglass_top:", "orange"),
    "serving": ("Serving", ":material/check:", "green"),
    "failed": ("Not started", ":material/error:", "red"),
}
_HOSTS = {"127.0.0.1": "This machine only", "0.0.0.0": "Every network of this machine"}
_ENGINE = {
    "empty": "No model is loaded: programs are told to come back later.",
    "loading": "The model is loading: programs are told to come back in a moment.",
    "restarting": "The engine restarts: programs are told to come back in a moment.",
    "unloading": "The model is being unloaded: programs are told to come back later.",
    "failed": "The model could not be loaded: programs are told to come back later.",
}


@st.fragment(run_every=_POLL_S)
def draw() -> None:
    """Keeps itself up to date."""
    status = session.api().status()
    with st.container(border=True, key="api-status"):
        title, icon, color = _BADGES[status.phase]
        with st.container(horizontal=True, vertical_alignment="center"):
            st.badge(title, icon=icon, color=color)
            if status.url:
                st.code(f"{status.url}/v1", language=None, width="stretch")
            if status.phase in ("serving", "starting"):
                st.button("Stop", icon=":material/stop:", key="api:stop", on_click=_stop)
        if status.phase in ("stopped", "failed"):
            if status.error:
                st.error(plain_text(status.error))
            _start_form(status)
        elif status.phase == "serving":
            _serving(status)


def _start_form(status: ApiStatus) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        hosts = list(dict.fromkeys((*_HOSTS, status.host)))
        host = st.selectbox(
            "Address", hosts, index=hosts.index(status.host), accept_new_options=True, key="api:host",
            format_func=lambda one: f"{one} · {_HOSTS[one]}" if one in _HOSTS else one, width=320,
            help="Who can reach it. Beyond this machine, it asks for a key.", persist_state="session",
        )  # fmt: skip
        port = st.number_input(
            "Port", 0, 65535, status.port, key="api:port", width=130, help="0: a free one.",
            persist_state="session",
        )  # fmt: skip
        st.button(
            "Start", type="primary", icon=":material/play_arrow:", key="api:start",
            on_click=_start, args=(host, int(port)),
        )  # fmt: skip
    if refused := st.session_state.get(_REFUSED):
        st.error(plain_text(refused))


def _serving(status: ApiStatus) -> None:
    live = session.api().live()
    if st.session_state.get(_ASKING):
        words = f"Stopping breaks off {counted(len(live), 'request')}." if live else "Nobody asks any more."
        st.warning(words, icon=":material/warning:")
        with st.container(horizontal=True):
            st.button("Stop anyway" if live else "Stop now", key="api:stop:yes", on_click=_stop, args=(True,))
            st.button("Keep it", type="tertiary", key="api:stop:no", on_click=_keep)
    if status.needs_key and not session.api().keys.list():
        st.warning(
            "It asks for a key, and there is none yet: nobody can use it. Make one under **Keys**.",
            icon=":material/key:",
        )
    engine = session.runtime().status()
    if engine.phase in _ENGINE:
        st.info(_ENGINE[engine.phase], icon=":material/hourglass_top:")
        return
    if engine.spec is not None and engine.spec.engine != "vllm":
        st.info(
            "Chats in OpenAI's form need the vLLM engine. With this one, `/generate` and batches work.",
            icon=":material/info:",
        )
    who = "needs a key" if status.needs_key else "needs no key, as only this machine can reach it"
    st.caption(f"{plain_text(engine.info.model)} answers · {who} · {counted(len(live), 'request')} at work")


def _start(host: str, port: int) -> None:
    st.session_state.pop(_REFUSED, None)
    try:
        session.api().start(host.strip(), port)
    except WorkbenchError as error:
        st.session_state[_REFUSED] = str(error)


def _stop(anyway: bool = False) -> None:
    """Ask first where somebody would be cut off."""
    if session.api().live() and not anyway:
        st.session_state[_ASKING] = True
        return
    _keep()
    session.api().stop()


def _keep() -> None:
    st.session_state.pop(_ASKING, None)
