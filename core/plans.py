"""The plan of a run, in its database: which rows are asked, in what order, and who shares an answer.

plan_info  one row: PlanInfo as JSON, with what it was made for
plan       position, _row, first, field_order: one row a row of `input`. `position` numbers the
           requests from 0 in the order they are sent; a row with first <> _row shares the answer
           (and the position) of row `first`. `field_order` is an index of PlanInfo.field_orders
copies     first, _row: only the rows that share another's answer
planned    only when the rows are reordered: the requests' own cells (position, field_order, _row,
           _line, _problem, _cells, c0, ...), lying on disk in the order they are read
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import duckdb
import numpy as np
import pyarrow as pa

from core import results, tables
from core.results import InputRow
from core.row_groups import PREFIX_CHARS, RowGroups
from core.run_spec import PlanSpec

_WORTH = 0.01
"""Share of the prompts' characters that reordering must save: it costs a copy of the columns it reads."""
_VERSION = 1

Report = Callable[[str], None]
"""Called with a short phrase for the stage that begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInfo:
    """What was planned. `requests` are the rows without `duplicates`, rows that can't be used included.

    `prefix_file_order` and `prefix_planned`: share of the prompts' characters that a request has
    in common with the start of the one before it, in the file's order and in the plan's (lower
    bounds, over all rows); None with fewer than two requests. `made_for`: the arguments of `make`.
    """

    rows: int
    requests: int
    duplicates: int
    reordered: bool
    field_orders: tuple[tuple[str, ...], ...] = ()
    seconds: float = 0.0
    prefix_file_order: float | None = None
    prefix_planned: float | None = None
    made_for: str = ""


@dataclass(frozen=True, slots=True)
class _Texts:
    """The columns a prompt is made of, as SQL over `input`: `texts[i]` is a cell as text, never NULL."""

    indexes: tuple[int, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str], columns: Sequence[tables.Column]) -> _Texts:
        position = {column.name: index for index, column in enumerate(columns)}
        indexes = tuple(position[name] for name in names)
        return cls(indexes, tuple(f"coalesce(c{index}::VARCHAR, '')" for index in indexes))

    @property
    def bad(self) -> str:
        """Whether a row can't be asked: it has a problem, or ends before a cell that is needed."""
        last = max(self.indexes, default=-1)
        return f"(_problem IS NOT NULL OR coalesce(_cells <= {last}, false))"

    @property
    def digest(self) -> str:
        """128 bits that differ when a cell does. NULL is no empty text, and lengths part the cells."""
        parts = (
            f"CASE WHEN c{index} IS NULL THEN '-' ELSE concat(strlen({text}), ':', {text}) END"
            for index, text in zip(self.indexes, self.texts, strict=True)
        )
        return f"md5_number(concat({', '.join(parts)}))" if self.indexes else "0"


def make(
    connection: duckdb.DuckDBPyConnection,
    variables: Sequence[str],
    fields: Sequence[str],
    columns: Sequence[tables.Column],
    options: PlanSpec,
    deterministic: bool,
    *,
    fixed_chars: Sequence[int] = (),
    slots: int = 256,
    on_progress: Report | None = None,
) -> PlanInfo:
    """Plan the run, in one transaction; a plan that was made for the same arguments is kept.

    `variables` are the columns that decide the answer, in order of first appearance in the
    prompt; `fields` those among them whose order may be chosen, row by row. `deterministic`:
    equal prompts have equal answers. `fixed_chars`: characters of constant text before each of
    the variables, and after the last. `slots`: requests that the engine works on at a time.
    """
    made_for = json.dumps(
        [_VERSION, variables, fields, options.model_dump(), deterministic, fixed_chars, slots],
        default=list,
    )
    found = info(connection)
    if found is not None and found.made_for == made_for:
        return found
    started = time.monotonic()
    connection.execute("BEGIN")
    try:
        names = tuple(dict.fromkeys((*variables, *fields)))
        planner = _Planner(connection, names, columns, fixed_chars, on_progress or (lambda stage: None))
        planned = planner.plan(options, dedupe=deterministic and options.dedupe, slots=slots)
        planned = replace(planned, seconds=time.monotonic() - started, made_for=made_for)
        connection.execute("CREATE OR REPLACE TABLE plan_info (info VARCHAR)")
        connection.execute("INSERT INTO plan_info VALUES (?)", [json.dumps(asdict(planned))])
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):  # a commit that failed has already rolled back
            connection.execute("ROLLBACK")
        raise
    return planned


def info(connection: duckdb.DuckDBPyConnection) -> PlanInfo | None:
    """The plan in this database, None before there is one."""
    if not _has_table(connection, "plan_info"):
        return None
    [(text,)] = connection.execute("SELECT info FROM plan_info").fetchall()
    values = json.loads(text)
    values["field_orders"] = tuple(tuple(order) for order in values["field_orders"])
    return PlanInfo(**values)


def pending(connection: duckdb.DuckDBPyConnection) -> np.ndarray:
    """Positions (int64, ascending) of the requests that some row still waits for.

    A row waits when it has no result, or a stale one.
    """
    query = """
        SELECT DISTINCT position
        FROM plan ANTI JOIN (SELECT _row FROM results WHERE stale IS NOT TRUE) AS done USING (_row)
        ORDER BY position
    """
    return connection.execute(query).fetchnumpy()["position"]


def read(
    connection: duckdb.DuckDBPyConnection,
    columns: Sequence[tables.Column],
    positions: Sequence[int],
    only: Sequence[str],
) -> list[tuple[InputRow, int | None]]:
    """(row, index of its field order) at each of `positions`, in that order.

    `only`: the columns to give, all of them among those the plan was made for.
    """
    wanted = [int(position) for position in positions]
    if not wanted:
        return []
    bounds = [min(wanted), max(wanted), wanted]
    # the bounds let DuckDB skip the rest of a large table; the list picks the rows
    where = "WHERE position BETWEEN ? AND ? AND position IN (SELECT unnest(?::BIGINT[]))"
    if _has_table(connection, "planned"):
        found = _read_planned(connection, columns, only, where, bounds)
    else:
        places = connection.execute(
            f"SELECT position, _row, field_order FROM plan {where} AND _row = first", bounds
        ).fetchall()
        rows = results.read_rows(connection, columns, (row for _at, row, _order in places), only=only)
        by_row = {row.row: row for row in rows}
        found = {position: (by_row[row], order) for position, row, order in places}
    return [found[position] for position in wanted]


def _read_planned(
    connection: duckdb.DuckDBPyConnection,
    columns: Sequence[tables.Column],
    only: Sequence[str],
    where: str,
    bounds: list[object],
) -> dict[int, tuple[InputRow, int | None]]:
    chosen = [(index, column) for index, column in enumerate(columns) if column.name in only]
    cells = "".join(f", c{index}" for index, _column in chosen)
    records = connection.execute(
        f"SELECT position, field_order, _row, _line, _problem, _cells{cells} FROM planned {where}", bounds
    ).fetchall()
    return {
        position: (
            InputRow(
                *row,
                {
                    column.name: tables.decode(column, cell)
                    for (_i, column), cell in zip(chosen, values, strict=True)
                },
            ),
            order,
        )
        for position, order, *row, values in ((*record[:6], record[6:]) for record in records)
    }


def _has_table(connection: duckdb.DuckDBPyConnection, name: str) -> bool:
    query = "SELECT 1 FROM duckdb_tables() WHERE table_name = ? AND NOT temporary"
    return bool(connection.execute(query, [name]).fetchall())


class _Planner:
    """Makes the tables. Holds a few numbers a row, never a text."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        names: Sequence[str],
        columns: Sequence[tables.Column],
        fixed_chars: Sequence[int],
        report: Report,
    ) -> None:
        self._connection = connection
        self._texts = _Texts.of(names, columns)
        self._fixed = [*fixed_chars, *[0] * (len(names) + 1 - len(fixed_chars))]
        self._report = report
        [(self._rows,)] = connection.execute("SELECT count(*) FROM input").fetchall()

    def plan(self, options: PlanSpec, *, dedupe: bool, slots: int) -> PlanInfo:
        for table in ("plan", "copies", "planned"):
            self._connection.execute(f"DROP TABLE IF EXISTS {table}")
        self._report("Looking for rows that ask the same")
        copies = self._find_copies() if dedupe else self._no_copies()
        requests = np.setdiff1d(np.arange(self._rows), copies["_row"], assume_unique=True)
        bad = self._bad_rows()
        good = np.setdiff1d(requests, bad, assume_unique=True)
        self._report("Comparing the prompts")
        groups, total = self._group(good)
        file_share, ordered_share = groups.file_chars / total, groups.ordered_chars / total
        reordered = options.reorder and ordered_share - file_share >= _WORTH
        if reordered:
            # rows that end at once come first: their errors show at once
            bad = np.setdiff1d(requests, good, assume_unique=True)
            order = np.concatenate([bad, good[groups.order()]])
        else:
            order = requests
            if file_share < _WORTH:
                order = self._longest_first_at_the_end(requests, slots)
        self._write_plan(order, copies)
        if reordered:
            self._report("Laying the rows in order")
            self._write_planned()
        comparable = len(good) > 1
        return PlanInfo(
            rows=self._rows,
            requests=len(requests),
            duplicates=len(copies["_row"]),
            reordered=reordered,
            prefix_file_order=file_share if comparable else None,
            prefix_planned=(ordered_share if reordered else file_share) if comparable else None,
        )

    def _find_copies(self) -> dict[str, np.ndarray]:
        """Rows that ask the same as an earlier one."""
        self._connection.execute(
            f"CREATE TEMP TABLE digests AS SELECT _row, {self._texts.digest} AS digest "
            f"FROM input WHERE NOT {self._texts.bad}"
        )
        self._connection.execute(
            """
            CREATE TABLE copies AS SELECT first, _row FROM digests
            JOIN (SELECT digest, min(_row) AS first FROM digests GROUP BY digest HAVING count(*) > 1)
            USING (digest) WHERE _row <> first ORDER BY first, _row
            """
        )
        self._connection.execute("DROP TABLE digests")
        return self._connection.execute("SELECT first, _row FROM copies").fetchnumpy()

    def _no_copies(self) -> dict[str, np.ndarray]:
        self._connection.execute("CREATE TABLE copies (first BIGINT, _row BIGINT)")
        return {"first": np.zeros(0, np.int64), "_row": np.zeros(0, np.int64)}

    def _bad_rows(self) -> np.ndarray:
        query = f"SELECT _row FROM input WHERE {self._texts.bad} ORDER BY _row"
        return self._connection.execute(query).fetchnumpy()["_row"]

    def _group(self, rows: np.ndarray) -> tuple[RowGroups, float]:
        """The rows by how their prompts begin, and the characters that neighbours could share at most."""
        groups = RowGroups(len(rows))
        pairs = max(len(rows) - 1, 0)
        groups.file_chars = groups.ordered_chars = float(self._fixed[0] * pairs)
        sizes = [
            size for text in self._texts.texts for size in (f"avg(length({text}))", f"max(length({text}))")
        ]
        if not sizes or not pairs:
            return groups, max(groups.file_chars, 1.0)
        [found] = self._connection.execute(f"SELECT {', '.join(sizes)} FROM input").fetchall()
        total = max((sum(found[::2]) + sum(self._fixed)) * pairs, 1.0)
        for number, longest in enumerate(found[1::2]):
            self._group_by_text(groups, rows, number, longest)
            if groups.apart:
                break
        return groups, total

    def _group_by_text(self, groups: RowGroups, rows: np.ndarray, number: int, longest: int) -> None:
        text = self._texts.texts[number]
        known = 0
        for limit in (*(chars for chars in PREFIX_CHARS if chars < longest), None):
            part = text if limit is None else f"left({text}, {limit})"
            found = self._connection.execute(
                f"SELECT hash({part}) AS hashes, length({part})::INTEGER AS chars FROM input ORDER BY _row"
            ).fetchnumpy()
            hashes, chars = found["hashes"][rows], found["chars"][rows]
            after = self._fixed[number + 1] if limit is None else 0
            groups.refine(hashes, np.maximum(chars - known, 0) + after)
            known = limit
            if groups.apart:
                break

    def _longest_first_at_the_end(self, requests: np.ndarray, slots: int) -> np.ndarray:
        """The order of the file but for the last rows: a long prompt that comes last is waited for alone."""
        if len(requests) <= slots or not self._texts.texts:  # they all start at once
            return requests
        most, end = np.split(requests, [max(0, len(requests) - 2 * slots)])
        size = " + ".join(f"length({text})" for text in self._texts.texts)
        found = self._connection.execute(
            f"SELECT {size} AS size FROM input WHERE _row >= ? ORDER BY _row", [int(end[0])]
        ).fetchnumpy()
        sizes = found["size"][end - end[0]]
        return np.concatenate([most, end[np.argsort(-sizes, kind="stable")]])

    def _write_plan(self, order: np.ndarray, copies: dict[str, np.ndarray]) -> None:
        position_of = np.full(self._rows, -1, np.int64)
        position_of[order] = np.arange(len(order))
        rows = np.concatenate([order, copies["_row"]])
        firsts = np.concatenate([order, copies["first"]])
        positions = position_of[firsts]
        by_position = np.argsort(positions, kind="stable")
        entries = pa.table(  # noqa: F841
            {
                "position": positions[by_position],
                "_row": rows[by_position],
                "first": firsts[by_position],
                "field_order": pa.nulls(len(rows), pa.int32()),
            }
        )
        self._connection.execute("CREATE TABLE plan AS SELECT * FROM entries")  # DuckDB finds the variable

    def _write_planned(self) -> None:
        cells = "".join(f", input.c{index}" for index in sorted(self._texts.indexes))
        self._connection.execute(
            f"""
            CREATE TABLE planned AS
            SELECT position, field_order, input._row, _line, _problem, _cells{cells}
            FROM plan JOIN input ON input._row = plan._row WHERE plan._row = first ORDER BY position
            """
        )
