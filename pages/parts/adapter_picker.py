"""Choosing a LoRA adapter: for a conversation, a set, a batch. Drawn where there is one to choose."""

from __future__ import annotations

import streamlit as st

from core.adapters.registry import BASE, Adapter, is_base
from pages.parts import session
from pages.parts.markdown import plain_text

_NOBODY = ""
_HELP = "A LoRA adapter answers in place of the model. Register them on the models page, under Adapters."


def adapter_picker(key: str, first: str | None) -> str | None:
    """Draw the choice, beginning with `first`; gives the adapter's name, None for the model itself."""
    listed = {one.name: one for one in _listed()}
    now = st.session_state.get(key, _NOBODY if is_base(first) else first)
    if not listed and now == _NOBODY:
        return None
    options = [_NOBODY, *listed, *(() if now in (_NOBODY, *listed) else (now,))]
    why_not = why_no_adapters()
    chosen = st.selectbox(
        "Adapter",
        options,
        index=options.index(now),
        format_func=lambda name: _title(name, listed.get(name)),
        key=key,
        disabled=why_not is not None and now == _NOBODY,  # one that is set can still be taken away
        help=_HELP,
        persist_state="session",
    )
    if why_not is not None:
        st.caption(f"{plain_text(why_not)} Load it again with LoRA to use adapters.")
    return chosen or None


def adapter_names() -> tuple[str, ...]:
    """All that are registered, those of the loaded model first."""
    return tuple(one.name for one in _listed())


def _listed() -> list[Adapter]:
    model = loaded()
    return sorted(session.adapters().list(), key=lambda one: (not one.is_for(*model), one.name))


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


def _title(name: str, one: Adapter | None) -> str:
    if name == _NOBODY:
        return "None: the model itself"
    if one is None:
        return f"{name} (removed)"
    return name if not loaded() or one.is_for(*loaded()) else f"{name} (for {one.base})"
