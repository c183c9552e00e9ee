"""Loading a model: which engine, with which settings, what it will take, and what it took."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from core import engine_settings
from core.engines import choice
from core.engines.choice import Offer
from core.errors import ParameterError, WorkbenchError
from core.models.library import LibraryModel
from core.types import EngineSpec, MemoryReading
from pages.parts import session
from pages.parts.charts import gibibytes
from pages.parts.engine_in_use import in_use_words
from pages.parts.engine_settings import fill_in, settings_form
from pages.parts.markdown import plain_text
from pages.parts.models_fit import fit_card

_ASKING, _TURN, _CLEARED = "models_load:asking", "models_load:turn", "models_load:cleared"
_SHOWN_READINGS = 6
_FORM_PIXELS, _CARD_PIXELS = 480, 330


def load_form(model: LibraryModel) -> None:
    """The form for a model, what it would take beside it, and what the last loads took."""
    start = _start(model)
    row = st.container(horizontal=True, gap="medium")  # the card goes under the form on a narrow page
    left, right = row.container(width=_FORM_PIXELS), row.container(width=_CARD_PIXELS)
    with left:
        start = _engine(model, start)
        if start is None:
            return
        key = f"models_load:{start.engine}:{start.model}:{start.revision}:{st.session_state.get(_TURN, 0)}"
        spec = settings_form(key, start, choice.this_machine())
        if spec is not None and spec.enable_lora:
            spec = session.adapters().with_lora(spec)
    with right:
        fits = spec is None or fit_card(model, spec, functools.partial(fill_in, key))
    with left:
        _load_row(spec, fits and model.problem is None)
    _memory(session.runtime().memory_readings())


def _start(model: LibraryModel) -> EngineSpec:
    """What the form begins with: what is loaded, if it is this model, else what was kept for it."""
    loaded, spec = session.runtime().status().spec, session.runtime().default_spec()
    if spec.model != model.model:
        spec = EngineSpec(engine=choice.suggest(str(model.path)), model=model.model)
    if st.session_state.get(_CLEARED) != model.model:
        is_loaded = loaded is not None and loaded.model == model.model
        spec = loaded if is_loaded else session.saved_settings().find(model.model) or spec
    return replace(spec, hub=model.hub, revision=model.revision)


def _engine(model: LibraryModel, start: EngineSpec) -> EngineSpec | None:
    """Choose among the engines that read this model; those that can't run here are named with the reason.

    None where no engine can.
    """
    readers = _readers(model, start)
    can = {each.engine: each for each in readers if each.obstacle is None}
    for each in readers:
        if each.obstacle:
            say = st.caption if can else st.warning
            say(f"**{each.title}** can't run here. {plain_text(each.obstacle)}")
    if not can:
        return None
    engine = start.engine if start.engine in can else next(iter(can))
    if len(can) > 1:
        engine = st.segmented_control(
            "Engine", list(can), format_func=lambda name: can[name].title, default=engine, required=True,
            key=f"models_load:engine:{start.model}:{st.session_state.get(_TURN, 0)}", persist_state="session",
        )  # fmt: skip
    st.caption(can[engine].about)
    return engine_settings.for_engine(replace(start, engine=engine))


def _readers(model: LibraryModel, start: EngineSpec) -> list[Offer]:
    names = {"llamacpp"} if model.format == "gguf" else {"vllm", "transformers"}
    if start.engine == "scripted" or session.runtime().settings.engine == "scripted":
        names.add("scripted")
    return [each for each in choice.offers(choice.this_machine()) if each.engine in names]


def _load_row(spec: EngineSpec | None, fits: bool) -> None:
    """The button, checked before it is pressed; it asks first when something is at work."""
    problem = None
    if spec is not None:
        try:
            engine_settings.validate(spec, choice.this_machine())
        except ParameterError as error:
            problem = error
            st.error(plain_text(str(error)))
    with st.container(horizontal=True):
        pressed = st.button(
            "Load" if fits else "Load anyway", type="primary", icon=":material/play_arrow:",
            disabled=spec is None or problem is not None, key="models_load:load",
        )  # fmt: skip
        if spec is not None and session.saved_settings().find(spec.model) is not None:
            st.button(
                "Back to automatic", type="tertiary", icon=":material/restart_alt:", key="models_load:reset",
                help="Forget the settings kept for this model.", on_click=_reset, args=(spec.model,),
            )  # fmt: skip
    st.caption("The settings are kept for this model and used whenever it is loaded.")
    words = in_use_words("Loading another engine")
    if pressed and words:
        st.session_state[_ASKING] = True
    elif pressed:
        _load(spec)
    if not words:
        _stop_asking()
    if words and st.session_state.get(_ASKING) and spec is not None and problem is None:
        _ask(words, spec)


def _ask(words: str, spec: EngineSpec) -> None:
    with st.container(border=True):
        st.warning(words, icon=":material/warning:")
        with st.container(horizontal=True):
            if st.button("Interrupt and load", key="models_load:interrupt"):
                _load(spec)
            st.button("Let it work", type="tertiary", key="models_load:keep", on_click=_stop_asking)


def _stop_asking() -> None:
    st.session_state.pop(_ASKING, None)


def _reset(model: str) -> None:
    session.saved_settings().forget(model)
    st.session_state[_CLEARED] = model
    st.session_state[_TURN] = st.session_state.get(_TURN, 0) + 1


def _load(spec: EngineSpec) -> None:
    _stop_asking()
    try:
        session.runtime().load(spec)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return
    session.saved_settings().save(spec)
    st.session_state.pop(_CLEARED, None)
    st.rerun()


def _memory(readings: Sequence[MemoryReading]) -> None:
    """What the last loads and unloads did to memory, the newest first."""
    if not readings:
        return
    st.markdown(f"**Memory before and after** ({readings[-1].device})")
    shown = readings[: -_SHOWN_READINGS - 1 : -1]
    st.dataframe(
        {
            "When": [each.at.astimezone().strftime("%H:%M:%S") for each in shown],
            "What": [f"{each.event} {each.model}" for each in shown],
            "Before": [gibibytes(each.before_bytes) for each in shown],
            "After": [gibibytes(each.after_bytes) for each in shown],
        },
        hide_index=True,
    )
