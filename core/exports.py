"""The columns that a run adds to its table, and the table with them as a file.

Which columns there are follows from what was asked: a schema's properties, the n
answers, the turns, the probabilities. Each is a SQL expression over `results`, so
that a million rows are written without being held.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from core import openai_batch, structured, tables
from core.errors import TableError
from core.run_spec import RunSpec
from core.tables.writers import OPENAI_BATCH

_SQL_TYPES = {"integer": "BIGINT", "number": "DOUBLE", "boolean": "BOOLEAN"}
_ROWS_A_BATCH = 10_000
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class AnswerColumn:
    """`sql` is an expression over `results`; `escape`: text of the model's, guarded against formulas."""

    name: str
    sql: str
    escape: bool = False


def answer_columns(spec: RunSpec) -> tuple[AnswerColumn, ...]:
    """The new columns, the answer first."""
    base = spec.answer_column
    columns = [AnswerColumn(base, "results.answer", escape=True)]
    columns += _structure(spec) + _several(spec)
    if spec.output.choice_probabilities:
        for choice in spec.params.get("structured_outputs", {}).get("choice", ()):
            value = f"json_extract_string(results.choice_probabilities, {_pointer(choice)})"
            columns.append(AnswerColumn(f"{base}_p_{choice}", f"TRY_CAST({value} AS DOUBLE)"))
    if spec.output.logprobs:
        columns.append(AnswerColumn(f"{base}_logprob", "results.logprob"))
        tokens = "coalesce(results.answer_tokens, results.output_tokens)"
        mean = f"results.logprob / nullif({tokens}, 0)"
        columns.append(AnswerColumn(f"{base}_mean_logprob", mean))
    columns += [
        AnswerColumn(f"{base}_status", "results.status"),
        AnswerColumn(f"{base}_error", "results.error", escape=True),
        AnswerColumn(f"{base}_finish_reason", "results.finish_reason"),
        AnswerColumn(f"{base}_prompt_tokens", "results.prompt_tokens"),
        AnswerColumn(f"{base}_output_tokens", "results.output_tokens"),
    ]
    if spec.overflow.action != "error":
        columns.append(AnswerColumn(f"{base}_truncated_tokens", "results.truncated_tokens"))
    return tuple(columns)


def _structure(spec: RunSpec) -> list[AnswerColumn]:
    asked = spec.params.get("structured_outputs")
    if not asked:
        return []
    columns = []
    for name, type_ in structured.columns(asked):
        value = f"json_extract_string(results.answer, {_pointer(name)})"
        if type_ in _SQL_TYPES:
            value = f"TRY_CAST({value} AS {_SQL_TYPES[type_]})"
        value = f"CASE WHEN json_valid(results.answer) THEN {value} END"
        columns.append(AnswerColumn(f"{spec.answer_column}_{name}", value, escape=type_ not in _SQL_TYPES))
    return [*columns, AnswerColumn(f"{spec.answer_column}_valid", "results.valid")]


def _several(spec: RunSpec) -> list[AnswerColumn]:
    """Columns for the turns before the last, and for the answers after the first."""
    base, prompt = spec.answer_column, spec.prompt
    columns = []
    if prompt is not None and prompt.turns_column is not None:
        columns.append(AnswerColumn(f"{base}_turns", "results.turns", escape=True))
    elif prompt is not None:
        for turn in range(len(prompt.turns)):
            sql = f"json_extract_string(results.turns, '/{turn}')"
            columns.append(AnswerColumn(f"{base}_turn_{turn + 1}", sql, escape=True))
    if spec.output.samples == "columns" and _n_by_row(spec):
        columns.append(AnswerColumn(f"{base}_samples", _ALL_TEXTS, escape=True))
    elif spec.output.samples == "columns":
        for sample in range(1, spec.params.get("n", 1)):
            sql = f"json_extract_string(results.samples, '/{sample}/text')"
            columns.append(AnswerColumn(f"{base}_{sample + 1}", sql, escape=True))
    return columns


def _n_by_row(spec: RunSpec) -> bool:
    """Whether a column says how many answers each row gets."""
    return spec.prompt is not None and "n" in spec.prompt.param_columns


# a JSON list of the texts, as for turns: how many there are at most nobody knows beforehand
_ALL_TEXTS = "to_json(json_extract_string(results.samples, '$[*].text'))::VARCHAR"


def _pointer(key: str) -> str:
    """A JSON pointer to `key` as an SQL literal: names from outside are data, never SQL."""
    escaped = key.replace("~", "~0").replace("/", "~1")
    return "'/" + escaped.replace("'", "''") + "'"


def check_names(spec: RunSpec, columns: Sequence[str]) -> None:
    """Raise TableError when the new columns would clash with the file's own, or with each other."""
    if not spec.answer_column.strip():
        raise TableError("The answer column needs a name.", hint="Give one, such as answer.")
    names = [column.name for column in answer_columns(spec)]
    clashes = [name for name in names if name in columns]
    if clashes:
        raise TableError(
            f"The file already has a column {clashes[0]!r}, where an answer would go.",
            hint="Choose another name for the answer column (--answer-column).",
        )
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise TableError(
            f"Two of the new columns would be called {twice[0]!r}.",
            hint="Rename the schema's property or the choice.",
        )


def export(
    connection: duckdb.DuckDBPyConnection,
    spec: RunSpec,
    path: Path,
    *,
    format: str | None = None,
    escape_formulas: bool = True,
    bom: bool = False,
) -> int:
    """Write the original columns and the answer columns, in the file's row order. Returns the rows.

    Rows without an answer yet have empty answer columns. `escape_formulas` guards the
    answers only: what came in goes out unchanged. Raises TableError.
    """
    if format == OPENAI_BATCH:
        return openai_batch.write(path, openai_rows(connection, spec))
    format = tables.export_format(path, format)
    columns = tables.info(connection).columns
    added = answer_columns(spec)
    cells = ", ".join(f"input.c{index}" for index in range(len(columns)))
    select = ", ".join([cells, *(f"{column.sql} AS a{at}" for at, column in enumerate(added))])
    source = "results"
    if spec.output.samples == "rows" and (spec.params.get("n", 1) > 1 or _n_by_row(spec)):
        source = _SAMPLE_ROWS
        select += ", results.sample"
        added = (*added, AnswerColumn(f"{spec.answer_column}_sample", "results.sample"))
    order = "input._row, results.sample" if source != "results" else "input._row"
    query = (
        f"SELECT {select} FROM input LEFT JOIN {source} AS results USING (_row) "
        f"WHERE input._row >= ? AND input._row < ? ORDER BY {order}"
    )
    batches = _in_parts(connection.cursor(), query, spec)
    escape = frozenset(column.name for column in added if column.escape) if escape_formulas else frozenset()
    answers = [tables.Column(column.name, "native", "") for column in added]
    return tables.write(path, [*columns, *answers], batches, format=format, escape=escape, bom=bom)


def export_input(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """Write the table as it came, without rows that can't be used. Returns the rows.

    As JSON Lines where `path` ends so, else as Parquet, which knows no nested JSON. Raises TableError.
    """
    columns = tables.info(connection).columns
    cells = ", ".join(f"c{index}" for index in range(len(columns)))
    query = f"SELECT {cells} FROM input WHERE _problem IS NULL ORDER BY _row"
    batches = connection.sql(query).to_arrow_reader(_ROWS_A_BATCH)
    return tables.write(path, columns, batches, format="jsonl" if path.suffix == ".jsonl" else "parquet")


def _in_parts(cursor: duckdb.DuckDBPyConnection, query: str, spec: RunSpec) -> Iterator[pa.RecordBatch]:
    for bounds in _parts(cursor, spec):
        yield from cursor.sql(query, params=bounds).to_arrow_table().to_batches()


def _parts(cursor: duckdb.DuckDBPyConnection, spec: RunSpec) -> Iterator[list[int]]:
    """The rows' numbers, [from, up to] in turn: to sort all at once would not fit the memory."""
    texts = " + ".join(f"coalesce(strlen({name}), 0)" for name in ("answer", "samples", "turns"))
    [(answer_bytes,)] = cursor.execute(f"SELECT coalesce(avg({texts}), 0) FROM results").fetchall()
    row_bytes = spec.input.size_bytes / max(spec.input.rows, 1) + answer_bytes
    step = int(max(1, min(_ROWS_A_BATCH, _BATCH_BYTES / max(row_bytes, 1))))
    for start in range(0, spec.input.rows, step):
        yield [start, start + step]


# one row for each of the n answers, numbered from 1; rows without any stay one row
_SAMPLE_ROWS = """(
    SELECT * REPLACE (
        coalesce(json_extract_string(samples, '/' || (sample - 1) || '/text'), answer) AS answer,
        coalesce(json_extract_string(samples, '/' || (sample - 1) || '/finish_reason'), finish_reason)
            AS finish_reason,
        coalesce(TRY_CAST(json_extract_string(samples, '/' || (sample - 1) || '/output_tokens') AS INTEGER),
            output_tokens) AS output_tokens,
        coalesce(TRY_CAST(json_extract_string(samples, '/' || (sample - 1) || '/output_tokens') AS INTEGER),
            answer_tokens) AS answer_tokens,
        coalesce(TRY_CAST(json_extract_string(samples, '/' || (sample - 1) || '/logprob') AS DOUBLE), logprob)
            AS logprob,
        coalesce(TRY_CAST(json_extract_string(samples, '/' || (sample - 1) || '/valid') AS BOOLEAN), valid)
            AS valid
    )
    FROM (
        SELECT *, unnest(range(1, 1 + greatest(1, coalesce(json_array_length(samples)::BIGINT, 1)))) AS sample
        FROM results
    )
)"""


def openai_rows(connection: duckdb.DuckDBPyConnection, spec: RunSpec) -> Iterator[dict[str, Any]]:
    """Each row's result as `openai_batch.write` takes it, in the file's order."""
    columns = tables.info(connection).columns
    named = {column.name: (index, column) for index, column in enumerate(columns)}
    wanted = [named[name] for name in ("custom_id", "url") if name in named]
    cells = "".join(f", input.c{index}" for index, _column in wanted)
    fields = ("status", "answer", "error", "finish_reason", "prompt_tokens", "output_tokens", "samples",
              "logprob", "finished_at")  # fmt: skip
    cursor = connection.cursor()
    query = (
        f"SELECT input._row, {', '.join(f'results.{name}' for name in fields)}{cells} "
        "FROM input LEFT JOIN results USING (_row) "
        "WHERE input._row >= ? AND input._row < ? ORDER BY input._row"
    )
    model = spec.model.name if spec.model else ""
    for bounds in _parts(cursor, spec):
        for row, *rest in cursor.execute(query, bounds).fetchall():
            values = dict(zip(fields, rest, strict=False))
            values |= {
                column.name: tables.decode(column, cell)
                for (_index, column), cell in zip(wanted, rest[len(fields) :], strict=True)
            }
            values["samples"] = json.loads(values["samples"]) if values["samples"] else None
            yield {"row": row, "run_id": spec.run_id, "model": model, **values}
