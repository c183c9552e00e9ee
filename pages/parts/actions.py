"""What a button does: done and shown, or said why not."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from core.errors import WorkbenchError
from pages.parts.markdown import plain_text


def attempt(action: Callable[[], object]) -> None:
    """Do it and draw the page anew; an error stands where the button is."""
    try:
        action()
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        st.rerun()
