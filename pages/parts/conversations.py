"""Which conversation is on the page, the list of all, and one conversation's settings."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.conversations import Conversation
from pages.parts import session
from pages.parts.markdown import plain_text
from pages.parts.sampling_form import sampling_form

_CURRENT = "chat:current"
_LISTED = 100
_POPOVER_PIXELS = 420


def current() -> Conversation | None:
    """The conversation of the address (?c=ID) or else the last one in this tab; None: a new one."""
    wanted = st.query_params.get("c") or st.session_state.get(_CURRENT)
    conversation = session.chats().conversations.get(wanted) if wanted else None
    if wanted and conversation is None:
        st.toast("That conversation was deleted.")
    _show(conversation.conversation_id if conversation else None)
    return conversation


def create(system: str, params: dict[str, Any]) -> Conversation:
    conversation = session.chats().create(system, params)
    _show(conversation.conversation_id)
    return conversation


def toolbar(conversation: Conversation | None) -> tuple[str, dict[str, Any]]:
    """Draw title and menus; return the system prompt and the sampling parameters in force."""
    with st.container(horizontal=True, vertical_alignment="center"):
        title = plain_text(conversation.title) if conversation and conversation.title else "New chat"
        st.subheader(title, anchor=False)
        st.button("New", icon=":material/add:", on_click=_show, args=(None,), help="Start a new chat")
        with st.popover("Chats", icon=":material/forum:"), st.container(width=_POPOVER_PIXELS):
            _list(conversation)
        with st.popover("Settings", icon=":material/tune:"), st.container(width=_POPOVER_PIXELS):
            return _settings(conversation)


def _settings(conversation: Conversation | None) -> tuple[str, dict[str, Any]]:
    name = conversation.conversation_id if conversation else "new"
    system = st.text_area(
        "System prompt",
        conversation.system if conversation else "",
        key=f"chat:{name}:system",
        persist_state="session",
        height=90,
        placeholder="How the model should behave, in every answer",
        help="Sent before the first message. It counts from the next answer on.",
    )
    info = session.runtime().status().info
    params = sampling_form(
        f"chat:{name}",
        info.generation_config if info else None,
        initial=conversation.params if conversation else None,
    )
    if conversation and (system, params) != (conversation.system, dict(conversation.params)):
        session.chats().conversations.update(conversation.conversation_id, system=system, params=params)
    if conversation and st.button("Clear all messages", icon=":material/delete_sweep:"):
        session.chats().clear(conversation.conversation_id)
        st.rerun()
    return system, params


def _list(current: Conversation | None) -> None:
    conversations = session.chats().conversations.list(_LISTED)
    if not conversations:
        st.caption("Your chats will be listed here.")
        return
    with st.container(height=320 if len(conversations) > 6 else "content", border=False, gap=None):
        for one in conversations:
            with st.container(
                horizontal=True, vertical_alignment="center", key=f"chat-row-{one.conversation_id}"
            ):
                here = current is not None and one.conversation_id == current.conversation_id
                st.button(
                    f"**{plain_text(one.title or 'Untitled')}**"
                    if here
                    else plain_text(one.title or "Untitled"),
                    key=f"chat:open:{one.conversation_id}",
                    type="tertiary",
                    on_click=_show,
                    args=(one.conversation_id,),
                )
                st.space("stretch")
                st.button(
                    "",
                    key=f"chat:delete:{one.conversation_id}",
                    type="tertiary",
                    icon=":material/delete:",
                    help="Delete this chat",
                    on_click=_delete,
                    args=(one.conversation_id,),
                )


def _show(conversation_id: str | None) -> None:
    st.session_state[_CURRENT] = conversation_id
    if conversation_id is None:
        st.query_params.pop("c", None)
    elif st.query_params.get("c") != conversation_id:
        st.query_params["c"] = conversation_id


def _delete(conversation_id: str) -> None:
    session.chats().delete(conversation_id)
    if st.session_state.get(_CURRENT) == conversation_id:
        _show(None)
