"""One answer as text or as tokens, its reasoning folded; the same layout while it grows and after."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core import reasoning
from core.answers import LiveAnswer, read_logprobs
from core.conversations import ChatOptions, StoredMessage
from pages.parts.answer_caption import FIGURES_HELP, answer_error, figures_of, live_figures
from pages.parts.markdown import model_text
from pages.parts.token_view import token_view

_THOUGHTS_PIXELS = 180
_CURSOR = " ▌"
_OPENING = ("<think>", "<thinking>", "<reasoning>", "[THINK]", "<seed:think>", "◁think▷")


def body(
    options: ChatOptions, message: StoredMessage, live: LiveAnswer | None, *, legend: bool = True
) -> None:
    """What was answered. `legend`: with the meaning of the colours, where they are shown."""
    text = live.text if live else message.content
    as_tokens = is_as_tokens(options, message, live)
    if as_tokens and legend:
        token_legend(message)
    if live and as_tokens:  # laid out as the tokens will be, so that nothing moves when they come
        st.text(text + _CURSOR)
    elif as_tokens:
        token_view(f"chat:{message.message_id}:tokens", read_logprobs(message.details), legend=False)
    else:
        _text(options, text, message, live)
    if not live:
        answer_error(message.state, message.details)


def token_legend(message: StoredMessage) -> None:
    token_view(f"chat:{message.message_id}:legend", ())


def _text(options: ChatOptions, text: str, message: StoredMessage, live: LiveAnswer | None) -> None:
    if live and any(mark.startswith(text.strip()) for mark in _OPENING):
        text = ""  # half a mark would flash up and go
    inside = live.begins_inside if live else bool(message.details.get("begins_inside"))
    parted = reasoning.split(text, options.reasoning, begins_inside=inside)
    is_thinking = parted.is_open and live is not None
    if parted.reasoning or parted.is_open:
        with st.expander("Thinking…" if is_thinking else "Thoughts", expanded=is_thinking, type="compact"):
            if is_thinking:  # of one height, scrolling by itself: what is below stays where it is
                with st.container(height=_THOUGHTS_PIXELS, border=False, autoscroll=True):
                    st.markdown(model_text(parted.reasoning) + _CURSOR)
            else:
                st.markdown(model_text(parted.reasoning))
    cursor = _CURSOR if live and not is_thinking else ""
    if parted.answer or cursor or not parted.reasoning:
        st.markdown(model_text(parted.answer) + cursor)


def figures(message: StoredMessage, live: LiveAnswer | None, width: Any) -> None:
    """One line, while the answer grows and after."""
    if live:
        st.caption(live_figures(live), width=width)
    elif message.state == "generating":  # another workbench on the same workspace is at it
        st.caption("Being answered in another process.", width=width)
    else:
        words = figures_of(message.state, message.details)
        st.caption(words, width=width, help=FIGURES_HELP if words else None)


def token_button(options: ChatOptions, message: StoredMessage) -> None:
    """Switches one answer between its text and its tokens, where their probabilities are kept."""
    if "logprobs" not in message.details:
        return
    as_tokens = is_as_tokens(options, message, None)
    st.button(
        "",
        key=f"chat:{message.message_id}:view",
        type="tertiary",
        icon=":material/notes:" if as_tokens else ":material/format_color_text:",
        help="Show the text" if as_tokens else "Show the tokens, coloured by probability",
        on_click=st.session_state.__setitem__,
        args=(_tokens_key(message), not as_tokens),
    )


@st.dialog("The answer as text", width="large")
def copy(text: str) -> None:
    st.code(text, language=None, wrap_lines=True)


def is_as_tokens(options: ChatOptions, message: StoredMessage, live: LiveAnswer | None) -> bool:
    """Whether it is drawn as tokens: they are wanted, and there or coming."""
    if live is None and "logprobs" not in message.details:
        return False
    return st.session_state.get(_tokens_key(message), options.top_logprobs is not None)


def _tokens_key(message: StoredMessage) -> str:
    return f"chat:{message.message_id}:as-tokens"
