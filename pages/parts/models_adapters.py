"""LoRA adapters: which there are, registering one, merging one into its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from core.adapters.registry import Adapter
from core.errors import WorkbenchError
from core.hub.records import DownloadSpec, size_words
from core.models import locate
from core.models.library import LibraryModel
from pages.parts import models_downloads, models_merges, models_nav, session
from pages.parts.adapter_picker import loaded, why_no_adapters
from pages.parts.markdown import plain_text

_POPOVER_PIXELS = 400
_HUBS = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
_TURN, _PROBLEM = "adapters:turn", "adapters:problem"


def draw() -> None:
    st.subheader("LoRA adapters", anchor=False)
    st.caption(
        "Small additions to a model, trained apart. One engine answers with several of them at once: "
        "choose one in a chat's settings, in a set of a comparison, for a batch or in a column of its table."
    )
    registered = session.adapters().list()
    if registered:
        _engine_words()
    for one in registered:
        _adapter(one)
    models_merges.draw()
    _found(registered)
    models_downloads.draw()
    with st.expander(
        "Register an adapter", expanded=not registered, icon=":material/add:", key="adapters:register"
    ):
        _form()


def _engine_words() -> None:
    """What to do where the loaded engine takes no adapters."""
    why_not, status = why_no_adapters(), session.runtime().status()
    if why_not is None or status.spec is None:
        return
    st.info(f"{plain_text(why_not)} To use adapters, load it with “Take LoRA adapters” switched on.")
    for model in session.library().list():
        if model.model == status.spec.model:
            st.button(
                "Open its load form", key="adapters:load", on_click=models_nav.open_model, args=(model.key,)
            )
            return


def _adapter(one: Adapter) -> None:
    with st.container(border=True, key=f"adapter-{one.number}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            with st.container(gap=None, width="stretch"):
                st.markdown(f"**{plain_text(one.name)}**")
                st.caption(" · ".join(_facts(one)))
            if loaded() and one.is_for(*loaded()) and one.problem is None:
                st.badge("For the loaded model", icon=":material/check:", color="green")
            turn = st.session_state.get(_TURN, 0)  # a new menu, closed, after each merge
            key = f"adapter-merge-menu-{one.number}-{turn}"
            with st.popover("Merge", icon=":material/merge:", key=key, disabled=one.problem is not None):
                _merge_form(one)
            with st.popover("", icon=":material/more_vert:", key=f"adapter-more-{one.number}"):
                st.caption(f"Its files stay in {plain_text(one.folder)}.")
                st.button(
                    "Remove it from the list", icon=":material/delete:", key=f"adapter-remove-{one.number}",
                    on_click=_remove, args=(one.name,),
                )  # fmt: skip
        if one.problem:
            st.error(plain_text(one.problem), icon=":material/error:")


def _facts(one: Adapter) -> list[str]:
    words = [f"rank {one.rank}", size_words(one.size_bytes), plain_text(", ".join(one.target_modules))]
    words.append(f"made for {plain_text(one.base)}" if one.base else "does not say what it was made for")
    if one.checked_with is None:
        words.append("its model is not here yet, so it was not compared")
    return words + ([f"from {plain_text(one.source)}"] if one.source else [])


def _merge_form(one: Adapter) -> None:
    with st.form(f"adapter-merge-{one.number}", border=False, width=_POPOVER_PIXELS):
        st.caption(
            "A new model of the library: the adapter added to the weights of its model. It is loaded without "
            "LoRA, and runs as fast as the model itself."
        )
        own = (one.checked_with or one.base).rstrip("/").rpartition("/")[2] or "merged"
        name = st.text_input("Name of the new model", f"{own}-{one.name}".replace(" ", "-"))
        if st.form_submit_button("Merge", type="primary"):
            try:
                session.merges().start(one.name, name.strip())
            except WorkbenchError as error:
                st.error(plain_text(str(error)))
            else:
                st.session_state[_TURN] = st.session_state.get(_TURN, 0) + 1
                st.rerun()


def _remove(name: str) -> None:
    try:
        session.adapters().remove(name)
    except WorkbenchError as error:  # another tab was first
        st.toast(plain_text(str(error)))


def _found(registered: Sequence[Adapter]) -> None:
    """Adapters that were downloaded or put among the models, and are not registered."""
    known = {one.folder for one in registered}
    others = [one for one in session.library().adapters() if str(one.path.resolve()) not in known]
    if others:
        st.markdown("**On this machine, not registered**")
    for model in others:
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            st.markdown(
                f"**{plain_text(model.name)}** :gray[{size_words(model.size_bytes)}]", width="stretch"
            )
            st.button("Register", key=f"adapter-found-{model.key}", on_click=_take, args=(model,))
    if problem := st.session_state.get(_PROBLEM):
        st.error(plain_text(problem), icon=":material/error:")


def _take(model: LibraryModel) -> None:
    st.session_state.pop(_PROBLEM, None)
    try:
        name = model.name.rstrip("/").rpartition("/")[2]
        session.adapters().add(name, model.path, source=model.repo or "")
    except WorkbenchError as error:
        st.session_state[_PROBLEM] = str(error)


def _form() -> None:
    turn = st.session_state.get(_TURN, 0)
    with st.form(f"adapters:form:{turn}", border=False):
        name = st.text_input("Name", placeholder="What to call it")
        where = st.text_input(
            "Folder or hub id", placeholder="/data/my-adapter or owner/name",
            help="A folder of the machine of the workbench with adapter_config.json and "
            "adapter_model.safetensors, or a repository, which is downloaded.",
        )  # fmt: skip
        hub = st.selectbox("Hub", list(_HUBS), format_func=_HUBS.get)
        if not st.form_submit_button("Register", type="primary"):
            return
    try:
        done = _register(name.strip(), where.strip(), hub)
    except WorkbenchError as error:
        st.error(plain_text(str(error)), icon=":material/error:")
        return
    st.toast(done)
    st.session_state[_TURN] = turn + 1
    st.rerun()


def _register(name: str, where: str, hub: str) -> str:
    """Register a folder, or a repository that is here; else download that. Gives what was done."""
    folder, source = Path(where).expanduser(), ""
    if where and not folder.is_dir():
        there = locate.find(where, session.runtime().settings, hub=hub)
        if there is None and where.count("/") == 1 and not where.startswith((".", "/", "~")):
            session.downloads().start(DownloadSpec(hub=hub, repo=where))
            return "The adapter is being downloaded. Register it when it is there."
        folder, source = (there.path, where) if there else (folder, "")
    session.adapters().add(name, folder, source=source)
    return f"{plain_text(name)} is registered."
