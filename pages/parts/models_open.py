"""One model of the library: what it is, whether it fits, and the form that loads it."""

from __future__ import annotations

import streamlit as st

from core.models.library import LibraryModel
from pages.parts import models_load, models_nav, session
from pages.parts.markdown import plain_text
from pages.parts.models_words import facts_words


def draw() -> None:
    models = {model.key: model for model in session.library().list()}
    current = models_nav.chosen() or _loaded(models) or models["embedded"]
    keys = list(models)
    picked = st.selectbox(
        "Model", keys, index=keys.index(current.key), key=f"models:pick:{current.key}",
        format_func=lambda key: models[key].name,
    )  # fmt: skip
    if picked != current.key:
        models_nav.open_model(picked)
        st.rerun()
    st.caption(plain_text(" · ".join(facts_words(current))))
    if current.problem:
        st.warning(f"{plain_text(current.problem)} {plain_text(current.hint)}", icon=":material/warning:")
    models_load.load_form(current)


def _loaded(models: dict[str, LibraryModel]) -> LibraryModel | None:
    spec = session.runtime().status().spec
    found = session.library().of(spec) if spec is not None else None
    return models.get(found.key) if found is not None else None
