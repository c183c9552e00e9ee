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
from pages.parts import session
from pages.parts.markdown import plain_text
from pages.parts.preset_menu import preset_menu

PARAMETERS = tuple(parameter for parameter in sampling.PARAMETERS if not parameter.batch_only)
_OPEN_GROUPS = ("basic", "stopping")
_POPOVER_PIXELS = 420
_LABELS = {
    "include_stop_str_in_output": "Keep the stop text",
    "spaces_between_special_tokens": "Space special tokens",
}
_PLACEHOLDERS = {"seed": "new each time", "beam_width": "off", "logit_bias": '{"1234": -100}'}
# what goes first where values contradict each other: the rarer wish
_GIVES_WAY = ("beam_width", "min_tokens", "ignore_eos")
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
    for small places. What the loaded engine can't do is disabled, with the reason.
    """
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS}
    defaults |= sampling.defaults(generation_config)
    _seed(key, defaults, initial or {})
    if main is None:
        with st.container(horizontal=True):
            menu = st.container(width="content")
            _reset_button(key, defaults)
        entered = _groups(key, PARAMETERS, defaults)
    else:
        in_sight = [parameter for parameter in PARAMETERS if parameter.name in main]
        entered = _grid(key, in_sight, columns)
        with st.container(horizontal=True):
            others = [parameter for parameter in PARAMETERS if parameter not in in_sight]
            mark = ":material/edit:" if _touched(key, others, defaults) else ":material/tune:"
            more = st.popover("More", icon=mark, key=f"{key}:more")
            with more, st.container(width=_POPOVER_PIXELS):
                entered |= _groups(key, others, defaults)
                _reset_button(key, defaults)
            menu = st.container(width="content")
    st.session_state[f"{key}:values"] = dict(entered)
    always = {parameter.name for parameter in PARAMETERS if parameter.form or parameter.name in (main or ())}
    params = _validated(
        {
            name: value
            for name, value in entered.items()
            if (name in always or value != _to_widget(name, defaults)) and not _obstacle(BY_NAME[name])
        }
    )
    with menu:
        preset_menu(key, params, lambda chosen: _write(key, {**defaults, **chosen}))
    return params


def _groups(key: str, rows: Sequence[Parameter], defaults: Mapping[str, Any]) -> dict[str, Any]:
    entered: dict[str, Any] = {}
    for group, words in GROUPS.items():
        of_group = [parameter for parameter in rows if parameter.group == group]
        if not of_group:
            continue
        title = f"{words.title} :material/edit:" if _touched(key, of_group, defaults) else words.title
        with st.expander(title, expanded=group in _OPEN_GROUPS, key=f"{key}:group:{group}"):
            sentence, button = st.columns([9, 1], vertical_alignment="center")
            sentence.caption(words.help)
            with button:
                _reset_button(key, defaults, group, of_group)
            entered |= _grid(key, of_group)
    return entered


def _touched(key: str, rows: Sequence[Parameter], defaults: Mapping[str, Any]) -> bool:
    """Whether one of `rows` is not at the model's default: shown even where its group is folded."""
    return any(st.session_state[f"{key}:{row.name}"] != _to_widget(row.name, defaults) for row in rows)


def _obstacle(parameter: Parameter) -> str | None:
    """Why the loaded engine can't do what `parameter` asks for; None: it can, or none is loaded."""
    info = session.runtime().status().info
    if info is None:
        return None
    return info.cannot_params.get(parameter.name) or info.cannot.get(parameter.feature)


def _reset_button(
    key: str,
    defaults: Mapping[str, Any],
    group: str | None = None,
    rows: Sequence[Parameter] = PARAMETERS,
) -> None:
    """For one group an icon beside its sentence, for all rows a button with words."""
    st.button(
        "" if group else "Reset to the model's defaults",
        key=f"{key}:reset:{group}" if group else f"{key}:reset",
        type="tertiary",
        icon=":material/restart_alt:",
        help="Reset these to the model's defaults" if group else None,
        disabled=not _touched(key, rows, defaults),
        on_click=_write,
        args=(key, defaults, rows),
    )


def _grid(key: str, rows: Sequence[Parameter], columns: int = 2) -> dict[str, Any]:
    """Draw `rows` line by line, so that labels of one line stay level."""
    entered = {}
    for start in range(0, len(rows), columns):
        cells = st.columns(columns, vertical_alignment="top") if columns > 1 else [st.container()]
        for cell, parameter in zip(cells, rows[start : start + columns], strict=False):
            with cell:
                entered[parameter.name] = _widget(f"{key}:{parameter.name}", parameter)
    for reason in dict.fromkeys(filter(None, map(_obstacle, rows))):
        st.caption(plain_text(reason))
    return entered


def _widget(key: str, parameter: Parameter) -> Any:
    label = _LABELS.get(parameter.name) or parameter.name.replace("_", " ").capitalize()
    placeholder = _PLACEHOLDERS.get(parameter.name)
    obstacle = _obstacle(parameter)
    disabled = obstacle is not None
    about = f"`{parameter.name}`: {plain_text(parameter.help)}"
    if parameter.kind in ("float", "int"):
        about += f" Allowed: {parameter.range_text}."
    if obstacle:
        about += f" Not now: {plain_text(obstacle)}"
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
                disabled=disabled,
            )
        case "int":
            return st.number_input(
                label,
                # the browser's numbers don't reach as far down as seeds do
                min_value=None if parameter.name == "seed" else int(parameter.minimum),
                value=now,
                step=1,
                key=key,
                help=about,
                placeholder=placeholder,
                disabled=disabled,
            )
        case "bool":
            return st.checkbox(label, value=now, key=key, help=about, disabled=disabled)
        case "text_list":
            about += " One text a line; write \\\\n for a line break, \\\\t for a tab."
            return st.text_area(
                label, value=now, key=key, help=about, height=68, placeholder="one a line", disabled=disabled
            )
        case _:
            placeholder = placeholder or "2, 7"
            return st.text_input(
                label, value=now, key=key, help=about, placeholder=placeholder, disabled=disabled
            )


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


def _write(key: str, values: Mapping[str, Any], rows: Sequence[Parameter] = PARAMETERS) -> None:
    for parameter in rows:
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
    while True:
        try:
            return sampling.validate(params)
        except ParameterError as error:
            name = next((one for one in _GIVES_WAY if one in params and one in error.message), None)
            if name is None:
                raise
            st.error(f"{plain_text(str(error))} Until then {name} is left out.")
            del params[name]


def _escaped(text: str) -> str:
    for plain, code in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(plain, code)
    return text


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: _MEANING[found[1]], text)
