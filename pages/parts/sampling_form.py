"""The sampling parameters as widgets, made from the one table in `core.sampling`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from core import sampling
from core.errors import ParameterError
from core.sampling import BY_NAME, GROUPS, Parameter
from pages.parts.markdown import plain_text

PARAMETERS = tuple(parameter for parameter in sampling.PARAMETERS if not parameter.batch_only)
_POPOVER_PIXELS = 420
_LABELS = {"top_p": "Top p", "top_k": "Top k", "min_p": "Min p", "max_tokens": "Max tokens"}
_ESCAPE = re.compile(r"\\([nrt\\])")
_MEANING = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def sampling_form(
    key: str,
    generation_config: Mapping[str, Any] | None = None,
    *,
    initial: Mapping[str, Any] | None = None,
    main: Sequence[str] | None = None,
    columns: int = 1,
) -> dict[str, Any]:
    """Draw the form and return validated params: the main ones always, the others where they differ.

    `key` names this form's values, which outlive page switches; `generation_config`
    is the model's own, for the defaults; `initial` overrides them the first time.
    With `main` only these are in sight, in that many `columns`, and all others in a popover:
    for small places. Otherwise it is the table's short form, and the others in an expander.
    """
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS}
    defaults |= sampling.defaults(generation_config)
    _seed(key, defaults, initial or {})
    shown = [p for p in PARAMETERS if (p.form if main is None else p.name in main)]
    hidden = [parameter for parameter in PARAMETERS if parameter not in shown]
    if main is None:
        entered = _groups(key, shown)
        with st.expander("More parameters"):
            others = _grid(key, hidden)
        _reset_button(key, defaults)
    else:
        entered = _grid(key, shown, columns)
        with st.popover("More", icon=":material/tune:"), st.container(width=_POPOVER_PIXELS):
            others = _groups(key, hidden)
            _reset_button(key, defaults)
    st.session_state[f"{key}:values"] = {**entered, **others}
    untouched = {parameter.name: _to_widget(parameter.name, defaults) for parameter in hidden}
    entered |= {
        name: value for name, value in others.items() if BY_NAME[name].form or value != untouched[name]
    }
    return _validated(entered)


def _groups(key: str, rows: Sequence[Parameter]) -> dict[str, Any]:
    entered: dict[str, Any] = {}
    for group, title in GROUPS.items():
        of_group = [parameter for parameter in rows if parameter.group == group]
        if of_group:
            st.markdown(f"**{title}**")
            entered |= _grid(key, of_group)
    return entered


def _reset_button(key: str, defaults: Mapping[str, Any]) -> None:
    st.button(
        "Reset to the model's defaults",
        key=f"{key}:reset",
        type="tertiary",
        icon=":material/restart_alt:",
        on_click=_write,
        args=(key, defaults),
    )


def _grid(key: str, rows: Sequence[Parameter], columns: int = 2) -> dict[str, Any]:
    """Draw `rows` line by line, so that labels of one line stay level."""
    entered = {}
    for start in range(0, len(rows), columns):
        cells = st.columns(columns, vertical_alignment="top") if columns > 1 else [st.container()]
        for cell, parameter in zip(cells, rows[start : start + columns], strict=False):
            with cell:
                entered[parameter.name] = _widget(f"{key}:{parameter.name}", parameter)
    return entered


def _widget(key: str, parameter: Parameter) -> Any:
    label = _LABELS.get(parameter.name) or parameter.name.replace("_", " ").capitalize()
    about = f"`{parameter.name}`: {plain_text(parameter.help)}"
    if parameter.kind in ("float", "int"):
        about += f" Allowed: {parameter.range_text}."
    # the value is given twice: a rerun can overtake the one in the session before the browser has it
    now = st.session_state[key]
    match parameter.kind:
        case "float":
            return st.slider(
                label,
                min_value=min(float(parameter.low), now),
                max_value=max(float(parameter.high), now),
                value=now,
                step=parameter.step,
                format="%.2f",
                key=key,
                help=about,
            )
        case "int":
            free = parameter.name == "seed"
            return st.number_input(
                label,
                min_value=None if free else int(parameter.minimum),
                value=now,
                step=1,
                key=key,
                help=about,
                placeholder="new each time" if free else None,
            )
        case "bool":
            return st.checkbox(label, value=now, key=key, help=about)
        case "text_list":
            about += " One text a line; write \\\\n for a line break, \\\\t for a tab."
            return st.text_area(label, value=now, key=key, help=about, height=68, placeholder="one a line")
        case _:
            placeholder = '{"1234": -100}' if parameter.kind == "map" else "2, 7"
            return st.text_input(label, value=now, key=key, help=about, placeholder=placeholder)


def _seed(key: str, defaults: Mapping[str, Any], initial: Mapping[str, Any]) -> None:
    """Give every widget its value before it is drawn.

    Streamlit forgets a widget's value when the page is left: a copy is kept
    beside it. Values still at an old default follow the model to its new one.
    """
    state = st.session_state
    kept = state.get(f"{key}:values", {})
    before = state.get(f"{key}:defaults", defaults)
    for parameter in PARAMETERS:
        name, widget = parameter.name, f"{key}:{parameter.name}"
        if widget not in state:
            state[widget] = kept[name] if name in kept else _to_widget(name, {**defaults, **initial})
        if before[name] != defaults[name] and state[widget] == _to_widget(name, before):
            state[widget] = _to_widget(name, defaults)
    state[f"{key}:defaults"] = defaults


def _write(key: str, values: Mapping[str, Any]) -> None:
    for parameter in PARAMETERS:
        st.session_state[f"{key}:{parameter.name}"] = _to_widget(parameter.name, values)


def _to_widget(name: str, values: Mapping[str, Any]) -> Any:
    """A parameter's value as its widget holds it."""
    value, kind = values[name], BY_NAME[name].kind
    if kind == "text_list":
        return "\n".join(_escaped(text) for text in value or ())
    if kind == "int_list":
        return ", ".join(str(number) for number in value or ())
    if kind == "map":
        return json.dumps(value) if value else ""
    return float(value) if kind == "float" else value


def _from_widget(parameter: Parameter, entered: Any) -> Any:
    if parameter.kind == "text_list":
        return [_unescaped(line) for line in (entered or "").splitlines() if line]
    return None if entered == "" else entered


def _validated(entered: Mapping[str, Any]) -> dict[str, Any]:
    """Parse what was entered; a value that can't be used is named and left out."""
    params: dict[str, Any] = {}
    for name, value in entered.items():
        try:
            params |= sampling.validate({name: _from_widget(BY_NAME[name], value)})
        except ParameterError as error:
            st.error(f"{plain_text(error.message)} It is left out until you correct it.")
    try:
        return sampling.validate(params)
    except ParameterError as error:
        st.error(f"{plain_text(str(error))} Until then min_tokens is left out.")
        return sampling.validate({**params, "min_tokens": None})


def _escaped(text: str) -> str:
    for plain, code in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(plain, code)
    return text


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: _MEANING[found[1]], text)
