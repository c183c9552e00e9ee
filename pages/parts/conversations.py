"""Which conversation is on the page, and the list of all: search, open, rename, delete, import, export."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import streamlit as st

from core import transcripts
from core.conversations import Conversation, Conversations
from core.errors import WorkbenchError
from pages.parts import session
from pages.parts.markdown import plain_text

_CURRENT = "chat:current"
_DELETING = "chat:deleting"
_LISTED = 100
_ROW_WIDTH = 40  # letters
_TITLE_WIDTH = 30  # so much that the buttons beside it have room in a narrow window
_POPOVER_PIXELS = 380
_LIST_PIXELS = 300
_FILE_MB = 20


def kept() -> Conversations:
    return session.chats().conversations


def current() -> Conversation | None:
    """The conversation of the address (?c=ID) or else the last one in this tab; None: a new one."""
    wanted = st.query_params.get("c") or st.session_state.get(_CURRENT)
    conversation = kept().get(wanted) if wanted else None
    if wanted and conversation is None:
        st.toast("That chat was deleted.")
    show(conversation.conversation_id if conversation else None)
    return conversation


def show(conversation_id: str | None) -> None:
    """Put this conversation on the page from the next run on; None: a new one."""
    st.session_state[_CURRENT] = conversation_id
    if conversation_id is None:
        st.query_params.pop("c", None)
    elif st.query_params.get("c") != conversation_id:
        st.query_params["c"] = conversation_id


def shortened(text: str, width: int) -> str:
    """The beginning of `text`, at most that many letters wide; Chinese ones count as two."""
    taken = 0
    for end, letter in enumerate(text):
        taken += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if taken > width:
            return text[:end].rstrip() + "…"
    return text


def attempt(action: Callable[..., Any], *args: Any) -> Any:
    """Do it; when it can't be done, say why in the corner and go on."""
    try:
        return action(*args)
    except WorkbenchError as error:
        st.toast(plain_text(str(error)), icon=":material/error:", duration="long")
        return None


def toolbar(conversation: Conversation | None) -> None:
    """Title and menus of the page."""
    with st.container(horizontal=True, vertical_alignment="center", wrap=False, gap="xsmall"):
        if conversation is None:
            st.subheader("New chat", anchor=False, width="stretch")
        else:
            _title(conversation)
            st.space("stretch")
        st.button("New", icon=":material/add:", on_click=show, args=(None,), help="Start a new chat")
        with st.popover("Chats", icon=":material/forum:"), st.container(width=_POPOVER_PIXELS):
            _list(conversation)
            _import()


def _title(conversation: Conversation) -> None:
    """The chat's name, which opens what can be done with the whole of it."""
    title = plain_text(shortened(conversation.title or "Untitled", _TITLE_WIDTH))
    menu = st.popover(f"**{title}**", type="tertiary", wrap=False, key="chat:title")
    with menu, st.container(width=_POPOVER_PIXELS):
        _rename(conversation)
        _export(conversation)
        st.button(
            "Clear all messages",
            icon=":material/delete_sweep:",
            type="tertiary",
            on_click=session.chats().clear,
            args=(conversation.conversation_id,),
        )


def _list(current: Conversation | None) -> None:
    search = st.text_input(
        "Search",
        key="chat:search",
        placeholder="Search titles and messages",
        label_visibility="collapsed",
        icon=":material/search:",
    )
    found = kept().list(_LISTED, search or "")
    if not found:
        st.caption("No chat has these words." if search else "Your chats will be listed here.")
        return
    with st.container(height=_LIST_PIXELS if len(found) > 6 else "content", border=False, gap=None):
        for one in found:
            _row(one, current is not None and one.conversation_id == current.conversation_id)
    if len(found) == _LISTED:
        st.caption(f"The last {_LISTED} are listed: search for others.")


def _row(one: Conversation, is_here: bool) -> None:
    title = plain_text(shortened(one.title or "Untitled", _ROW_WIDTH))
    with st.container(
        horizontal=True, vertical_alignment="center", wrap=False, key=f"chat-row-{one.conversation_id}"
    ):
        if st.session_state.get(_DELETING) == one.conversation_id:
            st.markdown(f"Delete {title}?", width="stretch")
            st.button("Delete", key="chat:delete:yes", type="primary", on_click=_delete, args=(one,))
            st.button("Keep", key="chat:delete:no", on_click=_ask_to_delete, args=(None,))
            return
        st.button(
            f"**{title}**" if is_here else title,
            key=f"chat:open:{one.conversation_id}",
            type="tertiary",
            on_click=show,
            args=(one.conversation_id,),
        )
        st.space("stretch")
        st.button(
            "",
            key=f"chat:delete:{one.conversation_id}",
            type="tertiary",
            icon=":material/delete:",
            help="Delete this chat",
            on_click=_ask_to_delete,
            args=(one.conversation_id,),
        )


def _ask_to_delete(conversation_id: str | None) -> None:
    st.session_state[_DELETING] = conversation_id


def _delete(one: Conversation) -> None:
    session.chats().delete(one.conversation_id)
    _ask_to_delete(None)
    if st.session_state.get(_CURRENT) == one.conversation_id:
        show(None)


def _import() -> None:
    number = st.session_state.setdefault("chat:imports", 0)  # a new key empties the uploader
    file = st.file_uploader(
        "Import a chat",
        type=["json", "md"],
        key=f"chat:import:{number}",
        max_upload_size=_FILE_MB,
        help="JSON with OpenAI's messages, or Markdown that was exported here.",
    )
    if file is None:
        return
    try:
        text = file.getvalue().decode("utf-8-sig")
        made = kept().add_from(transcripts.read(text))
    except UnicodeDecodeError:
        st.error(f"{plain_text(file.name)} is not text in UTF-8. Save it as UTF-8 and import it again.")
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        st.session_state["chat:imports"] = number + 1
        show(made.conversation_id)
        st.rerun()


def _rename(conversation: Conversation) -> None:
    with st.form("chat:rename", border=False):
        title = st.text_input("Name", conversation.title, key=f"chat:{conversation.conversation_id}:title")
        if st.form_submit_button("Rename", icon=":material/edit:"):
            attempt(kept().rename, conversation.conversation_id, title or "")
            st.rerun()


def _export(conversation: Conversation) -> None:
    """The file is made when it is asked for: a long chat is not written anew with each run of the page."""
    conversation_id, name = conversation.conversation_id, _file_name(conversation.title)
    st.caption("Export the messages that are shown.")
    with st.container(horizontal=True):
        st.download_button(
            "JSON",
            lambda: transcripts.to_json(kept().transcript(conversation_id)),
            f"{name}.json",
            "application/json",
            icon=":material/download:",
            on_click="ignore",
            help="Title, parameters, and the messages as OpenAI's API takes them.",
        )
        st.download_button(
            "Markdown",
            lambda: transcripts.to_markdown(kept().transcript(conversation_id)),
            f"{name}.md",
            "text/markdown",
            icon=":material/download:",
            on_click="ignore",
            help="To read; it can be imported again.",
        )


def _file_name(title: str) -> str:
    """Letters, digits and "-" of the title: it came from a message, and becomes no path."""
    words = "".join(letter if letter.isalnum() else "-" for letter in title).strip("-")
    return "-".join(part for part in words.split("-") if part)[:60] or "chat"
