"""The engine for programs: start and stop the API, ask it, its keys, who asks it now."""

from __future__ import annotations

import streamlit as st

from pages.parts import api_activity, api_ask, api_keys, api_live, api_status

_SECTIONS = {
    "ask": ("Ask it", (api_ask.draw,)),
    "keys": ("Keys", (api_keys.draw,)),
    "activity": ("Activity", (api_live.draw, api_activity.draw)),
}

st.title("API", anchor=False)
st.caption(
    "The loaded engine answers programs, too: OpenAI's API, on the same weights. Their requests come after "
    "chats and before batches."
)
api_status.draw()
chosen = st.segmented_control(
    "Section", list(_SECTIONS), format_func=lambda name: _SECTIONS[name][0], required=True, default="ask",
    key="api:section", label_visibility="collapsed", persist_state="session",
)  # fmt: skip
for draw in _SECTIONS[chosen][1]:
    draw()
