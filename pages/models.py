"""Get models, see whether they fit, load them. `?model=KEY` opens one of the library."""

from __future__ import annotations

import streamlit as st

from pages.parts import (
    models_adapters,
    models_downloads,
    models_endpoints,
    models_engines,
    models_get,
    models_library,
    models_nav,
    models_open,
)

_SECTIONS = {
    "library": ("Library", (models_library.draw,)),
    "get": ("Get", (models_downloads.draw, models_get.draw)),
    "load": ("Load", (models_open.draw,)),
    "engines": ("Engines", (models_engines.draw, models_endpoints.draw)),
    "adapters": ("Adapters", (models_adapters.draw,)),
}

st.title("Models", anchor=False)
chosen = models_nav.section({name: title for name, (title, _parts) in _SECTIONS.items()})
for draw in _SECTIONS[chosen][1]:
    draw()
