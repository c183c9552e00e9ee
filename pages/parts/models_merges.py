"""Merges of adapters into their models: how far each is, and how it ended."""

from __future__ import annotations

import streamlit as st

from core.adapters.merging import MergeView
from pages.parts import models_nav, session
from pages.parts.markdown import plain_text

_RUNNING = "adapters:merges:running"
_POLL_S = 0.5


def draw() -> None:
    """All merges, the newest first; nothing where there are none."""
    if session.merges().list():
        _merges()


@st.fragment(run_every=_POLL_S)
def _merges() -> None:
    views = session.merges().list()
    running = [view.merge_id for view in views if view.state == "running"]
    before = st.session_state.get(_RUNNING)
    st.session_state[_RUNNING] = running
    if before and before != running:
        st.rerun()  # a new model: the rest of the page must know it
    for view in views:
        with st.container(
            border=True, horizontal=True, vertical_alignment="center", key=f"merge-{view.merge_id}"
        ):
            _one(view)


def _one(view: MergeView) -> None:
    merges, name = session.merges(), plain_text(view.name)
    if view.state == "running":
        share = "" if view.share is None else f": {view.share:.0%}"
        st.progress(view.share or 0.0, f"**{name}** · {view.stage}{share}")
        st.button(
            "Cancel", key=f"merge-cancel-{view.merge_id}", on_click=merges.cancel, args=(view.merge_id,)
        )
        return
    if view.state == "done":
        st.markdown(f":green[:material/check:] **{name}** is in the library.", width="stretch")
        key = next((model.key for model in session.library().list() if model.path == view.path), None)
        if key is not None:
            st.button("Load", key=f"merge-load-{view.merge_id}", on_click=models_nav.open_model, args=(key,))
    else:
        what = (
            "was cancelled; nothing of it is left." if view.state == "cancelled" else plain_text(view.error)
        )
        st.markdown(f":red[:material/error:] **{name}** {what}", width="stretch")
    st.button(
        "", icon=":material/close:", key=f"merge-forget-{view.merge_id}", type="tertiary",
        help="Put this away", on_click=merges.forget, args=(view.merge_id,),
    )  # fmt: skip
