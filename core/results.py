"""The tables of a run's database: staged rows in, results and progress out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import pyarrow as pa

from core import tables

RowStatus = Literal["ok", "error", "skipped"]

_SCHEMA = pa.schema(
    [
        ("_row", pa.int64()),
        ("status", pa.string()),
        ("answer", pa.string()),
        ("error", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("ttft_s", pa.float64()),
        ("e2el_s", pa.float64()),
        ("finished_at", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one row ended. Token counts and times are None where nothing was generated."""

    row: int
    status: RowStatus
    answer: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    ttft_s: float | None = None
    e2el_s: float | None = None


@dataclass(frozen=True, slots=True)
class InputRow:
    """One staged row. `cells` is set when the row ends before the last column."""

    row: int
    line: int
    problem: str | None
    cells: int | None
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows by how they ended, and the tokens of all answers kept."""

    ok: int = 0
    errors: int = 0
    skipped: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def done(self) -> int:
        return self.ok + self.errors + self.skipped


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the empty tables beside `input`."""
    connection.execute(
        """
        CREATE TABLE results (
            _row BIGINT, status VARCHAR, answer VARCHAR, error VARCHAR, finish_reason VARCHAR,
            prompt_tokens INTEGER, output_tokens INTEGER, cached_tokens INTEGER,
            ttft_s DOUBLE, e2el_s DOUBLE, finished_at DOUBLE
        );
        CREATE TABLE progress (
            taken_at DOUBLE, work_s DOUBLE, done BIGINT, output_tokens_per_s DOUBLE, kv_cache_usage DOUBLE
        );
        """
    )


def read_counts(connection: duckdb.DuckDBPyConnection) -> Counts:
    """Count the results that are kept."""
    # fetchall, not fetchone: DuckDB refuses other work on a connection with an unread result
    (row,) = connection.execute(
        """
        SELECT count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'error'),
               count(*) FILTER (status = 'skipped'),
               coalesce(sum(prompt_tokens), 0)::BIGINT, coalesce(sum(output_tokens), 0)::BIGINT
        FROM results
        """
    ).fetchall()
    return Counts(*row)


def read_pending(connection: duckdb.DuckDBPyConnection) -> Any:
    """Row numbers without a result, ascending, as a numpy array of int64 (8 bytes a row)."""
    query = "SELECT _row FROM input ANTI JOIN results USING (_row) ORDER BY _row"
    return connection.execute(query).fetchnumpy()["_row"]


def read_rows(
    connection: duckdb.DuckDBPyConnection,
    columns: Sequence[tables.Column],
    wanted: Iterable[int],
    *,
    only: Sequence[str] | None = None,
) -> list[InputRow]:
    """The rows numbered `wanted`, ascending, with the values of the columns named in `only` (None: all)."""
    numbers = [int(number) for number in wanted]
    if not numbers:
        return []
    chosen = [(index, column) for index, column in enumerate(columns) if only is None or column.name in only]
    cells = "".join(f", c{index}" for index, _column in chosen)
    # the bounds let DuckDB skip the rest of a large table; the list picks the rows
    found = connection.execute(
        f"SELECT _row, _line, _problem, _cells{cells} FROM input WHERE _row BETWEEN ? AND ? "
        "AND _row IN (SELECT unnest(?::BIGINT[])) ORDER BY _row",
        [min(numbers), max(numbers), numbers],
    ).fetchall()
    return [
        InputRow(
            row,
            line,
            problem,
            short,
            {
                column.name: tables.decode(column, cell)
                for (_i, column), cell in zip(chosen, cells, strict=True)
            },
        )
        for row, line, problem, short, *cells in found
    ]


def append(
    connection: duckdb.DuckDBPyConnection,
    results: Sequence[Result],
    sample: tuple[float, int, float, float | None],
) -> None:
    """Keep results and one progress sample (work_s, done, output tokens/s, KV share) in one transaction."""
    now = time.time()
    batch = pa.table(  # noqa: F841
        [
            pa.array([result.row for result in results], pa.int64()),
            *(
                pa.array([getattr(result, field.name) for result in results], field.type)
                for field in list(_SCHEMA)[1:-1]
            ),
            pa.array([now] * len(results), pa.float64()),
        ],
        schema=_SCHEMA,
    )
    connection.execute("BEGIN")
    try:
        connection.execute("INSERT INTO results SELECT * FROM batch")  # DuckDB finds the variable
        connection.execute("INSERT INTO progress VALUES (?, ?, ?, ?, ?)", [now, *sample])
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):  # a failed COMMIT has already rolled back
            connection.execute("ROLLBACK")
        raise
