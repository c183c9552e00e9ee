"""What is asked: prompts written here, questions of a chat, or rows of a table."""

from __future__ import annotations

import streamlit as st

from core.comparing.spec import ComparisonSpec, PromptItem
from core.types import Message
from pages.parts import compare_draft as draft
from pages.parts import compare_table
from pages.parts.compare_chat import from_chat
from pages.parts.markdown import plain_text

_SOURCES = {"write": "Write them", "chat": "From a chat", "table": "From a table"}
_KEPT = {"kept": "As they were"}
_SHOWN = 30
_SHOWN_CHARACTERS = 160


def prompts_form(key: str, initial: ComparisonSpec | None) -> tuple[PromptItem, ...]:
    """Draw the choice and its form; gives what is to be asked, nothing while it is not complete."""
    first = "write" if initial is None or draft.can_be_written(initial.prompts) else "kept"
    sources = _SOURCES | (_KEPT if first == "kept" else {})
    source = st.segmented_control(
        "Prompts", list(sources), format_func=sources.get, default=first, key=f"{key}:source", required=True,
        persist_state="session", label_visibility="collapsed",
    )  # fmt: skip
    if source == "kept":
        _list(initial.prompts)
        return initial.prompts
    if source == "chat":
        return from_chat(key)
    if source == "table":
        items = compare_table.rows_form(key)
        _list(items)
        return items
    return _written(key, initial if first == "write" else None)


def _written(key: str, initial: ComparisonSpec | None) -> tuple[PromptItem, ...]:
    given = initial.prompts if initial else ()
    entries = draft.ids(f"{key}:prompts", max(len(given), 1))
    known = any(item.reference for item in given)
    has_references = st.session_state.get(f"{key}:references", known)
    asked = []
    for place, number in enumerate(entries):
        before = given[number] if number < len(given) else None
        with st.container(horizontal=True, vertical_alignment="bottom"):
            text = st.text_area(
                f"Prompt {place + 1}" if len(entries) > 1 else "Prompt",
                before.text if before else "", key=f"{key}:prompt:{number}", height=90, width="stretch",
                placeholder="What every parameter set answers", persist_state="session",
            )  # fmt: skip
            reference = _reference(key, number, before) if has_references else ""
            if len(entries) > 1:
                st.button(
                    "", icon=":material/close:", key=f"{key}:prompt-remove:{number}", help="Remove",
                    type="tertiary", on_click=draft.remove, args=(f"{key}:prompts", number),
                )  # fmt: skip
        asked.append((text, reference))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Add a prompt", icon=":material/add:", key=f"{key}:prompt-add", on_click=draft.add,
            args=(f"{key}:prompts",),
        )  # fmt: skip
        st.toggle(
            "I know the right answers", known, key=f"{key}:references", persist_state="session",
            help="Then the answers are also scored against them.",
        )  # fmt: skip
    system = st.text_area(
        "System prompt", draft.system_of(given[0]) if given else "", key=f"{key}:system", height=68,
        placeholder="None", help="For all sets, unless a set has its own.", persist_state="session",
    )  # fmt: skip
    first = [Message("system", system)] if system.strip() else []
    return tuple(
        PromptItem(messages=(*first, Message("user", text)), reference=reference.strip() or None)
        for text, reference in asked
        if text.strip()
    )


def _reference(key: str, number: int, before: PromptItem | None) -> str:
    return st.text_area(
        "Right answer", (before.reference if before else "") or "", key=f"{key}:reference:{number}",
        width=260, height=90, placeholder="Optional", persist_state="session",
    )  # fmt: skip


def _list(items: tuple[PromptItem, ...]) -> None:
    """The prompts to read through; the first lines of each."""
    if not items:
        return
    with st.expander(f"Look at the prompts ({len(items)})"):
        for place, item in enumerate(items[:_SHOWN]):
            known = f" → {_short(item.reference)}" if item.reference else ""
            st.markdown(f"{place + 1}\\. {plain_text(_short(item.text))}{plain_text(known)}")
        if len(items) > _SHOWN:
            st.caption(f"and {len(items) - _SHOWN} more")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"
