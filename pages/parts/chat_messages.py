"""The messages of a chat: questions and answers, their versions, and what can be done with each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from core.answers import LiveAnswer
from core.conversations import Conversation, StoredMessage, Turn
from core.errors import WorkbenchError
from pages.parts import chat_answer, chat_inspector, conversations, session
from pages.parts.chat_settings import ChatSettings
from pages.parts.conversations import attempt

_POLL_S = 0.15
_SHOWN = 30  # messages drawn at first: each brings widgets along, and a long chat would be slow to touch
_AVATARS = {"user": ":material/person:", "assistant": ":material/smart_toy:"}
_EDITING = "chat:editing"
_GROWING = "chat:growing"  # the message that the page last drew as growing
_MOST_BESIDE = 12
_MOST_COLUMNS = 3


@dataclass(frozen=True, slots=True)
class View:
    """What all messages of one drawing share. `live`: message id -> the answer being generated."""

    conversation: Conversation
    settings: ChatSettings
    live: Mapping[str, LiveAnswer]


def draw(view: View, turns: Sequence[Turn]) -> None:
    shown = _newest(view, turns)
    st.session_state[_GROWING] = turns[-1].message.message_id if view.live else None
    for turn in shown:
        message = turn.message
        with st.chat_message(message.role, avatar=_AVATARS[message.role]):
            if st.session_state.get(_EDITING) == message.message_id and not view.live:
                _editor(view, message)
            elif message.role == "user":
                _question(view, turn)
            elif view.live.keys() & set(turn.versions):
                _growing(view, turn)
            else:
                _answers(view, turn, is_last=turn is turns[-1])
    if turns[-1].message.role == "user" and not view.live:
        _answer_button(view, turns[-1].message)


def _answer_button(view: View, question: StoredMessage) -> None:
    """An imported or branched chat may end with a question."""
    st.button(
        "Answer",
        key=f"chat:{question.message_id}:answer",
        icon=":material/play_arrow:",
        on_click=attempt,
        args=(session.chats().regenerate, question.message_id, view.settings.params),
    )


def _newest(view: View, turns: Sequence[Turn]) -> Sequence[Turn]:
    key = f"chat:{view.conversation.conversation_id}:all"
    hidden = len(turns) - _SHOWN
    if hidden <= 0 or st.session_state.get(key):
        return turns
    st.button(f"Show {hidden} earlier messages", icon=":material/expand_less:", type="tertiary",
              on_click=st.session_state.__setitem__, args=(key, True))  # fmt: skip
    return turns[hidden:]


# -- questions ------------------------------------------------------------------


def _question(view: View, turn: Turn) -> None:
    with st.container(horizontal=True, vertical_alignment="center", wrap=False, gap="xsmall"):
        st.text(turn.message.content, width="stretch")
        _arrows(view, turn)
        _menu(view, turn, {"edit": "Edit and ask again", "branch": "Branch into a new chat"})


def _editor(view: View, message: StoredMessage) -> None:
    """The message as a text to change; what was there stays as another version."""
    is_question = message.role == "user"
    with st.form(f"chat:edit:{message.message_id}", border=False):
        text = st.text_area(
            "Your message" if is_question else "The answer",
            message.content,
            height="content",
            key=f"chat:edit:{message.message_id}:text",
            label_visibility="collapsed",
        )
        with st.container(horizontal=True):
            done = st.form_submit_button("Ask again" if is_question else "Save", type="primary")
            cancelled = st.form_submit_button("Cancel")
    if done:
        attempt(session.chats().edit, message.message_id, text or "", view.settings.params)
    if done or cancelled:
        st.session_state.pop(_EDITING)
        st.rerun()


# -- answers --------------------------------------------------------------------


@st.fragment(run_every=_POLL_S)
def _growing(view: View, turn: Turn) -> None:
    """Answers being generated: drawn again several times a second, by themselves."""
    live = session.chats().live(view.conversation.conversation_id)
    if live.keys() & set(turn.versions):
        _answers(replace(view, live=live), turn, is_last=True)
        return
    # a late tick, after the page was drawn without anything growing, must not draw it once more:
    # that would close a dialog opened meanwhile
    if st.session_state.get(_GROWING) == turn.message.message_id:
        st.rerun()
    try:
        message = conversations.kept().message(turn.message.message_id)
    except WorkbenchError:  # removed meanwhile, in another tab
        return
    _answers(replace(view, live={}), replace(turn, message=message), is_last=True)


def _answers(view: View, turn: Turn, *, is_last: bool) -> None:
    """The version that is shown; of the last message all, when they are wanted side by side."""
    if is_last and len(turn.versions) > 1 and _are_beside(view):
        _side_by_side(view, turn)
    else:
        _one(view, turn, is_last)


def _one(view: View, turn: Turn, is_last: bool) -> None:
    message = turn.message
    live = view.live.get(message.message_id)
    chat_answer.body(view.settings.options, message, live)
    with st.container(horizontal=True, vertical_alignment="center", wrap=False, gap="xsmall"):
        chat_answer.figures(message, live, "stretch")
        if live:
            _stop_one(view, message)
            return
        _arrows(view, turn)
        if is_last and len(turn.versions) > 1:
            _beside_button(view, "Show all versions side by side", ":material/view_column:")
        _actions(view, turn, is_last)


def _actions(view: View, turn: Turn, is_last: bool) -> None:
    message, key = turn.message, f"chat:{turn.message.message_id}"
    chats, params = session.chats(), view.settings.params
    is_busy = bool(view.live)
    if is_last and _can_go_on(message):
        st.button(
            "Continue",
            key=f"{key}:go-on",
            type="tertiary",
            icon=":material/play_arrow:",
            help="Let the model write on where this answer ends",
            disabled=is_busy,
            on_click=attempt,
            args=(chats.go_on, message.message_id, params),
        )
    chat_answer.token_button(view.settings.options, message)
    st.button(
        "",
        key=f"{key}:again",
        type="tertiary",
        icon=":material/refresh:",
        help="Answer again, with the settings as they are now",
        disabled=is_busy,
        on_click=attempt,
        args=(chats.regenerate, message.message_id, params),
    )
    _menu(
        view,
        turn,
        {"edit": "Edit", "copy": "Copy", "read": "What the model read", "branch": "Branch into a new chat"},
    )


def _can_go_on(message: StoredMessage) -> bool:
    """Cut, stopped, interrupted, failed on the way or edited: not where the model came to its end."""
    return (
        message.state != "generating"
        and bool(message.content)
        and message.details.get("finish_reason") != "stop"
    )


def _stop_one(view: View, message: StoredMessage) -> None:
    st.button(
        "",
        key=f"chat:{message.message_id}:stop",
        type="tertiary",
        icon=":material/stop_circle:",
        help="Stop this answer",
        on_click=session.chats().stop,
        args=(view.conversation.conversation_id, message.message_id),
    )


# -- versions -------------------------------------------------------------------


def _arrows(view: View, turn: Turn) -> None:
    """‹ 2/3 › where a message has versions."""
    count = len(turn.versions)
    if count < 2:
        return
    key, select = f"chat:{turn.message.message_id}", session.chats().select
    with st.container(horizontal=True, vertical_alignment="center", gap=None, width="content"):
        for name, step, icon, words in (
            ("earlier", -1, ":material/chevron_left:", "Earlier version"),
            ("later", 1, ":material/chevron_right:", "Later version"),
        ):
            place = turn.index + step
            is_there = 0 <= place < count
            st.button(
                "",
                key=f"{key}:{name}",
                type="tertiary",
                icon=icon,
                help=words,
                disabled=not is_there or bool(view.live),
                on_click=attempt,
                args=(select, turn.versions[place] if is_there else ""),
            )
            if step < 0:
                st.caption(f"{turn.index + 1}/{count}", width="content")


def _are_beside(view: View) -> bool:
    key = f"chat:{view.conversation.conversation_id}:beside"
    return st.session_state.get(key, view.conversation.options.n > 1)


def _beside_button(view: View, words: str, icon: str) -> None:
    key = f"chat:{view.conversation.conversation_id}:beside"
    st.button("", key=f"{key}:switch", type="tertiary", icon=icon, help=words,
              on_click=st.session_state.__setitem__, args=(key, not _are_beside(view)))  # fmt: skip


def _side_by_side(view: View, turn: Turn) -> None:
    first = max(0, len(turn.versions) - _MOST_BESIDE)
    ids = turn.versions[first:]
    messages = [
        turn.message if one == turn.message.message_id else conversations.kept().message(one) for one in ids
    ]
    differing = differences([message.details.get("params") or {} for message in messages])
    options = view.settings.options
    if any(chat_answer.is_as_tokens(options, one, view.live.get(one.message_id)) for one in messages):
        chat_answer.token_legend(turn.message)
    with st.grid(min(len(messages), _MOST_COLUMNS), min_column_width=260, border=True, gap="xsmall"):
        for number, (message, words) in enumerate(zip(messages, differing, strict=True), first + 1):
            with st.container(gap="xsmall"):
                _beside(view, turn, message, f"{number}/{len(turn.versions)}", words)
    with st.container(horizontal=True, vertical_alignment="center", wrap=False, gap="xsmall"):
        st.caption("The chat goes on with the chosen version.", width="stretch")
        if not view.live:
            _beside_button(view, "Show one version at a time", ":material/crop_portrait:")
            _actions(view, turn, is_last=True)


def _beside(view: View, turn: Turn, message: StoredMessage, place: str, words: str) -> None:
    live = view.live.get(message.message_id)
    with st.container(horizontal=True, vertical_alignment="center", wrap=False, gap="xsmall"):
        st.caption(f"**{place}**" + (f" · {words}" if words else ""), width="stretch")
        if live:
            _stop_one(view, message)
        elif message.message_id == turn.message.message_id:
            st.button("Chosen", key=f"chat:{message.message_id}:chosen", type="tertiary", disabled=True,
                      icon=":material/check:")  # fmt: skip
        else:
            st.button(
                "Choose",
                key=f"chat:{message.message_id}:choose",
                type="tertiary",
                help="Go on with this version",
                disabled=bool(view.live),
                on_click=attempt,
                args=(session.chats().select, message.message_id),
            )
    chat_answer.body(view.settings.options, message, live, legend=False)
    chat_answer.figures(message, live, "stretch")


def differences(sets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each parameter set, what is not the same in all: "temperature 0.2 · seed 7"."""
    names = dict.fromkeys(name for one in sets for name in one)
    differing = [name for name in names if any(one.get(name) != sets[0].get(name) for one in sets)]
    return [
        " · ".join(f"{name} {one[name]}" for name in differing if one.get(name) is not None) for one in sets
    ]


# -- the menu of a message ------------------------------------------------------


def _menu(view: View, turn: Turn, options: Mapping[str, str]) -> None:
    message = turn.message
    chosen = st.menu_button(
        "",
        list(options),
        key=f"chat:{message.message_id}:menu",
        icon=":material/more_horiz:",
        type="tertiary",
        help="More",
        format_func=lambda one: options[one],
        disabled=bool(view.live),
    )
    if chosen == "edit":
        st.session_state[_EDITING] = message.message_id
        st.rerun()
    elif chosen == "copy":
        chat_answer.copy(message.content)
    elif chosen == "read":
        chat_inspector.of_answer(view.conversation, view.settings, message)
    elif chosen == "branch":
        made = attempt(session.chats().branch, message.message_id)
        if made:
            conversations.show(made.conversation_id)
            st.toast("This is a copy up to that message.", icon=":material/call_split:")
            st.rerun()
