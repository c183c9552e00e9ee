"""Prompts under parameter sets: set up, look, judge, promote. `?x=ID` shows one comparison."""

from __future__ import annotations

import streamlit as st

from pages.parts import compare_answers, compare_header, compare_setup

_TABS = {
    "answers": ":material/grid_view: Answers",
    "pair": ":material/splitscreen_right: Side by side",
}
_DRAW = {
    "answers": compare_answers.draw_matrix,
    "pair": compare_answers.draw_pair,
}

view = compare_header.current()
compare_header.draw(view)
if view is None:
    compare_setup.draw()
else:
    name = f"compare:view:{view.comparison_id}:tab"
    chosen = st.segmented_control(
        "View", list(_TABS), format_func=_TABS.get, default=st.session_state.get(name, "answers"), key=name,
        required=True, label_visibility="collapsed", persist_state="session",
    )  # fmt: skip
    _DRAW[chosen](view)
