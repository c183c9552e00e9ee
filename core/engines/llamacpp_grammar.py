"""Structures of answers as llama.cpp's grammars (GBNF)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from re import _constants as _ops  # the one parser of Python's own patterns; names as in all of 3.11 to 3.14
from re import _parser
from re import error as PatternError
from typing import Any

from core.errors import RequestRejected

MOST_GRAMMAR_CHARACTERS = 200_000
_JSON_OBJECT = {"type": "object"}
_CATEGORIES = {
    _ops.CATEGORY_DIGIT: "0-9",
    _ops.CATEGORY_WORD: "A-Za-z0-9_",
    _ops.CATEGORY_SPACE: " \\x09-\\x0D",
}
_OPPOSITES = {
    _ops.CATEGORY_NOT_DIGIT: _ops.CATEGORY_DIGIT,
    _ops.CATEGORY_NOT_WORD: _ops.CATEGORY_WORD,
    _ops.CATEGORY_NOT_SPACE: _ops.CATEGORY_SPACE,
}


def grammar_of(structure: Mapping[str, Any]) -> str:
    """The grammar of what `structured_outputs` asks for; its first rule is root.

    Raises RequestRejected for what llama.cpp's grammars can't say.
    """
    ((kind, value),) = structure.items()
    try:
        match kind:
            case "choice":
                grammar = "root ::= " + " | ".join(_literal(choice) for choice in value)
            case "grammar":
                grammar = value
            case "regex":
                grammar = _of_regex(value)
            case _:
                grammar = _of_schema(value if kind == "json" else _JSON_OBJECT)
    except (
        PatternError, AssertionError, ValueError, KeyError, TypeError, IndexError, RecursionError,
    ) as error:  # fmt: skip
        # llama_cpp's converter asserts what it does not know
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RequestRejected(
            f"llama.cpp has no grammar for this {'schema' if kind == 'json' else kind}: {said}",
            hint="Use a plainer one.",
        ) from error
    if len(grammar) > MOST_GRAMMAR_CHARACTERS:
        raise RequestRejected(
            f"As a grammar this structure has {len(grammar):,} characters; the most is "
            f"{MOST_GRAMMAR_CHARACTERS:,}.",
            hint="Use fewer fields or repetitions.",
        )
    return grammar


def _literal(text: str) -> str:
    return '"' + "".join(_escaped(ord(character)) for character in text) + '"'


def _of_schema(schema: Mapping[str, Any]) -> str:
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    grammar = json_schema_to_gbnf(json.dumps(schema, ensure_ascii=False))
    # its rule for a character of a string lets line ends through, which JSON does not
    return re.sub(
        r'^char ::= \[\^"\\\\\]', lambda _: r'char ::= [^"\\\x7F\x00-\x1F]', grammar, flags=re.MULTILINE
    )


def _of_regex(pattern: str) -> str:
    """The whole answer matches, so ^ at the start and $ at the end change nothing."""
    parsed = _parser.parse(pattern)
    if parsed.state.flags & ~re.UNICODE:
        raise ValueError("it can't say flags")
    return "root ::= " + _sequence(list(parsed), edges=True)


def _sequence(items: list[Any], *, edges: bool = False) -> str:
    if edges:
        if items and items[0][0] is _ops.AT and items[0][1] in (_ops.AT_BEGINNING, _ops.AT_BEGINNING_STRING):
            items = items[1:]
        if items and items[-1][0] is _ops.AT and items[-1][1] in (_ops.AT_END, _ops.AT_END_STRING):
            items = items[:-1]
    return " ".join(_part(kind, value) for kind, value in items) or '""'


def _part(kind: Any, value: Any) -> str:
    if kind is _ops.LITERAL:
        return f'"{_escaped(value)}"'
    if kind is _ops.NOT_LITERAL:
        return f"[^{_escaped(value)}]"
    if kind is _ops.ANY:
        return "[^\\x0A\\x0D]"
    if kind is _ops.IN:
        return _set(value)
    if kind is _ops.BRANCH:
        return "(" + " | ".join(_sequence(list(each)) for each in value[1]) + ")"
    if kind is _ops.SUBPATTERN and not (value[1] or value[2]):
        return f"({_sequence(list(value[3]))})"
    if kind in (_ops.MAX_REPEAT, _ops.MIN_REPEAT):  # greedy or not: the same texts
        least, most, body = value
        part = f"({_sequence(list(body))})"
        return f"{part}{{{least},{'' if most is _ops.MAXREPEAT else most}}}"
    raise ValueError(f"it can't say {str(kind).lower()}")


def _set(members: list[Any]) -> str:
    negated = members[0][0] is _ops.NEGATE
    texts = []
    for kind, value in members[1:] if negated else members:
        if kind is _ops.LITERAL:
            texts.append(_escaped(value))
        elif kind is _ops.RANGE:
            texts.append(f"{_escaped(value[0])}-{_escaped(value[1])}")
        elif kind is _ops.CATEGORY and value in _CATEGORIES:
            texts.append(_CATEGORIES[value])
        elif kind is _ops.CATEGORY and len(members) == 1:
            return f"[^{_CATEGORIES[_OPPOSITES[value]]}]"
        else:
            raise ValueError(f"it can't say {str(value).lower()} beside others in brackets")
    return f"[{'^' if negated else ''}{''.join(texts)}]"


def _escaped(code: int) -> str:
    """A character as GBNF writes it, in quotes and in brackets."""
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else f"\\U{code:08X}"
