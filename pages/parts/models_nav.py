"""Which section of the models page is seen, and which model is open in it. For callbacks of its parts."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from core.errors import ModelError
from core.models.library import LibraryModel
from pages.parts import session

_SECTION, _TURN, _MODEL = "models:section", "models:turn", "models:model"


def go(section: str) -> None:
    """Show this section: library, get, load, engines or adapters."""
    st.session_state[_SECTION] = section
    # a new widget, not a new value: a rerun on its way from the browser would bring the old one back
    st.session_state[_TURN] = st.session_state.get(_TURN, 0) + 1


def open_model(key: str) -> None:
    """Show this model of the library, ready to be loaded."""
    st.session_state[_MODEL] = key
    st.query_params["model"] = key
    go("load")


def chosen() -> LibraryModel | None:
    """The model that is open, None where none is or it is gone."""
    key = st.session_state.get(_MODEL)
    try:
        return session.library().find(key) if key else None
    except ModelError:
        return None


def section(titles: Mapping[str, str]) -> str:
    """Draw the choice of section, and give it. An address with ?model=KEY opens that model."""
    wanted = st.query_params.get("model")
    if wanted and wanted != st.session_state.get(_MODEL):
        open_model(wanted)
    current = st.session_state.get(_SECTION, "library")
    found = st.segmented_control(
        "Section", list(titles), format_func=titles.get, required=True,
        default=current if current in titles else "library",
        key=f"models:section:{st.session_state.get(_TURN, 0)}", label_visibility="collapsed",
        persist_state="session",
    )  # fmt: skip
    st.session_state[_SECTION] = found
    if found != "load":
        st.query_params.pop("model", None)
        st.session_state.pop(_MODEL, None)
    return found
