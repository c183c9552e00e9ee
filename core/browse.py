"""Looking at a run of any size: the rows that match a filter, a page at a time, and figures over all of them.

`find` reads narrow columns only and keeps the numbers of the matching rows (8 bytes each); `page`
then reads those few rows in full. So the second page costs what the first does, and a million rows
cost no more than the page. A result that is stale (to be done again) counts as not there yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import numpy as np

from core import tables

Status = Literal["ok", "error", "skipped", "none"]
STATUSES: tuple[Status, ...] = ("ok", "error", "skipped", "none")
Order = Literal["file", "longest", "shortest"]
Json = list[Any] | dict[str, Any] | None

_ORDERS: Mapping[Order, str] = {
    "file": "_row",
    "longest": "output_tokens DESC NULLS LAST, _row",
    "shortest": "output_tokens ASC NULLS LAST, _row",
}
# a search over lists (embeddings, say) and fractions costs much and finds nothing anyone looks for
_NOT_SEARCHED = ("list", "object", "number")
_HISTOGRAM_BINS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which rows, in which order. The default is all of them as the file has them.

    `statuses`: any of STATUSES ("none": no answer yet); empty: all. `text` is looked for in the
    answer, the error and the file's columns, in any case. `shared`: whether other rows have the
    same answer because they ask the same. "longest" and "shortest" go by output tokens.
    """

    statuses: frozenset[Status] = frozenset()
    finish_reason: str | None = None
    text: str = ""
    valid: bool | None = None
    shared: bool | None = None
    order: Order = "file"


@dataclass(frozen=True, slots=True)
class Found:
    """The rows that match, in order. `numbers` is None when that is simply all rows of the file."""

    total: int
    numbers: np.ndarray | None

    def part(self, limit: int, offset: int) -> list[int]:
        """The 0-based numbers of at most `limit` rows from `offset` on."""
        if self.numbers is None:
            return list(range(offset, min(offset + limit, self.total)))
        return self.numbers[offset : offset + limit].tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowsedRow:
    """One row of the file and how it ended.

    `row` is 0-based; `values` maps the file's columns to their decoded values. `samples`, `turns`
    and `choice_probabilities` are as `core.results` writes them, decoded.
    """

    row: int
    line: int
    problem: str | None
    values: Mapping[str, Any]
    status: Status
    answer: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    ttft_s: float | None = None
    e2el_s: float | None = None
    same_as: int | None = None
    truncated_tokens: int | None = None
    logprob: float | None = None
    samples: Json = None
    turns: Json = None
    choice_probabilities: Json = None
    valid: bool | None = None
    finished_at: float | None = None


_JSON_FIELDS = ("samples", "turns", "choice_probabilities")
_FIELDS = (
    "status", "answer", "error", "finish_reason", "prompt_tokens", "output_tokens", "cached_tokens",
    "ttft_s", "e2el_s", "same_as", "truncated_tokens", "logprob", *_JSON_FIELDS, "valid", "finished_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the matching rows, and how many match altogether."""

    rows: list[BrowsedRow]
    total: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[i]` values v have `edges[i]` <= v < `edges[i + 1]`; all bins are equally wide."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of prompts and answers of all rows; None where nothing was counted."""

    prompt: Histogram | None
    output: Histogram | None


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Rows that failed alike: their messages differ in numbers at most. `first_row` is 0-based."""

    message: str
    rows: int
    first_row: int


def stamp(connection: duckdb.DuckDBPyConnection) -> tuple[Any, ...]:
    """A value that changes whenever what `find` would return may have changed: a key for caches."""
    (row,) = connection.execute(
        "SELECT count(*), max(finished_at), count(*) FILTER (stale) FROM results"
    ).fetchall()
    return row


def counts(connection: duckdb.DuckDBPyConnection) -> dict[Status, int]:
    """Rows by status, all four of them."""
    found = dict(
        connection.execute(
            "SELECT status, count(*) FROM results WHERE stale IS NOT TRUE GROUP BY 1"
        ).fetchall()
    )
    found["none"] = _rows(connection) - sum(found.values())
    return {status: found.get(status, 0) for status in STATUSES}


def find(connection: duckdb.DuckDBPyConnection, columns: Sequence[tables.Column], filter: Filter) -> Found:
    """The rows that match. Keep the result for as long as `stamp` stays the same."""
    if filter == Filter():
        return Found(_rows(connection), None)
    conditions, values = ["true"], []
    if filter.statuses:
        conditions.append("coalesce(status, 'none') IN (SELECT unnest(?::VARCHAR[]))")
        values.append(sorted(filter.statuses))
    if filter.finish_reason is not None:
        conditions.append("finish_reason = ?")
        values.append(filter.finish_reason)
    if filter.valid is not None:
        conditions.append("valid = ?")
        values.append(filter.valid)
    if filter.shared is not None:
        is_shared = "(same_as IS NOT NULL OR _row IN (SELECT same_as FROM done WHERE same_as IS NOT NULL))"
        conditions.append(is_shared if filter.shared else f"(status IS NOT NULL AND NOT {is_shared})")
    if filter.text:
        sql, needles = _text_search(columns, filter.text)
        conditions.append(f"_row IN ({sql})")
        values += needles
    # `done` has no wide column: joining answers to a table would hold them all in memory
    numbers = connection.execute(
        f"""
        WITH done AS (
            SELECT _row, status, finish_reason, valid, same_as, output_tokens
            FROM results WHERE stale IS NOT TRUE
        )
        SELECT _row FROM (SELECT _row FROM input) LEFT JOIN done USING (_row)
        WHERE {" AND ".join(conditions)} ORDER BY {_ORDERS[filter.order]}
        """,
        values,
    ).fetchnumpy()["_row"]
    return Found(len(numbers), np.asarray(numbers))


def _rows(connection: duckdb.DuckDBPyConnection) -> int:
    [(rows,)] = connection.execute("SELECT count(*) FROM input").fetchall()
    return rows


def _text_search(columns: Sequence[tables.Column], text: str) -> tuple[str, list[str]]:
    """A query for the rows that hold `text`, and its values. `contains` knows no wildcards, unlike LIKE."""
    in_json = json.dumps(text, ensure_ascii=False)[1:-1]  # as staged JSON writes it
    cells, needles = [], []
    for index, column in enumerate(columns):
        if column.kind == "native" and column.type in _NOT_SEARCHED:
            continue
        cells.append(f"contains(lower(c{index}::VARCHAR), lower(?))")
        needles.append(in_json if column.kind == "json" else text)
    in_input = f"SELECT _row FROM input WHERE {' OR '.join(cells)} UNION ALL " if cells else ""
    in_results = (
        "SELECT _row FROM results WHERE stale IS NOT TRUE "
        "AND (contains(lower(answer), lower(?)) OR contains(lower(error), lower(?)))"
    )
    return in_input + in_results, [*needles, text, text]


def page(
    connection: duckdb.DuckDBPyConnection,
    columns: Sequence[tables.Column],
    filter: Filter,
    *,
    limit: int,
    offset: int = 0,
    found: Found | None = None,
    characters: int | None = None,
) -> Page:
    """At most `limit` matching rows from `offset` on, whole; or their cells and answers cut to `characters`.

    `found` is what `find` returned for the same filter, to search once for all pages.
    """
    found = found or find(connection, columns, filter)
    return Page(rows(connection, columns, found.part(limit, offset), characters), found.total)


def rows(
    connection: duckdb.DuckDBPyConnection,
    columns: Sequence[tables.Column],
    numbers: Sequence[int],
    characters: int | None = None,
) -> list[BrowsedRow]:
    """The rows with these 0-based numbers, in this order; numbers that the file lacks are left out."""
    if not numbers:
        return []
    # the bounds let DuckDB skip most of a large table; the list picks the rows
    bounds = [min(numbers), max(numbers), list(numbers)]
    only = "_row BETWEEN ? AND ? AND _row IN (SELECT unnest(?::BIGINT[]))"
    cells = "".join(f", {_cut(column, index, characters)}" for index, column in enumerate(columns))
    staged = connection.execute(f"SELECT _row, _line, _problem{cells} FROM input WHERE {only}", bounds)
    inputs = {row: rest for row, *rest in staged.fetchall()}
    fields = [
        f"left({name}, {characters})" if characters and name in ("answer", "error") else name
        for name in _FIELDS
    ]
    kept = connection.execute(
        f"SELECT _row, {', '.join(fields)} FROM results WHERE {only} AND stale IS NOT TRUE", bounds
    )
    results = {row: _result(rest) for row, *rest in kept.fetchall()}
    return [
        BrowsedRow(
            row=number,
            line=inputs[number][0],
            problem=inputs[number][1],
            values={
                column.name: _decoded(column, cell, characters)
                for column, cell in zip(columns, inputs[number][2:], strict=True)
            },
            **results.get(number, {"status": "none"}),
        )
        for number in numbers
        if number in inputs
    ]


def _cut(column: tables.Column, index: int, characters: int | None) -> str:
    """One character more than asked for tells a cut cell from one that just fits."""
    return (
        f"c{index}" if characters is None or column.kind == "native" else f"left(c{index}, {characters + 1})"
    )


def _decoded(column: tables.Column, cell: Any, characters: int | None) -> Any:
    if characters is not None and isinstance(cell, str) and len(cell) > characters:
        return cell[:characters]  # half of a JSON value is shown as its text
    return tables.decode(column, cell)


def _result(values: Sequence[Any]) -> dict[str, Any]:
    result = dict(zip(_FIELDS, values, strict=True))
    for name in _JSON_FIELDS:
        result[name] = None if result[name] is None else json.loads(result[name])
    return result


# -- figures over all rows ------------------------------------------------------


def lengths(connection: duckdb.DuckDBPyConnection, bins: int = _HISTOGRAM_BINS) -> Lengths:
    """Histograms of about `bins` bins, of prompt tokens and of output tokens."""
    return Lengths(
        _histogram(connection, "prompt_tokens", bins), _histogram(connection, "output_tokens", bins)
    )


def _histogram(connection: duckdb.DuckDBPyConnection, column: str, bins: int) -> Histogram | None:
    ((low, high),) = connection.execute(
        f"SELECT min({column}), max({column}) FROM results WHERE stale IS NOT TRUE"
    ).fetchall()
    if low is None:
        return None
    width = bin_width(high - low + 1, bins)
    first = low // width
    found = dict(
        connection.execute(
            f"SELECT {column} // {width}, count(*) FROM results "
            f"WHERE stale IS NOT TRUE AND {column} IS NOT NULL GROUP BY 1"
        ).fetchall()
    )
    last = high // width
    return Histogram(
        tuple(index * width for index in range(first, last + 2)),
        tuple(found.get(index, 0) for index in range(first, last + 1)),
    )


def bin_width(span: int, bins: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that covers `span` whole numbers with at most `bins` bins.

    >>> [bin_width(span, 40) for span in (1, 40, 41, 100, 3000)]
    [1, 1, 2, 5, 100]
    """
    power = 1
    while True:
        for step in (1, 2, 5):
            if step * power * bins >= span:
                return step * power
        power *= 10


def finish_reasons(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, int]]:
    """(reason, rows), the most frequent first."""
    return connection.execute(
        "SELECT finish_reason, count(*) FROM results "
        "WHERE stale IS NOT TRUE AND finish_reason IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()


def errors(connection: duckdb.DuckDBPyConnection, limit: int = 20) -> list[ErrorGroup]:
    """What went wrong, the most frequent first; the message is that of the group's first row."""
    found = connection.execute(
        """
        SELECT arg_min(error, _row), count(*), min(_row) FROM results
        WHERE status = 'error' AND stale IS NOT TRUE AND error IS NOT NULL
        GROUP BY regexp_replace(error, '[0-9][0-9,.]*', '#', 'g') ORDER BY 2 DESC, 3 LIMIT ?
        """,
        [limit],
    )
    return [ErrorGroup(*group) for group in found.fetchall()]


def answer_counts(
    connection: duckdb.DuckDBPyConnection, limit: int = 12, characters: int = 80
) -> list[tuple[str, int]] | None:
    """(answer, rows) when there are at most `limit` different answers, none of them long; else None.

    Blanks around an answer don't count.
    """
    answers = "FROM results WHERE status = 'ok' AND stale IS NOT TRUE AND answer IS NOT NULL"
    # free text is told from labels by its first long answer, or by an estimate: it is never grouped
    if connection.execute(f"SELECT 1 {answers} AND length(trim(answer)) > {characters} LIMIT 1").fetchall():
        return None
    ((different,),) = connection.execute(f"SELECT approx_count_distinct(trim(answer)) {answers}").fetchall()
    if not 0 < different <= 2 * limit:
        return None
    found = connection.execute(
        f"SELECT trim(answer), count(*) {answers} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?", [limit + 1]
    ).fetchall()
    return found if len(found) <= limit else None


def answer_values(answer: str | None, names: Sequence[str]) -> dict[str, Any]:
    """The named top-level properties of an answer that is a JSON object; None for what it lacks."""
    try:
        parsed = json.loads(answer) if answer else None
    except (ValueError, RecursionError):  # cut off, or no JSON at all: there are no properties to show
        parsed = None
    return {name: parsed.get(name) if isinstance(parsed, dict) else None for name in names}
