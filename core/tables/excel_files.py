"""Rows of Excel sheets. Cells are JSON text, so that types survive."""

from __future__ import annotations

import datetime
import posixpath
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import python_calamine

from core.errors import TableError
from core.tables.json_files import dump
from core.tables.types import ReadOptions, Record, check_width, unique_names

_ERROR_CELL = re.compile(
    rb'<(?:\w+:)?c\b(?=[^>]*\st="e")[^>]*\sr="([A-Z]+)(\d+)"[^>]*>(?:<(?:\w+:)?f\b[^>]*?(?:/>|>[^<]*</(?:\w+:)?f>))?'
    rb"<(?:\w+:)?v>([^<]*)<"
)


def open_workbook(path: Path) -> python_calamine.CalamineWorkbook:
    """Raises TableError when the file is no workbook or is protected by a password."""
    try:
        return python_calamine.CalamineWorkbook.from_path(str(path))
    except python_calamine.PasswordError as error:
        raise TableError(
            f"{path.name} is protected by a password.", hint="Save a copy without one."
        ) from error
    except (python_calamine.CalamineError, OSError, ValueError) as error:
        with path.open("rb") as stream:
            protected = stream.read(8) == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" and path.suffix != ".xls"
        reason = "it seems to be protected by a password" if protected else str(error).rstrip(".")
        raise TableError(
            f"{path.name} can't be read as an Excel workbook: {reason}.",
            hint="Save it again as .xlsx, without a password, or as CSV.",
        ) from error


class ExcelReader:
    """One sheet of a workbook, held in memory. `line` of a record is the sheet's row number."""

    kind = "json"
    encoding = None
    delimiter = None

    def __init__(self, path: Path, options: ReadOptions) -> None:
        workbook = open_workbook(path)
        known = workbook.sheet_names
        if not known:
            raise TableError(f"{path.name} has no sheets.", hint="Give a workbook with a table.")
        self.sheet = options.sheet or known[0]
        if self.sheet not in known:
            raise TableError(
                f"{path.name} has no sheet {self.sheet!r}.", hint=f"Its sheets: {', '.join(known)}."
            )
        try:
            sheet = workbook.get_sheet_by_name(self.sheet)
            self._rows = sheet.to_python(skip_empty_area=False)
        except (python_calamine.CalamineError, ValueError) as error:
            raise TableError(
                f"Sheet {self.sheet!r} of {path.name} can't be read: {error}.",
                hint="Save it again as .xlsx, or as CSV.",
            ) from error
        for (row, column), text in _error_cells(path, self.sheet).items():
            if row < len(self._rows) and column < len(self._rows[row]):
                self._rows[row][column] = text
        self.notes = [] if len(known) == 1 else [f"Sheet {self.sheet!r} of {len(known)} was read."]
        first = next((n for n, row in enumerate(self._rows) if any(cell != "" for cell in row)), None)
        if first is None:
            raise TableError(f"Sheet {self.sheet!r} of {path.name} is empty.", hint="Choose another sheet.")
        self._start = first
        header = self._rows[first]
        used = [any(row[n] != "" for row in self._rows[first:]) for n in range(len(header))]
        width = max(n for n, has_value in enumerate(used) if has_value) + 1
        self._width = width
        self.names, renamed = unique_names(_header_text(cell) for cell in header[:width])
        check_width(path.name, width)
        self.notes += renamed
        self._done = first + 1

    def records(self) -> Iterator[Record]:
        blank = 0
        for number in range(self._start + 1, len(self._rows)):
            self._done = number + 1
            row = self._rows[number][: self._width]
            if all(cell == "" for cell in row):
                blank += 1
            else:
                yield Record(number + 1, [None if cell == "" else dump(_plain(cell)) for cell in row])
        if blank:
            self.notes.append(f"{blank:,} blank row{'s' if blank > 1 else ''} left out.")

    def position(self) -> int:
        return self._done * 256

    def share(self) -> float:
        return self._done / max(len(self._rows), 1)


def _plain(cell: Any) -> Any:
    """A cell as a JSON value: 5.0 is 5, dates and times are ISO text."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return int(cell)
    if isinstance(cell, datetime.date | datetime.datetime | datetime.time):
        return cell.isoformat()
    if isinstance(cell, datetime.timedelta):
        return str(cell)
    return cell


def _header_text(cell: Any) -> str:
    value = _plain(cell)
    return value if isinstance(value, str) else dump(value)


def _error_cells(path: Path, sheet: str) -> dict[tuple[int, int], str]:
    """Cells that hold an error such as #DIV/0!, by 0-based row and column.

    calamine reads them as empty, so they are looked up in the sheet's XML. Old
    .xls files have none; theirs stay empty.
    """
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        member = _sheet_member(archive, sheet)
        found = _ERROR_CELL.findall(archive.read(member)) if member in archive.namelist() else []
    cells = {}
    for letters, number, text in found:
        column = 0
        for letter in letters:
            column = column * 26 + letter - 64
        cells[int(number) - 1, column - 1] = text.decode("utf-8", "replace")
    return cells


def _sheet_member(archive: zipfile.ZipFile, sheet: str) -> str:
    """Name of the archive's member that holds the sheet, "" when the workbook has another layout."""
    parts = ("xl/workbook.xml", "xl/_rels/workbook.xml.rels")
    if not set(parts) <= set(archive.namelist()):
        return ""
    book, links = (ElementTree.fromstring(archive.read(part)) for part in parts)
    targets = {link.get("Id"): link.get("Target", "") for link in links}
    for element in book.iterfind(".//{*}sheet"):
        if element.get("name") == sheet:
            ids = [value for name, value in element.attrib.items() if name.endswith("}id")]
            return posixpath.join("/xl", targets.get(ids[0], "") if ids else "").lstrip("/")
    return ""
