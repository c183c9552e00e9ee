"""A run's answers against its reference column, scored row by row and summed up, in the run's database.

Two tables beside `results`, made together in one transaction: `evaluation` has a row for each
scored row (a column for each metric, NULL where it says nothing), `evaluation_info` one JSON text,
the summary, with what it was made from. It is made again only when the answers are others.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from core import evals, references, results, tables
from core.errors import ParameterError, RunError, TableError
from core.references import APPLICABLE, Confusion, ReferenceType
from core.run_spec import EvaluationSpec
from core.transactions import transaction

CHRF_ROWS = 20_000
"""chrF is slow: about 1,500 pairs of 60 words a second on one core, where the rest do 10,000."""

_VERSION = 1  # of the figures; another one makes kept summaries be made again
_CHUNK_ROWS = 2_000
_TRIAL_ROWS = 200
_ROW_S = 25e-6  # to read a row and write its scores
_METRICS = tuple(evals.METRICS)
_SCHEMA = pa.schema([("_row", pa.int64()), *((name, pa.float64()) for name in _METRICS)])
_KEPT = "results.stale IS NOT TRUE"
_one_at_a_time = threading.Lock()  # two browser sessions that look at one finished run


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The mean of a metric over `n` rows, with its 95% interval. `sampled`: not over all scored rows."""

    metric: str
    mean: float
    low: float
    high: float
    n: int
    sampled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a summary was made from; equal means that it would come out the same."""

    version: int
    reference_column: str
    tolerance: float
    answers: int
    last_finished_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSummary:
    """All figures of a run. Rows: `scored` + `without_reference` + `errors` + `skipped` + `unanswered`.

    `scores` are of the metrics that apply, the most telling first; empty when nothing was scored.
    `confusion` is there when the references are labels. `seconds`: how long it took.
    """

    source: Source
    reference_type: ReferenceType
    scores: tuple[Score, ...]
    confusion: Confusion | None
    scored: int
    without_reference: int
    errors: int
    skipped: int
    unanswered: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """`row` is 0-based, in the file's order."""

    row: int
    score: float
    answer: str
    reference: str


_SUMMARY = TypeAdapter(EvaluationSummary)


# -- asking ----------------------------------------------------------------------


def kept(connection: duckdb.DuckDBPyConnection, spec: EvaluationSpec) -> EvaluationSummary | None:
    """The summary made before, if it still holds for these answers."""
    summary = _last(connection)
    return summary if summary is not None and summary.source == _source(connection, spec) else None


def evaluate(
    connection: duckdb.DuckDBPyConnection,
    spec: EvaluationSpec,
    columns: Sequence[tables.Column],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvaluationSummary:
    """Score all answers with a reference, unless that is done, and keep the scores and the summary.

    `columns` are those of `input`; `on_progress` gets (rows scored, rows to score) every 2,000 rows, and
    may raise: then all is as before. Raises TableError when there is no such column, RunError when the
    scores can't be kept.
    """
    column = _reference_column(spec, columns)
    with _one_at_a_time:
        results.create(connection)  # a run of an older version lacks columns
        summary = kept(connection, spec)
        if summary is None:
            try:
                with transaction(connection):
                    summary = _make(connection, spec, column, on_progress or (lambda done, rows: None))
            except duckdb.Error as error:
                raise RunError(f"The scores can't be kept: {error}.", hint="Is the disk full?") from error
    return summary


def estimate_s(
    connection: duckdb.DuckDBPyConnection, spec: EvaluationSpec, columns: Sequence[tables.Column]
) -> float:
    """About how long `evaluate` would take, in seconds, from a trial of 200 answers."""
    column = _reference_column(spec, columns)
    results.create(connection)
    with connection.cursor() as reader:
        trial = list(itertools.islice(_pairs(reader, column), _TRIAL_ROWS))
    if not trial:
        return 0.0
    scan = references.ReferenceScan()
    for _row, _answer, value in trial:
        scan.add(value)
    if "chrf" in APPLICABLE[scan.type]:
        evals.chrf("loads", "its library")  # once, not once for each trial row
    answers = _source(connection, spec).answers
    begun = time.monotonic()
    for _row, answer, value in trial:
        _quick(scan.type, answer, value, spec.tolerance)
    middle = time.monotonic()
    if "chrf" in APPLICABLE[scan.type]:
        for _row, answer, value in trial:
            evals.chrf(answer, references.as_text(value) or "")
    end = time.monotonic()
    slow = (end - middle) * min(answers, CHRF_ROWS)
    return ((middle - begun) * answers + slow) / len(trial) + answers * _ROW_S


def worst(connection: duckdb.DuckDBPyConnection, metric: str, limit: int, offset: int = 0) -> list[ScoredRow]:
    """Scored rows, the lowest score first, equal ones in the file's order.

    Raises ParameterError for a metric that there is not; [] before `evaluate`.
    """
    if metric not in evals.METRICS:
        raise ParameterError(f"There is no metric {metric!r}.", hint=f"There are {', '.join(_METRICS)}.")
    summary = _last(connection)
    if summary is None:
        return []
    columns = tables.info(connection).columns
    index = _index(summary.source.reference_column, columns)
    found = connection.execute(
        f"""
        WITH lowest AS (
            SELECT _row, "{metric}" AS score FROM evaluation WHERE "{metric}" IS NOT NULL
            ORDER BY score, _row LIMIT ? OFFSET ?
        )
        SELECT _row, score, coalesce(results.answer, ''), input.c{index}
        FROM lowest JOIN results USING (_row) JOIN input USING (_row) ORDER BY score, _row
        """,
        [limit, offset],
    ).fetchall()
    return [
        ScoredRow(row, score, answer, references.as_text(tables.decode(columns[index], cell)) or "")
        for row, score, answer, cell in found
    ]


# -- making -----------------------------------------------------------------------


def _quick(type: ReferenceType, answer: str, value: Any, tolerance: float) -> dict[str, float]:
    """The metrics of one row that apply, all but chrF."""
    if type == "json":
        return {"json_fields": evals.json_fields(answer, references.as_object(value) or {}, tolerance)}
    text = references.as_text(value) or ""
    scores = {"exact": evals.exact(answer, text)}
    if type == "numbers":
        return scores | {"numeric": evals.numeric(answer, text, tolerance)}
    said, wanted = evals.normalise(answer), evals.normalise(text)
    scores["normalised"] = float(said == wanted)
    if type == "text":
        scores["token_f1"] = evals.token_f1_of(said, wanted)
        scores["rouge_l"] = evals.rouge_l(answer, text)
    return scores


def _make(
    connection: duckdb.DuckDBPyConnection,
    spec: EvaluationSpec,
    column: tuple[int, tables.Column],
    on_progress: Callable[[int, int], None],
) -> EvaluationSummary:
    begun = time.monotonic()
    # reads through a cursor of its own, which `connection` may write beside, in one transaction:
    # all of it sees the same answers, whatever a job adds meanwhile
    with connection.cursor() as reader:
        reader.execute("BEGIN")
        source = _source(reader, spec)
        rows, errors, skipped, ok = _row_counts(reader)
        scan = _scan(reader, column)
        confusion, scored = _score_rows(
            connection, reader, column, scan, spec.tolerance, lambda done: on_progress(done, ok)
        )
    summary = EvaluationSummary(
        source=source,
        reference_type=scan.type,
        scores=_scores(connection, scan.type, scored),
        confusion=confusion,
        scored=scored,
        without_reference=ok - scored,
        errors=errors,
        skipped=skipped,
        unanswered=rows - ok - errors - skipped,
        seconds=time.monotonic() - begun,
    )
    connection.execute("CREATE OR REPLACE TABLE evaluation_info (info VARCHAR)")
    connection.execute("INSERT INTO evaluation_info VALUES (?)", [_SUMMARY.dump_json(summary).decode()])
    return summary


def _score_rows(
    connection: duckdb.DuckDBPyConnection,
    reader: duckdb.DuckDBPyConnection,
    column: tuple[int, tables.Column],
    scan: references.ReferenceScan,
    tolerance: float,
    on_rows: Callable[[int], None],
) -> tuple[Confusion | None, int]:
    """Fill the table `evaluation`. Returns the labels' confusion, if they are labels, and the rows scored."""
    type = scan.type
    counter = references.ConfusionCounter(scan.labels) if scan.labels else None
    chrf_rows = _chrf_rows(reader) if "chrf" in APPLICABLE[type] else frozenset()
    metrics = ", ".join(f'"{name}" DOUBLE' for name in _METRICS)
    connection.execute(f"CREATE OR REPLACE TABLE evaluation (_row BIGINT, {metrics})")
    pairs, scored = _pairs(reader, column), 0
    while chunk := list(itertools.islice(pairs, _CHUNK_ROWS)):
        records = []
        for row, answer, value in chunk:
            record = {"_row": row, **_quick(type, answer, value, tolerance)}
            if chrf_rows is None or row in chrf_rows:
                record["chrf"] = evals.chrf(answer, references.as_text(value) or "")
            if counter:
                counter.add(answer, references.as_text(value) or "")
            records.append(record)
        batch = pa.Table.from_pylist(records, schema=_SCHEMA)  # noqa: F841
        connection.execute("INSERT INTO evaluation SELECT * FROM batch")  # DuckDB finds the variable
        scored += len(chunk)
        on_rows(scored)
    return (counter.confusion() if counter else None), scored


def _scan(
    connection: duckdb.DuckDBPyConnection, column: tuple[int, tables.Column]
) -> references.ReferenceScan:
    scan = references.ReferenceScan()
    for _row, _answer, value in _pairs(connection, column, with_answers=False):
        scan.add(value)
        if scan.settled:
            break
    return scan


def _pairs(
    reader: duckdb.DuckDBPyConnection, column: tuple[int, tables.Column], *, with_answers: bool = True
) -> Iterator[tuple[int, str, Any]]:
    """(row, answer, reference as decoded) of each answered row that has a reference, in no certain order.

    Ends when `reader` is asked for something else.
    """
    index, described = column
    answer = "coalesce(results.answer, '')" if with_answers else "''"
    batches = reader.sql(
        f"SELECT results._row AS row, {answer} AS answer, input.c{index} AS cell "
        f"FROM results JOIN input USING (_row) WHERE results.status = 'ok' AND {_KEPT}"
    ).to_arrow_reader(_CHUNK_ROWS)
    for batch in batches:
        for row, said, cell in zip(*(part.to_pylist() for part in batch.columns), strict=True):
            value = tables.decode(described, cell)
            if references.as_text(value) is not None:
                yield row, said, value


def _chrf_rows(connection: duckdb.DuckDBPyConnection) -> frozenset[int] | None:
    """Rows for chrF: None for all, or a sample that is the same every time."""
    sampled = connection.execute(
        f"SELECT _row FROM results WHERE status = 'ok' AND {_KEPT} ORDER BY hash(_row) LIMIT ?",
        [CHRF_ROWS + 1],
    ).fetchall()
    return None if len(sampled) <= CHRF_ROWS else frozenset(row for (row,) in sampled[:CHRF_ROWS])


def _scores(connection: duckdb.DuckDBPyConnection, type: ReferenceType, scored: int) -> tuple[Score, ...]:
    found = []
    for metric in APPLICABLE[type]:
        query = f'SELECT "{metric}" AS value FROM evaluation WHERE "{metric}" IS NOT NULL ORDER BY _row'
        values = connection.execute(query).fetchnumpy()["value"]
        if len(values):
            low, high = evals.bootstrap_interval(values)
            found.append(
                Score(
                    metric=metric,
                    mean=float(values.mean()),
                    low=low,
                    high=high,
                    n=len(values),
                    sampled=len(values) < scored,
                )
            )
    return tuple(found)


# -- looking ----------------------------------------------------------------------


def _reference_column(spec: EvaluationSpec, columns: Sequence[tables.Column]) -> tuple[int, tables.Column]:
    index = _index(spec.reference_column, columns)
    return index, columns[index]


def _index(name: str, columns: Sequence[tables.Column]) -> int:
    names = [column.name for column in columns]
    if name not in names:
        raise TableError(
            f"The table has no column {name!r} to compare the answers with.",
            hint=f"Choose one of {', '.join(names[:20])}.",
        )
    return names.index(name)


def _source(connection: duckdb.DuckDBPyConnection, spec: EvaluationSpec) -> Source:
    [(answers, last)] = connection.execute(
        f"SELECT count(*), max(finished_at) FROM results WHERE {_KEPT}"
    ).fetchall()
    return Source(
        version=_VERSION,
        reference_column=spec.reference_column,
        tolerance=spec.tolerance,
        answers=answers,
        last_finished_at=last,
    )


def _row_counts(connection: duckdb.DuckDBPyConnection) -> tuple[int, int, int, int]:
    """(rows of the file, errors, skipped, answered)."""
    [(rows,)] = connection.execute("SELECT count(*) FROM input").fetchall()
    [ended] = connection.execute(
        "SELECT count(*) FILTER (status = 'error'), count(*) FILTER (status = 'skipped'), "
        f"count(*) FILTER (status = 'ok') FROM results WHERE {_KEPT}"
    ).fetchall()
    return rows, *ended


def _last(connection: duckdb.DuckDBPyConnection) -> EvaluationSummary | None:
    """The summary made last, whether it still holds or not; None too when another version wrote it."""
    try:
        [(text,)] = connection.execute("SELECT info FROM evaluation_info").fetchall()
    except duckdb.CatalogException:
        return None
    try:
        return _SUMMARY.validate_json(text)
    except ValidationError:  # written by another version: it is made again
        return None
