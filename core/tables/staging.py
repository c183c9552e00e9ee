"""From a file of any format into DuckDB's table `input`, a bounded batch at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import duckdb
import pyarrow
import pyarrow.parquet

from core.errors import TableError
from core.tables.excel_files import ExcelReader
from core.tables.json_files import JsonArrayReader, JsonLinesReader, is_json_array
from core.tables.text_files import DelimitedReader
from core.tables.types import (
    Column,
    Kind,
    ReadOptions,
    Record,
    TableInfo,
    check_width,
    shown_type,
    unique_names,
    widen_type,
)
from core.transactions import transaction

FORMATS_IN: Mapping[str, str] = MappingProxyType(
    {
        ".csv": "csv",
        ".tsv": "tsv",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".json": "json",
        ".parquet": "parquet",
        ".xlsx": "xlsx",
        ".xlsm": "xlsx",
        ".xls": "xlsx",
    }
)
_BATCH_ROWS, _BATCH_CHARACTERS, _BATCH_CELLS = 8192, 8 << 20, 1 << 20
_META = (
    ("_row", pyarrow.int64()),
    ("_line", pyarrow.int64()),
    ("_problem", pyarrow.string()),
    ("_raw", pyarrow.string()),
    ("_cells", pyarrow.int32()),
)
_META_COLUMNS = "_row BIGINT, _line BIGINT, _problem VARCHAR, _raw VARCHAR, _cells INTEGER"

Progress = Callable[[int, float], None]
"""Called with the rows staged so far and the share of the file read, from 0 to 1."""


class Reader(Protocol):
    """What reads a file row by row. `names` may grow and `notes` too until `records` ends."""

    kind: Kind
    names: list[str]
    notes: list[str]
    encoding: str | None
    delimiter: str | None
    sheet: str | None

    def records(self) -> Iterator[Record]: ...

    def position(self) -> int:
        """Characters read so far, about."""
        ...

    def share(self) -> float: ...


def check_file(path: Path) -> None:
    if path.is_dir():
        raise TableError(f"{path} is a folder.", hint="Give one file.")
    try:
        with path.open("rb") as stream:
            if not stream.read(1):
                raise TableError(f"{path.name} is empty.", hint="Give a file with at least one row.")
    except FileNotFoundError as error:
        raise TableError(f"There is no file {path}.", hint="Check its name and folder.") from error
    except OSError as error:
        raise TableError(
            f"{path} can't be read: {error.strerror or error}.", hint="Check that the file is yours to read."
        ) from error


def _format(path: Path) -> str:
    found = FORMATS_IN.get(path.suffix.lower())
    if found is None:
        raise TableError(
            f"{path.name} has no ending that can be read.", hint=f"Endings: {', '.join(FORMATS_IN)}."
        )
    return found


def _open(path: Path, format: str, options: ReadOptions, sample_bytes: int | None) -> Reader:
    if format in ("csv", "tsv"):
        return DelimitedReader(path, format, options, sample_bytes)
    if format == "xlsx":
        return ExcelReader(path, options)
    if format == "json" and is_json_array(path, options):
        return JsonArrayReader(path, options, sample_bytes)
    return JsonLinesReader(path, options, sample_bytes)


def stage_file(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    options: ReadOptions,
    limit: int | None,
    on_progress: Progress | None,
    sample_bytes: int | None,
) -> TableInfo:
    check_file(path)
    format = _format(path)
    with transaction(connection):
        connection.execute("DROP TABLE IF EXISTS input")
        if format == "parquet":
            found = _stage_parquet(path, connection, limit, on_progress)
        else:
            reader = _open(path, format, options, sample_bytes)
            found = _Stager(path, connection, reader, limit, on_progress).run(format)
        connection.execute("CREATE OR REPLACE TABLE input_info (info VARCHAR)")
        connection.execute("INSERT INTO input_info VALUES (?)", [json.dumps(asdict(found))])
    return found


class _Stager:
    """Moves records into `input`, a bounded batch at a time."""

    def __init__(
        self,
        path: Path,
        connection: duckdb.DuckDBPyConnection,
        reader: Reader,
        limit: int | None,
        on_progress: Progress | None,
    ) -> None:
        self.path, self.connection, self.reader = path, connection, reader
        self.limit, self.on_progress = limit, on_progress
        self.rows = self.problems = 0
        self.types: list[str] = []

    def run(self, format: str) -> TableInfo:
        records = self.reader.records()
        pending: list[Record] = []
        flushed_at = self.reader.position()
        whole = True
        first_problem: Record | None = None
        for record in records:
            if self.limit is not None and self.rows + len(pending) >= self.limit:
                whole = False
                break
            pending.append(record)
            first_problem = first_problem or (record if record.problem else None)
            if len(pending) >= self._batch_rows() or self.reader.position() - flushed_at > _BATCH_CHARACTERS:
                self._flush(pending)
                pending, flushed_at = [], self.reader.position()
        records.close()
        self._flush(pending)
        if whole:
            self._check_rows(first_problem)
        reader = self.reader
        columns = tuple(
            Column(name, reader.kind, shown_type(type_))
            for name, type_ in zip(reader.names, self.types, strict=True)
        )
        return TableInfo(
            format, self.rows, columns, self.problems, reader.encoding, reader.delimiter, reader.sheet,
            tuple(reader.notes),
        )  # fmt: skip

    def _batch_rows(self) -> int:
        return min(_BATCH_ROWS, _BATCH_CELLS // max(len(self.reader.names), 1))

    def _check_rows(self, first_problem: Record | None) -> None:
        if self.rows == 0:
            what = "has a header but no rows" if self.reader.names else "is empty"
            raise TableError(f"{self.path.name} {what}.", hint="Give a file with at least one row.")
        if self.problems == self.rows and self.reader.kind == "json" and first_problem:
            raise TableError(
                f"{self.path.name} holds no row that can be used: {first_problem.problem}.",
                hint='Write one JSON object a line, such as {"id": 1, "text": "..."}.',
                line=first_problem.line,
            )

    def _flush(self, records: list[Record]) -> None:
        self._add_columns()
        if not records:
            return
        width = len(self.types)
        cells = [
            record.cells if len(record.cells) == width else _padded(record.cells, width) for record in records
        ]
        values = list(zip(*cells, strict=True))
        for n, column in enumerate(values):
            self.types[n] = widen_type(self.reader.kind, self.types[n], column)
        meta = (
            range(self.rows, self.rows + len(records)),
            [record.line for record in records],
            [record.problem for record in records],
            [record.raw for record in records],
            [record.cell_count for record in records],
        )
        arrays = [
            pyarrow.array(column, type=type_) for column, (_, type_) in zip(meta, _META, strict=True)
        ] + [_text_array(column) for column in values]
        names = [name for name, _ in _META] + [f"c{n}" for n in range(width)]
        _insert(self.connection, pyarrow.RecordBatch.from_arrays(arrays, names=names))
        self.rows += len(records)
        self.problems += sum(record.problem is not None for record in records)
        if self.on_progress is not None:
            self.on_progress(self.rows, self.reader.share())

    def _add_columns(self) -> None:
        added = range(len(self.types), len(self.reader.names))
        self.types += ["empty"] * len(added)
        if self.rows == 0:
            columns = "".join(f", c{n} VARCHAR" for n in added)
            self.connection.execute(f"CREATE OR REPLACE TABLE input ({_META_COLUMNS}{columns})")
            return
        for n in added:
            self.connection.execute(f"ALTER TABLE input ADD COLUMN c{n} VARCHAR")


def _padded(cells: Any, width: int) -> list[str | None]:
    return [*cells, *[None] * (width - len(cells))]


def _text_array(values: tuple[str | None, ...]) -> pyarrow.Array:
    try:
        return pyarrow.array(values, type=pyarrow.string())
    except UnicodeEncodeError:
        # JSON may escape half a surrogate pair, which UTF-8 can't hold: such cells keep the escape.
        return pyarrow.array([_escape_surrogates(value) for value in values], type=pyarrow.string())


def _escape_surrogates(value: str | None) -> str | None:
    return value and "".join(
        f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in value
    )  # fmt: skip


def _insert(
    connection: duckdb.DuckDBPyConnection, batch: Any, sql: str = "INSERT INTO input SELECT * FROM batch"
) -> None:
    # DuckDB finds `batch` by its name here. connection.register() would put a view into the
    # transaction, which then holds every batch until it ends (a GB for a GB).
    connection.execute(sql)


def _stage_parquet(
    path: Path, connection: duckdb.DuckDBPyConnection, limit: int | None, on_progress: Progress | None
) -> TableInfo:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names, notes = unique_names(file.schema_arrow.names)
            check_width(path.name, len(names))
            total = file.metadata.num_rows
            if total == 0 or not names:
                raise TableError(f"{path.name} has no rows.", hint="Give a file with at least one row.")
            rows = total if limit is None else min(limit, total)
            created = False
            done = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                batch = batch.slice(0, rows - done) if created else batch.slice(0, rows)
                _insert_native(connection, batch, done, create=not created)
                created = True
                done += len(batch)
                if on_progress is not None:
                    on_progress(done, done / total)
                if done >= rows:
                    break
    except (pyarrow.ArrowException, OSError, duckdb.Error) as error:
        raise TableError(
            f"{path.name} can't be read as Parquet: {str(error).splitlines()[0].rstrip('.')}.",
            hint="Write it again, or give another format.",
        ) from error
    described = connection.execute("DESCRIBE input").fetchall()[len(_META) :]
    columns = tuple(
        Column(name, "native", _native_type(row[1])) for name, row in zip(names, described, strict=True)
    )
    return TableInfo("parquet", rows, columns, 0, None, None, None, tuple(notes))


def _insert_native(
    connection: duckdb.DuckDBPyConnection, batch: pyarrow.RecordBatch, first: int, *, create: bool
) -> None:
    rows = len(batch)
    numbers = pyarrow.array(range(first, first + rows), type=pyarrow.int64())
    lines = pyarrow.array(range(first + 1, first + rows + 1), type=pyarrow.int64())
    empty = [pyarrow.nulls(rows, type_) for _, type_ in _META[2:]]
    names = [name for name, _ in _META] + [f"c{n}" for n in range(batch.num_columns)]
    whole = pyarrow.RecordBatch.from_arrays([numbers, lines, *empty, *batch.columns], names=names)
    if create:
        _insert(connection, whole, "CREATE TABLE input AS SELECT * FROM batch")
    else:
        _insert(connection, whole)


def _native_type(type_: str) -> str:
    """DuckDB's type, named for people."""
    if type_.endswith("]"):
        return "list"
    head = type_.partition("(")[0]
    if head in ("STRUCT", "MAP"):
        return "object"
    if "INT" in head and head != "INTERVAL":
        return "integer"
    named = {"BOOLEAN": "boolean", "FLOAT": "number", "DOUBLE": "number", "DECIMAL": "number", "DATE": "date"}
    return named.get(head) or ("time" if head.startswith("TIME") else "text")
