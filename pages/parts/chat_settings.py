"""One conversation's settings: the prompt's form, sampling, and how answers are asked for and shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from core import prompt_styles, reasoning
from core.conversations import ChatOptions, Conversation
from core.types import EngineInfo, Message
from pages.parts import chat_styles, conversations, session
from pages.parts.adapter_picker import adapter_picker
from pages.parts.markdown import plain_text
from pages.parts.sampling_form import sampling_form

_POPOVER_PIXELS = 440
_MENU = "chat:settings"
_EDIT_STYLES = "chat:edit-styles"
_MOST_ANSWERS = 8
_MOST_ALTERNATIVES = 20
_ALTERNATIVES = 5
_STYLES = {prompt_styles.CHAT: "Chat template", prompt_styles.COMPLETION: "Raw completion"}
_ABOUT_STYLES = {
    prompt_styles.CHAT: "The model's own template goes around each message.",
    prompt_styles.COMPLETION: "The model goes on with the bare text, nothing put around it. For base models.",
}
_PARSERS = {reasoning.AUTO: "Find it by itself", reasoning.NONE: "Show all as it is"}


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What the next answer is asked with."""

    system: str
    params: Mapping[str, Any]
    options: ChatOptions


def chat_settings(conversation: Conversation | None) -> ChatSettings:
    """Draw the menu, keep what was changed, and return what holds now."""
    _take_over(conversation)
    key = _key(conversation)
    before = conversation.options if conversation else ChatOptions()
    info = session.runtime().status().info
    if st.session_state.pop(_EDIT_STYLES, False):
        st.session_state[_MENU] = False  # or it would lie above the dialog
        chat_styles.edit()
    menu = st.popover("Settings", icon=":material/tune:", key=_MENU, on_change="rerun")
    with menu, st.container(width=_POPOVER_PIXELS):
        prompt, sampling, answers = st.tabs(["Prompt", "Sampling", "Answers"])
        with prompt:
            style = _style(key, before, info)
            adapter = adapter_picker(f"{key}:adapter", before.adapter)
            system = _system(key, conversation)
            template_options = _template_options(key, before, style, info)
        with sampling:
            params = sampling_form(
                key,
                info.generation_config if info else None,
                initial=conversation.params if conversation else None,
            )
        with answers:
            n = _number_of_answers(key, before, params)
            top_logprobs = _token_view(key, before, info)
            parser = _reasoning(key, before)
    options = ChatOptions(
        style=style,
        template_options=template_options,
        top_logprobs=top_logprobs,
        n=n,
        reasoning=parser,
        adapter=adapter,
    )
    settings = ChatSettings(system, params, options)
    if conversation:
        _keep(conversation, settings)
    return settings


def _style(key: str, before: ChatOptions, info: EngineInfo | None) -> str:
    wrappers = {wrapper.name: wrapper for wrapper in session.wrappers().list()}
    styles = [*_STYLES, *wrappers]
    name = f"{key}:style"
    now = _seed(name, before.style)
    if now not in styles:
        styles.append(now)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        style = st.selectbox(
            "Prompt style",
            styles,
            index=styles.index(now),
            format_func=lambda one: _STYLES.get(one, one),
            key=name,
            persist_state="session",
            help="How the messages become the one text that the model reads. See it under Prompt.",
        )
        st.button(
            "Own styles",
            icon=":material/edit:",
            key=f"{key}:styles",
            on_click=st.session_state.__setitem__,
            args=(_EDIT_STYLES, True),
        )
    why_not = info.cannot.get("completion") if info and style != prompt_styles.CHAT else None
    if why_not:
        st.warning(f"This style can't be used now: {plain_text(why_not)}")
    if style in _ABOUT_STYLES:
        lacks = style == prompt_styles.CHAT and info is not None and not info.has_chat_template
        st.caption(
            "This model has no chat template: the messages are written one after the other. "
            "A style such as Alpaca or ChatML may suit it better."
            if lacks
            else _ABOUT_STYLES[style]
        )
    elif style in wrappers:
        example = [Message("system", "(system prompt)"), Message("user", "(your message)")]
        st.code(wrappers[style].render(example), language=None, wrap_lines=True, height=140)
    else:
        st.error(f"The style {plain_text(style)} was deleted: choose another one.")
    return style


def _system(key: str, conversation: Conversation | None) -> str:
    name = f"{key}:system"
    entered = st.text_area(
        "System prompt",
        _seed(name, conversation.system if conversation else ""),
        key=name,
        persist_state="session",
        height=110,
        placeholder="How the model should behave, in every answer",
        help="Sent before the first message. It counts from the next answer on.",
    )
    return entered or ""


def _template_options(
    key: str, before: ChatOptions, style: str, info: EngineInfo | None
) -> Mapping[str, Any]:
    name = f"{key}:template_options"
    why_not = info.cannot.get("chat_options") if info else None
    entered = st.text_input(
        "Template options",
        _seed(name, json.dumps(dict(before.template_options)) if before.template_options else ""),
        key=name,
        persist_state="session",
        placeholder='{"enable_thinking": false}',
        # what is there can be taken back
        disabled=style != prompt_styles.CHAT
        or (why_not is not None and not st.session_state.get(name) and not before.template_options),
        help=plain_text(why_not)
        if why_not
        else "Further variables of the model's chat template, as a JSON object.",
    )
    try:
        options = json.loads(entered or "{}")
    except (ValueError, RecursionError):
        options = None
    if isinstance(options, dict):
        return options
    st.error(
        'Template options are a JSON object, such as {"enable_thinking": false}. They are left out for now.'
    )
    return {}


def _number_of_answers(key: str, before: ChatOptions, params: Mapping[str, Any]) -> int:
    name = f"{key}:n"
    n = st.number_input(
        "Answers at once",
        1,
        _MOST_ANSWERS,
        _seed(name, min(before.n, _MOST_ANSWERS)),
        key=name,
        persist_state="session",
        help="Each message gets this many answers, side by side. You choose which one the chat goes on with.",
    )
    if n > 1 and params.get("temperature") == 0:
        st.caption("At temperature 0 they will all be the same.")
    return int(n)


def _token_view(key: str, before: ChatOptions, info: EngineInfo | None) -> int | None:
    why_not = info.cannot.get("top_logprobs") if info else None
    name = f"{key}:token_view"
    is_on = st.toggle(
        "Token view",
        _seed(name, before.top_logprobs is not None),
        key=name,
        persist_state="session",
        disabled=why_not is not None,
        help="From the next answer on, each token is coloured by its probability. Click one to see "
        "what else could have come.",
    )
    if why_not:
        st.caption(plain_text(why_not))
    name = f"{key}:top_logprobs"
    most = st.number_input(
        "Alternatives to each token",
        1,
        _MOST_ALTERNATIVES,
        _seed(name, min(before.top_logprobs or _ALTERNATIVES, _MOST_ALTERNATIVES)),
        key=name,
        persist_state="session",
        disabled=not is_on or why_not is not None,
    )
    return int(most) if is_on else None


def _reasoning(key: str, before: ChatOptions) -> str:
    names = [*_PARSERS, *reasoning.PARSERS]
    name = f"{key}:reasoning"
    now = _seed(name, before.reasoning if before.reasoning in names else reasoning.AUTO)
    return st.selectbox(
        "Reasoning",
        names,
        index=names.index(now),
        format_func=lambda one: _PARSERS.get(one) or reasoning.PARSERS[one].title,
        key=name,
        persist_state="session",
        help="What a model thinks before it answers is folded away, and left out of the next prompt. "
        "Choose its marks here if they are not found.",
    )


def _key(conversation: Conversation | None) -> str:
    return f"chat:{conversation.conversation_id if conversation else 'new'}"


def _seed(name: str, value: Any) -> Any:
    """The widget's value now; `value` where it has none yet."""
    return st.session_state.setdefault(name, value)


def _take_over(conversation: Conversation | None) -> None:
    """When another tab has changed the settings, forget this tab's: the widgets begin with what is kept."""
    if conversation is None:
        return
    key = _key(conversation)
    kept = ChatSettings(conversation.system, conversation.params, conversation.options)
    if st.session_state.get(f"{key}:kept", kept) != kept:
        for name in [name for name in st.session_state if str(name).startswith(f"{key}:")]:
            del st.session_state[name]
    st.session_state[f"{key}:kept"] = kept


def _keep(conversation: Conversation, settings: ChatSettings) -> None:
    """Write what was changed here. What the form only completes with defaults is no change."""
    name = f"{_key(conversation)}:shown"
    if st.session_state.setdefault(name, settings) == settings:
        return
    conversations.kept().update(
        conversation.conversation_id,
        system=settings.system,
        params=settings.params,
        options=settings.options,
    )
    st.session_state[name] = settings
    st.session_state[f"{_key(conversation)}:kept"] = settings
