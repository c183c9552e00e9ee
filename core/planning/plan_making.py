"""Making a run's plan: equal rows found, rows and fields put in order, the tables written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import duckdb
import numpy as np
import pyarrow as pa

from core.planning import planner
from core.planning.row_groups import PREFIX_CHARS, RowGroups, numbered
from core.planning.row_sorting import copy_sorted
from core.tables import Column

_WORTH = 0.01
"""Share of the prompts' characters that reordering must save: it costs a copy of the columns it reads."""
_PLANNER_S_PER_CELL, _PLANNER_S = 1e-6, (0.5, 10.0)
"""What the search for field orders may take: seconds a cell, at least and at most."""

Report = Callable[[str], None]
"""Called with a short phrase for the stage that begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInfo:
    """What was planned. `requests` are the rows without `duplicates`, rows that can't be used included.

    `field_orders`: the orders of fields that rows may have. `prefix_file_order` and
    `prefix_planned`: share of the prompts' characters that a request has in common with the start
    of the one before it, in the file's order and in the plan's (lower bounds, over all rows); None
    with fewer than two requests. `made_for`: the arguments of `plans.make`.
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
class Texts:
    """The columns a prompt is made of, as SQL over `input`: `cells[i]` is one as text, never NULL."""

    names: tuple[str, ...]
    indexes: tuple[int, ...]
    cells: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str], columns: Sequence[Column]) -> Texts:
        position = {column.name: index for index, column in enumerate(columns)}
        indexes = tuple(position[name] for name in names)
        return cls(tuple(names), indexes, tuple(f"coalesce(c{index}::VARCHAR, '')" for index in indexes))

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
            for index, text in zip(self.indexes, self.cells, strict=True)
        )
        return f"md5_number(concat({', '.join(parts)}))" if self.indexes else "0"


@dataclass(frozen=True, slots=True)
class _Arrangement:
    """An order of rows that can be asked, and what it saves: shares of the prompts' characters.

    `order`: indexes of the rows. `field_order`: int32 by row, into `field_orders`; None: as given.
    """

    order: np.ndarray
    file_share: float
    share: float
    field_order: np.ndarray | None = None
    field_orders: tuple[tuple[str, ...], ...] = field(default=())


class PlanMaker:
    """Makes the tables of `core.planning.plans`. Holds a few numbers a row, never a text."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        texts: Texts,
        fields: Sequence[str],
        fixed_chars: Sequence[int],
        report: Report,
    ) -> None:
        self._connection = connection
        self._texts = texts
        self._fields = tuple(fields)
        self._fixed = [*fixed_chars, *[0] * (len(texts.names) + 1 - len(fixed_chars))]
        self._report = report
        [(self._rows,)] = connection.execute("SELECT count(*) FROM input").fetchall()
        self._means, self._longest = self._measure()

    def make(self, *, reorder: bool, dedupe: bool, slots: int, answer_length: int | None = None) -> PlanInfo:
        """Make the tables anew. The caller's transaction is open."""
        for table in ("plan", "copies", "planned"):
            self._connection.execute(f"DROP TABLE IF EXISTS {table}")
        self._report("Looking for rows that ask the same")
        copies = self._find_copies() if dedupe else self._no_copies()
        requests = np.setdiff1d(np.arange(self._rows), copies["_row"], assume_unique=True)
        good = np.setdiff1d(requests, self._bad_rows(), assume_unique=True)
        self._report("Comparing the prompts")
        found = self._arrange(good)
        reordered = reorder and found.share - found.file_share >= _WORTH
        if reordered:
            # rows that can't be asked come first: their errors show at once
            bad = np.setdiff1d(requests, good, assume_unique=True)
            order = np.concatenate([bad, good[found.order]])
        elif reorder and found.file_share < _WORTH:
            order = self._longest_first_at_the_end(requests, slots, answer_length)
        else:
            order = requests
        with_fields = reordered and found.field_order is not None
        self._write_plan(order, copies, good, found.field_order if with_fields else None)
        if reordered:
            self._report("Laying the rows in order")
            self._write_planned(order)
        return PlanInfo(
            rows=self._rows,
            requests=len(requests),
            duplicates=len(copies["_row"]),
            reordered=reordered,
            field_orders=found.field_orders if with_fields else (),
            prefix_file_order=found.file_share if len(good) > 1 else None,
            prefix_planned=(found.share if reordered else found.file_share) if len(good) > 1 else None,
        )

    # -- who shares an answer ---------------------------------------------------

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

    # -- the order --------------------------------------------------------------

    def _measure(self) -> tuple[Sequence[float], Sequence[int]]:
        """Mean and longest characters of each column."""
        sizes = [f"{kind}(length({text}))" for kind in ("avg", "max") for text in self._texts.cells]
        if not sizes or not self._rows:
            return [0.0] * len(self._texts.cells), [0] * len(self._texts.cells)
        [found] = self._connection.execute(f"SELECT {', '.join(sizes)} FROM input").fetchall()
        return found[: len(sizes) // 2], found[len(sizes) // 2 :]

    def _arrange(self, rows: np.ndarray) -> _Arrangement:
        groups = RowGroups(len(rows))
        names = self._texts.names
        leading = min((names.index(name) for name in self._fields), default=len(names))
        for number in range(leading):
            if groups.apart:
                break
            self._group_by_text(groups, rows, number)
        pairs = max(len(rows) - 1, 0)
        constant = self._fixed[0] * pairs
        total = max((sum(self._means) + sum(self._fixed)) * pairs, 1.0)
        if self._fields and not groups.apart:
            return self._arrange_fields(groups, rows, constant, total)
        return _Arrangement(
            groups.order(), (constant + groups.file_chars) / total, (constant + groups.ordered_chars) / total
        )

    def _group_by_text(self, groups: RowGroups, rows: np.ndarray, number: int) -> None:
        text, longest = self._texts.cells[number], self._longest[number]
        known = 0
        for limit in (*(chars for chars in PREFIX_CHARS if chars < longest), None):
            hashes, chars = self._fetch(text if limit is None else f"left({text}, {limit})", rows)
            after = self._fixed[number + 1] if limit is None else 0
            groups.refine(hashes, np.maximum(chars - known, 0) + after)
            if groups.apart:
                break
            known = limit

    def _fetch(self, text: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(hash, characters) of an SQL text in each of the rows."""
        found = self._connection.execute(
            f"SELECT hash({text}) AS hashes, length({text})::INTEGER AS chars FROM input ORDER BY _row"
        ).fetchnumpy()
        return found["hashes"][rows], found["chars"][rows]

    def _arrange_fields(
        self, groups: RowGroups, rows: np.ndarray, constant: float, total: float
    ) -> _Arrangement:
        """Rows of a group together, in the order and with the field orders of one plan for all rows."""
        count = len(self._fields)
        # the group is a column before the fields, with its characters counted elsewhere
        codes = np.empty((count + 1, len(rows)), np.int32)
        codes[0] = groups.codes
        lengths = [np.zeros(int(codes[0].max(initial=0)) + 1, np.int32)]
        for place, name in enumerate(self._fields, start=1):
            hashes, chars = self._fetch(self._texts.cells[self._texts.names.index(name)], rows)
            codes[place], firsts = numbered(hashes)
            lengths.append(chars[firsts])
        around = [len(json.dumps(name, ensure_ascii=False)) + len(': "", ') for name in self._fields]
        total += sum(around) * max(len(rows) - 1, 0)
        self._report("Choosing the order of the fields")
        fewest, most = _PLANNER_S
        found = planner.plan_fields(
            planner.Table.of(codes[1:], lengths[1:], around),
            budget_s=float(np.clip(_PLANNER_S_PER_CELL * count * len(rows), fewest, most)),
        )
        order = found.order[np.argsort(groups.codes[found.order], kind="stable")]
        table = planner.Table.of(codes, lengths, [0, *around])
        behind_group = [(0, *(column + 1 for column in columns)) for columns in found.field_orders]
        file_hits = planner.prefix_hits(table)
        hits = planner.prefix_hits(table, order, found.field_order, behind_group)
        return _Arrangement(
            order=order,
            file_share=(constant + groups.file_chars + file_hits.shared) / total,
            share=(constant + groups.ordered_chars + hits.shared) / total,
            field_order=found.field_order,
            field_orders=tuple(
                tuple(self._fields[column] for column in columns) for columns in found.field_orders
            ),
        )

    def _longest_first_at_the_end(
        self, requests: np.ndarray, slots: int, answer_length: int | None
    ) -> np.ndarray:
        """The order of the file but for the last rows: a long one that comes last is waited for alone.

        How long a row takes is told by the column that gives its max_tokens, else by its prompt.
        """
        if len(requests) <= slots or not self._texts.cells:  # they all start at once
            return requests
        size, window = " + ".join(f"length({text})" for text in self._texts.cells), 2 * slots
        if answer_length is not None:
            size, window = f"coalesce(TRY_CAST(c{answer_length} AS BIGINT), 0)", 8 * slots
        most, end = np.split(requests, [max(0, len(requests) - window)])
        found = self._connection.execute(
            f"SELECT {size} AS size FROM input WHERE _row >= ? ORDER BY _row", [int(end[0])]
        ).fetchnumpy()
        sizes = found["size"][end - end[0]]
        return np.concatenate([most, end[np.argsort(-sizes, kind="stable")]])

    # -- the tables -------------------------------------------------------------

    def _write_plan(
        self,
        order: np.ndarray,
        copies: dict[str, np.ndarray],
        good: np.ndarray,
        field_order: np.ndarray | None,
    ) -> None:
        rows = np.concatenate([order, copies["_row"]])
        firsts = np.concatenate([order, copies["first"]])
        positions = self._positions(order)[firsts]
        by_position = np.argsort(positions, kind="stable")
        firsts = firsts[by_position]
        entries = pa.table(  # noqa: F841
            {
                "position": positions[by_position],
                "_row": rows[by_position],
                "first": firsts,
                "field_order": self._field_orders(firsts, good, field_order),
            }
        )
        self._connection.execute("CREATE TABLE plan AS SELECT * FROM entries")  # DuckDB finds the variable

    def _positions(self, order: np.ndarray) -> np.ndarray:
        """Each row's place in `order`, -1 for a row that isn't there."""
        positions = np.full(self._rows, -1, np.int64)
        positions[order] = np.arange(len(order))
        return positions

    def _field_orders(self, rows: np.ndarray, good: np.ndarray, field_order: np.ndarray | None) -> pa.Array:
        if field_order is None:
            return pa.nulls(len(rows), pa.int32())
        by_row = np.full(self._rows, -1, np.int32)
        by_row[good] = field_order
        return pa.array(by_row[rows], mask=by_row[rows] < 0)

    def _write_planned(self, order: np.ndarray) -> None:
        cells = [f"c{index}" for index in sorted(self._texts.indexes)]
        columns = ["_line", "_problem", "_cells", *cells]
        row_bytes = 2 * sum(self._means) + 64  # a character has one to four bytes
        copy_sorted(self._connection, columns, self._positions(order), row_bytes)
