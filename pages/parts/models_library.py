"""The library: every model on this machine."""

from __future__ import annotations

import streamlit as st

from core.models.library import LibraryModel
from pages.parts import models_nav, session
from pages.parts.markdown import plain_text


def draw() -> None:
    for model in session.library().list():
        _row(model)


def _row(model: LibraryModel) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{plain_text(model.name)}**")
        st.space("stretch")
        st.button(
            "Load", key=f"models:load:{model.key}", on_click=models_nav.open_model, args=(model.key,),
            disabled=model.problem is not None,
        )  # fmt: skip
