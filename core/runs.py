"""A run's folder: run.json (what is asked), run.duckdb (the staged input, the answers, the progress).

Copy the folder and the run is copied. DuckDB lets one process at a time open
the file, and that is what keeps two processes from working on one run.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from core import exports, prompts, results, sampling, tables
from core.errors import ParameterError, RunBusy, RunError, RunNotFound, TableError
from core.recipes import Recipe
from core.run_spec import InputSpec, Instructions, OutputSpec, PromptSpec, RunSpec
from core.store import new_id

# Small and fixed for a run: every connection of a process must ask for the same, and the engine needs
# the memory and the cores. DuckDB works on 2,048 rows at a time, so long rows need more.
_MEMORY, _MEMORY_FOR_LONG_ROWS, _LONG_ROW_BYTES = "160MB", "1GB", 10_000
_LOCK_PATIENCE_S = 3.0
_WRITING = threading.RLock()  # of any run.json: what one thread reads and writes, no other may in between

_UPGRADING = threading.Lock()


class Run:
    """One run's folder. Make it with `stage`, find it with `open`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_id = folder.name

    # -- making and finding ---------------------------------------------------

    @classmethod
    def stage(
        cls,
        runs_dir: Path,
        source: Path,
        *,
        name: str | None = None,
        options: tables.ReadOptions | None = None,
        limit: int | None = None,
        instructions: Instructions | None = None,
        on_progress: Callable[[int, float], None] | None = None,
    ) -> Run:
        """Read the file `source` into a new run: a draft, or ready to start when it has instructions.

        Raises TableError, and what `configure` raises; then no folder is left behind.
        """
        run = cls(runs_dir / new_id())
        run.folder.mkdir(parents=True)
        try:
            info = run._read(source, options or tables.ReadOptions(), limit, on_progress)
            spec = RunSpec(
                run_id=run.run_id,
                created_at=dt.datetime.now(dt.UTC),
                input=InputSpec(
                    name=name or source.name,
                    size_bytes=source.stat().st_size,
                    format=info.format,
                    encoding=info.encoding,
                    delimiter=info.delimiter,
                    sheet=info.sheet,
                    rows=info.rows,
                    columns=tuple(column.name for column in info.columns),
                ),
            )
            run.write(_instructed(spec, instructions, info.columns) if instructions else spec)
        except BaseException as error:
            shutil.rmtree(run.folder, ignore_errors=True)
            if isinstance(error, TableError) and name:  # an upload lies under a name of our own
                error.message = error.message.replace(source.name, name)
            if isinstance(error, duckdb.Error):
                raise RunError(
                    f"{name or source.name} can't be kept in {runs_dir}: {error}.", hint="Is the disk full?"
                ) from error
            raise
        return run

    def _read(
        self, source: Path, options: tables.ReadOptions, limit: int | None, report: Any
    ) -> tables.TableInfo:
        """Stage the file into a new database; again with more memory when its rows turn out to be long."""

        def read(memory: str) -> tables.TableInfo:
            with contextlib.closing(self._connect(memory)) as connection:
                info = tables.stage(source, connection, options=options, limit=limit, on_progress=report)
                results.create(connection)
            return info

        try:
            return read(_MEMORY)
        except duckdb.Error as error:
            # a commit that lacks memory is a TransactionException: only its words say why
            if "pin block" not in str(error) and "out of memory" not in str(error).lower():
                raise
        for path in self.folder.glob("run.duckdb*"):
            path.unlink()
        return read(_MEMORY_FOR_LONG_ROWS)

    @classmethod
    def open(cls, runs_dir: Path, run_id: str) -> Run:
        """Raises RunNotFound. `run_id` comes from outside and never becomes a path by itself."""
        known = {entry.name: entry for entry in runs_dir.iterdir()} if runs_dir.is_dir() else {}
        if run_id not in known or not (known[run_id] / "run.json").is_file():
            raise RunNotFound(
                f"There is no run {run_id!r} in {runs_dir}.", hint="`python -m core runs` lists them."
            )
        return cls(known[run_id])

    def delete(self) -> None:
        shutil.rmtree(self.folder)

    # -- what is asked ----------------------------------------------------------

    @property
    def _json(self) -> Path:
        return self.folder / "run.json"

    @property
    def spec(self) -> RunSpec:
        try:
            return RunSpec.model_validate_json(self._json.read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self._json} can't be read: {error}.", hint="Restore it or start anew."
            ) from error

    def write(self, spec: RunSpec) -> None:
        """Replace run.json in one step: a kill leaves the old one or the new one."""
        temporary = self._json.with_suffix(".tmp")
        with _WRITING:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(spec.model_dump_json(indent=2))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._json)

    def update(self, **values: Any) -> RunSpec:
        """Set fields of run.json. A page and the job may do so at the same time."""
        with _WRITING:
            spec = self.spec.model_copy(update=values)
            self.write(spec)
        return spec

    def configure(self, instructions: Instructions) -> RunSpec:
        """Check and keep what is asked of each row.

        Raises UnknownColumn, TemplateError, ParameterError or TableError; then nothing changed.
        """
        table = self.info().columns
        with _WRITING:
            spec = _instructed(self.spec, instructions, table)
            self.write(spec)
        return spec

    def check(self, instructions: Instructions) -> None:
        """Raise what `configure` would, and change nothing."""
        _instructed(self.spec, instructions, self.info().columns)

    def recipe(self) -> Recipe:
        """How a row becomes a request. Raises RunError while nothing is asked."""
        spec = self.spec
        if spec.prompt is None:
            raise RunError(f"Run {self.run_id} has no prompt yet.", hint="Write a template first.")
        return Recipe(spec.prompt, self.info().columns)

    # -- the database -----------------------------------------------------------

    @contextlib.contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for a `with` block. Raises as `open_database`."""
        connection = self.open_database()
        try:
            yield connection
        finally:
            connection.close()

    def open_database(self) -> duckdb.DuckDBPyConnection:
        """A connection that the caller closes. Raises RunBusy while another process holds the file."""
        given = self.spec.input
        long_rows = given.size_bytes > _LONG_ROW_BYTES * given.rows
        connection = self._connect(_MEMORY_FOR_LONG_ROWS if long_rows else _MEMORY)
        try:
            with _UPGRADING:
                results.create(connection)  # a run of an older version lacks tables and columns
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, memory: str) -> duckdb.DuckDBPyConnection:
        path = self.folder / "run.duckdb"
        give_up = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                return duckdb.connect(path, config={"memory_limit": memory, "threads": "2"})
            except duckdb.Error as error:
                said = str(error).lower()
                # another process has the file, or a thread of ours is just closing it
                if "lock" not in said and "already attached" not in said:
                    raise RunError(f"{path} can't be opened: {error}.", hint="Is the disk full?") from error
                if time.monotonic() > give_up:
                    raise RunBusy(
                        f"Run {self.run_id} is in use by another process.",
                        hint="Wait until it is done, or stop it.",
                    ) from error
                time.sleep(0.05)

    def info(self) -> tables.TableInfo:
        with self.connect() as connection:
            return tables.info(connection)

    def counts(self) -> results.Counts:
        with self.connect() as connection:
            return results.read_counts(connection)

    def progress(self, points: int = 300) -> list[results.Reading]:
        """About `points` looks at the work over time, oldest first."""
        with self.connect() as connection:
            return results.read_progress(connection, points)

    def preview(self, limit: int, *, offset: int = 0, with_answers: bool = False) -> list[dict[str, Any]]:
        """Rows as a template sees them, by column name, in file order; with the answer columns if asked."""
        with self.connect() as connection:
            columns = tables.info(connection).columns
            rows = results.read_rows(connection, columns, range(offset, offset + limit))
            values = [dict(row.values) for row in rows]
            if with_answers:
                added = exports.answer_columns(self.spec)
                kept = connection.execute(
                    f"SELECT _row, {', '.join(column.sql for column in added)} FROM results "
                    "WHERE _row >= ? AND _row < ?",
                    [offset, offset + limit],
                ).fetchall()
                names = [column.name for column in added]
                answers = {row: dict(zip(names, rest, strict=True)) for row, *rest in kept}
                blank = dict.fromkeys(names)
                for row, value in zip(rows, values, strict=True):
                    value.update(answers.get(row.row, blank))
        return values

    def latest(self, limit: int) -> list[tuple[int, str, str]]:
        """(1-based row, status, answer or error) of the rows that ended last."""
        with self.connect() as connection:
            return connection.execute(
                "SELECT _row + 1, status, coalesce(answer, error) FROM results "
                "ORDER BY finished_at DESC, _row DESC LIMIT ?",
                [limit],
            ).fetchall()

    def problems(self, limit: int = 20) -> list[str]:
        """What is wrong with the first rows that can't be used, in file order."""
        with self.connect() as connection:
            found = connection.execute(
                "SELECT _problem FROM input WHERE _problem IS NOT NULL ORDER BY _row LIMIT ?", [limit]
            )
            return [problem for (problem,) in found.fetchall()]

    # -- export -----------------------------------------------------------------

    def export(
        self, path: Path, *, format: str | None = None, escape_formulas: bool = True, bom: bool = False
    ) -> int:
        """Write the original columns and the answer columns, in the file's row order. Returns the rows.

        Rows without an answer yet have empty answer columns. Raises TableError.
        `escape_formulas` guards the answers only: what came in goes out unchanged.
        """
        with self.connect() as connection:
            return exports.export(
                connection, self.spec, path, format=format, escape_formulas=escape_formulas, bom=bom
            )

    def export_input(self, path: Path) -> int:
        """Write the table alone, without rows that can't be used: `exports.export_input`. Returns the rows.

        Raises TableError, and RunBusy while another process has the file.
        """
        with self.connect() as connection:
            return exports.export_input(connection, path)


def prompt_of(asked: Instructions) -> PromptSpec:
    """The part of the instructions that makes the prompt; a prompt column becomes its template."""
    asked_of = {name: getattr(asked, name) for name in PromptSpec.model_fields}
    if asked.prompt_column is not None:
        asked_of["template"] = prompts.column_reference(asked.prompt_column)
    return PromptSpec(**asked_of)


def _instructed(spec: RunSpec, asked: Instructions, table: Sequence[tables.Column]) -> RunSpec:
    columns = spec.input.columns
    if asked.prompt_column is not None:
        prompts.check_column(asked.prompt_column, columns)
    if asked.evaluation is not None:
        prompts.check_column(asked.evaluation.reference_column, columns)
    prompt = prompt_of(asked)
    Recipe(prompt, table)
    params = sampling.validate(asked.params)
    _check_together(prompt, params, asked.output)
    instructed = spec.model_copy(
        update={
            "prompt": prompt,
            "params": params,
            "answer_column": asked.answer_column,
            "overflow": asked.overflow,
            "output": asked.output,
            "evaluation": asked.evaluation,
            "plan": asked.plan,
            "engine": asked.engine or spec.engine,
        }
    )
    exports.check_names(instructed, columns)
    return instructed


def _check_together(prompt: PromptSpec, params: Mapping[str, Any], output: OutputSpec) -> None:
    """Raise ParameterError for what can't be asked at once."""
    several_turns = bool(prompt.turns or prompt.turns_column)
    if several_turns and params.get("n", 1) > 1:
        raise ParameterError("n is more than 1 in a talk of several turns.", hint="Choose one of them.")
    if output.choice_probabilities and "choice" not in params.get("structured_outputs", {}):
        raise ParameterError(
            "Probabilities of choices need a list of choices.", hint="Give the choices, or leave them out."
        )
