"""The structure an answer must have: checked before a run, held against each answer after it.

`structured` is vLLM's parameter `structured_outputs` as a mapping with one key:
json (a JSON Schema), regex, choice (a list of texts), grammar (EBNF), or json_object (true).
Pure but for jsonschema.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jsonschema
import jsonschema.exceptions

from core.errors import ParameterError

FieldType = Literal["text", "integer", "number", "boolean", "choice", "list"]
KINDS = ("json", "regex", "choice", "grammar", "json_object")
_JSON_TYPES: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "list": {"type": "array", "items": {"type": "string"}},
}


@dataclass(frozen=True, slots=True)
class Field:
    """One property of the object to be answered. `choices` are for type "choice"."""

    name: str
    type: FieldType
    choices: tuple[str, ...] = ()
    description: str = ""
    required: bool = True


def check(structured: Mapping[str, Any]) -> None:
    """Raise ParameterError unless it is one structure that can be asked for."""
    if not isinstance(structured, Mapping) or len(structured) != 1 or next(iter(structured)) not in KINDS:
        raise ParameterError(
            "structured_outputs must have exactly one of " + ", ".join(KINDS) + ".",
            hint='Write {"choice": ["yes", "no"]}, say.',
        )
    ((kind, value),) = structured.items()
    _CHECKS[kind](value)


def _check_json(schema: Any) -> None:
    if not isinstance(schema, Mapping):
        raise ParameterError("The JSON schema is no JSON object.", hint='Start with {"type": "object"}.')
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.exceptions.SchemaError as error:
        at = "/".join(str(part) for part in error.absolute_path) or "its top"
        raise ParameterError(
            f"The JSON schema can't be used: {error.message} (at {at}).", hint="Correct it."
        ) from error


def _check_regex(pattern: Any) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise ParameterError(f"The regex {pattern!r} can't be used: {error}.", hint="Correct it.") from error
    if not pattern:
        raise ParameterError("The regex is empty.", hint="Write one, or leave it out.")


def _check_choice(choices: Any) -> None:
    texts = isinstance(choices, Sequence) and not isinstance(choices, str)
    if not texts or not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise ParameterError("The choices are no list of texts.", hint='Write ["yes", "no"], say.')
    twice = [choice for choice in choices if list(choices).count(choice) > 1]
    if twice:
        raise ParameterError(f"The choice {twice[0]!r} is given twice.", hint="Name each one once.")


def _check_grammar(grammar: Any) -> None:
    if not isinstance(grammar, str) or not grammar.strip():
        raise ParameterError("The grammar is empty.", hint='Write root ::= "yes" | "no", say.')


def _check_json_object(value: Any) -> None:
    if value is not True:
        raise ParameterError("json_object can only be true.", hint="Leave it out for free text.")


_CHECKS = {
    "json": _check_json,
    "regex": _check_regex,
    "choice": _check_choice,
    "grammar": _check_grammar,
    "json_object": _check_json_object,
}


def valid(structured: Mapping[str, Any], answer: str) -> bool | None:
    """Whether the answer has the structure; None where only the engine can tell (a grammar)."""
    ((kind, value),) = structured.items()
    match kind:
        case "choice":
            return answer in value
        case "regex":
            return re.fullmatch(value, answer) is not None
        case "grammar":
            return None
    try:
        parsed = json.loads(answer)
    except ValueError:
        return False
    if kind == "json_object":
        return isinstance(parsed, dict)
    return _validator(json.dumps(value, sort_keys=True)).is_valid(parsed)


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(schema))


def columns(structured: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """(name, type) of a schema's top-level properties: text, integer, number, boolean, list or object."""
    properties = structured.get("json", {}).get("properties") or {}
    return tuple((name, _type_of(schema)) for name, schema in properties.items())


def _type_of(schema: Any) -> str:
    named = {"string": "text", "array": "list"}
    given = schema.get("type") if isinstance(schema, Mapping) else None
    if isinstance(given, list):
        given = next((name for name in given if name != "null"), None) if len(given) == 2 else None
    return given if given in ("integer", "number", "boolean", "object") else named.get(given, "text")


def schema_from_fields(fields: Sequence[Field]) -> dict[str, Any]:
    """The JSON schema of an object with these properties. Raises ParameterError."""
    if not fields:
        raise ParameterError("There is no field yet.", hint="Add one.")
    names = [field.name for field in fields]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ParameterError(f"The field {twice[0]!r} is given twice.", hint="Name each one once.")
    return {
        "type": "object",
        "properties": {field.name: _property(field) for field in fields},
        "required": [field.name for field in fields if field.required],
        "additionalProperties": False,
    }


def _property(field: Field) -> dict[str, Any]:
    schema = (
        {"type": "string", "enum": list(field.choices)} if field.type == "choice" else _JSON_TYPES[field.type]
    )
    return {**schema, **({"description": field.description} if field.description else {})}


def fields_from_schema(schema: Mapping[str, Any]) -> tuple[Field, ...]:
    """The fields that make this schema, as far as fields can say it."""
    required = schema.get("required", ())
    fields = []
    for name, given in (schema.get("properties") or {}).items():
        described = given if isinstance(given, Mapping) else {}
        choices = described.get("enum")
        of_texts = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
        kind = "choice" if of_texts and choices else _type_of(described)
        fields.append(
            Field(
                name=name,
                type=kind if kind != "object" else "text",
                choices=tuple(choices) if of_texts else (),
                description=str(described.get("description", "")),
                required=name in required,
            )
        )
    return tuple(fields)
