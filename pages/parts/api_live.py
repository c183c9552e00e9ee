"""The requests that the API works on now, and an end to any of them."""

from __future__ import annotations

import streamlit as st

from core.api.records import LiveRequest
from pages.parts import session
from pages.parts.charts import counted, duration
from pages.parts.markdown import plain_text

_POLL_S = 1.0
_MOST_SHOWN = 20


@st.fragment(run_every=_POLL_S)
def draw() -> None:
    """Keeps itself up to date; the oldest first."""
    st.subheader("At work", anchor=False)
    live = sorted(session.api().live(), key=lambda one: -one.since_s)
    if not live:
        st.caption("Nobody asks right now.")
        return
    for one in live[:_MOST_SHOWN]:
        _line(one)
    if len(live) > _MOST_SHOWN:
        st.caption(f"and {len(live) - _MOST_SHOWN:,} more")


def _line(one: LiveRequest) -> None:
    with st.container(
        border=True, horizontal=True, vertical_alignment="center", key=f"api-live-{one.request_id}"
    ):
        with st.container(gap=None):
            who = plain_text(one.key_name) if one.key_name else "Without a key"
            st.markdown(f"**{who}** &nbsp; :gray[{plain_text(one.endpoint)}]")
            st.caption(_words(one))
        st.button("Abort", key=f"api:abort:{one.request_id}", icon=":material/close:",
                  help="Ends it in the engine; the client gets an error.",
                  on_click=session.api().abort, args=(one.request_id,))  # fmt: skip


def _words(one: LiveRequest) -> str:
    model, since = plain_text(one.model) or "–", duration(one.since_s)
    if not one.prompt_tokens:  # it has not come to the engine, or is counted when it ends
        return f"{model} · at work for {since}"
    read = counted(one.prompt_tokens, "token")
    return f"{model} · {one.state} for {since} · {read} read, {one.output_tokens:,} written"
