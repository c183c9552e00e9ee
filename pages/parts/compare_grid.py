"""Parameter sets as every combination of some values: temperature 0, 0.7 x top_p 0.8, 0.95."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core import sampling
from core.adapters.registry import BASE
from core.comparing.spec import SetSpec, grid
from core.errors import ParameterError
from pages.parts import compare_draft as draft
from pages.parts import session
from pages.parts.adapter_picker import adapters_or_base, why_no_adapters
from pages.parts.markdown import plain_text
from pages.parts.sampling_form import PARAMETERS, sampling_form

_FIRST = (("temperature", "0, 0.3, 0.7, 1"), ("top_p", "0.8, 0.95"))
_TEXTS = {"system": "system prompt", "template": "template"}
_NAMES = (*(one.name for one in PARAMETERS if one.kind in ("float", "int", "bool")), *_TEXTS)
_SUGGESTED = {
    "temperature": "0, 0.3, 0.7, 1", "top_p": "0.8, 0.95", "top_k": "0, 20, 50", "min_p": "0, 0.05, 0.1",
    "repetition_penalty": "1, 1.1, 1.2", "presence_penalty": "0, 0.5, 1", "frequency_penalty": "0, 0.5, 1",
    "max_tokens": "64, 256",
}  # fmt: skip
_SHARED = ("temperature", "max_tokens", "seed")
_NAMED = 12


def grid_form(key: str) -> tuple[SetSpec, ...]:
    """Draw what varies and what all sets share. Raises ParameterError for values that can't be used."""
    name = f"{key}:axes"
    entries = draft.ids(name, len(_FIRST))
    axes: dict[str, list[Any]] = {}
    for number in entries:
        axis, given = _axis(key, number)
        if axis in axes:
            raise ParameterError(f"{axis} is there twice.", hint="Choose another one.")
        if axis is not None:
            axes[axis] = given
    st.button(
        "Vary one more", icon=":material/add:", key=f"{key}:axis-add", on_click=draft.add, args=(name,),
        disabled=len(entries) >= 4,
    )  # fmt: skip
    st.caption("All sets share")
    info = session.runtime().status().info
    shared = sampling_form(
        f"{key}:grid-base", info.generation_config if info else None,
        main=[name for name in _SHARED if name not in axes], columns=2,
    )  # fmt: skip
    if not axes:
        return ()
    sets = grid(SetSpec(name="Set", params=shared), axes)
    names = [plain_text(one.name) for one in sets]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    st.caption(f"**{len(names)} sets**: {' · '.join(names[:_NAMED])}{more}")
    return sets


def _axis(key: str, number: int) -> tuple[str | None, list[Any]]:
    """One line of the grid: what varies, and its values."""
    first, words = _FIRST[number] if number < len(_FIRST) else (None, "")
    name = f"{key}:axis:{number}"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        names = axis_names()
        axis = st.selectbox(
            "Vary", names, names.index(first) if first else None, format_func=_title, key=name, width=210,
            placeholder="Choose what varies", persist_state="session",
        )  # fmt: skip
        given = _values(name, axis, words if axis == first else _SUGGESTED.get(axis, ""))
        st.button(
            "", icon=":material/close:", key=f"{name}:remove", type="tertiary", help="Don't vary this",
            on_click=draft.remove, args=(f"{key}:axes", number),
            disabled=len(st.session_state[f"{key}:axes"]) == 1,
        )  # fmt: skip
    return axis, given


def axis_names() -> tuple[str, ...]:
    """What may vary; an adapter only where there is one."""
    return (*_NAMES, "adapter") if session.adapters().list() else _NAMES


def _title(name: str) -> str:
    return _TEXTS.get(name, name)


def _values(name: str, axis: str | None, words: str) -> list[Any]:
    if axis is None:
        return []
    if axis == "adapter":
        names = adapters_or_base()
        chosen = st.multiselect(
            "Values", names, names[:4], format_func=_adapter_title, key=f"{name}:values:{axis}",
            persist_state="session",
        )  # fmt: skip
        if why_not := why_no_adapters():
            st.caption(plain_text(why_not))
        return chosen
    if axis in _TEXTS:
        entered = st.text_area(
            "Values", "{{ prompt }}" if axis == "template" else "", key=f"{name}:values:{axis}", height=120,
            placeholder="You are brief.\n---\nYou are thorough.", persist_state="session",
            help="A line with --- alone stands between two of them. In a template, {{ prompt }} stands for "
            "the prompt's own text." if axis == "template" else
            "A line with --- alone stands between two of them; an empty one means no system prompt.",
        )  # fmt: skip
        return texts(entered)
    about = sampling.find(axis)
    entered = st.text_input(
        "Values", words or ("false, true" if about.kind == "bool" else ""), key=f"{name}:values:{axis}",
        help=f"{plain_text(about.help)} With commas between them; allowed: {about.range_text}.",
        persist_state="session",
    )  # fmt: skip
    return [part.strip() for part in entered.replace("，", ",").split(",") if part.strip()]


def _adapter_title(name: str) -> str:
    return "the model itself" if name == BASE else name


def texts(entered: str) -> list[str]:
    """Texts parted by lines of three dashes."""
    parts, lines = [], []
    for line in [*entered.splitlines(), "---"]:
        if line.strip() == "---":
            parts.append("\n".join(lines).strip())
            lines = []
        else:
            lines.append(line)
    return parts
