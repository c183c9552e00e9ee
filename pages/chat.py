"""Chat with the model. `?c=ID` shows one conversation; answers go on when nobody looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from core.conversations import Conversation, StoredMessage
from core.errors import WorkbenchError
from pages.parts import conversations, session
from pages.parts.answer_caption import answer_caption, live_caption
from pages.parts.markdown import model_text, plain_text

_POLL_S = 0.15
_EXAMPLES = (
    "Explain what a KV cache is in three sentences.",
    "Write a short, polite e-mail that moves a meeting to Thursday.",
    "用一句话介绍一下你自己。",
)
_AVATARS = {"user": ":material/person:", "assistant": ":material/smart_toy:"}


def _send(text: str) -> None:
    """Ask, in a new conversation if there is none yet; the page is drawn anew with the answer growing."""
    try:
        asked = conversation or conversations.create(system, params)
        session.chats().send(asked.conversation_id, text, params)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        st.stop()
    st.rerun()


def _examples() -> None:
    st.markdown("Ask the model anything, or begin with one of these:")
    for number, example in enumerate(_EXAMPLES):
        if st.button(example, key=f"chat:example:{number}", icon=":material/lightbulb:"):
            _send(example)


def _draw(turns: Sequence[StoredMessage], is_live: bool) -> None:
    for turn in turns:
        with st.chat_message(turn.role, avatar=_AVATARS[turn.role]):
            if turn.role == "user":
                st.text(turn.content)
            elif is_live and turn is turns[-1]:
                _growing(turn.conversation_id)
            else:
                _answer(turn)


def _answer(turn: StoredMessage) -> None:
    st.markdown(model_text(turn.content))
    if turn.state == "generating":  # another workbench on the same workspace is at it
        st.caption("Being answered in another process.")
    else:
        answer_caption(turn.state, turn.details)


@st.fragment(run_every=_POLL_S)
def _growing(conversation_id: str) -> None:
    """The answer being generated: drawn again several times a second, by itself."""
    live = next(iter(session.chats().live(conversation_id).values()), None)
    if live is None:
        st.rerun()
    st.markdown(model_text(live.text) + (" ▌" if live.phase == "generating" else ""))
    live_caption(live)


def _actions(asked: Conversation | None, turns: Sequence[Any], is_live: bool) -> None:
    """One line of buttons above the input, where it does not move with the text."""
    chats = session.chats()
    with st.container(horizontal=True, horizontal_alignment="right", height=40, border=False):
        if asked and is_live:
            st.button("Stop", icon=":material/stop:", on_click=chats.stop, args=(asked.conversation_id,))
        elif asked and turns and st.button("Regenerate", icon=":material/refresh:", type="tertiary"):
            try:
                chats.regenerate(turns[-1].message_id, params)
            except WorkbenchError as error:
                st.toast(plain_text(str(error)))
            st.rerun()


conversation = conversations.current()
system, params = conversations.toolbar(conversation)
# first what is live, then what is kept: once nothing is live, the store has everything
live = session.chats().live(conversation.conversation_id) if conversation else {}
shown = session.chats().conversations.thread(conversation.conversation_id) if conversation else []
turns = [turn.message for turn in shown]
if turns:
    _draw(turns, bool(live))
else:
    _examples()
with st.bottom:
    _actions(conversation, turns, bool(live))
    entered = st.chat_input("Write a message", disabled=bool(live))
if entered and entered.strip():
    _send(entered)
