"""Prompts that are the questions of a chat, each with all that was said before it."""

from __future__ import annotations

import streamlit as st

from core.comparing.spec import PromptItem, from_conversation
from core.conversations import Conversation, Conversations
from core.errors import WorkbenchError
from core.types import Message
from pages.parts import session
from pages.parts.markdown import plain_text

_LISTED = 200


def from_chat(key: str) -> tuple[PromptItem, ...]:
    """Draw the choice of a conversation and of its questions."""
    found = Conversations(session.store()).list(_LISTED)
    if not found:
        st.info("There is no chat yet. Questions that you ask on the chat page can be compared here.")
        return ()
    titles = {one.conversation_id: one.title or "New chat" for one in found}
    chosen = st.selectbox(
        "Chat", list(titles), index=None, format_func=titles.get, key=f"{key}:chat",
        placeholder="Choose a chat", persist_state="session",
    )  # fmt: skip
    if chosen is None:
        return ()
    try:
        items = from_conversation(_messages(next(one for one in found if one.conversation_id == chosen)))
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return ()
    places = list(range(len(items)))
    taken = st.multiselect(
        "Questions", places, places[-1:], format_func=lambda place: items[place].title,
        key=f"{key}:questions:{chosen}", persist_state="session",
        help="Each becomes a prompt, together with everything that was said before it.",
    )  # fmt: skip
    return tuple(items[place] for place in sorted(taken))


def _messages(conversation: Conversation) -> list[Message]:
    turns = Conversations(session.store()).thread(conversation.conversation_id)
    first = [Message("system", conversation.system)] if conversation.system.strip() else []
    return [*first, *(turn.message.as_message() for turn in turns)]
