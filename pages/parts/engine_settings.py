"""The dialog that loads the engine with other settings."""

from __future__ import annotations

import streamlit as st

from core.errors import WorkbenchError
from core.types import EngineSpec
from pages.parts import session
from pages.parts.markdown import plain_text

_OPEN = "engine_settings:open"


def open_settings() -> None:
    st.session_state[_OPEN] = True


def settings_dialog_if_open() -> None:
    """Open on every run until it is closed: a rerun of the page must not take it away half filled in."""
    if st.session_state.get(_OPEN):
        _dialog()


def _close() -> None:
    st.session_state[_OPEN] = False


@st.dialog("Engine settings", on_dismiss=_close)
def _dialog() -> None:
    runtime = session.runtime()
    status = runtime.status()
    now = status.spec or runtime.default_spec()
    st.caption("An empty field is chosen for this machine.")
    if status.stats.running:
        st.warning(
            f"{status.stats.running} requests are running. Chat answers end; a batch goes on when the "
            "engine is back."
        )
    with st.form("engine_settings", border=False):
        model = st.text_input(
            "Model", now.model, help="embedded, a folder with a model, or a Hugging Face id such as org/name"
        )
        left, right = st.columns(2)
        context = left.number_input(
            "Context length (tokens)",
            min_value=16,
            value=now.max_model_len,
            step=1024,
            placeholder="automatic",
        )
        sequences = right.number_input(
            "Requests at once", min_value=1, value=now.max_num_seqs, step=1, placeholder="automatic",
            help="max_num_seqs: how many requests of a batch the engine works on at the same time.",
        )  # fmt: skip
        kv_cache = left.number_input(
            "KV cache (GiB)", min_value=0.01, step=0.5, placeholder="automatic",
            value=now.kv_cache_memory_bytes / 2**30 if now.kv_cache_memory_bytes else None,
            help="Memory for the context of all running requests. Less memory: fewer or shorter ones.",
        )  # fmt: skip
        eager = right.selectbox(
            "Compile", ("automatic", "no (eager)", "yes"),
            index={None: 0, True: 1, False: 2}[now.enforce_eager],
            help="Compiling takes longer to load and answers faster; eager is the safer try after a failure.",
        )  # fmt: skip
        if not st.form_submit_button("Load", type="primary"):
            return
    if not model.strip():
        st.error("Name a model: embedded, a folder, or a Hugging Face id.")
        return
    spec = EngineSpec(
        engine=now.engine,
        model=model.strip(),
        revision=now.revision if model.strip() == now.model else None,
        dtype=now.dtype,
        max_model_len=context,
        max_num_seqs=sequences,
        max_num_batched_tokens=now.max_num_batched_tokens,
        kv_cache_memory_bytes=int(kv_cache * 2**30) if kv_cache else None,
        gpu_memory_utilization=now.gpu_memory_utilization,
        enforce_eager={"automatic": None, "no (eager)": True, "yes": False}[eager],
    )
    try:
        runtime.load(spec)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return
    _close()
    st.rerun()
