"""The library: every model on this machine, to be scanned, loaded, looked at and deleted."""

from __future__ import annotations

import streamlit as st

from core.errors import ModelError
from core.hub.records import size_words
from core.models.library import SOURCES, LibraryModel
from core.types import EngineSpec
from pages.parts import models_import, models_nav, session
from pages.parts.charts import counted
from pages.parts.markdown import plain_text
from pages.parts.models_words import facts_words, used_words

_WIDTHS = (4.8, 1.8, 1.6, 1.6, 2.3)
_SOURCES = {
    "embedded": "comes with the workbench",
    "workspace": "the workspace's models folder",
    "imported": "imported, stays where it is",
}
_SEARCH_FROM = 8
_POPOVER_PIXELS = 420


def draw() -> None:
    models = session.library().list()
    with st.container(horizontal=True, vertical_alignment="center"):
        total = sum(model.size_bytes for model in models)
        st.caption(f"{counted(len(models), 'model')} here, {size_words(total)}")
        st.space("stretch")
        st.button("Get a model", icon=":material/download:", on_click=models_nav.go, args=("get",))
        models_import.menu()
    models_import.copies()
    shown = _search(models)
    loaded = session.library().of(spec) if (spec := loaded_spec()) else None
    _head()
    for model in shown:
        _row(model, is_loaded=loaded is not None and loaded.key == model.key)
    if not shown:
        st.caption("No model is called so.")
    if len(models) == 1:
        st.info(
            "This small model comes with the workbench. Get a larger one from Hugging Face or ModelScope, or "
            "import a folder or GGUF file that you have.",
            icon=":material/lightbulb:",
        )


def loaded_spec() -> EngineSpec | None:
    """What the engine has, or is about to have."""
    status = session.runtime().status()
    return status.spec if status.phase in ("ready", "loading", "restarting") else None


def _search(models: tuple[LibraryModel, ...]) -> list[LibraryModel]:
    if len(models) < _SEARCH_FROM:
        return list(models)
    text = st.text_input(
        "Search", key="models:search", placeholder="Search names and architectures",
        icon=":material/search:", label_visibility="collapsed",
    ).casefold()  # fmt: skip
    return [one for one in models if text in f"{one.name} {one.architecture} {one.quantization}".casefold()]


def _head() -> None:
    titles = ("Model", "Size", "Context", "Used", "")
    for cell, title in zip(st.columns(_WIDTHS, gap="small"), titles, strict=True):
        cell.caption(title)


def _row(model: LibraryModel, *, is_loaded: bool) -> None:
    with st.container(border=True):
        name, size, context, used, actions = st.columns(_WIDTHS, gap="small", vertical_alignment="center")
        badge = " :green-badge[loaded]" if is_loaded else ""
        with name.container(gap=None):
            st.markdown(f"**{plain_text(model.name)}**{badge}")
            st.caption(plain_text(" · ".join(facts_words(model))))
        size.markdown(size_words(model.size_bytes) if model.size_bytes else "–")
        context.markdown(f"{model.context_tokens:,}" if model.context_tokens else "–")
        used.markdown(used_words(model.last_used_at))
        with actions.container(horizontal=True, horizontal_alignment="right", gap="xsmall"):
            st.button(
                "Load", key=f"models:load:{model.key}", on_click=models_nav.open_model, args=(model.key,),
                disabled=model.problem is not None, help="See whether it fits, choose settings, load it",
            )  # fmt: skip
            with (
                st.popover("", icon=":material/more_horiz:", key=f"models:more:{model.key}"),
                st.container(width=_POPOVER_PIXELS),
            ):
                _details(model)
                _delete(model, is_loaded=is_loaded)
        if model.problem:
            st.markdown(f":orange[:material/warning:] {plain_text(f'{model.problem} {model.hint}')}")


def _details(model: LibraryModel) -> None:
    lines = {
        "Source": _SOURCES.get(model.source, SOURCES[model.source]),
        "Revision": model.revision,
        "Licence": model.license or "its files don't say",
        "Format": "GGUF" if model.format == "gguf" else model.format,
    }
    if model.facts is not None:
        facts = model.facts
        lines |= {
            "Parameters": f"{facts.parameters:,}" if facts.parameters else None,
            "Kept as": facts.quantization or facts.dtype,
            "Layers": f"{facts.layers:,}, hidden size {facts.hidden_size:,}, vocabulary {facts.vocab_size:,}",
            "Own code": "needed: loaded only where it was allowed" if facts.needs_code else None,
        }
    words = [f"{title}: {plain_text(str(value))}" for title, value in lines.items() if value]
    st.markdown("  \n".join(words))
    st.code(str(model.path), language=None, wrap_lines=True)


def _delete(model: LibraryModel, *, is_loaded: bool) -> None:
    asked = f"models:delete:{model.key}"
    if model.source == "embedded":
        st.caption("It comes with the workbench, and stays.")
    elif is_loaded:
        st.caption("It is loaded: unload it before you delete it.")
    elif not st.session_state.get(f"{asked}:sure"):
        title = "Forget" if model.source == "imported" else "Delete"
        if st.button(title, key=asked, icon=":material/delete:"):
            st.session_state[f"{asked}:sure"] = True
            st.rerun()
    else:
        if model.source == "imported":
            st.markdown("Forget this model? Its files stay where they are.")
        else:
            st.markdown(f"Delete it, and free {size_words(model.size_bytes)}? There is no way back.")
        with st.container(horizontal=True):
            st.button("Yes", key=f"{asked}:yes", type="primary", on_click=_delete_now, args=(model,))
            st.button("No", key=f"{asked}:no", on_click=st.session_state.pop, args=(f"{asked}:sure", None))


def _delete_now(model: LibraryModel) -> None:
    st.session_state.pop(f"models:delete:{model.key}:sure", None)
    try:
        freed = session.library().delete(model.key, loaded=loaded_spec())
    except ModelError as error:
        st.toast(plain_text(str(error)), icon=":material/error:")
        return
    done = f"deleted, {size_words(freed)} freed" if model.source != "imported" else "forgotten"
    st.toast(f"{plain_text(model.name)} was {done}.")
