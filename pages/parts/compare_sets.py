"""The parameter sets of a comparison: columns made by hand, or every combination of some values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core import sampling
from core.comparing.spec import ComparisonSpec, SetSpec
from core.prompt_styles import CHAT, COMPLETION
from pages.parts import compare_draft as draft
from pages.parts import compare_grid, session
from pages.parts.adapter_picker import adapter_picker
from pages.parts.charts import short_value
from pages.parts.sampling_form import sampling_form

_FIRST = (0.0, 0.7, 1.2)
_CARD_PIXELS = 273
_POPOVER_PIXELS = 420
MOST_BY_HAND = 12
_STYLES = {CHAT: "Chat: the model's own template", COMPLETION: "Completion: nothing added"}
_STYLE_HELP = "How the messages become the text that the model reads."
_WAYS = {"hand": "Column by column", "grid": "Every combination"}


def sets_form(key: str, initial: ComparisonSpec | None, values: Sequence[str]) -> tuple[SetSpec, ...]:
    """Draw the sets; `values`: the names that their templates may use.

    Raises ParameterError for a grid that can't be made.
    """
    tools = st.container(horizontal=True, vertical_alignment="center")
    with tools:
        way = st.segmented_control(
            "Sets", list(_WAYS), format_func=_WAYS.get, default=st.session_state.get(f"{key}:way", "hand"),
            key=f"{key}:way", required=True, persist_state="session", label_visibility="collapsed",
        )  # fmt: skip
    if way == "hand":
        return _columns(key, tools, initial, values)
    sets = compare_grid.grid_form(key)
    if len(sets) <= MOST_BY_HAND:
        with tools:
            st.button(
                "Edit them as columns", icon=":material/view_column:", key=f"{key}:grid-to-columns",
                on_click=_take_over, args=(key, sets), disabled=not sets,
            )  # fmt: skip
    return sets


def _take_over(key: str, sets: Sequence[SetSpec]) -> None:
    """Put the grid's sets into columns, in place of those that are there."""
    name = f"{key}:sets"
    old = list(draft.ids(name, len(_FIRST)))
    for one in sets:
        number = draft.add(name)
        st.session_state[f"{key}:set-initial:{number}"] = one
    for number in old:
        draft.remove(name, number)
    st.session_state[f"{key}:way"] = "hand"


def _columns(
    key: str, tools: DeltaGenerator, initial: ComparisonSpec | None, values: Sequence[str]
) -> tuple[SetSpec, ...]:
    name = f"{key}:sets"
    entries = draft.ids(name, len(initial.sets) if initial else len(_FIRST))
    with tools:
        st.button(
            "Add a set", icon=":material/add:", key=f"{key}:set-add", on_click=draft.add, args=(name,),
            disabled=len(entries) >= MOST_BY_HAND,
        )  # fmt: skip
    drawn = []
    with st.container(horizontal=True, wrap=False):
        for place, number in enumerate(entries):
            with st.container(border=True, width=_CARD_PIXELS):
                drawn.append(_card(key, number, place, _first(key, number, initial), values))
    automatic = automatic_names([made for _place, _typed, made in drawn])
    sets = []
    for number, (place, typed, made), own in zip(entries, drawn, automatic, strict=True):
        with place:
            typed = st.text_input(
                "Name", typed, key=f"{key}:set:{number}:name", placeholder=own, persist_state="session",
                label_visibility="collapsed",
            )  # fmt: skip
        one = made.model_copy(update={"name": typed.strip() or own})
        st.session_state[f"{key}:set-made:{number}"] = one
        sets.append(one)
    return tuple(sets)


def _first(key: str, number: int, initial: ComparisonSpec | None) -> SetSpec:
    """What a column begins with."""
    kept = st.session_state.get(f"{key}:set-initial:{number}")
    if kept is not None:
        return kept
    if initial is not None and number < len(initial.sets):
        return initial.sets[number]
    params = {} if initial is not None or number >= len(_FIRST) else {"temperature": _FIRST[number]}
    return SetSpec(name="-", params=params)


def _card(
    key: str, number: int, place: int, first: SetSpec, values: Sequence[str]
) -> tuple[Any, str, SetSpec]:
    """One column: gives the place for its name, the name it had, and the set."""
    info = session.runtime().status().info
    name = f"{key}:set:{number}"
    with st.container(horizontal=True, vertical_alignment="center", gap=None):
        title = st.container(width="stretch")
        st.button(
            "", icon=":material/content_copy:", key=f"{name}:copy", type="tertiary", on_click=_duplicate,
            args=(key, number), help="Duplicate this set",
        )  # fmt: skip
        st.button(
            "", icon=":material/close:", key=f"{name}:remove", type="tertiary", help="Remove this set",
            on_click=draft.remove, args=(f"{key}:sets", number),
            disabled=len(st.session_state[f"{key}:sets"]) == 1,
        )  # fmt: skip
    params = sampling_form(
        name,
        info.generation_config if info else None,
        initial=first.params,
        main=("temperature", "max_tokens"),
    )
    asked = _own_prompt(name, first, values)
    had = "" if first.name in ("-", automatic_name(place)) else first.name
    return title, had, SetSpec(name="-", params=params, template_options=first.template_options, **asked)


def _own_prompt(name: str, first: SetSpec, values: Sequence[str]) -> dict[str, Any]:
    """A popover with what this set asks differently; gives fields of SetSpec."""
    with st.popover("Prompt", icon=":material/edit_note:"), st.container(width=_POPOVER_PIXELS):
        styles = style_names()
        style = st.selectbox(
            "Prompt style", styles, format_func=style_title, key=f"{name}:style", help=_STYLE_HELP,
            index=styles.index(first.style) if first.style in styles else 0, persist_state="session",
        )  # fmt: skip
        adapter = adapter_picker(f"{name}:adapter", first.adapter)
        own_system = st.toggle(
            "Own system prompt", first.system is not None, key=f"{name}:own-system", persist_state="session"
        )
        system = template = None
        if own_system:
            system = st.text_area(
                "System prompt", first.system or "", key=f"{name}:system", placeholder="None: leave it out",
                persist_state="session", label_visibility="collapsed",
            )  # fmt: skip
        own_template = st.toggle(
            "Own template", first.template is not None, key=f"{name}:own-template", persist_state="session",
            help="Replaces the question of each prompt.",
        )  # fmt: skip
        if own_template:
            template = st.text_area(
                "Template", first.template or "{{ prompt }}", key=f"{name}:template", persist_state="session",
                label_visibility="collapsed",
            )  # fmt: skip
            st.caption(template_words(values))
    return {"style": style or CHAT, "system": system, "template": template, "adapter": adapter}


def style_names() -> list[str]:
    return [CHAT, COMPLETION, *(wrapper.name for wrapper in session.wrappers().list())]


def style_title(style: str) -> str:
    return _STYLES.get(style, style)


def template_words(values: Sequence[str]) -> str:
    """What a set's template may use."""
    named = ", ".join(f"`{{{{ {name} }}}}`" for name in ("prompt", *values[:8]) if name.isidentifier())
    return f"Stands for the prompt's own text: {named}."


def _duplicate(key: str, number: int) -> None:
    made: SetSpec = st.session_state[f"{key}:set-made:{number}"]
    copy = draft.add(f"{key}:sets", after=number)
    st.session_state[f"{key}:set-initial:{copy}"] = made.model_copy(update={"name": "-"})


# -- names ------------------------------------------------------------------------


def automatic_name(place: int) -> str:
    return f"Set {place + 1}"


def automatic_names(sets: Sequence[SetSpec]) -> list[str]:
    """A name for each set that says how it differs from the others: "temperature 0.7, top_p 0.9"."""
    differing = [name for name in sampling.BY_NAME if len({str(_value(one, name)) for one in sets}) > 1]
    names: list[str] = []
    for place, one in enumerate(sets):
        words = [f"{name} {short_value(_value(one, name))}" for name in differing[:3]]
        words += [what for what, differs in _prompt_words(one, sets).items() if differs]
        name = ", ".join(words) or automatic_name(place)
        names.append(f"{name} ({names.count(name) + 1})" if name in names else name)
    return names


def _value(one: SetSpec, name: str) -> Any:
    value = one.params.get(name, sampling.BY_NAME[name].default)
    return float(value) if sampling.BY_NAME[name].kind == "float" and value is not None else value


def _prompt_words(one: SetSpec, sets: Sequence[SetSpec]) -> Mapping[str, bool]:
    return {
        _adapter_words(one): len({other.adapter for other in sets}) > 1,
        one.style: len({other.style for other in sets}) > 1,
        "own system prompt": one.system is not None and len({other.system for other in sets}) > 1,
        "own template": one.template is not None and len({other.template for other in sets}) > 1,
    }


def _adapter_words(one: SetSpec) -> str:
    return "no adapter" if one.adapter is None else f"adapter {one.adapter}"
