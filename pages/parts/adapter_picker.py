"""Choosing a LoRA adapter: for a conversation, a set, a batch. Drawn where there is one to choose."""

from __future__ import annotations

import streamlit as st

from core.adapters.registry import BASE, is_base
from pages.parts import session
from pages.parts.markdown import plain_text

_NOBODY = "None: the model itself"
_HELP = "A LoRA adapter answers in place of the model. Register them on the models page, under Adapters."


def adapter_picker(key: str, first: str | None) -> str | None:
    """Draw the choice, beginning with `first`; gives the adapter's name, None for the model itself."""
    first = None if is_base(first) else first
    names = list(adapter_names())
    now = st.session_state.get(key, first)
    if not names and now is None:
        return None
    if now is not None and now not in names:
        names.append(now)
    why_not = why_no_adapters()
    chosen = st.selectbox(
        "Adapter",
        [None, *names],
        index=[None, *names].index(now),
        format_func=lambda name: _NOBODY if name is None else _title(name),
        key=key,
        disabled=why_not is not None and now is None,  # one that is set can still be taken away
        help=_HELP,
        persist_state="session",
    )
    if why_not is not None:
        st.caption(f"{plain_text(why_not)} Load it again with LoRA to use adapters.")
    return chosen


def adapter_names() -> tuple[str, ...]:
    """All that are registered, those of the loaded model first."""
    listed = session.adapters().list()
    return tuple(one.name for one in sorted(listed, key=lambda one: (not one.is_for(*loaded()), one.name)))


def adapters_or_base() -> tuple[str, ...]:
    """The names that stand for an adapter or for the model itself."""
    return (BASE, *adapter_names())


def why_no_adapters() -> str | None:
    """Why the loaded engine takes none, None where it does or nothing is loaded yet."""
    info = session.runtime().status().info
    return info.cannot.get("adapters") if info else None


def loaded() -> tuple[str, ...]:
    """The names of the model that is loaded."""
    status = session.runtime().status()
    names = (status.info.model if status.info else "", status.spec.model if status.spec else "")
    return tuple(name for name in names if name)


def _title(name: str) -> str:
    one = next((one for one in session.adapters().list() if one.name == name), None)
    if one is None:
        return f"{name} (removed)"
    return name if not loaded() or one.is_for(*loaded()) else f"{name} (for {one.base})"
