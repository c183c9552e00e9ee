"""The structure an answer must have: checked before a run, held against each answer after it.

`structured` is vLLM's parameter `structured_outputs` as a mapping with one key:
json (a JSON Schema), regex, choice (a list of texts), grammar (EBNF), or json_object (true).
Pure but for jsonschema and regex, whose searches can be given a time limit: a model's
answer that stops half way makes patterns such as (a+)+b take for ever.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

import regex

from core.errors import ParameterError

FieldType = Literal["text", "integer", "number", "boolean", "choice", "list"]
KINDS = ("json", "regex", "choice", "grammar", "json_object")
MOST_CHARACTERS = 32_000
"""Of a structure as JSON. The engine needs up to 6 s for a schema of that size, once."""
MOST_REGEX_CHARACTERS = 4_000
MOST_CHOICES = 1_000
MOST_LEVELS = 64
"""Of objects and arrays in each other; vLLM refuses more."""
_MATCH_S = 0.1
_DATA_KEYWORDS = ("const", "enum", "default", "examples")
_NAMES_KEYWORDS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_SAME_VALUE_KEYWORDS = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")
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
    """Raise ParameterError unless it is one structure that can be asked for, and of a size to work with."""
    if not isinstance(structured, Mapping) or len(structured) != 1 or next(iter(structured)) not in KINDS:
        raise ParameterError(
            "structured_outputs must have exactly one of " + ", ".join(KINDS) + ".",
            hint='Write {"choice": ["yes", "no"]}, say.',
        )
    ((kind, value),) = structured.items()
    _check_size(kind, value)
    _CHECKS[kind](value)


def _check_size(kind: str, value: Any) -> None:
    try:
        characters = len(json.dumps(value, ensure_ascii=False).encode("utf-8").decode("utf-8"))
    except (TypeError, ValueError, RecursionError) as error:  # half a surrogate pair is a ValueError
        raise ParameterError(f"The {_WORDS[kind]} can't be written as JSON.", hint="Correct it.") from error
    most = MOST_REGEX_CHARACTERS if kind == "regex" else MOST_CHARACTERS
    if characters > most:
        raise ParameterError(
            f"The {_WORDS[kind]} has {characters:,} characters; the most is {most:,}.", hint="Shorten it."
        )


def _check_json(schema: Any) -> None:
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema, Mapping):
        raise ParameterError("The JSON schema is no JSON object.", hint='Start with {"type": "object"}.')
    if _levels(schema) > MOST_LEVELS:
        raise ParameterError(
            f"The JSON schema has objects and arrays more than {MOST_LEVELS} levels deep.", hint="Flatten it."
        )
    try:
        _validator_class().check_schema(schema)
    except SchemaError as error:
        at = "/".join(str(part) for part in error.absolute_path) or "its top"
        raise ParameterError(
            f"The JSON schema can't be used: {error.message} (at {at}).", hint="Correct it."
        ) from error
    for part in _subschemas(schema):
        _check_references(schema, part)
        for pattern in (part.get("pattern"), *(part.get("patternProperties") or ())):
            if isinstance(pattern, str):
                _check_regex(pattern)


def _levels(value: Any) -> int:
    levels, these = 0, [value]
    while these and levels <= MOST_LEVELS:
        levels += 1
        children = [
            child for each in these for child in (each.values() if isinstance(each, Mapping) else each)
        ]
        these = [child for child in children if isinstance(child, Mapping | list | tuple)]
    return levels


def _subschemas(part: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and every schema in it; never plain data, which may look like one."""
    if isinstance(part, list | tuple):
        for each in part:
            yield from _subschemas(each)
    elif isinstance(part, Mapping):
        yield part
        for keyword, value in part.items():
            if keyword in _NAMES_KEYWORDS and isinstance(value, Mapping):
                yield from _subschemas(list(value.values()))
            elif keyword not in _DATA_KEYWORDS:
                yield from _subschemas(value)


def _check_references(schema: Mapping[str, Any], part: Mapping[str, Any]) -> None:
    """Refuse what would be fetched from elsewhere, is not there, or leads back to where it began."""
    if isinstance(part.get("$dynamicRef"), str) or (part is not schema and isinstance(part.get("$id"), str)):
        raise ParameterError("The JSON schema uses $dynamicRef or an inner $id.", hint="Use $ref and $defs.")
    seen: set[int] = set()
    waiting = [part]
    while waiting:
        for following in _of_same_value(schema, waiting.pop()):
            if following is part:
                raise ParameterError(
                    "The JSON schema has a $ref that leads back to itself.",
                    hint="A schema may hold itself only as a property or an item.",
                )
            if id(following) not in seen:
                seen.add(id(following))
                waiting.append(following)


def _of_same_value(schema: Mapping[str, Any], part: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The subschemas that `part` holds against the very value that it is held against."""
    found = [part.get(keyword) for keyword in _SAME_VALUE_KEYWORDS]
    found += (part.get("dependentSchemas") or {}).values()
    if isinstance(part.get("$ref"), str):
        found.append(target(schema, part["$ref"]))
    for each in found:
        if isinstance(each, Mapping):
            yield each
        elif isinstance(each, list | tuple):
            yield from (item for item in each if isinstance(item, Mapping))


def target(schema: Any, reference: str) -> Any:
    """What a $ref such as #/$defs/name means in `schema`. Raises ParameterError."""
    if reference != "#" and not reference.startswith("#/"):
        raise ParameterError(
            f"The JSON schema refers to {reference!r}.", hint="Only #/$defs/... of the schema itself is read."
        )
    found = schema
    for step in unquote(reference).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Mapping) and name in found:
            found = found[name]
        else:
            raise ParameterError(f"The JSON schema has nothing at {reference!r}.", hint="Correct the $ref.")
    return found


def _check_regex(pattern: Any) -> None:
    try:
        regex.compile(pattern)
    except (regex.error, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise ParameterError(f"The regex {pattern!r} can't be used: {error}.", hint="Correct it.") from error
    if not pattern:
        raise ParameterError("The regex is empty.", hint="Write one, or leave it out.")


def _check_choice(choices: Any) -> None:
    texts = isinstance(choices, Sequence) and not isinstance(choices, str)
    if not texts or not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise ParameterError("The choices are no list of texts.", hint='Write ["yes", "no"], say.')
    if len(choices) > MOST_CHOICES:
        raise ParameterError(f"There are {len(choices):,} choices; the most is {MOST_CHOICES:,}.")
    twice = [choice for choice, times in Counter(choices).items() if times > 1]
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
_WORDS = {
    "json": "JSON schema",
    "regex": "regex",
    "choice": "list of choices",
    "grammar": "grammar",
    "json_object": "json_object",
}


def valid(structured: Mapping[str, Any], answer: str) -> bool | None:
    """Whether the answer has the structure.

    None where it can't be told: only the engine reads a grammar, and a pattern may take too long.
    """
    ((kind, value),) = structured.items()
    try:
        match kind:
            case "choice":
                return answer in value
            case "regex":
                return regex.fullmatch(value, answer, timeout=_MATCH_S) is not None
            case "grammar":
                return None
            case "json_object":
                return isinstance(_read_json(answer), dict)
        return _validator(json.dumps(value)).is_valid(_read_json(answer))
    except TimeoutError:
        return None
    except (ValueError, RecursionError):  # no JSON, or brackets without end
        return False


def parsed(structured: Mapping[str, Any], answer: str) -> Any:
    """The answer's JSON value; None when it has none, or when no JSON was asked for."""
    if not structured.keys() & {"json", "json_object"}:
        return None
    try:
        return _read_json(answer)
    except (ValueError, RecursionError):
        return None


def _read_json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    from referencing import Registry

    # an empty registry: nothing a schema names is ever fetched
    return _validator_class()(json.loads(schema), registry=Registry())


@functools.cache
def _validator_class() -> Any:
    """JSON Schema 2020-12, but its patterns have a time limit. jsonschema takes a moment to import."""
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend

    def pattern(validator: Any, wanted: str, value: Any, schema: Any) -> Iterator[Any]:
        if isinstance(value, str) and not _found(wanted, value):
            yield ValidationError(f"{value!r} does not match {wanted!r}")

    def pattern_properties(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[Any]:
        for name, child in value.items() if isinstance(value, dict) else ():
            for each in wanted:
                if _found(each, name):
                    yield from validator.descend(child, wanted[each], path=name, schema_path=each)

    def additional_properties(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[Any]:
        for name, child in value.items() if isinstance(value, dict) else ():
            named = name in schema.get("properties", {})
            if not named and not any(_found(each, name) for each in schema.get("patternProperties", ())):
                yield from validator.descend(child, wanted, path=name)

    own = {
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
    }
    return extend(Draft202012Validator, own)


def _found(pattern: str, text: str) -> bool:
    return regex.search(pattern, text, timeout=_MATCH_S) is not None


def columns(structured: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """(name, type) of a schema's top-level properties: text, integer, number, boolean, list or object.

    A property that may be of several types is text.
    """
    schema = structured.get("json", {})
    properties = _followed(schema, schema).get("properties") or {}
    return tuple((name, _type_of(_followed(schema, each))) for name, each in properties.items())


def _followed(schema: Mapping[str, Any], part: Any) -> Mapping[str, Any]:
    """`part`, or what its $ref means."""
    while isinstance(part, Mapping) and isinstance(part.get("$ref"), str):
        part = target(schema, part["$ref"])
    return part if isinstance(part, Mapping) else {}


def _type_of(schema: Mapping[str, Any]) -> str:
    given = schema.get("type")
    if given is None and ("enum" in schema or "const" in schema):
        values = schema.get("enum", [schema.get("const")])
        given = sorted({_json_type(value) for value in values})
    if isinstance(given, list):
        kinds = [name for name in given if name != "null"]
        given = kinds[0] if len(kinds) == 1 else None
    named = {"array": "list"}
    return given if given in ("integer", "number", "boolean", "object") else named.get(given, "text")


def _json_type(value: Any) -> str:
    names = {
        bool: "boolean",
        int: "integer",
        float: "number",
        dict: "object",
        list: "array",
        type(None): "null",
    }
    return names.get(type(value), "string")


def schema_from_fields(fields: Sequence[Field]) -> dict[str, Any]:
    """The JSON schema of an object with these properties. Raises ParameterError."""
    if not fields:
        raise ParameterError("There is no field yet.", hint="Add one.")
    names = [field.name for field in fields]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ParameterError(f"The field {twice[0]!r} is given twice.", hint="Name each one once.")
    if "" in names:
        raise ParameterError("A field has no name.", hint="Give it one, or remove it.")
    for field in fields:
        if field.type == "choice" and not field.choices:
            raise ParameterError(f"The field {field.name!r} has no choices.", hint="Write at least one.")
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
