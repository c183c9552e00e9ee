"""What models run on: the engines of this workbench, and why one can't be used here."""

from __future__ import annotations

import streamlit as st

from core.engines import choice
from core.engines.choice import Offer
from pages.parts import session
from pages.parts.markdown import plain_text


def draw() -> None:
    st.subheader("Engines", anchor=False)
    st.caption("What computes the answers. Every page works with each of them, as far as the engine can.")
    status = session.runtime().status()
    current = status.spec.engine if status.spec and status.phase == "ready" else None
    for offer in choice.offers(choice.this_machine()):
        _offer(offer, in_use=offer.engine == current)


def _offer(offer: Offer, *, in_use: bool) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        with st.container(gap=None):
            st.markdown(f"**{plain_text(offer.title)}**")
            st.caption(offer.about)
            if offer.obstacle:
                st.markdown(f":orange[:material/block:] {plain_text(offer.obstacle)}")
        if in_use:
            st.badge("In use", icon=":material/check:", color="green")
        elif offer.obstacle is None:
            st.badge("Can be used", color="gray")
