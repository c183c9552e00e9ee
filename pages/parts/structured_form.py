"""A form for the structure that answers must have, for people who don't write JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from core import structured
from core.errors import ParameterError
from core.structured import Field
from pages.parts.markdown import plain_text

_KINDS = {
    "none": "Free text",
    "choice": "Choices",
    "fields": "Fields (JSON)",
    "json": "JSON Schema",
    "regex": "Regex",
    "grammar": "Grammar",
}
_ABOUT = {
    "none": "The model answers as it likes.",
    "choice": "The answer is exactly one of these.",
    "fields": "The answer is a JSON object with these fields; each becomes a column.",
    "json": "The answer is JSON that this schema allows. Left empty: any JSON object.",
    "regex": "The whole answer matches this regular expression.",
    "grammar": "The answer follows this grammar, in EBNF as xgrammar reads it.",
}
_PLACEHOLDERS = {
    "choice": "positive\nnegative\nmixed",
    "json": '{"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}',
    "regex": r"\d{4}-\d{2}-\d{2}",
    "grammar": 'root ::= "yes" | "no"',
}
_TYPES = {
    "text": "Text",
    "integer": "Whole number",
    "number": "Number",
    "boolean": "True or false",
    "choice": "One of",
    "list": "List of texts",
}
_TEXT_KINDS = ("choice", "json", "regex", "grammar")
_ROW = ("name", "type", "choices", "description", "required")
_MOST_FIELDS = 50


def structured_form(
    key: str,
    initial: Mapping[str, Any] | None = None,
    *,
    answer_column: str = "answer",
    why_not: str | None = None,
) -> dict[str, Any] | None:
    """Draw the form and return the parameter `structured_outputs`; None for free text.

    `key` names the form's values, which outlive page switches; `initial` is what it shows first.
    What can't be used is said in the form, None is returned, and `problem(key)` says it too.
    `why_not`: why the loaded engine can't hold an answer to a structure; a new one can't be begun then.
    """
    _seed(key, initial)
    state = st.session_state
    kind = st.segmented_control(
        "Answers are",
        list(_KINDS),
        format_func=_KINDS.get,
        key=f"{key}:kind",
        default=state[f"{key}:kind"],
        required=True,
        disabled=why_not is not None and state[f"{key}:kind"] == "none",
        on_change=_carry_over,
        args=(key,),
        persist_state="session",
    )
    state[f"{key}:before"] = kind
    st.caption(why_not or _ABOUT[kind])
    if kind == "fields":
        _fields_editor(key)
    elif kind in _TEXT_KINDS:
        st.text_area(
            _KINDS[kind] + (", one a line" if kind == "choice" else ""),
            key=f"{key}:{kind}",
            height=100 if kind == "regex" else 160,
            placeholder=_PLACEHOLDERS[kind],
            persist_state="session",
        )
    state[f"{key}:problem"] = None
    try:
        asked = _asked(key, kind)
    except ParameterError as error:
        state[f"{key}:problem"] = str(error)
        st.error(plain_text(str(error)))
        return None
    if asked is not None:
        _say_columns(asked, answer_column)
    return asked


def problem(key: str) -> str | None:
    """What keeps the form drawn under `key` from being used, None if nothing does."""
    return st.session_state.get(f"{key}:problem")


# -- from widgets to the parameter --------------------------------------------------


def _asked(key: str, kind: str) -> dict[str, Any] | None:
    """What the widgets of this kind say. Raises ParameterError."""
    if kind == "none":
        return None
    if kind == "fields":
        asked: dict[str, Any] = {"json": structured.schema_from_fields(_entered_fields(key))}
    else:
        asked = _from_text(kind, st.session_state[f"{key}:{kind}"].strip())
    structured.check(asked)
    return asked


def _from_text(kind: str, text: str) -> dict[str, Any]:
    if kind == "choice":
        choices = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
        if not choices:
            raise ParameterError("There is no choice yet.", hint="Write at least one, one a line.")
        return {"choice": choices}
    if kind == "json":
        return {"json": _schema(text)} if text else {"json_object": True}
    if not text:
        raise ParameterError(f"The {kind} is empty.", hint="Write one, or choose free text.")
    return {kind: text}


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise ParameterError(
            f"The schema is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.",
            hint="Names and texts need double quotes.",
        ) from error
    if not isinstance(schema, dict):
        raise ParameterError("The schema is not a JSON object.", hint='Write {"type": "object", ...}.')
    return schema


def _entered_fields(key: str) -> list[Field]:
    """The rows of the builder; those left blank altogether don't count. Raises ParameterError."""
    fields: list[Field] = []
    for place, row in enumerate(st.session_state[f"{key}:rows"], 1):
        name, type_, choices, description, required = (
            st.session_state.get(f"{key}:{row}:{part}", "") for part in _ROW
        )
        if not (name.strip() or choices.strip() or description.strip()):
            continue
        if not name.strip():
            raise ParameterError(f"Field {place} has no name.", hint="Give it one, or remove it.")
        if name.strip() in (field.name for field in fields):
            raise ParameterError(f"Two fields are called {name.strip()!r}.", hint="Rename one of them.")
        fields.append(
            Field(
                name=name.strip(),
                type=type_,
                choices=_split(choices) if type_ == "choice" else (),
                description=description.strip(),
                required=required,
            )
        )
        if type_ == "choice" and not fields[-1].choices:
            raise ParameterError(f"Field {name.strip()!r} has no choices.", hint="Separate them by commas.")
    if not fields:
        raise ParameterError("There is no field yet.", hint="Give the first one a name.")
    return fields


def _split(choices: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(choice.strip() for choice in choices.split(",") if choice.strip()))


def _say_columns(asked: Mapping[str, Any], answer_column: str) -> None:
    names = [f"{answer_column}_{name}" for name, _type in structured.columns(asked)]
    names = [answer_column, *names, f"{answer_column}_valid"]
    st.caption("The table gets columns: " + ", ".join(f"**{plain_text(name)}**" for name in names) + ".")


# -- the builder ----------------------------------------------------------------------


def _fields_editor(key: str) -> None:
    rows: list[int] = st.session_state[f"{key}:rows"]
    for place, row in enumerate(rows, 1):
        _field_row(key, row, place, is_only=len(rows) == 1)
    st.button(
        "Add a field",
        key=f"{key}:add",
        icon=":material/add:",
        disabled=len(rows) >= _MOST_FIELDS,
        on_click=_add,
        args=(key,),
    )


def _field_row(key: str, row: int, place: int, *, is_only: bool) -> None:
    """One field on one line; a narrow page breaks it into two."""
    own = f"{key}:{row}"
    hidden: dict[str, Any] = {"label_visibility": "collapsed", "persist_state": "session"}
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.text_input(f"Name of field {place}", key=f"{own}:name", placeholder="Name", width=150, **hidden)
        type_ = st.selectbox(
            f"Type of field {place}", list(_TYPES), format_func=_TYPES.get, key=f"{own}:type", width=145,
            **hidden,
        )  # fmt: skip
        st.checkbox("Required", key=f"{own}:required", persist_state="session")
        if type_ == "choice":
            st.text_input(
                f"Choices of field {place}", key=f"{own}:choices", placeholder="yes, no, unclear", width=180,
                **hidden,
            )  # fmt: skip
        st.text_input(
            f"Description of field {place}", key=f"{own}:description", width="stretch",
            placeholder="What it means, for the model", **hidden,
        )  # fmt: skip
        st.button(
            ":material/close:", key=f"{own}:remove", type="tertiary", help=f"Remove field {place}",
            disabled=is_only, on_click=_remove, args=(key, row),
        )  # fmt: skip


def _add(key: str) -> None:
    _append_row(key, Field(name="", type="text"))


def _remove(key: str, row: int) -> None:
    st.session_state[f"{key}:rows"] = [other for other in st.session_state[f"{key}:rows"] if other != row]


def _append_row(key: str, field: Field) -> None:
    """A row with values of its own: numbers are never used again, since Streamlit remembers their widgets."""
    state = st.session_state
    row = state[f"{key}:next"] = state.get(f"{key}:next", 0) + 1
    state[f"{key}:rows"] = [*state[f"{key}:rows"], row]
    values = (field.name, field.type, ", ".join(field.choices), field.description, field.required)
    for part, value in zip(_ROW, values, strict=True):
        state[f"{key}:{row}:{part}"] = value


def _replace_rows(key: str, fields: Sequence[Field]) -> None:
    st.session_state[f"{key}:rows"] = []
    for field in fields or [Field(name="", type="text")]:
        _append_row(key, field)


# -- from the parameter to widgets ------------------------------------------------------


def _seed(key: str, initial: Mapping[str, Any] | None) -> None:
    """Give every widget its first value before it is drawn; Streamlit keeps them afterwards."""
    state = st.session_state
    if f"{key}:rows" in state:
        return
    initial = initial or {}
    fields = _as_fields(initial["json"]) if "json" in initial else None
    kinds = [kind for kind in ("json", "choice", "regex", "grammar") if kind in initial]
    state[f"{key}:kind"] = "fields" if fields else kinds[0] if kinds else "none"
    if initial.get("json_object"):
        state[f"{key}:kind"] = "json"
    state[f"{key}:choice"] = "\n".join(initial.get("choice", ()))
    state[f"{key}:json"] = _written(initial["json"]) if "json" in initial else ""
    state[f"{key}:regex"] = initial.get("regex", "")
    state[f"{key}:grammar"] = initial.get("grammar", "")
    _replace_rows(key, fields or ())


def _carry_over(key: str) -> None:
    """Show the same structure in the other form, where one says it all: fields and their schema."""
    state = st.session_state
    change = (state.get(f"{key}:before"), state[f"{key}:kind"])
    try:
        if change == ("fields", "json"):
            state[f"{key}:json"] = _written(structured.schema_from_fields(_entered_fields(key)))
        elif change == ("json", "fields") and state[f"{key}:json"].strip():
            schema = _schema(state[f"{key}:json"])
            structured.check({"json": schema})
            _replace_rows(key, _as_fields(schema) or _entered_fields(key))
    except ParameterError:
        return  # what is incomplete stays where it was entered, and is said there


def _as_fields(schema: Mapping[str, Any]) -> list[Field] | None:
    """The builder's fields for this schema; None when they would not say all of it."""
    fields = structured.fields_from_schema(schema)
    # the builder's choices stand on one line, with commas between them
    if not fields or any("," in choice for field in fields for choice in field.choices):
        return None
    return list(fields) if structured.schema_from_fields(fields) == schema else None


def _written(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False)
