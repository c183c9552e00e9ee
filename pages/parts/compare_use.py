"""What comes of a comparison: a set as a preset or on the batch page, and files to keep or to send."""

from __future__ import annotations

import streamlit as st

from core.comparing.runner import ComparisonView
from core.comparing.spec import to_prompt_spec
from pages.parts.compare_matrix import set_words
from pages.parts.markdown import plain_text

PROMOTED = "batch:promoted"
"""In the session: {"prompt": PromptSpec, "params": ..., "name": ...} for the batch page's next table."""

_POPOVER_PIXELS = 420


def use_menu(view: ComparisonView) -> None:
    """Take one set further."""
    identity = view.comparison_id
    sets = view.spec.sets
    with st.popover("Use a set", icon=":material/rocket_launch:"), st.container(width=_POPOVER_PIXELS):
        place = st.selectbox(
            "Set", range(len(sets)), format_func=lambda number: sets[number].name,
            key=f"compare:use:{identity}",
        )  # fmt: skip
        one = sets[place]
        st.caption(plain_text(" · ".join(set_words(one)) or "The model's own defaults"))
        if st.button(
            "Run it over a table", icon=":material/table_rows:", key=f"compare:promote:{identity}",
            help="Opens the batch page with this prompt and these parameters filled in.",
        ):  # fmt: skip
            prompt, params = to_prompt_spec(one, view.spec.prompts[0])
            st.session_state[PROMOTED] = {"prompt": prompt, "params": params, "name": one.name}
            st.switch_page("pages/batch.py")


def export_menu(view: ComparisonView) -> None:
    """Files of the whole comparison."""
    with st.popover("Export", icon=":material/download:"), st.container(width=_POPOVER_PIXELS):
        st.download_button(
            "Specification (JSON)", data=lambda: view.spec.model_dump_json(indent=2), on_click="ignore",
            file_name="comparison.json", mime="application/json", key=f"compare:json:{view.comparison_id}",
            help="All that is needed to repeat it: here, or with python -m core compare.",
        )  # fmt: skip
