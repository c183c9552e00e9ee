"""Finding a model on a hub: search, the results, and the one that is open."""

from __future__ import annotations

import re

import streamlit as st

from core.errors import WorkbenchError
from core.hub import repositories
from core.hub.records import size_words
from core.hub.repositories import TITLES, FoundModel
from core.types import Hub
from pages.parts import models_repository, models_tokens, session
from pages.parts.charts import short_number
from pages.parts.markdown import plain_text

_NAME = re.compile(r"(https?://\S+/)?[\w.-]+/[\w.-]+(/\S*)?")
_RESULTS = 20
_FOUND = "get:found"


def draw() -> None:
    if models_repository.is_open():
        models_repository.draw()
        return
    st.subheader("Get a model", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        hub: Hub = st.segmented_control(
            "Hub", list(TITLES), format_func=TITLES.get, default="huggingface", required=True, key="get:hub",
            persist_state="session",
        )  # fmt: skip
        text = st.text_input(
            "Search", key="get:text", placeholder="Name or web address",
            icon=":material/search:", persist_state="session",
        ).strip()  # fmt: skip
    models_tokens.draw(hub)
    if not text:
        st.caption("Search by name, such as *Qwen3 0.6B* or *SmolLM2*. Files land in the hub's own cache.")
        return
    if _NAME.fullmatch(text):
        st.button(
            f"Look at {plain_text(text)}", icon=":material/arrow_forward:", type="primary",
            on_click=models_repository.open_repo, args=(hub, text),
        )  # fmt: skip
        if text.startswith("http"):
            return
    _results(hub, text)


def _results(hub: Hub, text: str) -> None:
    kept = st.session_state.get(_FOUND)
    if kept is None or kept[0] != (hub, text):
        try:
            with st.spinner(f"Searching {TITLES[hub]}"):
                found = repositories.search(hub, text, _RESULTS, settings=session.runtime().settings)
        except WorkbenchError as error:
            st.error(f"{plain_text(error.message)} {plain_text(error.hint)}", icon=":material/cloud_off:")
            st.button("Try again", icon=":material/refresh:")
            return
        kept = st.session_state[_FOUND] = ((hub, text), found)
    found = kept[1]
    if not found:
        st.info(
            f"No model on {TITLES[hub]} has {plain_text(text)} in its name.", icon=":material/search_off:"
        )
        return
    for model in found:
        _row(model)


def _row(model: FoundModel) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center", wrap=False):
        gated = " :orange-badge[gated]" if model.gated else ""
        with st.container(gap="xxsmall"):
            st.markdown(f"**{plain_text(model.repo)}**{gated}")
            st.caption(plain_text(" · ".join(_about(model))))
        st.button(
            "Look", key=f"get:look:{model.hub}:{model.repo}",
            on_click=models_repository.open_repo, args=(model.hub, model.repo),
            help="Its files, its size and whether it fits, before anything is downloaded",
        )  # fmt: skip


def _about(model: FoundModel) -> list[str]:
    """What the hub tells, the figures that people compare first."""
    words = [] if model.downloads is None else [f"{short_number(model.downloads)} downloads"]
    words += [] if model.likes is None else [f"{short_number(model.likes)} likes"]
    words += [size_words(model.size_bytes)] if model.size_bytes else []
    words += [model.license] if model.license else ["licence not told"]
    words += [model.task.replace("-", " ")] if model.task else []
    return words + ([f"changed {model.updated_at:%Y-%m-%d}"] if model.updated_at else [])
