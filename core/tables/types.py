"""What a table's columns are, and how their types are named for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from core.errors import TableError

Kind = Literal["text", "json", "native"]
MAX_COLUMNS = 4_000


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read a file; None means: detect.

    `encoding` is a codec name of Python. `delimiter` is one character, or ""
    for a file of one column whose lines are the cells. `sheet` names an Excel sheet.
    """

    encoding: str | None = None
    delimiter: str | None = None
    sheet: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `kind` says how a cell is stored, `type` what it holds, for people.

    text: the cell's characters. json: the JSON text of the cell, NULL where the
    key is missing. native: DuckDB's own type. `type` is one of text, integer,
    number, boolean, date, time, empty, list, object, mixed.
    """

    name: str
    kind: Kind
    type: str


@dataclass(frozen=True, slots=True)
class TableInfo:
    """What was staged. `problems` counts rows that can't be used; `notes` are sentences for the user."""

    format: str
    rows: int
    columns: tuple[Column, ...]
    problems: int
    encoding: str | None
    delimiter: str | None
    sheet: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One row on its way in. `line` is 1-based; `cells` may be shorter than the header.

    `problem` says why the row can't be used, `raw` is then its own text.
    `cell_count` is set when a delimited row has fewer cells than the header.
    """

    line: int
    cells: Sequence[str | None]
    problem: str | None = None
    raw: str | None = None
    cell_count: int | None = None


def unique_names(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Column names without gaps and repeats, and a note for each that had to change.

    >>> unique_names(["a", "", "a"])[0]
    ['a', 'column_2', 'a_2']
    """
    stripped = [name.strip().strip("\ufeff").strip() for name in names]
    taken = set(stripped)
    used: set[str] = set()
    result: list[str] = []
    notes: list[str] = []
    for position, name in enumerate(stripped, 1):
        if name and name not in used:
            chosen = name
        else:
            base, number = (name, 2) if name else ("column", position)
            while f"{base}_{number}" in taken:
                number += 1
            chosen = f"{base}_{number}"
            what = f"is a second {name!r}" if name else "had no name"
            notes.append(f"Column {position} {what}; it is called {chosen}.")
        taken.add(chosen)
        used.add(chosen)
        result.append(chosen)
    return result, notes


def check_width(file_name: str, width: int) -> None:
    """Raise TableError when a file names more columns than a table may have."""
    if width > MAX_COLUMNS:
        raise TableError(
            f"{file_name} has more than {MAX_COLUMNS:,} columns.",
            hint="Put values that vary by row into one column, or split the file.",
        )


# "007" is an id, not an integer: a leading zero means the characters matter.
_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,17})", re.ASCII)
_NUMBER = re.compile(r"[-+]?(?=\.?\d)(?:0|[1-9]\d*)?(?:\.\d+)?(?:(?<=\d)[eE][-+]?\d+)?", re.ASCII)
_BOOLEAN = re.compile(r"true|false|yes|no", re.IGNORECASE)
_DATE = re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}", re.ASCII)
_TIME = re.compile(r"(?:\d{4}-\d\d-\d\d[T ])?\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[-+]\d\d:?\d\d)?", re.ASCII)
_TEXT_TYPES = (
    ("integer", _INTEGER),
    ("number", _NUMBER),
    ("boolean", _BOOLEAN),
    ("date", _DATE),
    ("time", _TIME),
)
_EXACT_IN_DOUBLE = 2**53
_LARGE = "large integer"  # an integer that a double can't hold; named "integer" unless numbers mix with it


def _text_type(values: Iterable[str | None], known: str) -> str:
    present = {value for value in values if value}
    if not present:
        return known
    for name, pattern in _TEXT_TYPES:
        if all(map(pattern.fullmatch, present)):
            return merge_types(known, name)
    return "text"


def _json_number_type(text: str) -> str:
    if not text.removeprefix("-").isdigit():
        return "number"
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        return "mixed"
    return _LARGE if abs(int(text)) > _EXACT_IN_DOUBLE else "integer"


_JSON_TYPES = {'"': "text", "[": "list", "{": "object", "t": "boolean", "f": "boolean"}


def _json_type(values: Iterable[str | None], known: str) -> str:
    present = {value for value in values if value is not None and value != "null"}
    for value in present:
        if known == "mixed":
            break
        name = _JSON_TYPES.get(value[0]) or _json_number_type(value)
        if name == "text" and known in ("empty", "date", "time") and len(value) < 40:
            inner = value[1:-1]
            name = "date" if _DATE.fullmatch(inner) else "time" if _TIME.fullmatch(inner) else "text"
        known = merge_types(known, name, texts=("text", "date", "time"))
    return known


def merge_types(one: str, other: str, texts: tuple[str, ...] = ()) -> str:
    """The type of a column that holds both. `texts`: types that together are "text", else all mix to it."""
    if one == other or other == "empty":
        return one
    if one == "empty":
        return other
    pair = {one, other}
    if pair == {"integer", "number"}:
        return "number"
    if pair == {"integer", _LARGE}:
        return _LARGE
    return "text" if not texts or pair <= set(texts) else "mixed"


def widen_type(kind: Kind, known: str, values: Iterable[str | None]) -> str:
    """The column's type after `values` too. Cheap once it is settled."""
    if kind == "text":
        return known if known == "text" else _text_type(values, known)
    return known if known == "mixed" else _json_type(values, known)


def shown_type(name: str) -> str:
    return "integer" if name == _LARGE else name
