"""An answer of a comparison token by token."""

from __future__ import annotations

import streamlit as st

from core.answers import read_logprobs
from core.comparing.cells import Place
from core.comparing.runner import ComparisonView
from pages.parts.token_view import token_view


def tokens(key: str, view: ComparisonView, place: Place) -> None:
    """Coloured by probability; says why where there is nothing to show."""
    logprobs = read_logprobs(view.cells[place].details)
    if logprobs:
        token_view(key, logprobs)
    elif view.spec.top_logprobs is None:
        st.caption("Not kept. Change → Samples, seeds and name → Keep the probability of each token.")
    else:
        st.caption("There is no token yet.")
