"""A run's answers scored against its reference column, in the run's database."""

import contextlib
import json
import random
import threading

import duckdb
import pytest
from batch_runs import finish

from core import evals, evaluation, results, tables
from core.errors import ParameterError, TableError
from core.run_spec import EvaluationSpec, Instructions

GOLD = EvaluationSpec(reference_column="gold")


@pytest.fixture
def staged(tmp_path):
    """Makes a database of a table with these rows and answers: text, or (status, answer, stale)."""
    with contextlib.ExitStack() as stack:

        def make(references, answers):
            path = tmp_path / "table.jsonl"
            rows = [{"id": n, **({} if gold is ... else {"gold": gold})} for n, gold in enumerate(references)]
            path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
            connection = stack.enter_context(contextlib.closing(duckdb.connect(":memory:")))
            tables.stage(path, connection)
            results.create(connection)
            answer(connection, dict(enumerate(answers)))
            return connection

        yield make


def answer(connection, answers, finished_at=1.0):
    """Put answers in, not in the file's order."""
    for row in sorted(answers, key=lambda row: hash(str(row))):
        given = answers[row] if isinstance(answers[row], tuple) else ("ok", answers[row], False)
        connection.execute("DELETE FROM results WHERE _row = ?", [row])
        connection.execute(
            "INSERT INTO results (_row, status, answer, stale, finished_at) VALUES (?, ?, ?, ?, ?)",
            [row, *given, finished_at],
        )


def evaluate(connection, spec=GOLD, **options):
    return evaluation.evaluate(connection, spec, tables.info(connection).columns, **options)


def means(summary):
    return {score.metric: score.mean for score in summary.scores}


def column(connection, name):
    return [
        value for (value,) in connection.execute(f'SELECT "{name}" FROM evaluation ORDER BY _row').fetchall()
    ]


def test_a_run_of_a_job_is_scored_and_each_score_is_its_rows_own(jobs, tmp_path):
    path = tmp_path / "table.csv"
    lines = [f"text {n},a long reference text of more than forty characters {n}\n" for n in range(30)]
    path.write_text("text,gold\n" + "".join(lines), encoding="utf-8")
    run = jobs.stage(path, instructions=Instructions(template="{{ text }}"))
    finish(jobs, run)
    answers = [row["answer"] for row in run.preview(30, with_answers=True)]
    wanted = [line.split(",")[1].strip() for line in lines]
    with run.connect() as connection:
        summary = evaluate(connection)
        for name in ("token_f1", "rouge_l", "chrf"):
            metric = getattr(evals, name)
            assert column(connection, name) == [metric(*pair) for pair in zip(answers, wanted, strict=True)]
        assert set(column(connection, "numeric")) == {None}
    assert (summary.reference_type, summary.scored, summary.errors) == ("text", 30, 0)
    assert [score.metric for score in summary.scores] == [
        "token_f1", "exact", "normalised", "rouge_l", "chrf",
    ]  # fmt: skip
    assert all(score.low <= score.mean <= score.high and score.n == 30 for score in summary.scores)


def test_every_row_of_the_file_is_accounted_for(staged):
    connection = staged(
        ["yes", "no", "yes", "no", "yes", None, ..., "yes"],
        ["yes", "yes", ("error", None, False), ("skipped", None, False), ("ok", "old", True), "no", "no"],
    )
    summary = evaluate(connection)
    assert (summary.scored, summary.without_reference) == (2, 2)
    assert (summary.errors, summary.skipped, summary.unanswered) == (1, 1, 2)
    assert means(summary)["exact"] == 0.5


def test_labels_get_a_confusion_matrix(staged):
    connection = staged(["yes", "no", "Yes", "no"], ["Yes.", "maybe", "no", "no"])
    summary = evaluate(connection)
    assert summary.reference_type == "labels"
    assert summary.confusion.labels == ("no", "yes")
    assert summary.confusion.counts == ((1, 0, 1), (1, 1, 0))
    assert means(summary) == {"normalised": 0.5, "exact": 0.25}


def test_numbers_are_matched_within_the_tolerance(staged):
    connection = staged([1.5, 2, 1000], ["It is 1.52", "2", "1,100"])
    assert means(evaluate(connection)) == {"numeric": 1 / 3, "exact": 1 / 3}
    wide = EvaluationSpec(reference_column="gold", tolerance=0.05)
    assert means(evaluate(connection, wide))["numeric"] == 2 / 3


def test_objects_are_matched_field_by_field(staged):
    connection = staged([{"a": 1, "b": "x"}, {"a": 2}], ['{"a": 1, "b": "y"}', "none"])
    summary = evaluate(connection)
    assert summary.reference_type == "json"
    assert column(connection, "json_fields") == [0.5, 0]
    assert means(summary) == {"json_fields": 0.25}


def test_a_summary_is_made_once_and_again_when_an_answer_changed(staged):
    connection = staged(["yes", "no", "yes"], ["yes", "yes", "yes"])
    made = []
    first = evaluate(connection, on_progress=lambda done, rows: made.append((done, rows)))
    assert evaluate(connection, on_progress=lambda done, rows: made.append((done, rows))) == first
    assert evaluation.kept(connection, GOLD) == first
    assert made == [(3, 3)]
    answer(connection, {1: "no"}, finished_at=2.0)
    assert evaluation.kept(connection, GOLD) is None
    assert means(evaluate(connection))["exact"] == 1
    connection.execute("UPDATE results SET stale = true WHERE _row = 0")
    assert evaluate(connection).scored == 2


def test_nothing_is_left_of_an_evaluation_that_was_broken_off(staged):
    class BrokenOff(BaseException):
        pass

    def break_off(done, rows):
        raise BrokenOff

    connection = staged(["yes", "no", "yes"], ["yes", "yes", "yes"])
    first = evaluate(connection)
    answer(connection, {1: "no"}, finished_at=2.0)
    with pytest.raises(BrokenOff):
        evaluate(connection, on_progress=break_off)
    assert column(connection, "exact") == [1, 0, 1]
    assert [row.score for row in evaluation.worst(connection, "exact", 10)] == [0, 1, 1]
    assert evaluation.kept(connection, GOLD) is None
    assert means(evaluate(connection)) != means(first)


def test_the_worst_rows_come_first_page_by_page(staged):
    references = [f"one two three four of row {n}, which is long enough for text" for n in range(25)]
    answers = [" ".join(text.split()[: n % 7]) for n, text in enumerate(references)]
    connection = staged(references, answers)
    evaluate(connection)
    pages = [evaluation.worst(connection, "token_f1", 10, offset) for offset in (0, 10, 20, 30)]
    assert [len(page) for page in pages] == [10, 10, 5, 0]
    rows = [row for page in pages for row in page]
    assert rows == sorted(rows, key=lambda row: (row.score, row.row))
    assert sorted(row.row for row in rows) == list(range(25))
    assert all((row.answer, row.reference) == (answers[row.row], references[row.row]) for row in rows)
    assert rows[0].row == 0
    assert evaluation.worst(connection, "numeric", 10) == []


def test_a_metric_or_column_that_there_is_not_is_said_so(staged):
    connection = staged(["a"], ["a"])
    with pytest.raises(TableError, match="'truth'"):
        evaluate(connection, EvaluationSpec(reference_column="truth"))
    with pytest.raises(ParameterError, match="bleu"):
        evaluation.worst(connection, "bleu", 10)
    assert evaluation.worst(connection, "exact", 10) == []


def test_a_run_without_answers_has_no_scores(staged):
    summary = evaluate(staged(["a", "b"], []))
    assert (summary.scores, summary.scored, summary.unanswered, summary.confusion) == ((), 0, 2, None)


def test_chrf_is_taken_of_a_sample_when_there_are_many_rows(staged, monkeypatch):
    monkeypatch.setattr(evaluation, "CHRF_ROWS", 10)
    references = [f"a text of more than forty characters in all, number {n}" for n in range(40)]
    connection = staged(references, references)
    scores = {score.metric: score for score in evaluate(connection).scores}
    assert (scores["chrf"].n, scores["chrf"].sampled, scores["chrf"].mean) == (10, True, 1)
    assert (scores["rouge_l"].n, scores["rouge_l"].sampled) == (40, False)
    sampled = column(connection, "chrf")
    answer(connection, {0: references[0]}, finished_at=2.0)
    evaluate(connection)
    assert column(connection, "chrf") == sampled
    assert len(evaluation.worst(connection, "chrf", 100)) == 10


def test_more_rows_than_a_chunk_give_the_same_figures(staged, monkeypatch):
    generator = random.Random(3)
    references = [generator.choice(["yes", "no"]) for _row in range(50)]
    connection = staged(references, [generator.choice(["yes", "no"]) for _row in range(50)])
    whole = evaluate(connection)
    monkeypatch.setattr(evaluation, "_CHUNK_ROWS", 7)
    answer(connection, {0: ("error", None, False), 1: ("error", None, False)}, finished_at=2.0)
    parts = evaluate(connection)
    assert parts.scored == 48
    assert sum(map(sum, parts.confusion.counts)) == 48
    assert sum(map(sum, whole.confusion.counts)) == 50
    assert parts.confusion.accuracy == pytest.approx(sum(column(connection, "exact")) / 48)


def test_answers_that_come_meanwhile_do_not_mix_in(staged):
    """A job may add answers while a page evaluates: each evaluation is of one moment."""
    connection = staged(["yes", "no", "yes", "other", "other"], ["yes", "no", "yes"])

    def add(done, rows):
        with connection.cursor() as cursor:
            answer(cursor, {3: "other"}, finished_at=2.0)

    summary = evaluate(connection, on_progress=add)
    assert (summary.scored, summary.unanswered) == (3, 2)
    assert evaluation.kept(connection, GOLD) is None
    assert evaluate(connection).scored == 4


def test_two_sessions_that_look_at_once_get_the_same(staged):
    connection = staged([f"reference number {n}" for n in range(300)], ["reference"] * 300)
    found, made = [], []

    def look():
        with connection.cursor() as cursor:
            found.append(evaluate(cursor, on_progress=lambda done, rows: made.append(done)))

    threads = [threading.Thread(target=look) for _session in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert made == [300]


def test_the_time_is_estimated_from_a_trial(staged):
    references = [f"a reference of more than forty characters, number {n}" for n in range(300)]
    connection = staged(references, references)
    columns = tables.info(connection).columns
    assert 0 < evaluation.estimate_s(connection, GOLD, columns) < 30
    assert evaluation.estimate_s(staged(["a"], []), GOLD, columns) == 0
