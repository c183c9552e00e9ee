"""Chat with the model. `?c=ID` shows one conversation; answers go on when nobody looks."""

from __future__ import annotations

import streamlit as st

from core.errors import WorkbenchError
from pages.parts import chat_code, chat_inspector, chat_messages, conversations, session
from pages.parts.chat_settings import chat_settings
from pages.parts.markdown import plain_text

_EXAMPLES = (
    "Explain what a KV cache is in three sentences.",
    "Write a short, polite e-mail that moves a meeting to Thursday.",
    "用一句话介绍一下你自己。",
)


def _send(text: str) -> None:
    """Ask, in a new conversation if there is none yet; the page is drawn anew with the answer growing."""
    chats = session.chats()
    try:
        asked = conversation or chats.create(settings.system, settings.params, settings.options)
        conversations.show(asked.conversation_id)
        chats.send(asked.conversation_id, text, settings.params)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        st.code(text, language=None, wrap_lines=True)  # the input is empty by now: nothing typed is lost
    else:
        st.rerun()


def _examples() -> None:
    st.markdown("Ask the model anything, or begin with one of these:")
    for number, example in enumerate(_EXAMPLES):
        if st.button(example, key=f"chat:example:{number}", icon=":material/lightbulb:"):
            _send(example)


conversation = conversations.current()
conversations.toolbar(conversation)
with st.bottom, st.container(horizontal=True, height=40, border=False, gap="xsmall"):
    settings = chat_settings(conversation)
    # first what is live, then what is kept: once nothing is live, the store has everything
    live = session.chats().live(conversation.conversation_id) if conversation else {}
    turns = conversations.kept().thread(conversation.conversation_id) if conversation else []
    if st.button("Prompt", icon=":material/data_array:", help="See what the model reads, token by token"):
        chat_inspector.of_next(conversation, settings)
    chat_code.menu(settings, [turn.message for turn in turns])
    st.space("stretch")
    if live:
        st.button(
            "Stop",
            icon=":material/stop:",
            on_click=session.chats().stop,
            args=(conversation.conversation_id,),
        )
# not in st.bottom, where it comes to lie by itself: only so the page keeps the newest message in sight
entered = st.chat_input("Write a message", disabled=bool(live))
messages, problem = st.container(), st.container()
if entered and entered.strip():
    with problem:
        _send(entered)  # before the messages are drawn: they are drawn anew with the answer
with messages:
    if turns:
        chat_messages.draw(chat_messages.View(conversation, settings, live), turns)
    else:
        _examples()
