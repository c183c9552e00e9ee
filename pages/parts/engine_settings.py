"""The engine settings as a form, made from the one table in `core.engine_settings`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from core import engine_settings
from core.engine_settings import BY_NAME, GROUPS, SETTINGS, Setting
from core.errors import ParameterError
from core.machine import Machine
from core.types import EngineSpec
from pages.parts import models_nav, session
from pages.parts.markdown import plain_text

_GIB = 1 << 30
_NEEDS_LORA = ("max_loras", "max_lora_rank", "max_cpu_loras")
_YES_NO = {None: "Automatic", True: "Yes", False: "No"}


def open_settings() -> None:
    """Go to the load form of the models page, with what is loaded in it. Ends this run of the page."""
    status = session.runtime().status()
    model = session.library().of(status.spec) if status.spec else None
    if model is not None:
        models_nav.open_model(model.key)
    else:
        models_nav.go("load")
    st.switch_page("pages/models.py", query_params={"model": model.key} if model else None)


def settings_form(key: str, start: EngineSpec, here: Machine) -> EngineSpec | None:
    """Draw the settings that the engine of `start` takes: those that matter, the others behind a fold.

    Gives `start` with what was entered, None where that can't be used: the form has said why. `key`
    names the values, which outlive a switch of pages; `start` fills them in the first time.
    """
    rows = [row for row in SETTINGS if start.engine in row.engines and row.group != "model"]
    seeded = {row.name: _to_widget(row, getattr(start, row.name)) for row in rows}
    for row in rows:
        st.session_state.setdefault(f"{key}:{row.name}", seeded[row.name])
    entered = _grid(key, [row for row in rows if row.group == "main"], here)
    others = [row for row in rows if row.group != "main"]
    if others:
        touched = any(st.session_state[f"{key}:{row.name}"] != _to_widget(row, None) for row in others)
        mark = " :material/edit:" if touched else ""
        with st.expander(f"More settings{mark}", key=f"{key}:more"):
            entered |= _groups(key, others, here)
    if not entered.get("enable_lora"):
        entered |= {name: None for name in _NEEDS_LORA if name in entered}
    return _applied(start, {row.name: entered[row.name] for row in rows})


def fill_in(key: str, values: Mapping[str, Any]) -> None:
    """Put values into the form of this key, before it is drawn again."""
    for name, value in values.items():
        st.session_state[f"{key}:{name}"] = _to_widget(BY_NAME[name], value)


def _applied(start: EngineSpec, entered: Mapping[str, Any]) -> EngineSpec | None:
    spec, refused = start, False
    for name, value in entered.items():
        try:
            spec = engine_settings.apply(spec, {name: value})
        except ParameterError as error:
            st.error(plain_text(str(error)))
            refused = True
    return None if refused else spec


def _groups(key: str, rows: Sequence[Setting], here: Machine) -> dict[str, Any]:
    entered: dict[str, Any] = {}
    for group, title in GROUPS.items():
        of_group = [row for row in rows if row.group == group]
        if of_group:
            st.markdown(f"**{title}**")
            entered |= _grid(key, of_group, here)
    return entered


def _grid(key: str, rows: Sequence[Setting], here: Machine) -> dict[str, Any]:
    """Two in a line, so that labels of one line stay level; under them why some are disabled."""
    entered, reasons = {}, {row.name: _obstacle(key, row, here) for row in rows}
    for begin in range(0, len(rows), 2):
        cells = st.columns(2, vertical_alignment="bottom")
        for cell, row in zip(cells, rows[begin : begin + 2], strict=False):
            with cell:
                value = _widget(f"{key}:{row.name}", row, reasons[row.name])
            entered[row.name] = None if reasons[row.name] else _from_widget(row, value)
    for reason in dict.fromkeys(filter(None, reasons.values())):
        st.caption(plain_text(reason))
    return entered


def _obstacle(key: str, row: Setting, here: Machine) -> str | None:
    if row.name in _NEEDS_LORA and not st.session_state.get(f"{key}:enable_lora"):
        return "Tick “Take LoRA adapters” first."
    return engine_settings.obstacle(row, here)


def _widget(key: str, row: Setting, reason: str | None) -> Any:
    about = f"`{row.name}`: {plain_text(row.help)} Empty: {plain_text(row.automatic)}."
    # the value is given twice: a rerun can overtake the one in the session before the browser has it
    now = st.session_state[key]
    common = {"key": key, "help": about, "disabled": reason is not None, "persist_state": "session"}
    if row.choices is not None:
        options = [None, *(choice for choice in row.choices if choice != "auto")]
        return st.selectbox(
            row.title, options, index=options.index(now), placeholder="automatic", **common,
            format_func=lambda choice: "Automatic" if choice is None else str(choice),
        )  # fmt: skip
    match row.kind:
        case "bool" if row.automatic == "no":
            return st.checkbox(row.title, value=now, wrap=True, **common)
        case "bool":
            options = list(_YES_NO)
            return st.selectbox(
                row.title, options, index=options.index(now), placeholder="automatic", **common,
                format_func=_YES_NO.get,
            )  # fmt: skip
        case "int":
            return st.number_input(
                row.title, value=now, min_value=int(row.minimum), step=_step(row), placeholder="automatic",
                **common,
            )  # fmt: skip
        case "float" | "bytes":
            return st.number_input(
                row.title, value=now, min_value=0.01, format="%.2f",
                max_value=None if row.maximum is None else float(row.maximum),
                step=0.5 if row.kind == "bytes" else 0.05, placeholder="automatic", **common,
            )  # fmt: skip
        case _:
            return st.text_area(row.title, value=now, height=68, placeholder="off", **common)


def _step(row: Setting) -> int:
    return 1024 if row.name in ("max_model_len", "max_num_batched_tokens") else 1


def _to_widget(row: Setting, value: Any) -> Any:
    if row.kind == "bool" and row.automatic == "no":
        return bool(value)
    if row.kind == "json":
        return json.dumps(dict(value)) if value else ""
    if row.kind == "bytes" and value is not None:
        return value / _GIB
    return None if value == "auto" else value


def _from_widget(row: Setting, entered: Any) -> Any:
    if row.kind == "bool" and row.automatic == "no":
        return True if entered else None
    if row.kind == "bytes" and entered is not None:
        return int(entered * _GIB)
    if row.kind == "json" and not (entered or "").strip():
        return None
    return entered
