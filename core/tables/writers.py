"""Tables out: CSV, TSV, JSONL, Parquet and Excel files, from Arrow batches, never held whole."""

from __future__ import annotations

import contextlib
import csv
import datetime
import decimal
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow
import pyarrow.parquet
import xlsxwriter
from xlsxwriter.exceptions import XlsxWriterException

from core.errors import TableError
from core.tables.types import Column

FORMATS_OUT: Mapping[str, str] = MappingProxyType(
    {
        ".csv": "csv",
        ".tsv": "tsv",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".parquet": "parquet",
        ".xlsx": "xlsx",
    }
)
OPENAI_BATCH = "openai-batch"  # chosen by name only; `core.openai_batch` writes it
EXCEL_ROWS, EXCEL_COLUMNS, EXCEL_CELL = 1_048_575, 16_384, 32_767  # rows below the header; characters
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d[\d.,]*|[.,]\d+)(?:[eE][-+]?\d+)?%?", re.ASCII)
_PARQUET_TYPES = {
    "text": pyarrow.string(),
    "date": pyarrow.string(),
    "time": pyarrow.string(),
    "integer": pyarrow.int64(),
    "number": pyarrow.float64(),
    "boolean": pyarrow.bool_(),
}

Batches = Iterable[pyarrow.RecordBatch]


def export_format(path: Path, asked: str | None = None) -> str:
    """The format to write `path` in: what was asked for, else by its ending. Raises TableError."""
    names = [*dict.fromkeys(FORMATS_OUT.values()), OPENAI_BATCH]
    if asked is not None:
        if asked.lower() in names:
            return asked.lower()
        raise TableError(f"{asked!r} is not a format to write.", hint=f"Choose one of {', '.join(names)}.")
    found = FORMATS_OUT.get(Path(path).suffix.lower())
    if found is None:
        raise TableError(
            f"{Path(path).name} has no ending that says its format.",
            hint=f"End it with {', '.join(FORMATS_OUT)}.",
        )
    return found


def write(
    path: Path,
    columns: Sequence[Column],
    batches: Batches,
    *,
    format: str,
    escape: frozenset[str] = frozenset(),
    bom: bool = False,
) -> int:
    """Write the batches, whose columns are `columns` in order, and return the number of rows.

    text columns are written as they are, json columns by their value, native
    ones as the format has them. The file appears under its name when it is
    whole. `escape` names the columns in which a cell that a spreadsheet would
    execute gets a leading apostrophe (csv, tsv, xlsx). `bom` puts a byte order
    mark before CSV and TSV, for Excel. Raises TableError.
    """
    path = Path(path)
    if export_format(path, format) == OPENAI_BATCH:
        raise ValueError("core.openai_batch writes this format")
    with whole_file(path) as partial:
        match format:
            case "csv" | "tsv":
                delimiter = "\t" if format == "tsv" else ","
                return _write_delimited(partial, columns, batches, delimiter, escape, bom)
            case "jsonl":
                return _write_jsonl(partial, columns, batches)
            case "parquet":
                return _write_parquet(partial, columns, batches)
            case _:
                return _write_excel(partial, path.name, columns, batches, escape)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """An empty file to write to; it becomes `path` when the block ends well, and goes otherwise.

    Raises TableError.
    """
    if path.is_dir():
        raise TableError(f"{path} is a folder.", hint="Give the name of a file to write.")
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        partial.open("xb").close()  # fails here, not when XlsxWriter has collected all rows
        yield partial
        partial.replace(path)
    except (OSError, XlsxWriterException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TableError(
            f"{path} can't be written: {reason}.", hint="Check that the folder exists, is yours and has room."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _rows(columns: Sequence[Column], batches: Batches, convert: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    for batch in batches:
        if batch.num_columns != len(columns):
            raise ValueError(f"{batch.num_columns} arrays for {len(columns)} columns")
        values = [batch.column(n).to_pylist() for n in range(len(columns))]
        # A text column without escapes needs no look at its cells.
        yield from zip(
            *(v if change is None else map(change, v) for v, change in zip(values, convert, strict=True)),
            strict=True,
        )


def escape_cell(text: str) -> str:
    """`text`, behind an apostrophe when a spreadsheet would run it; plain numbers such as -5 stay.

    >>> escape_cell("=1+1"), escape_cell("-5")
    ("'=1+1", '-5')
    """
    return "'" + text if text and text[0] in "=+-@\t\r" and not _PLAIN_NUMBER.fullmatch(text) else text


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=jsonable)


def jsonable(value: Any) -> Any:
    """A native value that JSON has no form for."""
    if isinstance(value, datetime.date | datetime.datetime | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def _json_cell_text(text: str | None) -> str:
    if text is None or text == "null":
        return ""
    return json.loads(text) if text[0] == '"' else text


def _native_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | list | dict):
        return _compact(value)
    if isinstance(value, float | int | decimal.Decimal):
        return str(value)
    return str(jsonable(value))


def _text(value: str | None) -> str:
    return value or ""


def _text_converter(column: Column, escape: frozenset[str]) -> Any:
    plain = {"text": _text, "json": _json_cell_text, "native": _native_text}[column.kind]
    if column.name not in escape:
        return None if column.kind == "text" else plain
    return lambda value: (
        escape_cell(plain(value)) if column.kind != "native" or isinstance(value, str) else plain(value)
    )


def _write_delimited(
    path: Path, columns: Sequence[Column], batches: Batches, delimiter: str, escape: frozenset[str], bom: bool
) -> int:
    convert = [_text_converter(column, escape) for column in columns]
    rows = 0
    # Half a surrogate pair, which JSON can hold and UTF-8 can't, becomes "?".
    with path.open(
        "w", encoding="utf-8-sig" if bom else "utf-8", errors="replace", newline="", buffering=1 << 20
    ) as stream:
        writer = csv.writer(stream, delimiter=delimiter, lineterminator="\r\n")
        writer.writerow([column.name for column in columns])
        for row in _rows(columns, batches, convert):
            writer.writerow(row)
            rows += 1
    return rows


def _native_json(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(str(value))
    return _compact(value)


def _write_jsonl(path: Path, columns: Sequence[Column], batches: Batches) -> int:
    converters = {"text": _compact, "json": None, "native": _native_json}
    convert = [converters[column.kind] for column in columns]
    keys = [f"{_compact(column.name)}:" for column in columns]
    rows = 0
    with path.open("w", encoding="utf-8", newline="", buffering=1 << 20) as stream:
        for row in _rows(columns, batches, convert):
            cells = [key + text for key, text in zip(keys, row, strict=True) if text is not None]
            stream.write("{" + ",".join(cells) + "}\n")
            rows += 1
    return rows


def _parquet_array(column: Column, array: pyarrow.Array) -> pyarrow.Array:
    """A json column's array in the one type its values have, or as JSON text."""
    wanted = _PARQUET_TYPES.get(column.type)
    if column.kind != "json" or wanted is None:
        return array.cast(pyarrow.string()) if column.kind != "native" else array
    values = [None if text is None else json.loads(text) for text in array.to_pylist()]
    if column.type == "number":
        values = [None if value is None else float(value) for value in values]
    try:
        return pyarrow.array(values, type=wanted)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, UnicodeEncodeError, OverflowError) as error:
        raise TableError(
            f"Column {column.name!r} holds values that are no {column.type}.", hint="Write JSONL or CSV."
        ) from error


def _write_parquet(path: Path, columns: Sequence[Column], batches: Batches) -> int:
    rows = 0
    writer: pyarrow.parquet.ParquetWriter | None = None
    names = [column.name for column in columns]
    try:
        for batch in batches:
            arrays = [_parquet_array(column, batch.column(n)) for n, column in enumerate(columns)]
            table = pyarrow.Table.from_arrays(arrays, names=names)
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            rows += len(table)
        if writer is None:
            types = [
                _PARQUET_TYPES.get(column.type, pyarrow.string())
                if column.kind == "json"
                else pyarrow.string()
                for column in columns
            ]
            schema = pyarrow.schema(list(zip(names, types, strict=True)))
            writer = pyarrow.parquet.ParquetWriter(path, schema)
    finally:
        if writer is not None:
            writer.close()
    return rows


def _excel_json(text: str | None) -> Any:
    value = None if text is None else json.loads(text)
    if isinstance(value, list | dict):
        return text
    if isinstance(value, int | float) and not isinstance(value, bool):
        # A spreadsheet counts in doubles: digits it would lose stay as text.
        exact = (
            math.isfinite(value) and abs(value) <= 2**53 and (isinstance(value, int) or repr(value) == text)
        )
        return value if exact else text
    return value


def _excel_native(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) <= 2**53:
        return value
    return _native_text(value)


def _write_excel(
    path: Path, name: str, columns: Sequence[Column], batches: Batches, escape: frozenset[str]
) -> int:
    if len(columns) > EXCEL_COLUMNS:
        raise TableError(
            f"{name}: {len(columns):,} columns are more than a sheet holds ({EXCEL_COLUMNS:,}).",
            hint="Write CSV or Parquet.",
        )
    options = {
        "constant_memory": True,
        "strings_to_formulas": False,
        "strings_to_urls": False,
        "strings_to_numbers": False,
    }
    book = xlsxwriter.Workbook(os.fspath(path), options)
    sheet = book.add_worksheet()
    for at, column in enumerate(columns):
        sheet.write_string(0, at, column.name)
    converters = {"text": None, "json": _excel_json, "native": _excel_native}
    convert = [converters[column.kind] for column in columns]
    escaped = [column.name in escape for column in columns]
    row = 0
    try:
        for cells in _rows(columns, batches, convert):
            row += 1
            if row > EXCEL_ROWS:
                raise TableError(
                    f"{name}: a sheet holds at most {EXCEL_ROWS:,} rows.", hint="Write CSV or Parquet."
                )
            for at, value in enumerate(cells):
                if isinstance(value, str):
                    _excel_text(sheet, row, at, escape_cell(value) if escaped[at] else value, name, columns)
                elif isinstance(value, bool):
                    sheet.write_boolean(row, at, value)
                elif value is not None:
                    sheet.write_number(row, at, value)
    finally:
        book.close()
    return row


def _excel_text(sheet: Any, row: int, at: int, text: str, name: str, columns: Sequence[Column]) -> None:
    # Excel counts UTF-16 units; escapes for control characters count once.
    if len(text) > EXCEL_CELL // 2 and len(text.encode("utf-16-le", "replace")) // 2 > EXCEL_CELL:
        raise TableError(
            f"{name}: row {row + 1}, column {columns[at].name!r} has {len(text):,} characters; "
            f"an Excel cell holds {EXCEL_CELL:,}.",
            hint="Write CSV or Parquet.",
            line=row + 1,
        )
    if text:
        sheet.write_string(row, at, text.encode("utf-8", "replace").decode())
