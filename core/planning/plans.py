"""The plan of a run, in its database: which rows are asked, in what order, and who shares an answer.

plan_info  one row: PlanInfo as JSON, with what it was made for
plan       position, _row, first, field_order: one row a row of `input`. `position` numbers the
           requests from 0 in the order they are sent; a row with first <> _row shares the answer
           (and the position) of row `first`. `field_order` is an index of PlanInfo.field_orders
copies     first, _row: only the rows that share another's answer
planned    only when the rows are reordered: the requests' own cells (position, _row, _line,
           _problem, _cells, c0, ...), lying on disk in the order they are read
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import duckdb
import numpy as np

from core import results, tables
from core.engines.base import Engine
from core.planning.plan_making import PlanInfo, PlanMaker, Report, Texts
from core.recipes import Recipe
from core.results import InputRow
from core.run_spec import PlanSpec, PromptSpec, RunSpec
from core.transactions import transaction

__all__ = ["PlanInfo", "Report", "info", "make", "pending", "plan_run", "read"]

_VERSION = 1
_guard = threading.Lock()  # of what is below
_making: weakref.WeakValueDictionary[str, threading.Lock] = weakref.WeakValueDictionary()  # by file


def plan_run(
    connection: duckdb.DuckDBPyConnection, spec: RunSpec, params: Mapping[str, Any], engine: Engine
) -> PlanInfo:
    """The run's plan: what is there if it fits what is asked, or a new one. `params` complete."""
    columns = tables.info(connection).columns
    recipe = Recipe(spec.prompt, columns)
    return make(
        connection,
        recipe.variables,
        () if recipe.order_fixed else recipe.fields,
        columns,
        spec.plan,
        _is_deterministic(spec.prompt, params),
        slots=engine.info.batch_slots,
        answer_length=spec.prompt.param_columns.get("max_tokens"),
    )


def _is_deterministic(prompt: PromptSpec, params: Any) -> bool:
    """Whether equal requests of a run surely get equal answers: no chance, or chance with a given seed."""
    if prompt.mode == "openai" or {"temperature", "seed"} & set(prompt.param_columns):
        return False
    return params.get("temperature", 1.0) == 0 or params.get("seed") is not None


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
    answer_length: str | None = None,
    on_progress: Report | None = None,
) -> PlanInfo:
    """Plan the run, in one transaction; a plan that was made for the same is kept.

    `variables` are the columns that decide the answer, in order of first appearance in the
    prompt; `fields` those among them whose order may be chosen, row by row. `deterministic`:
    equal prompts have equal answers. `fixed_chars`: characters of constant text before each of
    the variables, and after the last. `slots`: requests that the engine works on at a time.
    `answer_length`: the column that gives a row's max_tokens.
    """
    names = tuple(dict.fromkeys((*variables, *fields)))
    dedupe = deterministic and options.dedupe
    made_for = json.dumps(
        [_VERSION, names, list(fields), options.reorder, dedupe, list(fixed_chars), answer_length]
    )
    with _lock(connection):  # a forecast may be at it when the run is started
        found = info(connection)
        if found is not None and found.made_for == made_for:
            return found
        started = time.monotonic()
        with transaction(connection):
            texts = Texts.of(names, columns)
            maker = PlanMaker(connection, texts, fields, fixed_chars, on_progress or (lambda stage: None))
            length = next((at for at, column in enumerate(columns) if column.name == answer_length), None)
            plan = maker.make(reorder=options.reorder, dedupe=dedupe, slots=slots, answer_length=length)
            plan = replace(plan, seconds=time.monotonic() - started, made_for=made_for)
            connection.execute("CREATE OR REPLACE TABLE plan_info (info VARCHAR)")
            connection.execute("INSERT INTO plan_info VALUES (?)", [json.dumps(asdict(plan))])
        return plan


def _lock(connection: duckdb.DuckDBPyConnection) -> threading.Lock:
    """Of the connection's database, for all threads. No other process can have it open."""
    query = "SELECT path FROM duckdb_databases() WHERE database_name = current_database()"
    [(path,)] = connection.execute(query).fetchall()
    with _guard:
        return _making.setdefault(path or "", threading.Lock())


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
    # the bounds let DuckDB skip the rest of a large table; the list picks the rows
    where = "WHERE position BETWEEN ? AND ? AND position IN (SELECT unnest(?::BIGINT[]))"
    bounds = [min(wanted), max(wanted), wanted]
    places = connection.execute(
        f"SELECT position, _row, field_order FROM plan {where} AND _row = first", bounds
    ).fetchall()
    if _has_table(connection, "planned"):
        rows = _read_planned(connection, columns, only, where, bounds)
    else:
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
) -> list[InputRow]:
    chosen = [(index, column) for index, column in enumerate(columns) if column.name in only]
    cells = "".join(f", c{index}" for index, _column in chosen)
    records = connection.execute(
        f"SELECT _row, _line, _problem, _cells{cells} FROM planned {where}", bounds
    ).fetchall()
    kinds = [column for _index, column in chosen]
    return [
        InputRow(
            *row,
            {column.name: tables.decode(column, cell) for column, cell in zip(kinds, values, strict=True)},
        )
        for *row, values in ((*record[:4], record[4:]) for record in records)
    ]


def _has_table(connection: duckdb.DuckDBPyConnection, name: str) -> bool:
    query = "SELECT 1 FROM duckdb_tables() WHERE table_name = ? AND NOT temporary"
    return bool(connection.execute(query, [name]).fetchall())
