"""The tables of a run's database: staged rows in, results and progress out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import duckdb
import pyarrow as pa

from core import tables
from core.transactions import transaction

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
        ("request_key", pa.binary()),
        ("same_as", pa.int64()),
        ("truncated_tokens", pa.int32()),
        ("logprob", pa.float64()),
        ("answer_tokens", pa.int32()),
        ("samples", pa.string()),
        ("turns", pa.string()),
        ("choice_probabilities", pa.string()),
        ("valid", pa.bool_()),
        ("finished_at", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one row ended. Token counts and times are None where nothing was generated.

    `request_key` is a digest of what was asked; `same_as` the row whose answer this one shares.
    `logprob` is the whole answer's, `answer_tokens` are its own: `output_tokens` counts all turns and
    samples. `samples`, `turns` and `choice_probabilities` are JSON: the n
    answers (text, finish_reason, output_tokens, logprob), the answers to all turns, and the
    probability of each choice. `valid`: whether the answer has the structure asked for.
    """

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
    request_key: bytes | None = None
    same_as: int | None = None
    truncated_tokens: int | None = None
    logprob: float | None = None
    answer_tokens: int | None = None
    samples: str | None = None
    turns: str | None = None
    choice_probabilities: str | None = None
    valid: bool | None = None


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
    """Rows by how they ended, and the tokens of all answers kept.

    `shared` rows got their answer from another row that asks the same; its tokens count once.
    """

    ok: int = 0
    errors: int = 0
    skipped: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    shared: int = 0

    @property
    def done(self) -> int:
        return self.ok + self.errors + self.skipped


_RESULT_COLUMNS = """
    _row BIGINT, status VARCHAR, answer VARCHAR, error VARCHAR, finish_reason VARCHAR,
    prompt_tokens INTEGER, output_tokens INTEGER, cached_tokens INTEGER, ttft_s DOUBLE, e2el_s DOUBLE,
    request_key BLOB, same_as BIGINT, truncated_tokens INTEGER, logprob DOUBLE, answer_tokens INTEGER,
    samples VARCHAR, turns VARCHAR, choice_probabilities VARCHAR, valid BOOLEAN, finished_at DOUBLE,
    stale BOOLEAN
"""
_PROGRESS_COLUMNS = """
    taken_at DOUBLE, work_s DOUBLE, done BIGINT, output_tokens_per_s DOUBLE, kv_cache_usage DOUBLE,
    prefix_hit_rate DOUBLE
"""


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the tables beside `input`; add what a database of an older version lacks."""
    for table, columns in (("results", _RESULT_COLUMNS), ("progress", _PROGRESS_COLUMNS)):
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
        found = {row[0] for row in connection.execute(f"DESCRIBE {table}").fetchall()}
        for column in columns.split(","):
            if column.split()[0] not in found:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {column.strip()}")


def read_counts(connection: duckdb.DuckDBPyConnection) -> Counts:
    """Count the results that are kept. Tokens count once where rows share an answer."""
    # fetchall, not fetchone: DuckDB refuses other work on a connection with an unread result
    (row,) = connection.execute(
        """
        SELECT count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'error'),
               count(*) FILTER (status = 'skipped'),
               coalesce(sum(prompt_tokens) FILTER (same_as IS NULL), 0)::BIGINT,
               coalesce(sum(output_tokens) FILTER (same_as IS NULL), 0)::BIGINT,
               count(same_as)
        FROM results WHERE stale IS NOT TRUE
        """
    ).fetchall()
    return Counts(*row)


def any_stale(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether some results wait to be replaced."""
    ((found,),) = connection.execute("SELECT count(*) > 0 FROM (FROM results WHERE stale LIMIT 1)").fetchall()
    return found


def mark_stale(connection: duckdb.DuckDBPyConnection, condition: str = "true") -> int:
    """Have the rows that meet `condition` (SQL of ours, never from outside) done again. Returns how many.

    Their results stay until the new ones are there.
    """
    query = f"UPDATE results SET stale = true WHERE stale IS NOT TRUE AND ({condition})"
    ((changed,),) = connection.execute(query).fetchall()
    return changed


def share_kept(connection: duckdb.DuckDBPyConnection) -> None:
    """Give kept results to all rows that the plan says ask the same.

    After that such rows have all a fresh result, or none: a plan may be younger than the results.
    """
    with transaction(connection):
        connection.execute(f"CREATE OR REPLACE TEMP TABLE owed AS {_OWED}")
        connection.execute("DELETE FROM results WHERE _row IN (SELECT _row FROM owed)")
        connection.execute("INSERT INTO results BY NAME SELECT * FROM owed")


# of several results the first good one is given; its own row, not whom that one got it from, is named
_OWED = """
    WITH alike AS (SELECT first, _row FROM copies UNION ALL SELECT DISTINCT first, first FROM copies),
         fresh AS (SELECT first, _row, status FROM alike JOIN results USING (_row) WHERE stale IS NOT TRUE),
         given AS (SELECT first, arg_min(_row, (status <> 'ok', _row)) AS giver FROM fresh GROUP BY first)
    SELECT kept.* REPLACE (alike._row AS _row, coalesce(kept.same_as, giver) AS same_as)
    FROM alike JOIN given USING (first) JOIN results AS kept ON kept._row = giver
    WHERE kept.stale IS NOT TRUE AND alike._row NOT IN (SELECT _row FROM fresh)
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a row asks now, to be held against what it asked before."""

    row: int
    key: bytes
    max_tokens: int
    truncated_tokens: int | None


def still_valid(connection: duckdb.DuckDBPyConnection, asked: Sequence[Asked]) -> dict[int, Result]:
    """Stale results that need no new answer, by row.

    An answer holds when the same was asked, the prompt was cut at the same place, and the new
    max_tokens would not have cut the answer elsewhere.
    """
    names = [field.name for field in list(_SCHEMA)[:-1]]
    found = connection.execute(
        f"SELECT {', '.join(names)} FROM results WHERE stale AND status = 'ok' "
        "AND _row IN (SELECT unnest(?::BIGINT[]))",
        [[each.row for each in asked]],
    ).fetchall()
    by_row = {each.row: each for each in asked}
    valid = {}
    for row, *values in found:
        result = Result(row=row, **dict(zip(names[1:], values, strict=True)))
        now = by_row[row]
        same = (result.request_key, result.truncated_tokens) == (now.key, now.truncated_tokens)
        if same and _is_whole(result, now.max_tokens):
            valid[row] = replace(result, same_as=None)
    return valid


def _is_whole(result: Result, max_tokens: int) -> bool:
    """Whether `max_tokens` would not have cut the answer elsewhere. Of turns, the key has told that."""
    if result.turns is not None:
        return True
    answers = [(result.output_tokens or 0, result.finish_reason)]
    if result.samples is not None:
        answers = [(each["output_tokens"], each["finish_reason"]) for each in json.loads(result.samples)]
    return all(
        tokens <= max_tokens if reason == "stop" else tokens == max_tokens for tokens, reason in answers
    )


def kept_rows(connection: duckdb.DuckDBPyConnection, rows: Sequence[int]) -> set[int]:
    """Those of `rows` that have a result which is not stale."""
    found = connection.execute(
        "SELECT _row FROM results WHERE stale IS NOT TRUE AND _row IN (SELECT unnest(?::BIGINT[]))", [rows]
    ).fetchall()
    return {row for (row,) in found}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How far the work was at one moment. `kv_cache_usage`, `prefix_hit_rate`: shares, None if unknown."""

    work_s: float
    done: int = 0
    output_tokens_per_s: float
    kv_cache_usage: float | None = None
    prefix_hit_rate: float | None = None


def append(
    connection: duckdb.DuckDBPyConnection,
    results: Sequence[Result],
    reading: Reading,
    counts: Counts,
    *,
    replace: bool = False,
    share: bool = False,
) -> Counts:
    """Keep results and the progress in one transaction; give `counts` with them added.

    `replace`: rows may have a stale result, which goes. `share`: each result is given to the
    rows that the plan found to ask the same, too.
    """
    now = time.time()
    batch = pa.table(  # noqa: F841
        [
            pa.array([result.row for result in results], pa.int64()),
            *(pa.array([getattr(result, f.name) for result in results], f.type) for f in list(_SCHEMA)[1:-1]),
            pa.array([now] * len(results), pa.float64()),
        ],
        schema=_SCHEMA,
    )
    with transaction(connection):
        counts = _with(counts, results)
        if results:
            if share:
                connection.execute(f"CREATE OR REPLACE TEMP TABLE shared AS {_SHARED}")
                copied = connection.execute(_COPIED).fetchall()
                counts = _with_copies(counts, dict(copied))
            source = "shared" if share else "batch"  # DuckDB finds the variable
            if replace:
                connection.execute(f"DELETE FROM results WHERE _row IN (SELECT _row FROM {source})")
            connection.execute(f"INSERT INTO results BY NAME SELECT * FROM {source}")
        connection.execute(
            "INSERT INTO progress (taken_at, work_s, done, output_tokens_per_s, kv_cache_usage, "
            "prefix_hit_rate) VALUES (?, ?, ?, ?, ?, ?)",
            [now, reading.work_s, counts.done, reading.output_tokens_per_s, reading.kv_cache_usage,
             reading.prefix_hit_rate],
        )  # fmt: skip
    return counts


_SHARED = """
    SELECT * FROM batch
    UNION ALL BY NAME
    SELECT batch.* REPLACE (copies._row AS _row, copies.first AS same_as)
    FROM batch JOIN copies ON copies.first = batch._row
"""
_COPIED = "SELECT status, count(*) FROM shared WHERE same_as IS NOT NULL GROUP BY 1"


def _with(counts: Counts, results: Sequence[Result]) -> Counts:
    statuses = [result.status for result in results]
    return Counts(
        ok=counts.ok + statuses.count("ok"),
        errors=counts.errors + statuses.count("error"),
        skipped=counts.skipped + statuses.count("skipped"),
        prompt_tokens=counts.prompt_tokens + sum(result.prompt_tokens or 0 for result in results),
        output_tokens=counts.output_tokens + sum(result.output_tokens or 0 for result in results),
        shared=counts.shared,
    )


def _with_copies(counts: Counts, copied: Mapping[str, int]) -> Counts:
    return replace(
        counts,
        ok=counts.ok + copied.get("ok", 0),
        errors=counts.errors + copied.get("error", 0),
        skipped=counts.skipped + copied.get("skipped", 0),
        shared=counts.shared + sum(copied.values()),
    )


def read_progress(connection: duckdb.DuckDBPyConnection, points: int) -> list[Reading]:
    """About `points` readings, oldest first."""
    rows = connection.execute(
        "SELECT work_s, done, output_tokens_per_s, kv_cache_usage, prefix_hit_rate "
        "FROM (SELECT *, row_number() OVER (ORDER BY work_s DESC) - 1 AS nth, count(*) OVER () AS n "
        "FROM progress) "
        "WHERE nth % greatest(1, n // ?) = 0 ORDER BY work_s",
        [points],
    ).fetchall()
    names = ("work_s", "done", "output_tokens_per_s", "kv_cache_usage", "prefix_hit_rate")
    return [Reading(**dict(zip(names, row, strict=True))) for row in rows]
