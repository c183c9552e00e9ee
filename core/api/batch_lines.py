"""Whether the lines of a Batch file can be asked: said line by line before the run, as OpenAI does it.

A line that can't be asked fails alone; what it lacks stands in the batch and in its error file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import duckdb

from core import openai_batch, results, tables
from core.api.batch_records import LineError
from core.api.models import ModelNames
from core.api.openai_errors import HttpError
from core.errors import ParameterError, TemplateError
from core.results import InputRow
from core.run_spec import BatchLinesSpec, BatchModelSpec
from core.runs import Run

_CHUNK_ROWS = 1000
_MOST_ERRORS = 100
_MOST_NAMES = 1000  # of models that are looked up; who makes up more has them all refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """`bad_lines` of `rows` can't be asked; `errors` says why of the first of them."""

    rows: int
    bad_lines: int
    errors: tuple[LineError, ...]
    allowed: BatchLinesSpec


class LineChecker:
    """Checks the lines of one staged file. `names` tells what their models stand for now.

    `go_on` is called now and then, and may raise to end the check.
    """

    def __init__(self, run: Run, url: str, names: ModelNames, go_on: Callable[[], None]) -> None:
        self._run = run
        self._url = url
        self._names = names
        self._go_on = go_on
        self._unknown: set[str] = set()
        self._models: dict[str, BatchModelSpec] = {}
        self._allowed = BatchLinesSpec(url=url, models={})

    def check(self) -> Checked:
        """Look at all lines; those without a custom_id of their own are marked as unusable in the run."""
        columns = self._run.info().columns
        rows = self._run.spec.input.rows
        if not openai_batch.is_batch(columns):
            message = f"The lines of a batch have the keys {', '.join(openai_batch.COLUMNS)}."
            errors = (LineError(code="invalid_request_file", message=message),)
            return Checked(rows=rows, bad_lines=rows, errors=errors, allowed=self._allowed)
        errors, bad = [], 0
        with self._run.connect() as connection:
            _mark_custom_ids(connection, columns)
            for start in range(0, rows, _CHUNK_ROWS):
                self._go_on()
                chunk = range(start, min(start + _CHUNK_ROWS, rows))
                for row in results.read_rows(connection, columns, chunk, only=openai_batch.ASKED):
                    error = self._error(row)
                    if error is not None:
                        bad += 1
                        errors += [error] if len(errors) < _MOST_ERRORS else []
        return Checked(rows=rows, bad_lines=bad, errors=tuple(errors), allowed=self._allowed)

    def _error(self, row: InputRow) -> LineError | None:
        if row.problem:
            return LineError(code="invalid_line", message=row.problem, line=row.line)
        body = row.values["body"]
        if isinstance(body, dict) and isinstance(body.get("model"), str):
            self._look_up(body["model"])
        try:
            openai_batch.read_line(row.values, self._allowed)
        except (TemplateError, ParameterError) as error:
            return LineError(code="invalid_request", message=str(error), line=row.line, param=_param(error))
        return None

    def _look_up(self, name: str) -> None:
        if not name or name in self._models or name in self._unknown:
            return
        if len(self._unknown) + len(self._models) >= _MOST_NAMES:
            return
        try:
            named = self._names.find(name)
        except (HttpError, ParameterError):  # the line's own error says so
            self._unknown.add(name)
            return
        adapter = named.adapter.name if named.adapter else None
        self._models[name] = BatchModelSpec(adapter=adapter, params=dict(named.params))
        self._allowed = BatchLinesSpec(url=self._url, models=self._models)


def _param(error: TemplateError | ParameterError) -> str | None:
    """The field that the message begins with."""
    name, colon, _ = error.message.partition(":")
    return name if colon and name.isidentifier() else None


def _mark_custom_ids(connection: duckdb.DuckDBPyConnection, columns: tuple[tables.Column, ...]) -> None:
    """Without an id of its own, nobody could tell whose answer it is."""
    at = next(index for index, column in enumerate(columns) if column.name == "custom_id")
    mark = "UPDATE input SET _problem = 'line ' || _line || {} WHERE _problem IS NULL AND {}"
    connection.execute(mark.format("' has no custom_id'", f"(c{at} IS NULL OR c{at} IN ('null', '\"\"'))"))
    repeated = f"_row NOT IN (SELECT min(_row) FROM input WHERE _problem IS NULL GROUP BY c{at})"
    connection.execute(mark.format("' repeats the custom_id of an earlier line'", repeated))
