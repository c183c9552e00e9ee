"""streamlit run Home.py

The server imports this file as an ASGI app, so that the engine loads as soon as
the server starts; each visit then runs it as the page.
"""

from __future__ import annotations

import streamlit as st
from starlette.middleware import Middleware
from streamlit.runtime.pages_manager import PagesManager

from core.errors import WorkbenchError
from pages.parts import session
from pages.parts.engine_bar import engine_bar

_ICON = str(session.ROOT / "pages/parts/bolt.svg")
_PAGES = (
    ("pages/home.py", "Home", ":material/home:"),
    ("pages/chat.py", "Chat", ":material/chat:"),
    ("pages/compare.py", "Compare", ":material/compare:"),
    ("pages/batch.py", "Batch", ":material/table_rows:"),
    ("pages/models.py", "Models", ":material/deployed_code:"),
    ("pages/benchmark.py", "Benchmark", ":material/speed:"),
    ("pages/api.py", "API", ":material/api:"),
    ("pages/runs.py", "Runs", ":material/history:"),
)


def draw() -> None:
    st.set_page_config(page_title="vLLM Workbench", page_icon=_ICON, layout="wide")
    page = st.navigation(
        [
            st.Page(path, title=title, icon=icon, default=path == "pages/home.py")
            for path, title, icon in _PAGES
            if session.page_exists(path)
        ]
    )
    try:
        session.ensure_loaded()
    except WorkbenchError as error:
        st.error(error.message, icon=":material/error:")
        st.markdown(error.hint)
        st.stop()
    with st.sidebar:
        engine_bar()
    page.run()


if __name__ == "__main__":
    draw()
else:
    # Streamlit takes a folder named pages for its older scheme until st.navigation has run once:
    # the first visit to /batch, say, would get that file alone, without menu and engine bar.
    PagesManager.uses_pages_directory = False
    app = st.App(__file__, lifespan=session.lifespan, middleware=[Middleware(session.LocalImages)])
