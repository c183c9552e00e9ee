"""The comparison that is being set up: it stays in the browser session until the form is filled anew."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.comparing.spec import ComparisonSpec, PromptItem

_DRAFT = "compare:draft"
_NUMBER = "compare:draft-number"


def key() -> str:
    """What the keys of this draft's widgets begin with: filling the form anew makes new widgets."""
    return f"compare:{st.session_state.get(_NUMBER, 0)}"


def initial() -> ComparisonSpec | None:
    """What the form was filled with; None: an empty one."""
    return st.session_state.get(_DRAFT)


def fill(spec: ComparisonSpec | None) -> None:
    """Begin anew with this specification, or with an empty form."""
    _forget(f"{key()}:")
    st.session_state[_NUMBER] = st.session_state.get(_NUMBER, 0) + 1
    st.session_state[_DRAFT] = spec


def _forget(prefix: str) -> None:
    for name in [name for name in st.session_state if isinstance(name, str) and name.startswith(prefix)]:
        del st.session_state[name]


def ids(name: str, count: int) -> list[int]:
    """The numbers of a list's entries, in order; `count` of them the first time."""
    return st.session_state.setdefault(name, list(range(count)))


def add(name: str, after: int | None = None) -> int:
    """A new entry behind the entry `after`, or at the end; gives its number."""
    entries: list[int] = st.session_state[name]
    # numbers are never used again: a new entry would find the widgets of the one that had it
    number = st.session_state[f"{name}:next"] = st.session_state.get(f"{name}:next", max(entries)) + 1
    entries.insert(entries.index(after) + 1 if after is not None else len(entries), number)
    return number


def remove(name: str, number: int) -> None:
    st.session_state[name].remove(number)


def can_be_written(items: Sequence[PromptItem]) -> bool:
    """Whether text fields show all there is of these prompts: one system prompt, one question each."""
    plain = all(
        not item.values
        and item.made_by is None
        and [message.role for message in item.messages] in (["user"], ["system", "user"])
        for item in items
    )
    return plain and len({system_of(item) for item in items}) == 1 and len(items) <= 20


def system_of(item: PromptItem) -> str:
    return next((message.content for message in item.messages if message.role == "system"), "")
