"""The sampling microscope on one answer of a comparison."""

from __future__ import annotations

import streamlit as st

from core.answers import read_logprobs
from core.comparing.cells import Place
from core.comparing.runner import ComparisonView
from core.comparing.spec import messages_of, params_of
from core.errors import WorkbenchError
from pages.parts import compare_draft as draft
from pages.parts import session
from pages.parts.compare_header import show
from pages.parts.markdown import plain_text
from pages.parts.microscope import microscope


def draw(view: ComparisonView) -> None:
    """Choose a prompt and a set; "Use these values" sets up a comparison with one more set."""
    key = f"compare:microscope:{view.comparison_id}"
    spec = view.spec
    sample = 0
    with st.container(horizontal=True, vertical_alignment="bottom"):
        prompt = st.selectbox(
            "Prompt", range(len(spec.prompts)), key=f"{key}:prompt", persist_state="session", width=360,
            format_func=lambda one: f"{one + 1}. {spec.prompts[one].title}",
        )  # fmt: skip
        place = st.selectbox(
            "Set", range(len(spec.sets)), format_func=lambda one: spec.sets[one].name, key=f"{key}:set",
            persist_state="session", width=260,
        )  # fmt: skip
        if len(spec.seeds) > 1:
            sample = st.selectbox(
                "Answer", range(len(spec.seeds)), format_func=lambda one: str(one + 1), key=f"{key}:sample",
                persist_state="session", width=110,
            )  # fmt: skip
    one, cell = spec.sets[place], view.cells[Place(prompt, place, sample)]
    try:
        wrapper = session.wrappers().find(one.style)
        messages = messages_of(spec.prompts[prompt], one)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return
    chosen = microscope(
        f"{key}:{prompt}:{place}:{sample}",
        messages,
        read_logprobs(cell.details) or cell.text,
        params=params_of(one, spec.seeds[sample]),
        style=one.style,
        wrapper=wrapper,
        options=one.template_options,
        adapter=one.adapter,
    )
    if chosen is not None:
        _add_set(view, place, chosen)


def _add_set(view: ComparisonView, place: int, params: dict[str, object]) -> None:
    """A draft of this comparison with the microscope's values as one more set."""
    params = {name: value for name, value in params.items() if name != "seed"}
    names = {one.name for one in view.spec.sets}
    name, number = "From the microscope", 2
    while name in names:
        name, number = f"From the microscope {number}", number + 1
    added = view.spec.sets[place].model_copy(update={"name": name, "params": params})
    draft.fill(view.spec.model_copy(update={"name": "", "sets": (*view.spec.sets, added)}))
    show(None)
    st.rerun()
