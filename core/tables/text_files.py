"""Rows of delimited text (CSV, TSV), one at a time, none lost."""

from __future__ import annotations

import csv
import itertools
import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.errors import TableError
from core.tables.text_encoding import Encoding, detect_encoding
from core.tables.types import ReadOptions, Record, check_width, unique_names

DELIMITERS = ("\t", ",", ";", "|")
MAX_CELL = 64 << 20  # characters
_LEAST_REACH = 256 << 10  # characters a row may span however broken the file is
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 500, 256 << 10
_SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_DAMAGED = re.compile("[\udc80-\udcff]")
_NO_DELIMITER = "\ufdd0"  # a code point that Unicode reserves for use inside programs


class _SpanTooLong(Exception):
    """A row runs over more text than a row may."""


class Lines:
    """The file's lines, with those of the row being read kept for a second look.

    Splits at \\n, \\r\\n and \\r, as the csv module wants it. `number` is the
    1-based number of the last line handed out. A line over MAX_CELL characters
    is cut there, and noted in `cut`. A byte that is not UTF-8 is noted in
    `damage`, as (line, byte).
    """

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self.stream = encoding.open(path)
        self.size_bytes = max(path.stat().st_size, 1)
        self.number = 0
        self.total = 0  # characters handed out
        self.taken: list[str] = []
        self.span = 0
        self.cut = False
        self.damage: tuple[int, str] | None = None
        self._check_damage = encoding.damaged
        self._waiting: deque[str] = deque()
        self._budget = 2 * MAX_CELL  # characters that may be read twice at full reach
        self._reach = MAX_CELL

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else self._read()
        if not line:
            raise StopIteration
        self.number += 1
        self.total += len(line)
        self.taken.append(line)
        self.span += len(line)
        if self._check_damage and self.damage is None:
            broken = _DAMAGED.search(line)
            if broken:
                self.damage = self.number, f"0x{ord(broken[0]) - 0xDC00:02x}"
        if self.span > self._reach and len(self.taken) > 1:
            raise _SpanTooLong
        return line

    def _read(self) -> str:
        line = self.stream.readline(MAX_CELL)
        if len(line) == MAX_CELL and line[-1] not in "\r\n":
            rest = self.stream.readline(MAX_CELL)
            self.cut = bool(rest)
            while rest and rest[-1] not in "\r\n":
                rest = self.stream.readline(MAX_CELL)
        return line

    def begin(self) -> None:
        """A new row starts with the next line."""
        self.taken = []
        self.span = 0
        self.cut = False
        self.damage = None

    def give_back(self, keep: int) -> None:
        """Hand the row's lines after the first `keep` out again.

        Each return shortens how far a later quote is followed, once a bounded
        amount of text was read twice: a file made of open quotes takes linear time.
        """
        back = self.taken[keep:]
        size = sum(map(len, back))
        self._waiting.extendleft(reversed(back))
        self.taken = self.taken[:keep]
        self.number -= len(back)
        self.total -= size
        self._budget -= size
        self._reach = min(MAX_CELL, max(self._budget, _LEAST_REACH))

    def share(self) -> float:
        """How much of the file was read, from 0 to 1."""
        return 1.0 if self.stream.closed else min(self.stream.buffer.tell() / self.size_bytes, 1.0)

    def close(self) -> None:
        self.stream.close()


def mend(text: str) -> str:
    """Bytes that were not UTF-8 become U+FFFD."""
    return _DAMAGED.sub("\ufffd", text)


def damage_problem(damage: tuple[int, str]) -> str:
    return f"line {damage[0]}: bytes that are not UTF-8 ({damage[1]})"


class DelimitedReader:
    """Header and rows of a CSV or TSV file.

    After construction `names`, `notes`, `encoding` and `delimiter` (None: one
    column) are known; `records()` then reads the file once. Raises TableError
    when there is no header or the file isn't text.
    """

    kind = "text"
    sheet = None

    def __init__(
        self, path: Path, format: str, options: ReadOptions, sample_bytes: int | None = None
    ) -> None:
        self.path = path
        found = detect_encoding(path, options.encoding, sample_bytes)
        self.encoding = found.name
        self.notes: list[str] = []
        if found.name != "utf-8":
            self.notes.append(f"Read as {found.name.upper() if found.name != 'cp1252' else 'cp1252'}.")
        self._blank_lines = 0
        csv.field_size_limit(MAX_CELL)
        self.lines = Lines(path, found)
        try:
            self._start(format, options, found)
        except BaseException:
            self.lines.close()
            raise

    def _start(self, format: str, options: ReadOptions, found: Encoding) -> None:
        sample, whole = self._sample(found)
        asked = _checked_delimiter(options.delimiter)
        if sample:
            sep = _SEP_LINE.fullmatch(sample[0])
            if sep:
                asked = sep[1] if asked is None else asked
                next(self.lines)
                sample = sample[1:]
        if asked is None:
            asked = "\t" if format == "tsv" else detect_delimiter(sample, whole)
        self._separator = asked or _NO_DELIMITER
        self._reader = csv.reader(self.lines, delimiter=self._separator, strict=True)
        self._width = 1 << 30
        header = next(self._rows(), None)
        if header is None:
            raise TableError(
                f"{self.path.name} is empty.", hint="Give a file with a header line and at least one row."
            )
        if header.problem and "not UTF-8" not in header.problem and "after a closing" not in header.problem:
            raise TableError(
                f"The header of {self.path.name} can't be read: {header.problem}.",
                hint="Close the quote in the header line.",
                line=header.line,
            )
        self.names, renamed = unique_names(cell or "" for cell in header.cells)
        check_width(self.path.name, len(self.names))
        self._width = len(self.names)
        self.notes += renamed
        # A single column splits at nothing, so naming its delimiter would mislead.
        self.delimiter = None if self._separator == _NO_DELIMITER else self._separator

    def _sample(self, encoding: Encoding) -> tuple[list[str], bool]:
        """First lines of the file, and whether they are all of it."""
        lines = Lines(self.path, encoding)
        sample: list[str] = []
        try:
            while len(sample) < _SAMPLE_LINES and lines.total < _SAMPLE_CHARACTERS:
                lines.begin()
                line = next(lines, "")
                if not line:
                    return sample, True
                sample.append(line)
        finally:
            lines.close()
        return sample, False

    def records(self) -> Iterator[Record]:
        """The rows, then a note on what was left out. Closes the file."""
        try:
            yield from self._rows()
        except UnicodeDecodeError as error:
            raise TableError(
                f"{self.path.name} is not {self.encoding} behind line {self.lines.number}.",
                hint="Choose its encoding.",
                line=self.lines.number,
            ) from error
        finally:
            self.lines.close()
        if self._blank_lines:
            plural = "s" if self._blank_lines > 1 else ""
            self.notes.append(f"{self._blank_lines:,} blank line{plural} left out.")

    def position(self) -> int:
        return self.lines.total

    def share(self) -> float:
        return self.lines.share()

    def _rows(self) -> Iterator[Record]:
        lines, reader = self.lines, self._reader
        while True:
            lines.begin()
            start = lines.number + 1
            problem = None
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, _SpanTooLong) as error:
                cells, problem = self._resolve(start, error)
            if len(cells) < 2 and not "".join(lines.taken).strip():
                self._blank_lines += 1
            elif problem is None and len(cells) == self._width and lines.damage is None and not lines.cut:
                yield Record(start, cells)
            else:
                yield self._unusual(start, cells, problem)

    def _unusual(self, start: int, cells: list[str], problem: str | None) -> Record:
        """A row whose cells don't match the header, or that has a problem."""
        lines, header = self.lines, self._width == 1 << 30
        if lines.cut:
            problem = f"line {lines.number} is longer than {MAX_CELL:,} characters"
        if lines.damage is not None:
            cells = [mend(cell) for cell in cells]
            problem = problem or damage_problem(lines.damage)
        if problem is None and len(cells) > self._width:
            problem = f"line {start} has {len(cells)} cells, the header names {self._width}"
        raw = mend("".join(lines.taken).rstrip("\r\n")) if problem else None
        count = len(cells) if len(cells) < self._width and not problem and not header else None
        return Record(start, cells[: self._width], problem, raw, count)

    def _resolve(self, start: int, error: Exception) -> tuple[list[str], str]:
        """Cells and problem of a row that the strict reader refused; lines it swallowed are handed back."""
        lines = self.lines
        taken = lines.taken
        after_quote = isinstance(error, csv.Error) and "expected after" in str(error)
        if after_quote and (len(taken) == 1 or not self._starts_row(taken[-1])):
            where = f"line {start}" if len(taken) == 1 else f"lines {start} to {lines.number}"
            return self._parse(taken), f"{where}: text after a closing quote"
        if len(taken) == 1 and isinstance(error, csv.Error) and "field limit" in str(error):
            return [taken[0][:1000]], f"line {start} has a cell of more than {MAX_CELL:,} characters"
        opened = self._opening_line(taken[:-1] if after_quote else taken)
        lines.give_back(opened)
        # What was damaged further down is the following rows' own affair.
        if lines.damage is not None and lines.damage[0] > lines.number:
            lines.damage = None
        return self._parse(taken[:opened]), f"line {lines.number} opens a quote that is never closed"

    def _parse(self, lines: Iterable[str]) -> list[str]:
        """Cells of these lines as one row, quotes taken leniently."""
        csv.field_size_limit(2 * MAX_CELL)
        try:
            return next(csv.reader(lines, delimiter=self._separator), [])
        finally:
            csv.field_size_limit(MAX_CELL)

    def _starts_row(self, line: str) -> bool:
        """Whether the line has its quotes around cells: then the quote open before it is a stray."""
        cells = self._parse([line])
        return len(cells) <= self._width and ('""' in line or '"' not in "".join(cells))

    def _opening_line(self, taken: list[str]) -> int:
        """How many of the lines belong to the row up to the line in which its last cell begins."""
        head = taken[:2000]
        low, high = 1, len(head)
        cells = len(self._parse(head))
        while low < high:
            middle = (low + high) // 2
            if len(self._parse(head[:middle])) == cells:
                high = middle
            else:
                low = middle + 1
        return low


def _checked_delimiter(delimiter: str | None) -> str | None:
    if delimiter is None or delimiter == "":
        return delimiter
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise TableError(
            f"{delimiter!r} can't be a delimiter.", hint="Give one character, such as , ; | or a tab."
        )
    return delimiter


def detect_delimiter(sample: list[str], whole: bool) -> str:
    """The delimiter that splits the header and, most often, the rows likewise; "" for a single column."""
    best, best_score = "", (-1.0, 0)
    for delimiter in DELIMITERS:
        counts = [len(row) for row in itertools.islice(csv.reader(sample, delimiter=delimiter), 500) if row]
        if not whole and len(counts) > 2:
            counts.pop()  # the sample may end inside it
        if not counts or counts[0] < 2:
            continue
        rows = counts[1:]
        score = sum(count == counts[0] for count in rows) / len(rows) if rows else 1.0
        if (score, counts[0]) > best_score:
            best, best_score = delimiter, (score, counts[0])
    return best
