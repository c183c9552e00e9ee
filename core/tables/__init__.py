"""Tables in and out, any size, any encoding.

    file -> stage() -> table `input` of a DuckDB database -> ... -> write() -> file

`input` has a row for each row of the file, those that can't be used included:

    _row BIGINT        0-based, in the file's order
    _line BIGINT       1-based line (row of a sheet or Parquet file) where it starts
    _problem VARCHAR   why it can't be used, NULL for good rows
    _raw VARCHAR       the row's own text when there is a problem
    _cells INTEGER     cells found, where a delimited row has fewer than the header
    c0, c1, ...        the columns, in order; names from outside never become SQL
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from core.errors import TableError
from core.tables.excel_files import open_workbook
from core.tables.staging import FORMATS_IN, Progress, check_file, stage_file
from core.tables.types import Column, ReadOptions, TableInfo
from core.tables.writers import FORMATS_OUT, escape_cell, export_format, write

__all__ = [
    "FORMATS_IN",
    "FORMATS_OUT",
    "Column",
    "Preview",
    "ReadOptions",
    "TableInfo",
    "decode",
    "escape_cell",
    "export_format",
    "info",
    "preview",
    "sheets",
    "stage",
    "write",
]

_DETECT = ReadOptions()
_PREVIEW_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Preview:
    """The first rows of a file. Each row maps column names to decoded values.

    `problems` holds the sentences about rows among them that can't be used.
    """

    format: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]
    problems: tuple[str, ...]
    encoding: str | None
    delimiter: str | None
    sheet: str | None
    notes: tuple[str, ...]


def stage(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    *,
    options: ReadOptions = _DETECT,
    limit: int | None = None,
    on_progress: Progress | None = None,
) -> TableInfo:
    """Read the file, or its first `limit` rows, into the table `input` of `connection`, in one transaction.

    Replaces a table staged before. Raises TableError, and then leaves `connection` as it was.
    """
    return stage_file(Path(path), connection, options, limit, on_progress, None)


def info(connection: duckdb.DuckDBPyConnection) -> TableInfo:
    """What `stage` put into this database. Raises TableError when it holds no table."""
    try:
        # fetchall, because a result that isn't read to its end keeps the connection busy.
        [(text,)] = connection.execute("SELECT info FROM input_info").fetchall()
    except duckdb.CatalogException as error:
        raise TableError("This database holds no staged table.", hint="Stage a file first.") from error
    fields = json.loads(text)
    fields["columns"] = tuple(Column(**column) for column in fields["columns"])
    fields["notes"] = tuple(fields["notes"])
    return TableInfo(**fields)


def sheets(path: Path) -> list[str]:
    """Names of a workbook's sheets, in order. Raises TableError."""
    path = Path(path)
    check_file(path)
    return list(open_workbook(path).sheet_names)


def preview(path: Path, *, options: ReadOptions = _DETECT, rows: int = 20) -> Preview:
    """The first rows of a file, quickly however large it is.

    The encoding is judged by the file's first 32 MB; `stage` looks at all of it. Raises TableError.
    """
    path = Path(path)
    with duckdb.connect(":memory:") as connection:
        found = stage_file(path, connection, options, rows, None, _PREVIEW_BYTES)
        names = ", ".join(f"c{n}" for n in range(len(found.columns)))
        cells = connection.execute(f"SELECT {names} FROM input ORDER BY _row").fetchall()
        problems = connection.execute(
            "SELECT _problem FROM input WHERE _problem IS NOT NULL ORDER BY _row"
        ).fetchall()
    decoded = [
        {column.name: decode(column, value) for column, value in zip(found.columns, row, strict=True)}
        for row in cells
    ]
    return Preview(
        format=found.format,
        columns=found.columns,
        rows=decoded,
        problems=tuple(text for (text,) in problems),
        encoding=found.encoding,
        delimiter=found.delimiter,
        sheet=found.sheet,
        notes=found.notes,
    )


def decode(column: Column, value: Any) -> Any:
    """A cell of `input` as a template sees it.

    text: str, "" for NULL. json: the JSON value, None for a missing key. native: the Python value.
    """
    if column.kind == "text":
        return "" if value is None else value
    if column.kind == "json":
        return None if value is None else json.loads(value)
    return value
