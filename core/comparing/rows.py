"""Rows of a table as the prompts of a comparison."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

from core import tables
from core.asks import encodable
from core.comparing.spec import MAX_CHARACTERS, PromptItem
from core.errors import ParameterError, TableError, TemplateError
from core.prompts import check_column
from core.recipes import Recipe, value_text
from core.references import as_text
from core.results import InputRow, read_rows
from core.run_spec import PromptSpec

MAX_ROWS = 1_000
_ROWS_A_READ = 256
_DETECT = tables.ReadOptions()
_BOUNDS = {"memory_limit": "512MB", "threads": "2"}


def sample_rows(
    connection: duckdb.DuckDBPyConnection,
    prompt: PromptSpec,
    rows: int,
    *,
    seed: int | None = 0,
    reference_column: str | None = None,
) -> tuple[PromptItem, ...]:
    """Up to `rows` rows of the table that `core.tables.stage` put into this database, as prompts.

    They are drawn by chance with the `seed`, or (None) are the first ones; either way in the file's
    order. Each is made as a batch would make it, keeps its columns as `values`, and is labelled
    "row 12", counted from 1. Rows that can't be used, or whose prompt is blank or fails, are passed over.

    Raises ParameterError for `rows`, UnknownColumn or TemplateError for a prompt that doesn't fit the
    table or asks for what a comparison can't, TableError when no row can be used, or they are too long.
    """
    if not 1 <= rows <= MAX_ROWS:
        raise ParameterError(
            f"{rows} rows are asked for; 1 to {MAX_ROWS:,} are possible.",
            hint="Take a few: for whole tables there is the batch page.",
        )
    if prompt.turns or prompt.turns_column is not None:
        raise TemplateError("A comparison asks one question a prompt.", hint="Leave the later turns out.")
    if prompt.param_columns or prompt.adapter_column is not None or prompt.mode == "openai":
        raise TemplateError(
            "In a comparison, parameters and adapters come from its sets.", hint="Leave their columns out."
        )
    columns = tables.info(connection).columns
    if reference_column is not None:
        check_column(reference_column, [column.name for column in columns])
    recipe = Recipe(prompt, columns)
    found: dict[int, PromptItem] = {}
    characters = 0
    for row in _drawn(connection, columns, seed):
        item = _item(row, recipe, prompt, reference_column)
        if item is not None:
            found[row.row] = item
            characters += sum(len(str(value)) for value in item.values.values())
        if characters > MAX_CHARACTERS:
            raise TableError(
                f"The first {len(found):,} of these rows have over {MAX_CHARACTERS:,} characters.",
                hint="Take fewer rows.",
            )
        if len(found) == rows:
            break
    if not found:
        raise TableError("No row of the table makes a prompt.", hint="Check the template and its columns.")
    return tuple(found[row] for row in sorted(found))


def sample_file(
    path: Path,
    prompt: PromptSpec,
    rows: int,
    *,
    seed: int | None = 0,
    reference_column: str | None = None,
    options: tables.ReadOptions = _DETECT,
) -> tuple[PromptItem, ...]:
    """`sample_rows` of a file. Raises TableError for one that can't be read, and as `sample_rows`."""
    with (
        tempfile.TemporaryDirectory(prefix="compare-") as folder,
        duckdb.connect(Path(folder) / "rows.duckdb", config=_BOUNDS) as connection,
    ):
        tables.stage(Path(path), connection, options=options)
        return sample_rows(connection, prompt, rows, seed=seed, reference_column=reference_column)


def _drawn(
    connection: duckdb.DuckDBPyConnection, columns: Sequence[tables.Column], seed: int | None
) -> Iterator[InputRow]:
    """The good rows in file order or shuffled, read a few at a time."""
    good = "SELECT _row FROM input WHERE _problem IS NULL ORDER BY _row"
    numbers = [row for (row,) in connection.execute(good).fetchall()]
    if seed is not None:
        random.Random(seed).shuffle(numbers)
    for start in range(0, len(numbers), _ROWS_A_READ):
        wanted = numbers[start : start + _ROWS_A_READ]
        read = {row.row: row for row in read_rows(connection, columns, wanted)}
        yield from (read[number] for number in wanted)


def _item(
    row: InputRow, recipe: Recipe, prompt: PromptSpec, reference_column: str | None
) -> PromptItem | None:
    try:
        ask = recipe.ask(row.values)
    except (TemplateError, ParameterError):  # a row that can't be asked is no prompt; there are others
        return None
    if ask is None or not ask.messages:
        return None
    return PromptItem(
        messages=ask.messages,
        reference=None if reference_column is None else _reference(row.values[reference_column]),
        label=f"row {row.row + 1}",
        values={name: _plain(value) for name, value in row.values.items()},
        made_by=prompt,
    )


def _plain(value: Any) -> Any:
    """A value that JSON has; others, such as dates, as a batch would write them."""
    return json.loads(encodable(value_text(value)))


def _reference(value: Any) -> str | None:
    text = as_text(value)
    return None if text is None else encodable(text)
