"""Few-shot examples from a second table: what a row would ask, and the answer that is right."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

from core import tables
from core.asks import encodable
from core.errors import ParameterError, TableError, TemplateError
from core.prompts import check_column
from core.recipes import Recipe, value_text
from core.results import InputRow, read_rows
from core.run_spec import ExampleSpec, PromptSpec

MAX_EXAMPLES = 64
MAX_CHARS = 200_000
_ROWS_A_READ = 256
_DETECT = tables.ReadOptions()
_BOUNDS = {"memory_limit": "512MB", "threads": "2"}


def load_examples(
    path: Path,
    prompt: PromptSpec,
    answer_column: str,
    *,
    count: int,
    seed: int | None = None,
    options: tables.ReadOptions = _DETECT,
) -> tuple[ExampleSpec, ...]:
    """Up to `count` examples from the file: the first usable rows, or with a `seed` a choice by chance.

    A row's user message is made as the run makes it: by the template, or the instruction and the
    fields, of `prompt`, whose columns this file must have too. Rows that can't be used, with a
    blank answer, a blank prompt or one that fails, are passed over.

    Raises ParameterError for `count`, UnknownColumn or TemplateError for a prompt that doesn't fit
    the file, TableError for a file that can't be read, holds no example, or holds too long ones.
    """
    if not 1 <= count <= MAX_EXAMPLES:
        raise ParameterError(
            f"{count} examples are asked for; 1 to {MAX_EXAMPLES} are possible.",
            hint="Every row's prompt carries all of them: a few are enough.",
        )
    if prompt.mode not in ("template", "fields"):
        raise TemplateError(
            f"Examples can't be made for prompts of mode {prompt.mode!r}.",
            hint="Use a template or fields, or write the examples into the chats.",
        )
    path = Path(path)
    own = PromptSpec(
        mode=prompt.mode, template=prompt.template, instruction=prompt.instruction, fields=prompt.fields
    )
    with (
        tempfile.TemporaryDirectory(prefix="examples-") as folder,
        duckdb.connect(Path(folder) / "examples.duckdb", config=_BOUNDS) as connection,
    ):
        columns = tables.stage(path, connection, options=options).columns
        check_column(answer_column, [column.name for column in columns])
        found: list[ExampleSpec] = []
        for example in _usable(connection, columns, Recipe(own, columns), answer_column, seed):
            found.append(example)
            _check_length(found, path.name)
            if len(found) == count:
                break
    if not found:
        raise TableError(
            f"{path.name} holds no example: no row has both a prompt and a {answer_column!r}.",
            hint="Choose the column that holds the right answers.",
        )
    return tuple(found)


def _usable(
    connection: duckdb.DuckDBPyConnection,
    columns: Sequence[tables.Column],
    recipe: Recipe,
    answer_column: str,
    seed: int | None,
) -> Iterator[ExampleSpec]:
    """The rows that make an example, in file order or shuffled, read a few at a time."""
    names = [column.name for column in columns]
    answer = names.index(answer_column)
    needed = {*recipe.variables, answer_column}
    width = max(names.index(name) for name in needed) + 1  # a shorter row lacks a needed cell
    rows = [
        row
        for (row,) in connection.execute(
            f"SELECT _row FROM input WHERE _problem IS NULL AND c{answer} IS NOT NULL "
            "AND coalesce(_cells, ?) >= ? ORDER BY _row",
            [width, width],
        ).fetchall()
    ]
    if seed is not None:
        random.Random(seed).shuffle(rows)
    for start in range(0, len(rows), _ROWS_A_READ):
        wanted = rows[start : start + _ROWS_A_READ]
        read = {row.row: row for row in read_rows(connection, columns, wanted, only=sorted(needed))}
        for number in wanted:
            example = _example(read[number], recipe, answer_column)
            if example is not None:
                yield example


def _example(row: InputRow, recipe: Recipe, answer_column: str) -> ExampleSpec | None:
    answer = _answer_text(row.values[answer_column])
    if not answer.strip():
        return None
    try:
        ask = recipe.ask(row.values)
    except TemplateError:  # a row that the template can't take is no example; there are others
        return None
    return None if ask is None else ExampleSpec(user=ask.messages[-1].content, assistant=answer)


def _answer_text(value: Any) -> str:
    """The answer as the model shall write it: text as it is, other values as JSON."""
    if value is None:
        return ""
    return encodable(value if isinstance(value, str) else value_text(value))


def _check_length(examples: Sequence[ExampleSpec], name: str) -> None:
    chars = sum(len(example.user) + len(example.assistant) for example in examples)
    if chars > MAX_CHARS:
        raise TableError(
            f"The first {len(examples)} examples of {name} have {chars:,} characters; "
            f"{MAX_CHARS:,} are allowed in all.",
            hint="Ask for fewer examples, or shorten them.",
        )
