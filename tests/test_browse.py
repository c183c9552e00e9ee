"""Browsing a run: which rows a filter finds, in which order, and what the figures count."""

import json
from dataclasses import asdict

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core import browse, results, tables
from core.browse import Filter
from core.results import Result

ROWS = [
    {"id": "007", "text": "Good film, 100% fun"},
    {"id": "008", "text": "bad_film"},
    {"id": "009", "text": "Straße nach MÜNCHEN"},
    {"id": "010", "text": "Good film, 100% fun"},
    {"id": "011", "text": 'he said "no"'},
    {"id": "012", "text": ""},
]
ANSWERS = [
    Result(row=3, status="ok", answer="Yes", finish_reason="stop", prompt_tokens=10, output_tokens=2,
           same_as=0, valid=True),
    Result(row=1, status="ok", answer="No, never. " * 20, finish_reason="length", prompt_tokens=9,
           output_tokens=64, valid=False, truncated_tokens=3,
           samples='[{"text":"No","finish_reason":"stop","output_tokens":1,"logprob":-0.5}]',
           turns='["first","second"]', choice_probabilities='{"yes":0.25,"no":0.75}'),
    Result(row=0, status="ok", answer="Yes", finish_reason="stop", prompt_tokens=10, output_tokens=2,
           valid=True),
    Result(row=5, status="skipped"),
    Result(row=4, status="error", error="Prompt of 5000 tokens does not fit 2048."),
]  # fmt: skip


def staged(tmp_path, source):
    connection = duckdb.connect(tmp_path / "run.duckdb")
    tables.stage(source, connection)
    results.create(connection)
    return connection


def keep(connection, kept):
    """Into the table `results`, some later than what is there."""
    batch = pa.Table.from_pylist([asdict(result) for result in kept])  # noqa: F841, DuckDB finds it
    connection.execute(
        "INSERT INTO results BY NAME SELECT * EXCLUDE row, row AS _row, "
        "(SELECT count(*) FROM results)::DOUBLE AS finished_at FROM batch"
    )


@pytest.fixture
def connection(tmp_path):
    source = tmp_path / "films.jsonl"
    source.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    with staged(tmp_path, source) as connection:
        keep(connection, ANSWERS)
        yield connection


def found(connection, **filter):
    """The 0-based rows of the first page."""
    page = browse.page(connection, tables.info(connection).columns, Filter(**filter), limit=100)
    assert page.total == len(page.rows)
    return [row.row for row in page.rows]


def test_without_a_filter_all_rows_come_in_the_files_order(connection):
    assert found(connection) == [0, 1, 2, 3, 4, 5]


def test_pages_follow_one_another_without_gap_or_repeat(connection):
    columns = tables.info(connection).columns
    for filter in (Filter(), Filter(order="longest")):
        pages = [browse.page(connection, columns, filter, limit=4, offset=offset) for offset in (0, 4, 8)]
        assert [page.total for page in pages] == [6, 6, 6]
        assert [len(page.rows) for page in pages] == [4, 2, 0]
        assert {row.row for page in pages for row in page.rows} == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"statuses": {"ok"}}, [0, 1, 3]),
        ({"statuses": {"error", "none"}}, [2, 4]),
        ({"finish_reason": "length"}, [1]),
        ({"valid": True}, [0, 3]),
        ({"valid": False}, [1]),
        ({"shared": True}, [0, 3]),
        ({"shared": False}, [1, 4, 5]),
        ({"order": "longest"}, [1, 0, 3, 2, 4, 5]),
        ({"order": "shortest", "statuses": {"ok"}}, [0, 3, 1]),
        ({"statuses": {"ok"}, "text": "film", "valid": True}, [0, 3]),
    ],
)
def test_a_filter_finds_its_rows(connection, filter, expected):
    if "statuses" in filter:
        filter["statuses"] = frozenset(filter["statuses"])
    assert found(connection, **filter) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", [0, 3]),  # in the answer
        ("DOES NOT FIT", [4]),  # in the error
        ("good FILM", [0, 3]),  # in the file
        ("münchen", [2]),
        ("100%", [0, 3]),
        ("d_f", [1]),  # no wildcard: "Good film" has another character there
        ("%", [0, 3]),
        ('said "no"', [4]),  # quoted in the staged JSON
        ("008", [1]),
        ("absent", []),
        ("'; DROP TABLE results; --", []),
    ],
)
def test_search_takes_every_character_literally_in_any_case(connection, text, expected):
    assert found(connection, text=text) == expected


def test_a_row_carries_its_values_and_all_of_its_result(connection):
    columns = tables.info(connection).columns
    row, waiting = browse.rows(connection, columns, [1, 2])
    assert row.values == {"id": "008", "text": "bad_film"}
    assert (row.status, row.finish_reason, row.truncated_tokens) == ("ok", "length", 3)
    assert row.samples == [{"text": "No", "finish_reason": "stop", "output_tokens": 1, "logprob": -0.5}]
    assert row.turns == ["first", "second"]
    assert row.choice_probabilities == {"yes": 0.25, "no": 0.75}
    assert (waiting.status, waiting.answer, waiting.output_tokens) == ("none", None, None)


def test_cells_can_be_cut_for_a_table(connection):
    columns = tables.info(connection).columns
    row, other = browse.rows(connection, columns, [1, 0], characters=5)
    assert row.answer == "No, n"
    assert row.values["id"] == "008"
    assert other.answer == "Yes"
    assert len(other.values["text"]) == 5


def test_a_stale_result_counts_as_not_there(connection):
    before = browse.stamp(connection)
    connection.execute("UPDATE results SET stale = true WHERE _row = 0")
    assert browse.stamp(connection) != before
    assert found(connection, statuses=frozenset({"none"})) == [0, 2]
    assert found(connection, text="Yes") == [3]
    assert browse.counts(connection) == {"ok": 2, "error": 1, "skipped": 1, "none": 2}


def test_the_stamp_changes_with_every_row_that_ends(connection):
    before = browse.stamp(connection)
    keep(connection, [Result(row=2, status="ok", answer="Perhaps", output_tokens=1)])
    assert browse.stamp(connection) != before


def test_columns_of_any_type_are_searched_but_vectors(tmp_path):
    table = pa.table({"name": ["Ann", "Bob"], "born": [1970, 1980], "vector": [[0.5], [0.25]]})
    pq.write_table(table, tmp_path / "people.parquet")
    with staged(tmp_path, tmp_path / "people.parquet") as connection:
        assert found(connection, text="bob") == [1]
        assert found(connection, text="197") == [0]
        assert found(connection, text="0.25") == []


def test_histograms_count_every_value_once(connection):
    lengths = browse.lengths(connection)
    assert lengths.prompt == browse.Histogram((9, 10, 11), (1, 2))
    assert lengths.output.edges[:2] == (2, 4)
    assert lengths.output.counts[0] == 2
    assert lengths.output.counts[-1] == 1
    assert sum(lengths.output.counts) == 3
    assert len(lengths.output.edges) == len(lengths.output.counts) + 1


def test_there_is_no_histogram_of_nothing(connection):
    connection.execute("DELETE FROM results")
    assert browse.lengths(connection) == browse.Lengths(None, None)
    assert browse.finish_reasons(connection) == []
    assert browse.errors(connection) == []
    assert browse.answer_counts(connection) is None


def test_finish_reasons_are_counted(connection):
    assert browse.finish_reasons(connection) == [("stop", 2), ("length", 1)]


def test_errors_that_differ_in_numbers_only_are_one_group(connection):
    keep(
        connection,
        [
            Result(row=2, status="error", error="Prompt of 6,001 tokens does not fit 2048."),
            Result(row=5, status="error", error="The engine died twice."),
        ],
    )
    groups = browse.errors(connection)
    assert groups[0] == browse.ErrorGroup("Prompt of 6,001 tokens does not fit 2048.", 2, 2)
    assert [(group.message, group.rows) for group in groups[1:]] == [("The engine died twice.", 1)]


def test_labels_are_counted_and_free_text_is_not(connection):
    assert browse.answer_counts(connection) is None  # one answer is long
    connection.execute("UPDATE results SET answer = ' no ' WHERE _row = 1")
    assert browse.answer_counts(connection) == [("Yes", 2), ("no", 1)]
    assert browse.answer_counts(connection, limit=1) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"score": 3, "why": "good", "more": 1}', {"score": 3, "why": "good"}),
        ('{"score": 3}', {"score": 3, "why": None}),
        ('{"score": 3, "wh', {"score": None, "why": None}),
        ("[1]", {"score": None, "why": None}),
        (None, {"score": None, "why": None}),
    ],
)
def test_properties_of_an_answer(answer, expected):
    assert browse.answer_values(answer, ["score", "why"]) == expected
