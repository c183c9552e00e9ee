"""What the model reads: the prompt token by token, what did not fit, and the template that made it."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.chat import prompt_messages
from core.conversations import Conversation, StoredMessage
from core.errors import WorkbenchError
from core.inspector import Inspection, inspect
from core.prompt_styles import CHAT
from core.sampling import BY_NAME
from core.types import Message
from pages.parts import conversations, session
from pages.parts.charts import counted
from pages.parts.chat_settings import ChatSettings
from pages.parts.markdown import plain_text
from pages.parts.token_view import token_pieces

_DIALOG = st.dialog("What the model reads", width="large")


@_DIALOG
def of_next(conversation: Conversation | None, settings: ChatSettings) -> None:
    """The prompt of the next answer, with a message to try it with."""
    path = (
        [turn.message for turn in conversations.kept().thread(conversation.conversation_id)]
        if conversation
        else []
    )
    asked = st.text_area(
        "Your next message",
        key="chat:inspect:asked",
        height="content",
        placeholder="Write what you would ask, or leave it empty to see the prompt of the last answer",
    )
    if not asked and path and path[-1].role == "assistant":
        path = path[:-1]
    if not asked and not path:
        st.caption("The chat is empty: write a message to see what the model would read.")
        return
    _show(prompt_messages(settings.system, path, asked or None, settings.options.reasoning), settings)


@_DIALOG
def of_answer(conversation: Conversation, settings: ChatSettings, answer: StoredMessage) -> None:
    """The prompt of one answer, made with the settings as they are now."""
    path = conversations.kept().path(answer.message_id)[:-1]
    st.caption("With the system prompt and the prompt style as they are set now.")
    _show(prompt_messages(settings.system, path, None, settings.options.reasoning), settings)


def _show(messages: Sequence[Message], settings: ChatSettings) -> None:
    options = settings.options
    max_tokens = settings.params.get("max_tokens") or BY_NAME["max_tokens"].default
    try:
        seen = inspect(
            messages,
            session.runtime().engine,
            max_tokens,
            style=options.style,
            wrapper=session.wrappers().find(options.style),
            options=options.template_options,
        )
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return
    _counts(seen)
    if seen.pieces is None:
        _uncounted(seen)
        return
    tokens, text, template = st.tabs(["Tokens", "Text", "Template"])
    with tokens:
        token_pieces("chat:inspect:tokens", seen.pieces)
    with text:
        st.code(seen.text, language=None, wrap_lines=True)
    with template:
        if seen.template is None:
            hidden = options.style == CHAT and session.runtime().engine.info.has_chat_template
            st.caption(
                "The server keeps its template to itself." if hidden
                else "No template: the contents are all there is."
            )  # fmt: skip
        else:
            st.code(seen.template, language="jinja2", wrap_lines=True)


def _uncounted(seen: Inspection) -> None:
    """The messages as they are sent, or the text: the engine's own template and tokens are not seen here."""
    if not seen.messages:
        st.code(seen.text, language=None, wrap_lines=True)
        return
    st.caption("The engine gets these messages, and puts them into the model's form itself.")
    for message in seen.messages:
        with st.chat_message(message.role):
            st.text(message.content)


def _counts(seen: Inspection) -> None:
    if seen.prompt_tokens is None:
        reason = session.runtime().engine.info.cannot["tokens"]
        st.caption(f"No token counts: {plain_text(reason)} The context has {seen.context_tokens:,}.")
        return
    used = seen.prompt_tokens + seen.answer_tokens
    st.progress(
        min(1.0, used / seen.context_tokens),
        f"Prompt **{counted(seen.prompt_tokens, 'token')}** · up to {seen.answer_tokens:,} for the answer · "
        f"context {seen.context_tokens:,}",
    )
    if seen.dropped:
        few = len(seen.dropped) == 1
        words = "The oldest message does" if few else f"The {len(seen.dropped)} oldest messages do"
        with st.expander(
            f"{words} not fit, and {'is' if few else 'are'} left out", icon=":material/content_cut:"
        ):
            for message in seen.dropped:
                st.caption(message.role.capitalize())
                st.text(message.content)
