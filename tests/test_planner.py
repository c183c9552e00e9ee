"""The planner: what it counts, that it never makes things worse, and how near the best it comes."""

import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.planning import planner_table
from core.planning.planner import Table, plan_fields, prefix_hits, sort_rows
from core.planning.planner_table import dependencies
from core.planning.planner_tree import Paths, Policy, Tree, Work

GGR = Policy("value", 2, 0)


def table_of(rows, overheads=None):
    """A table of texts; the length of a cell is its characters."""
    codes, lengths = [], []
    for column in zip(*rows, strict=True):
        values = list(dict.fromkeys(column))
        codes.append(np.array([values.index(value) for value in column]))
        lengths.append(np.array([len(value) for value in values]))
    return Table.of(codes, lengths, overheads)


@st.composite
def tables(draw, most_rows=40, most_columns=5, shortest=0):
    rows = draw(st.integers(0, most_rows))
    columns = draw(st.integers(1, most_columns))
    codes, lengths = [], []
    for _ in range(columns):
        values = draw(st.integers(1, 8))
        codes.append(draw(st.lists(st.integers(0, values - 1), min_size=rows, max_size=rows)))
        lengths.append(draw(st.lists(st.integers(shortest, 9), min_size=values, max_size=values)))
    return Table.of([np.array(column, int) for column in codes], [np.array(of) for of in lengths])


def shared_by_hand(table, order, field_order, field_orders):
    """(hit count, shared length) counted cell by cell."""
    count = shared = 0
    for before, row in itertools.pairwise(order):
        pairs = zip(field_orders[field_order[before]], field_orders[field_order[row]], strict=True)
        for one, other in pairs:
            if one != other or table.codes[one, before] != table.codes[one, row]:
                break
            length = int(table.lengths(one, row))
            count += length**2
            shared += length
    return count, shared


def sorted_by_texts(table, columns):
    keys = [table.codes[column] for column in reversed(columns)]
    return np.lexsort(keys) if keys and table.rows else np.arange(table.rows)


# what is counted


def test_hits_of_three_rows_counted_by_hand():
    table = table_of([("aa", "bbb", "c"), ("aa", "bbb", "dd"), ("aa", "x", "dd")])
    hits = prefix_hits(table)
    assert hits.hit_count == (2**2 + 3**2) + 2**2
    assert hits.shared == (2 + 3) + 2
    assert hits.total == 6 + 7 + 5
    assert hits.hit_rate == pytest.approx(7 / 18)


def test_what_stands_around_a_value_counts_with_it():
    table = table_of([("aa", "b"), ("aa", "c")], overheads=[10, 20])
    hits = prefix_hits(table)
    assert (hits.shared, hits.total, hits.hit_count) == (12, 2 * (12 + 21), 144)


def test_rows_with_other_field_orders_share_only_as_far_as_fields_and_values_agree():
    table = table_of([("a", "a", "z"), ("a", "a", "z"), ("a", "a", "z")])
    orders = ((0, 1, 2), (1, 0, 2), (0, 2, 1))
    # rows 0 and 1 begin with the same text but in different fields; rows 1 and 2 as well
    assert prefix_hits(table, np.arange(3), np.array([0, 1, 2]), orders).shared == 0
    assert prefix_hits(table, np.array([0, 2, 1]), np.array([0, 1, 2]), orders).shared == 1


@given(tables(), st.randoms(use_true_random=False))
def test_hits_are_those_counted_cell_by_cell(table, random):
    order = random.sample(range(table.rows), table.rows)
    orders = [random.sample(range(table.columns), table.columns) for _ in range(2)]
    which = np.array([random.randrange(2) for _ in range(table.rows)], int)
    hits = prefix_hits(table, np.array(order, int), which, orders)
    assert (hits.hit_count, hits.shared) == shared_by_hand(table, order, which, orders)


# sorting rows


def test_sorting_keeps_the_order_of_first_appearance_within_every_group():
    rows = [("b", "2"), ("a", "1"), ("b", "1"), ("a", "2"), ("b", "2"), ("a", "1")]
    assert sort_rows(table_of(rows)).tolist() == [0, 4, 2, 1, 5, 3]


@given(tables())
def test_sorting_shares_as_much_as_any_sort_by_the_columns(table):
    order = sort_rows(table)
    assert sorted(order.tolist()) == list(range(table.rows))
    by_codes = sorted_by_texts(table, range(table.columns))
    assert prefix_hits(table, order) == prefix_hits(table, by_codes)


# plans


@given(tables(), st.sampled_from([None, 0.0, 1e-7]), st.sampled_from([4096, 3, 1]))
def test_a_plan_is_a_permutation_and_never_worse(table, budget_s, most_orders):
    plan = plan_fields(table, budget_s=budget_s, most_orders=most_orders)
    assert sorted(plan.order.tolist()) == list(range(table.rows))
    assert len(set(plan.field_orders)) == len(plan.field_orders) <= most_orders
    assert all(sorted(order) == list(range(table.columns)) for order in plan.field_orders)
    assert set(plan.field_order.tolist()) == set(range(len(plan.field_orders))) or not table.rows
    assert (plan.order.dtype, plan.field_order.dtype) == (np.int64, np.int32)

    assert plan.hits == prefix_hits(table, plan.order, plan.field_order, plan.field_orders)
    assert plan.file_hits == prefix_hits(table)
    assert plan.hits.shared >= plan.file_hits.shared
    assert plan.hits.shared >= prefix_hits(table, sort_rows(table)).shared
    saved = [(table.counts(column) - 1).clip(0) @ table.of_values(column) for column in range(table.columns)]
    most_first = np.argsort(-np.array(saved), kind="stable")
    order = sorted_by_texts(table, most_first)
    by_saving = prefix_hits(table, order, np.zeros(table.rows, int), [most_first])
    assert plan.hits.shared >= by_saving.shared


@given(tables())
def test_the_same_table_gets_the_same_plan(table):
    one, other = plan_fields(table), plan_fields(table)
    assert (one.order == other.order).all() and (one.field_order == other.field_order).all()
    assert one.field_orders == other.field_orders


@pytest.mark.parametrize(
    "rows",
    [[], [("a", "b")], [("a",), ("b",)], [("a", "b")] * 4, [("a", "b"), ("c", "d"), ("e", "f")]],
    ids=["no rows", "one row", "one column", "all equal", "all distinct"],
)
def test_nothing_is_moved_where_nothing_can_be_gained(rows):
    table = table_of(rows)
    plan = plan_fields(table)
    assert plan.method == "file"
    assert plan.order.tolist() == list(range(len(rows)))
    assert plan.field_orders == (tuple(range(table.columns)),)
    assert plan.hits == plan.file_hits


def test_a_table_without_rows_has_a_rate_of_zero():
    table = Table.of([np.zeros(0, np.int32)] * 2, [np.zeros(0, np.int32)] * 2)
    plan = plan_fields(table)
    assert len(plan.order) == len(plan.field_order) == 0
    assert plan.hits.hit_rate == 0.0


def test_the_papers_first_example_a_unique_field_before_fields_all_alike():
    """n rows, m fields: 0 as it stands, (n - 1)(m - 1) with the first field last."""
    table = table_of([(str(number), "x", "y", "z") for number in range(9)])
    plan = plan_fields(table)
    assert plan.file_hits.hit_count == 0
    assert plan.hits.hit_count == (9 - 1) * (4 - 1)


def test_the_papers_second_example_every_field_has_its_group():
    """Each of 3 fields has one value that x rows share: x - 1 in any one order, 3(x - 1) in three."""
    rows = [[chr(ord("a") + 3 * row + column) for column in range(3)] for row in range(12)]
    for row in range(12):
        rows[row][row // 4] = "XYZ"[row // 4]
    table = table_of(rows)
    plan = plan_fields(table)
    assert prefix_hits(table, sort_rows(table)).hit_count == 4 - 1
    assert plan.hits.hit_count == 3 * (4 - 1)
    assert {plan.field_orders[index][0] for index in plan.field_order} == {0, 1, 2}


def test_many_questions_on_few_documents_are_grouped_by_document():
    documents = ["d" * 50 + name for name in "pqr"]
    rows = [(f"question {number}", documents[number % 3], "t" + "pqr"[number % 3]) for number in range(12)]
    plan = plan_fields(table_of(rows))
    assert plan.field_orders == ((1, 2, 0),)
    assert plan.order.tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]


def test_lengths_that_are_all_zero_are_no_error():
    table = Table.of([np.array([0, 1, 0, 1])] * 2, [np.zeros(2, int)] * 2)
    assert plan_fields(table).hits.hit_rate == 0.0


# dependencies


def test_dependencies_are_exact():
    city = np.array([0, 1, 2, 0, 1, 3])
    country = np.array([0, 0, 1, 0, 0, 1])  # of the city
    code = np.array([1, 1, 0, 1, 1, 0])  # another name of the country
    number = np.arange(6)
    nearly = np.array([0, 0, 1, 0, 0, 0])
    lengths = [np.ones(6)] * 5
    assert dependencies(Table.of([city, country, code, number, nearly], lengths)) == (
        (1, 2, 4),
        (2,),
        (1,),
        (),
        (),
    )


def test_a_dependency_that_fails_in_one_late_row_is_none():
    rows = 10_000
    one = np.arange(rows) % 10
    other = one.copy()
    other[rows - 2] = (other[rows - 2] + 1) % 10
    assert dependencies(Table.of([one, other], [np.ones(10)] * 2)) == ((), ())


def test_determined_fields_stand_right_behind_the_one_that_determines_them():
    """Seen as a whole the film is longer than any review, though each of its fields is shorter."""
    films = [(f"film {index:02}", f"{1900 + index}", "genre" + "ab"[index % 2]) for index in range(20)]
    rows = []
    for number in range(200):
        title, year, genre = films[number * 7 % 20]
        rows.append((title, "phrase" + str(number % 11), year, genre))
    determined = (2, 3)
    plan = plan_fields(table_of(rows))
    for order in plan.field_orders:
        place = order.index(0)
        assert set(order[place + 1 : place + 3]) == set(determined) or set(order[:place]) >= {3}
    best = (200 - 20) * (len("film 00") + len("1900") + len("genrea"))
    assert plan.hits.shared >= best


# the tree


def ggr_one_by_one(table, base, rows, free):
    """(hit count, shared) of GGR as the paper has it: one value splits off, then both parts go on."""
    best = (0, None, None)
    for column in base:
        for value in sorted(set(table.codes[column, rows])) if column in free else ():
            group = [row for row in rows if table.codes[column, row] == value]
            score = int(table.lengths(column, group[0])) ** 2 * (len(group) - 1)
            if score > best[0]:
                best = (score, column, group)
    score, column, group = best
    if not score:
        return np.zeros(2, int)
    hits = np.array([score, int(table.lengths(column, group[0])) * (len(group) - 1)])
    hits += ggr_one_by_one(table, base, group, free - {column})
    return hits + ggr_one_by_one(table, base, [row for row in rows if row not in set(group)], free)


class PlainTree(Tree):
    """Without the rule that is not the paper's: fields that are the same in a whole group come first."""

    def _put_same(self, groups):
        return groups


@settings(deadline=None)
@given(tables(most_rows=25, most_columns=4, shortest=1))
def test_all_groups_at_once_end_where_ggr_ends_one_by_one(table):
    base = tuple(range(table.columns))
    paths = Paths(base, 4096)
    tree = PlainTree(table, paths, ((),) * table.columns)
    tree.grow(GGR, Work(math.inf))
    hits = prefix_hits(table, tree.order, tree.path, [path + paths.behind(path) for path in paths.known])
    one_by_one = ggr_one_by_one(table, base, list(range(table.rows)), frozenset(base))
    assert (hits.hit_count, hits.shared) == tuple(one_by_one)


def best_possible(table):
    """The most that rows can share, by trying every value as the next to split off (OPHR)."""

    @functools.cache
    def most(rows, free):
        if len(rows) < 2:
            return 0
        found = 0
        for column in free:
            for value in {table.codes[column, row] for row in rows}:
                group = frozenset(row for row in rows if table.codes[column, row] == value)
                if len(group) > 1:
                    saved = int(table.lengths(column, min(group))) * (len(group) - 1)
                    found = max(found, saved + most(group, free - {column}) + most(rows - group, free))
        return found

    return most(frozenset(range(table.rows)), frozenset(range(table.columns)))


def test_small_tables_come_near_the_best_possible_and_never_above():
    random = np.random.default_rng(3)
    shares = []
    for _ in range(60):
        codes = [random.integers(0, values, 9) for values in random.integers(2, 6, 3)]
        table = Table.of(codes, [random.integers(1, 20, 6) for _ in codes])
        found, best = plan_fields(table).hits.shared, best_possible(table)
        assert found <= best
        shares.append(found / best)
    assert np.mean(shares) > 0.98


def test_a_field_that_is_the_same_in_all_rows_comes_before_longer_ones_that_are_not():
    pairs = ["long" * 10 + end for end in "aabbcdef"]
    plan = plan_fields(table_of([(text, "same") for text in pairs]))
    assert plan.hits.shared == 7 * len("same") + 2 * len(pairs[0])
    # else the rows with a long text of their own would begin with it
    assert plan.field_orders == ((1, 0),)


def test_late_in_its_time_the_tree_is_less_exact_but_still_better_than_sorting():
    random = np.random.default_rng(5)
    codes = [random.integers(0, values, 3000) for values in (3, 10, 50, 200, 700, 1500)]
    table = Table.of(codes, [random.integers(3, 100, 1500) for _ in codes])
    budgets = (0.0, 0.015, 10.0)
    none, some, all_of_it = (plan_fields(table, budget_s=budget_s) for budget_s in budgets)
    assert len(none.field_orders) == 1
    assert none.hits.shared < some.hits.shared < all_of_it.hits.shared


def test_more_columns_than_bits_in_a_number():
    """Which fields are alike is packed into numbers, a part of the columns at a time."""
    random = np.random.default_rng(7)
    kind = np.arange(12) % 3
    columns = [kind if column % 2 else random.permutation(12) for column in range(80)]
    plan = plan_fields(Table.of(columns, [np.ones(12)] * 80))
    assert plan.hits.shared >= 9 * 40


def test_codes_too_large_to_pack_are_sorted_all_the_same():
    random = np.random.default_rng(11)
    one, other = random.integers(0, 4, 200), random.integers(0, 5, 200)
    by, heads = planner_table.runs((one, 4), (other, 5))
    far_by, far_heads = planner_table.runs((one, 2**31), (other, 2**31))
    assert by.tolist() == far_by.tolist() and heads.tolist() == far_heads.tolist()


@pytest.mark.parametrize(
    ("codes", "lengths", "message"),
    [
        ([[0, 2]], [[1, 1]], "codes outside"),
        ([[0, -1]], [[1, 1]], "codes outside"),
        ([[0, 0], [0]], [[1], [1]], "same number of rows"),
        ([[0]], [], "lengths"),
    ],
)
def test_parts_that_do_not_fit_are_refused(codes, lengths, message):
    with pytest.raises(ValueError, match=message):
        Table.of([np.array(column) for column in codes], [np.array(of) for of in lengths])
