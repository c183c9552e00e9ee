"""Rows of JSONL and JSON files. Cells are JSON text, so that types survive."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import TableError
from core.tables.text_encoding import detect_encoding
from core.tables.text_files import MAX_CELL, Lines, damage_problem, mend
from core.tables.types import ReadOptions, Record, check_width, unique_names

_SPACE = re.compile(r"[ \t\r\n]*")
_CHUNK = 1 << 20


class _Decoder:
    """JSON objects -> {key: JSON text}, each number with the digits it was written with.

    Reading 1.10 or 0.1234567890123456789 as a float and writing it again
    would change it; such cells keep their own characters instead.
    """

    def __init__(self) -> None:
        self._exact = True
        self._constant = False
        self._json = json.JSONDecoder(
            parse_float=self._float, parse_int=self._int, parse_constant=self._not_a_number
        )

    def _float(self, text: str) -> float:
        value = float(text)
        self._exact = self._exact and repr(value) == text
        return value

    def _int(self, text: str) -> int:
        if len(text) > 4000 or text == "-0":  # int() refuses more than 4,300 digits
            self._exact = False
            return 0
        return int(text)

    def _not_a_number(self, text: str) -> str:
        self._constant = True
        return text

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """Value at `start` (an object as {key: JSON text}) and the index behind it. Raises ValueError."""
        self._exact, self._constant = True, False
        try:
            value, end = self._json.raw_decode(text, start)
            if not isinstance(value, dict):
                return value, end
            if self._exact:
                return {key: dump(cell) for key, cell in value.items()}, end
            return self._exact_cells(text, start), end
        except RecursionError as error:
            raise ValueError("nested too deeply") from error

    def _exact_cells(self, text: str, start: int) -> dict[str, str]:
        cells: dict[str, str] = {}
        at = _SPACE.match(text, start + 1).end()
        while text[at] != "}":
            key, at = self._json.raw_decode(text, at)
            at = _SPACE.match(text, _SPACE.match(text, at).end() + 1).end()
            self._exact, self._constant = True, False
            value, end = self._json.raw_decode(text, at)
            keep = not self._exact and not self._constant
            # Line ends inside a value stand between its tokens only: JSON escapes them in strings.
            cells[key] = re.sub(r"[\r\n]+", " ", text[at:end]) if keep else dump(value)
            at = _SPACE.match(text, end).end()
            if text[at] == ",":
                at = _SPACE.match(text, at + 1).end()
        return cells


def dump(value: Any) -> str:
    """Compact JSON text, non-ASCII characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class _JsonReader:
    """What JSONL and JSON files share: columns in the order their keys first appear."""

    kind = "json"
    sheet = None
    delimiter = None

    def __init__(self, path: Path, options: ReadOptions, sample_bytes: int | None) -> None:
        self.path = path
        found = detect_encoding(path, options.encoding, sample_bytes)
        self.encoding = found.name
        self.notes = [] if found.name == "utf-8" else [f"Read as {found.name.upper()}."]
        self.names: list[str] = []
        self._found = found
        self._index: dict[str, int] = {}
        self._decoder = _Decoder()

    def _cells(self, item: dict[str, str]) -> list[str | None]:
        for key in item:
            if key not in self._index:
                self._index[key] = len(self._index)
                check_width(self.path.name, len(self._index))
                self._rename()
        cells: list[str | None] = [None] * len(self._index)
        for key, text in item.items():
            cells[self._index[key]] = text
        return cells

    def _rename(self) -> None:
        # A key is kept to the letter, except that no column can go without a name.
        key = next(reversed(self._index)).encode("utf-8", "replace").decode()
        if key.strip() and key not in self.names:
            self.names.append(key)
            return
        names, notes = unique_names([*self.names, key])
        self.names.append(names[-1])
        self.notes += notes[-1:]


class JsonLinesReader(_JsonReader):
    """A JSON object a line. Lines that are none become rows with a problem."""

    def __init__(self, path: Path, options: ReadOptions, sample_bytes: int | None = None) -> None:
        super().__init__(path, options, sample_bytes)
        self.lines = Lines(path, self._found)

    def records(self) -> Iterator[Record]:
        blank = 0
        try:
            while True:
                self.lines.begin()
                text = next(self.lines, "")
                if not text:
                    break
                if text.isspace():
                    blank += 1
                    continue
                yield self._record(text)
        finally:
            self.lines.close()
        if blank:
            self.notes.append(f"{blank:,} blank line{'s' if blank > 1 else ''} left out.")

    def _record(self, text: str) -> Record:
        number, problem, item = self.lines.number, None, None
        if self.lines.damage is not None:
            text, problem = mend(text), damage_problem(self.lines.damage)
        elif self.lines.cut:
            problem = f"line {number} is longer than {MAX_CELL:,} characters"
        text = text.strip()
        try:
            item, end = self._decoder.decode_at(text, 0)
            if end < len(text):
                problem = problem or f"line {number} is not JSON: extra text after column {end}"
                item = None
            elif not isinstance(item, dict):
                problem = problem or f"line {number} is not a JSON object but {_json_noun(item)}"
        except ValueError as error:
            where = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
            message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            problem = problem or f"line {number} is not JSON: {message}{where}"
        cells = self._cells(item) if isinstance(item, dict) else []
        return Record(number, cells, problem, text if problem else None)

    def position(self) -> int:
        return self.lines.total

    def share(self) -> float:
        return self.lines.share()


class JsonArrayReader(_JsonReader):
    """A .json file that is one array of objects, read piece by piece."""

    def __init__(self, path: Path, options: ReadOptions, sample_bytes: int | None = None) -> None:
        super().__init__(path, options, sample_bytes)
        self._stream = self._found.open(path)
        self._size_bytes = max(path.stat().st_size, 1)
        self._text, self._at, self._line, self._passed = "", 0, 1, 0
        self._ended = False

    def _fail(self, message: str) -> TableError:
        return TableError(
            f"{self.path.name} is not a JSON array of objects: line {self._line}, {message}.",
            hint='Write [{"column": "value"}, ...], or one object a line in a .jsonl file.',
            line=self._line,
        )

    def _more(self, size: int) -> bool:
        """Read on, keeping only what was not used yet. False at the end of the file."""
        piece = "" if self._ended else self._stream.read(size)
        self._ended = not piece
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)

    def _step(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._passed += end - self._at
        self._at = end

    def _next_character(self) -> str:
        while True:
            self._step(_SPACE.match(self._text, self._at).end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_CHUNK):
                return ""

    def _value(self) -> tuple[Any, str]:
        """The array's next element and its text; reads on while the element is incomplete."""
        size = _CHUNK
        while True:
            try:
                value, end = self._decoder.decode_at(self._text, self._at)
                # A number at the very end of what was read may go on.
                if end < len(self._text) or not self._more(size):
                    text = self._text[self._at : end]
                    self._step(end)
                    return value, text
            except ValueError as error:
                if len(self._text) - self._at > MAX_CELL or not self._more(size):
                    raise self._fail(str(error).split(":")[0]) from error
                size *= 2

    def records(self) -> Iterator[Record]:
        try:
            if self._next_character() != "[":
                raise self._fail("it starts with something else")
            self._step(self._at + 1)
            if self._next_character() == "]":
                return
            while True:
                self._next_character()
                line = self._line
                value, text = self._value()
                if isinstance(value, dict):
                    yield Record(line, self._cells(value))
                else:
                    problem = f"line {line} holds {_json_noun(value)} where an object should stand"
                    yield Record(line, [], problem, text)
                follows = self._next_character()
                if follows == "]":
                    return
                if follows != ",":
                    raise self._fail("a comma is missing" if follows else "the array does not end")
                self._step(self._at + 1)
        finally:
            self._stream.close()

    def position(self) -> int:
        return self._passed

    def share(self) -> float:
        return 1.0 if self._ended else min(self._stream.buffer.tell() / self._size_bytes, 1.0)


def _json_noun(value: Any) -> str:
    if value is None:
        return "null"
    nouns = {list: "an array", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return nouns[type(value)]


def is_json_array(path: Path, options: ReadOptions) -> bool:
    """Whether the file's first character opens an array; a .json file may also hold an object a line."""
    with detect_encoding(path, options.encoding, _CHUNK).open(path) as stream:
        return stream.read(4096).lstrip().startswith("[")
