"""The plan of a run: who shares an answer, in what order rows are asked, what is still to do."""

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core import results, tables
from core.planning import plans, row_sorting
from core.run_spec import PlanSpec

DOCUMENTS = [
    f"Document {number}: " + " ".join(f"word{number * 7 + at}" for at in range(60)) for number in range(8)
]


@pytest.fixture
def connection():
    with duckdb.connect(":memory:") as connection:
        yield connection


def stage(connection, path, content):
    path.write_text(content, encoding="utf-8")
    columns = tables.stage(path, connection).columns
    results.create(connection)
    return columns


def stage_documents(connection, tmp_path, order):
    """A table of (document, question); `order` gives each row's document. Questions differ."""
    lines = "".join(f"{DOCUMENTS[document]},What is {row}?\n" for row, document in enumerate(order))
    return stage(connection, tmp_path / "documents.csv", f"document,question\n{lines}")


def make(connection, variables, columns, *, deterministic=True, reorder=True, dedupe=True, **more):
    options = PlanSpec(reorder=reorder, dedupe=dedupe)
    return plans.make(connection, variables, (), columns, options, deterministic, **more)


def read(connection, columns, positions, only):
    return [row for row, _order in plans.read(connection, columns, positions, only)]


def shared(connection):
    """{row: the earlier row whose answer it shares}"""
    found = connection.execute("SELECT _row, first FROM plan WHERE _row <> first").fetchall()
    assert sorted(found) == sorted(connection.execute("SELECT _row, first FROM copies").fetchall())
    return dict(found)


def answer(connection, rows, *, stale=False):
    connection.executemany(
        "INSERT INTO results (_row, status, answer, stale) VALUES (?, 'ok', 'yes', ?)",
        [[row, stale] for row in rows],
    )


# -- rows that ask the same ----------------------------------------------------


def test_rows_with_equal_cells_share_the_first_ones_answer(connection, tmp_path):
    columns = stage(connection, tmp_path / "t.csv", "id,text\n1,a\n2,b\n3,a\n4,a\n5,b\n6,c\n")
    plan = make(connection, ["text"], columns)
    assert (plan.rows, plan.requests, plan.duplicates) == (6, 3, 3)
    assert shared(connection) == {2: 0, 3: 0, 4: 1}
    assert [row.row for row in read(connection, columns, range(3), ["text"])] == [0, 1, 5]


@pytest.mark.parametrize("values", [{"deterministic": False}, {"dedupe": False}])
def test_every_row_is_asked_when_answers_may_differ_or_the_analyst_says_so(connection, tmp_path, values):
    columns = stage(connection, tmp_path / "t.csv", "text\na\na\na\n")
    plan = make(connection, ["text"], columns, **values)
    assert (plan.requests, plan.duplicates) == (3, 0)
    assert shared(connection) == {}
    assert plans.pending(connection).tolist() == [0, 1, 2]


def test_cells_that_only_look_alike_when_joined_are_not_merged(connection, tmp_path):
    cells = [("ab", "c"), ("a", "bc"), ("", "abc"), (None, "abc"), ("-", "abc"), ("2:ab", "c"), ("1:a", "bc")]
    pq.write_table(
        pa.table({"left": [one for one, _two in cells], "right": [two for _one, two in cells]}),
        tmp_path / "t.parquet",
    )
    columns = tables.stage(tmp_path / "t.parquet", connection).columns
    assert make(connection, ["left", "right"], columns).duplicates == 0


def test_json_values_are_compared_as_what_they_are(connection, tmp_path):
    values = ["a, b"], ["a", "b"], None, "null", 1, "1", ["a", "b"]
    columns = stage(
        connection, tmp_path / "t.jsonl", "".join(json.dumps({"v": v}) + "\n" for v in values) + "{}\n"
    )
    make(connection, ["v"], columns)
    assert shared(connection) == {6: 1}


def test_native_values_are_compared_as_what_they_are(connection, tmp_path):
    values = pa.array([["a, b"], ["a", "b"], ["NULL"], [None], None, ["a", "b"]], pa.list_(pa.string()))
    pq.write_table(pa.table({"v": values}), tmp_path / "t.parquet")
    columns = tables.stage(tmp_path / "t.parquet", connection).columns
    make(connection, ["v"], columns)
    assert shared(connection) == {5: 1}


def test_rows_that_cannot_be_asked_are_never_merged(connection, tmp_path):
    columns = stage(connection, tmp_path / "t.csv", "id,text,note\n1,a,x\n2,b,c,d\n3,b,c,d\n4\n5\n6,a\n")
    plan = make(connection, ["text"], columns)
    assert (plan.requests, shared(connection)) == (5, {5: 0})  # row 5 has the cell that is needed
    assert [row.row for row in read(connection, columns, range(5), ["text"])] == [0, 1, 2, 3, 4]


# -- the order -----------------------------------------------------------------


def test_rows_of_one_document_become_neighbours_and_stay_in_file_order(connection, tmp_path):
    order = [row % 8 for row in range(200)]
    columns = stage_documents(connection, tmp_path, order)
    plan = make(connection, ["document", "question"], columns)
    assert plan.reordered
    rows = read(connection, columns, range(200), ["document", "question"])
    assert [row.row for row in rows] == sorted(range(200), key=lambda row: (order[row], row))
    assert all(row.values["document"] == DOCUMENTS[order[row.row]] for row in rows)
    assert plan.prefix_file_order < 0.05
    assert plan.prefix_planned > 0.9


def test_a_table_without_shared_beginnings_stays_in_file_order(connection, tmp_path):
    columns = stage_documents(connection, tmp_path, [row % 8 for row in range(200)])
    plan = make(connection, ["question", "document"], columns)
    assert (plan.reordered, plan.prefix_file_order, plan.prefix_planned) == (False, 0.0, 0.0)
    assert [row.row for row in read(connection, columns, range(200), ["question"])] == list(range(200))


def test_a_table_that_lies_in_order_is_not_copied(connection, tmp_path):
    columns = stage_documents(connection, tmp_path, [row // 25 for row in range(200)])
    plan = make(connection, ["document", "question"], columns)
    assert not plan.reordered
    assert plan.prefix_file_order > 0.9
    assert [row.row for row in read(connection, columns, range(200), ["question"])] == list(range(200))


def test_a_long_common_beginning_counts_though_the_texts_differ(connection, tmp_path):
    lines = "".join(f"{DOCUMENTS[row % 8]} asked {row}\n" for row in range(200))
    columns = stage(connection, tmp_path / "t.csv", f"text\n{lines}")
    plan = make(connection, ["text"], columns)
    assert plan.reordered
    rows = [row.row for row in read(connection, columns, range(200), ["text"])]
    assert rows == sorted(range(200), key=lambda row: (row % 8, row))


def test_the_share_counts_constant_text_too(connection, tmp_path):
    columns = stage(
        connection, tmp_path / "t.csv", "kind,n\n" + "".join(f"{'ab'[n % 2]},{n:02d}\n" for n in range(40))
    )
    # 10 + kind 1 + 20 + n 2 + 7 characters: neighbours share 10 in the file, 31 in order but at one border
    plan = make(connection, ["kind", "n"], columns, fixed_chars=[10, 20, 7])
    assert plan.prefix_file_order == pytest.approx(10 / 40)
    assert plan.prefix_planned == pytest.approx((38 * 31 + 10) / (39 * 40))


def test_reordering_is_left_when_not_wanted(connection, tmp_path):
    columns = stage_documents(connection, tmp_path, [row % 8 for row in range(80)])
    assert not make(connection, ["document"], columns, reorder=False, dedupe=False).reordered


def test_bad_rows_come_first_in_a_reordered_table_and_keep_their_cause(connection, tmp_path):
    lines = "".join(f"{DOCUMENTS[row % 8]},{row}\n" for row in range(80))
    columns = stage(connection, tmp_path / "t.csv", f"document,n\n{lines}one,2,3\n")
    make(connection, ["document", "n"], columns)
    first, second = read(connection, columns, [0, 1], ["document", "n"])
    assert (first.row, first.line) == (80, 82)
    assert first.problem
    assert (second.row, second.problem) == (0, None)


def test_the_last_rows_of_a_table_begin_with_the_longest(connection, tmp_path):
    sizes = [10 + (row * 7) % 40 for row in range(100)]
    lines = "".join(f"{row:03d}{'x' * size}\n" for row, size in enumerate(sizes))
    columns = stage(connection, tmp_path / "t.csv", f"text\n{lines}")
    make(connection, ["text"], columns, slots=10)
    rows = [row.row for row in read(connection, columns, range(100), ["text"])]
    assert rows[:80] == list(range(80))
    assert sorted(rows[80:]) == list(range(80, 100))
    assert [sizes[row] for row in rows[80:]] == sorted(sizes[80:], reverse=True)


def test_the_last_rows_begin_with_those_that_a_column_lets_answer_longest(connection, tmp_path):
    lengths = [(row * 37) % 100 for row in range(200)]
    lines = "".join(f"{row:03d},{length}\n" for row, length in enumerate(lengths))
    columns = stage(connection, tmp_path / "t.csv", f"text,most\n{lines}")
    make(connection, ["text", "most"], columns, slots=10, answer_length="most")
    rows = [row.row for row in read(connection, columns, range(200), ["text"])]
    assert rows[:120] == list(range(120))
    assert [lengths[row] for row in rows[120:]] == sorted(lengths[120:], reverse=True)


def test_rows_too_many_for_one_pass_of_sorting_arrive_whole(tmp_path, monkeypatch):
    """Files of a few rows each, beside a database on disk; nothing of them is left there."""
    monkeypatch.setattr(row_sorting, "_FILE_BYTES", 5_000)
    monkeypatch.setattr(row_sorting, "_BATCH_BYTES", 100_000)
    values = {
        "document": [DOCUMENTS[row % 8] for row in range(1000)],
        "n": pa.array([None if row % 5 == 0 else row for row in range(1000)], pa.int16()),
        "list": [[row, None] for row in range(1000)],
        "label": pa.array(["ab"[row % 2] for row in range(1000)]).dictionary_encode(),
    }
    pq.write_table(pa.table(values), tmp_path / "t.parquet")
    with duckdb.connect(tmp_path / "run.duckdb") as connection:
        columns = tables.stage(tmp_path / "t.parquet", connection).columns
        results.create(connection)
        assert make(connection, list(values), columns).reordered
        rows = read(connection, columns, range(1000), list(values))
        assert [row.row % 8 for row in rows] == sorted(row % 8 for row in range(1000))
        ordered = sorted(rows, key=lambda row: row.row)
        assert ordered == results.read_rows(connection, columns, range(1000))
        assert {path.name for path in tmp_path.iterdir()} <= {"t.parquet", "run.duckdb", "run.duckdb.wal"}


# -- fields mode ---------------------------------------------------------------


def stage_fields(connection, tmp_path):
    """Columns id (unique), group (scattered over 10 rows each), note (follows from group)."""
    lines = "".join(f"{row},group {row % 6} {'g' * 40},note {row % 6} {'n' * 80}\n" for row in range(60))
    return stage(connection, tmp_path / "t.csv", f"id,group,note\n{lines}")


def fields_plan(connection, columns, variables=("id", "group", "note"), **options):
    fields = ("id", "group", "note")
    return plans.make(connection, variables, fields, columns, PlanSpec(**options), deterministic=False)


def test_fields_that_repeat_come_before_those_that_do_not(connection, tmp_path):
    columns = stage_fields(connection, tmp_path)
    plan = fields_plan(connection, columns)
    assert plan.reordered
    assert plan.prefix_file_order == 0.0
    assert plan.prefix_planned > 0.75
    found = plans.read(connection, columns, range(60), ["id", "group", "note"])
    assert sorted(row.row for row, _order in found) == list(range(60))
    assert {plan.field_orders[order][-1] for _row, order in found} == {"id"}
    groups = [row.values["group"] for row, _order in found]
    assert sum(one != two for one, two in itertools.pairwise(groups)) == 5


def test_what_is_read_before_the_fields_is_grouped_first(connection, tmp_path):
    lines = "".join(f"{row},{DOCUMENTS[row % 4]},label {row // 2 % 2} {'x' * 50}\n" for row in range(80))
    columns = stage(connection, tmp_path / "t.csv", f"id,document,label\n{lines}")
    plan = plans.make(
        connection, ("document", "id", "label"), ("id", "label"), columns, PlanSpec(), deterministic=True
    )
    found = plans.read(connection, columns, range(80), ["id", "document", "label"])
    seen = [(row.values["document"], row.values["label"]) for row, _order in found]
    assert sum(one != two for one, two in itertools.pairwise(seen)) == len(set(seen)) - 1
    assert {plan.field_orders[order] for _row, order in found} == {("label", "id")}
    assert plan.prefix_planned > plan.prefix_file_order + 0.5


def test_fields_keep_their_order_when_it_saves_nothing_or_is_not_wanted(connection, tmp_path):
    columns = stage_fields(connection, tmp_path)
    plan = fields_plan(connection, columns, reorder=False)
    assert (plan.reordered, plan.field_orders) == (False, ())
    assert {order for _row, order in plans.read(connection, columns, range(60), ["id"])} == {None}
    columns = stage(
        connection, tmp_path / "t.csv", "id,group,note\n" + "".join(f"{n},a{n},b{n}\n" for n in range(9))
    )
    connection.execute("DROP TABLE plan_info")
    assert fields_plan(connection, columns).field_orders == ()


def test_rows_that_share_an_answer_share_its_field_order(connection, tmp_path):
    lines = "".join(f"note {row % 12},group {row % 3} {'g' * 40}\n" for row in range(60))
    columns = stage(connection, tmp_path / "t.csv", f"note,group\n{lines}")
    fields = ("note", "group")
    plan = plans.make(connection, fields, fields, columns, PlanSpec(), deterministic=True)
    assert (plan.requests, plan.duplicates, plan.field_orders) == (12, 48, (("group", "note"),))
    assert connection.execute("SELECT DISTINCT field_order FROM plan").fetchall() == [(0,)]


# -- what is still to do -------------------------------------------------------


def test_a_request_is_pending_until_all_its_rows_have_a_fresh_result(connection, tmp_path):
    columns = stage(connection, tmp_path / "t.csv", "text\na\nb\na\nc\nd\n")
    make(connection, ["text"], columns)
    assert plans.pending(connection).tolist() == [0, 1, 2, 3]
    answer(connection, [0, 1, 3])
    answer(connection, [4], stale=True)
    assert plans.pending(connection).tolist() == [0, 3]  # row 2 shares row 0's answer and has none yet
    answer(connection, [2])
    assert plans.pending(connection).tolist() == [3]


@pytest.mark.parametrize("shuffled", [True, False])
def test_rows_are_read_at_any_positions_in_the_order_asked(connection, tmp_path, shuffled):
    columns = stage_documents(
        connection, tmp_path, [row % 8 if shuffled else row // 25 for row in range(200)]
    )
    assert make(connection, ["document", "question"], columns).reordered == shuffled
    positions = [150, 3, 77, 4]
    whole = read(connection, columns, range(200), ["question"])
    assert read(connection, columns, positions, ["question"]) == [whole[position] for position in positions]
    assert plans.read(connection, columns, [], ["question"]) == []


# -- keeping the plan ----------------------------------------------------------


def test_a_plan_is_kept_while_it_fits_and_made_again_when_not(connection, tmp_path):
    columns = stage_documents(connection, tmp_path, [row % 8 for row in range(80)])
    stages = []
    first = make(connection, ["document"], columns, on_progress=stages.append)
    assert stages and plans.info(connection) == first
    stages.clear()
    assert make(connection, ["document"], columns, on_progress=stages.append) == first
    assert not stages
    again = make(connection, ["question"], columns, on_progress=stages.append)
    assert stages and plans.info(connection) == again
    assert (again.duplicates, shared(connection)) == (0, {})
    assert read(connection, columns, [0], ["question"])[0].values == {"question": "What is 0?"}


def test_a_plan_that_fails_leaves_the_one_before(connection, tmp_path):
    columns = stage_documents(connection, tmp_path, [row % 8 for row in range(80)])
    assert plans.info(connection) is None
    first = make(connection, ["document"], columns)

    def fail(stage):
        if stage.startswith("Comparing"):
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        make(connection, ["question"], columns, on_progress=fail)
    assert plans.info(connection) == first
    assert len(plans.pending(connection)) == first.requests


def test_rows_of_a_prompt_without_columns_all_ask_the_same(connection, tmp_path):
    columns = stage(connection, tmp_path / "t.csv", "text\na\nb\nc\n")
    assert make(connection, [], columns).requests == 1
    assert make(connection, [], columns, deterministic=False).requests == 3
    assert [row.row for row in read(connection, columns, range(3), [])] == [0, 1, 2]


def test_a_plan_that_another_thread_is_making_is_waited_for(tmp_path):
    """A run that is started while the page still forecasts it: two connections, one file."""
    begun, go_on = threading.Event(), threading.Event()

    def hold(_stage):
        begun.set()
        assert go_on.wait(30)

    with duckdb.connect(tmp_path / "run.duckdb") as first, first.cursor() as second:
        columns = stage(first, tmp_path / "table.csv", "a,b\n" + "x,1\ny,2\nx,3\n")
        with ThreadPoolExecutor(2) as threads:
            forecast = threads.submit(make, first, ("a",), columns, on_progress=hold)
            assert begun.wait(30)
            start = threads.submit(make, second, ("a",), columns, on_progress=lambda stage: None)
            with pytest.raises(TimeoutError):
                start.result(0.3)
            go_on.set()
            assert forecast.result(30) == start.result(30)
        assert shared(second) == {2: 0}
