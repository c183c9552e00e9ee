"""The line of figures under an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.answers import LiveAnswer, in_words
from pages.parts.charts import duration, per_second
from pages.parts.markdown import plain_text

FIGURES_HELP = (
    "TTFT: from sending the request to the first token. Tokens/s: after the first token. "
    "Cached: prompt tokens that the engine had worked on before."
)


def answer_caption(state: str, details: Mapping[str, Any]) -> None:
    """How long it took, how much it is, why it ended; an error in a box of its own."""
    answer_error(state, details)
    figures = figures_of(state, details)
    if figures:
        st.caption(figures, help=FIGURES_HELP)


def answer_error(state: str, details: Mapping[str, Any]) -> None:
    if state == "error":
        st.error(plain_text(details.get("error") or "The answer failed."), icon=":material/error:")


def figures_of(state: str, details: Mapping[str, Any]) -> str:
    """One line of Markdown: TTFT, speed, tokens, why it ended, what did not fit; "" if there is nothing."""
    tokens = details.get("output_tokens") or 0
    words = [f"adapter {plain_text(details['adapter'])}"] if details.get("adapter") else []
    if details.get("ttft_s") is not None:
        words += [
            f"TTFT {duration(details['ttft_s'])}",
            f"{per_second(details.get('output_tokens_per_s'))} tokens/s",
        ]
    if tokens:
        words.append(f"{tokens:,} tokens")
    if details.get("prompt_tokens"):
        cached = f" ({details['cached_tokens']:,} cached)" if details.get("cached_tokens") else ""
        words.append(f"prompt {details['prompt_tokens']:,} tokens{cached}")
    if in_words(state, details) and state != "error":
        words.append(f"**{in_words(state, details)}**")
    if details.get("edited"):
        words.append("edited by you")
    dropped = details.get("dropped_turns") or 0
    if dropped:
        words.append(f"the {dropped} oldest messages did not fit the context" if dropped > 1
                     else "the oldest message did not fit the context")  # fmt: skip
    return " · ".join(words)


def live_figures(live: LiveAnswer) -> str:
    """The same line while the answer grows, always one line high."""
    if live.phase == "waiting":
        return "Waiting for the engine…"
    if live.phase == "stopping":
        return "Stopping…"
    if live.ttft_s is None:
        return "Reading the prompt…"
    return (
        f"TTFT {duration(live.ttft_s)} · {per_second(live.output_tokens_per_s)} tokens/s · "
        f"{live.output_tokens:,} tokens"
    )
