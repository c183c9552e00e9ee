"""Get models, see whether they fit, load them. `?model=KEY` opens one of the library.

Each part of a section has a function `draw()`.
"""

from __future__ import annotations

import importlib
import importlib.util

import streamlit as st

from pages.parts import models_nav

_SECTIONS = {
    "library": ("Library", ("models_library",)),
    "get": ("Get", ("models_downloads", "models_get")),
    "load": ("Load", ("models_open",)),
    "engines": ("Engines", ("models_engines", "models_endpoints")),
    "adapters": ("Adapters", ("models_adapters",)),
}


def _there(part: str) -> bool:
    needs = {"models_open": "models_load"}.get(part, part)
    return importlib.util.find_spec(f"pages.parts.{needs}") is not None


st.title("Models", anchor=False)
sections = {name: title for name, (title, parts) in _SECTIONS.items() if any(map(_there, parts))}
for part in filter(_there, _SECTIONS[models_nav.section(sections)][1]):
    importlib.import_module(f"pages.parts.{part}").draw()
