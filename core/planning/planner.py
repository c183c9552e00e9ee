"""Order rows, and fields within each row, so that a prompt begins as the one before it does.

An engine that keeps the KV cache of a prefix computes only what follows it. `plan_fields` is for
prompts that give a row's fields in any order: Greedy Group Recursion with functional dependencies
(Liu et al., 'Optimizing LLM Queries in Relational Data Analytics Workloads', MLSys 2025, arXiv
2403.05821), with scores that do better than the paper's, and the best of several plans taken.
`sort_rows` is for prompts whose fields have their places. `prefix_hits` says what an order is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.planning.planner_table import Table, dependencies, run_sizes, runs
from core.planning.planner_tree import Groups, Paths, Policy, Tree, Work

__all__ = ["FieldPlan", "PrefixHits", "Table", "plan_fields", "prefix_hits", "sort_rows"]

# GGR's score, length squared times repeats, puts a short value of many rows before the long ones that
# it then cuts up: with 30 columns in families that depend on each other it ended below plain sorting
# (hit rate 0.27 against 0.41; these three 0.454, 0.453, 0.454). Dividing by a power of the value's rows
# mends that. Whole columns are the safe choice when a group's columns are alike in all of its rows.
POLICIES = (Policy("value", 1, 0.75), Policy("column", 1, 0), Policy("value", 2, 0.5))


@dataclass(frozen=True, slots=True)
class PrefixHits:
    """What rows have in common with the row before, counted in whole leading (field, value) cells.

    hit_count: the paper's prefix hit count (PHC), the sum of the squared lengths of shared cells.
    shared: the sum of their lengths; total: that of all cells of all rows.
    """

    hit_count: int
    shared: int
    total: int

    @property
    def hit_rate(self) -> float:
        """Share of the cells' lengths that a prefix cache saves; 0 when there are none."""
        return self.shared / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class FieldPlan:
    """In which order to send the rows, and each row's fields.

    order: int64 (rows,), rows as numbered in the table. field_order: int32 (rows,), by row (not by
    position), an index into `field_orders`; each of those is a permutation of the columns.
    hits: of this plan; file_hits: of the table as it stands.
    method: "file", "sort", "columns" (one field order for all rows) or the policy of the best tree.
    """

    order: np.ndarray
    field_order: np.ndarray
    field_orders: tuple[tuple[int, ...], ...]
    hits: PrefixHits
    file_hits: PrefixHits
    method: str


def plan_fields(table: Table, *, budget_s: float | None = None, most_orders: int = 4096) -> FieldPlan:
    """The plan with the highest hit rate found; of equal ones the one that changes the least.

    Never below the file's order, plain sorting, or sorting with the columns that save most first.
    `budget_s`: work on better plans than those, in seconds of a slow core; None: 2 s for each
    million cells, at least 1. It is counted, not timed: the same table always gets the same plan.
    `most_orders`: how many different field orders the plan may use.
    """
    in_file = tuple(range(table.columns))
    hits = file_hits = prefix_hits(table)
    order, field_order, field_orders = np.arange(table.rows), np.zeros(table.rows, np.int32), (in_file,)
    method = "file"
    savings = _savings(table)
    by_saving = tuple(np.argsort(-savings, kind="stable").tolist())
    best_fixed = None
    for name, columns in (("sort", in_file), ("columns", by_saving)):
        if (found := _sorted_hits(table, columns)).shared > hits.shared:
            hits, method, best_fixed = found, name, columns
    left_s = max(1.0, 2e-6 * table.codes.size) if budget_s is None else budget_s
    determined: tuple[tuple[int, ...], ...] | None = None
    for number, policy in enumerate(POLICIES):
        # nothing can save more than every repeat of every value
        if left_s <= 0 or hits.shared == savings.sum():
            break
        determined = dependencies(table) if determined is None else determined
        work = Work(left_s / (len(POLICIES) - number))
        tree = Tree(table, Paths(by_saving, most_orders), determined)
        tree.grow(policy, work)
        left_s -= work.spent
        orders = tuple(path + tree.paths.behind(path) for path in tree.paths.known)
        found = prefix_hits(table, tree.order, tree.path, orders)
        if found.shared > hits.shared:
            hits, method, best_fixed = found, policy.name, None
            order, field_order, field_orders = tree.order, tree.path, orders
    if best_fixed is not None:
        order, field_orders = _sorted(table, best_fixed), (best_fixed,)
    return FieldPlan(order, *_used(field_order, field_orders), hits, file_hits, method)


def sort_rows(table: Table) -> np.ndarray:
    """Row order (int64) for fields in the table's own order: equal prefixes become neighbours.

    Groups come in the order in which they first appear in the file, and so do the rows in each.
    """
    return _sorted(table, tuple(range(table.columns)))


def prefix_hits(
    table: Table,
    order: np.ndarray | None = None,
    field_order: np.ndarray | None = None,
    field_orders: Sequence[Sequence[int]] | None = None,
) -> PrefixHits:
    """What each row has in common with the one before when sent in this order, as a FieldPlan has it.

    None: the file's order; the columns' own order.
    """
    orders = np.array(field_orders or [range(table.columns)], dtype=np.int64)
    order = np.arange(table.rows) if order is None else order
    which = np.zeros(table.rows, np.int32) if field_order is None else field_order
    before, row = order[:-1], order[1:]
    hit_count = shared = 0
    for step in range(table.columns):
        column = orders[which[row], step]
        same = column == orders[which[before], step]
        same &= table.codes[column, row] == table.codes[column, before]
        before, row = before[same], row[same]
        lengths = table.lengths(column[same], row).astype(np.int64)
        shared += int(lengths.sum())
        hit_count += int(lengths.dot(lengths))
    return PrefixHits(hit_count, shared, table.total())


def _savings(table: Table) -> np.ndarray:
    """int64 (columns,): what each column saves at most, all repeats of its values."""
    used = (table.counts(column) for column in range(table.columns))
    saved = [np.maximum(rows - 1, 0).dot(table.of_values(column)) for column, rows in enumerate(used)]
    return np.array(saved, np.int64)


def _sorted(table: Table, columns: tuple[int, ...]) -> np.ndarray:
    tree = Tree(table, Paths(columns, 1), ())
    tree.sort(Groups.whole(table.rows))
    return tree.order


def _sorted_hits(table: Table, columns: tuple[int, ...]) -> PrefixHits:
    """prefix_hits of the rows sorted by `columns`, without sorting them: half the work."""
    rows = np.arange(table.rows)
    group, groups = np.zeros(table.rows, np.int64), 1
    hit_count = shared = 0
    for column in columns:
        by, heads = runs((group, groups), (table.codes[column, rows], table.values(column)))
        sizes = run_sizes(heads, len(by))
        many = sizes > 1
        lengths = table.lengths(column, rows[by[heads[many]]]).astype(np.int64)
        shared += int(lengths.dot(sizes[many] - 1))
        hit_count += int((lengths * lengths).dot(sizes[many] - 1))
        rows = rows[by[np.repeat(many, sizes)]]
        groups = int(many.sum())
        group = np.repeat(np.arange(groups), sizes[many])
    return PrefixHits(hit_count, shared, table.total())


def _used(
    field_order: np.ndarray, field_orders: tuple[tuple[int, ...], ...]
) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
    """The field orders that rows have, each once, numbered anew."""
    number: dict[tuple[int, ...], int] = {}
    indexes, of_row = np.unique(field_order, return_inverse=True)
    renumbered = [number.setdefault(field_orders[index], len(number)) for index in indexes.tolist()]
    return np.array(renumbered, np.int32)[of_row], tuple(number) or field_orders
