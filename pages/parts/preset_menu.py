"""Presets on a form: take one, keep what is entered as one, delete one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from core import sampling
from core.errors import WorkbenchError
from core.presets import Preset
from pages.parts import session
from pages.parts.markdown import plain_text

_PIXELS = 360


def preset_menu(key: str, params: Mapping[str, Any], apply: Callable[[Mapping[str, Any]], None]) -> None:
    """Draw the popover; `params` are what is entered now, `apply` gets those of a chosen preset."""
    with st.popover("Presets", icon=":material/bookmarks:"), st.container(width=_PIXELS):
        presets = {preset.name: preset for preset in session.presets().list()}
        if presets:
            _choose(key, presets, apply)
        else:
            st.caption("A preset keeps these values under a name, for all pages and the command line.")
        _save(key, presets, params)


def _choose(key: str, presets: Mapping[str, Preset], apply: Callable[[Mapping[str, Any]], None]) -> None:
    name = f"{key}:preset"
    if st.session_state.get(name) not in presets:  # deleted in another tab
        st.session_state[name] = None
    chosen = st.selectbox("Preset", list(presets), index=None, key=name, placeholder="Choose a preset")
    if chosen is None:
        return
    preset = presets[chosen]
    if preset.about:
        st.text(preset.about)
    st.code(
        "\n".join(sampling.as_assignments(preset.params)) or "the model's defaults",
        language=None,
        wrap_lines=True,
    )
    elsewhere = [one for one in preset.params if one in sampling.BY_NAME and sampling.BY_NAME[one].batch_only]
    if elsewhere:
        st.caption(f"Not part of this form: {plain_text(', '.join(elsewhere))}.")
    with st.container(horizontal=True):
        st.button(
            "Use it",
            key=f"{key}:preset:use",
            icon=":material/check:",
            help="Set all values of this form: those the preset doesn't name go to the model's defaults.",
            on_click=_use,
            args=(preset, apply),
        )
        st.button(
            "Delete",
            key=f"{key}:preset:delete",
            type="tertiary",
            icon=":material/delete:",
            on_click=_said,
            args=(lambda: session.presets().delete(chosen), f"Deleted the preset {chosen}."),
        )


def _save(key: str, presets: Mapping[str, Preset], params: Mapping[str, Any]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.text_input(
            "Save these values as", key=f"{key}:preset:name", placeholder="A name, such as Strict"
        ).strip()
        st.button(
            "Replace" if name in presets else "Save",
            key=f"{key}:preset:save",
            icon=":material/bookmark_add:",
            disabled=not name,
            on_click=_said,
            args=(lambda: session.presets().save(name, params), f"Saved the preset {name}."),
        )


def _use(preset: Preset, apply: Callable[[Mapping[str, Any]], None]) -> None:
    _said(lambda: apply(sampling.validate(preset.params)), f"These are the values of {preset.name} now.")


def _said(act: Callable[[], object], done: str) -> None:
    try:
        act()
    except WorkbenchError as error:
        done = str(error)
    st.toast(plain_text(done))
