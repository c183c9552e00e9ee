"""A folder or GGUF file of the server becomes a model of the library."""

from __future__ import annotations

import streamlit as st

from core.errors import WorkbenchError
from core.hub.records import size_words
from core.models.importing import Import
from pages.parts import models_nav, session
from pages.parts.markdown import plain_text

_POPOVER_PIXELS = 440
_POLL_S = 0.5


def menu() -> None:
    """The button, and the form behind it; it is a new one, closed, after each import."""
    turn = st.session_state.get("models:imports", 0)
    with (
        st.popover("Import", icon=":material/drive_folder_upload:", key=f"models:import:{turn}"),
        st.form(f"models:import:form:{turn}", border=False, width=_POPOVER_PIXELS),
    ):
        st.caption("A fine-tuned checkpoint, or a GGUF file, that lies on the machine of the workbench.")
        path = st.text_input("Folder or GGUF file", placeholder="/data/my-model")
        name = st.text_input("Name", placeholder="as the folder is called")
        copy = st.checkbox(
            "Copy it into the workspace",
            help="Without a copy nothing is stored twice, but it must stay where it is.",
        )
        pickle = st.checkbox(
            "Allow pickle weights (.bin, .pt)",
            help="Pickle files run any code that is in them, with your rights. Allow it only for weights "
            "that you have made yourself or whose maker you trust.",
        )
        if st.form_submit_button("Import", type="primary"):
            _start(path.strip(), name.strip(), copy, pickle)


def _start(path: str, name: str, copy: bool, pickle: bool) -> None:
    if not path:
        st.error("Give the path of a folder or GGUF file.")
        return
    try:
        begun = session.imports().start(path, name=name, copy=copy, allow=("pickle",) if pickle else ())
    except WorkbenchError as error:
        st.error(f"{plain_text(error.message)} {plain_text(error.hint)}")
        return
    st.session_state["models:imports"] = st.session_state.get("models:imports", 0) + 1
    if begun.state == "finished":
        st.toast(f"{plain_text(begun.name)} is in the library.", icon=":material/check:")
    st.rerun()


def copies() -> None:
    """Copies at work, and how the others ended."""
    if session.imports().list():
        _copies()


@st.fragment(run_every=_POLL_S)
def _copies() -> None:
    seen = "models:imports:running"
    views = session.imports().list()
    running = [view.name for view in views if view.state == "running"]
    before = st.session_state.get(seen)
    st.session_state[seen] = running
    if before is not None and before != running:
        st.rerun()  # what has arrived is to be seen in the list
    for view in views:
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            _copy(view)


def _copy(view: Import) -> None:
    name = plain_text(view.name)
    imports = session.imports()
    if view.state == "running":
        done = f"{size_words(view.done_bytes)} of {size_words(view.total_bytes)}"
        st.progress(view.share, f"Copying **{name}**: {done}")
        st.button("Cancel", key=f"models:copy:{view.name}", on_click=imports.cancel, args=(view.name,))
        return
    if view.state == "finished":
        st.markdown(f":green[:material/check:] **{name}** was copied.")
        if view.key:
            st.button(
                "Load", key=f"models:copied:{view.name}", on_click=models_nav.open_model, args=(view.key,)
            )
    else:
        why = "was given up; nothing of it was kept." if view.state == "cancelled" else view.message
        st.markdown(f":red[:material/error:] **{name}** {plain_text(why)}")
    st.space("stretch")
    st.button(
        "", icon=":material/close:", key=f"models:copy:{view.name}", type="tertiary", help="Put this away",
        on_click=imports.forget, args=(view.name,),
    )  # fmt: skip
