"""Grow the tree of shared prefixes: all groups of rows at once, a level at a time.

A group is a stretch of `order` whose rows agree in the fields of its path. At each level
a group puts one more field behind its path, and falls into the groups of that field's values.
What to put next is the policy:

    by column   the field whose repeats save most in the group, for all its rows but those
                in which its value is the only one; they choose anew
    by value    GGR's choice (Liu et al., MLSys 2025): the single value whose repeats score most,
                for the rows that have it; the other rows choose anew

Taken one after the other, GGR's choices are too slow for Python. But a value that scores best in
each of its rows is chosen by GGR whatever comes before, since the scores of the others only fall:
all such values of all groups split off in the same step, and the outcome is the same. The last
rows take many steps; late in its time a tree lets every value split off, with the rows in which it
is the best (measured: a quarter of the time for at most 0.012 of the hit rate, often for nothing).

Beyond the paper, fields that are the same in the whole group come first, all at once: no choice could
be better. So the fields that a chosen one determines, whose lengths count for it, come right behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from core.planning.planner_table import Table, run_sizes, runs

_CELLS_PER_S = 150e6
"""Cells sorted in a second, times the logarithm of how many there are, on a slow core."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How a group chooses. A value's score: (its rows - 1) x its length^power / its rows^share.

    GGR as in the paper: by value, power 2, share 0.
    """

    by: Literal["column", "value"]
    power: float
    share: float

    @property
    def name(self) -> str:
        return f"by {self.by}, power {self.power:g}, share {self.share:g}"


@dataclass(slots=True)
class Work:
    """What a tree may do, in seconds of a slow core: counted, not timed, so that plans repeat."""

    seconds: float
    spent: float = 0.0

    def spend(self, cells: int) -> None:
        self.spent += cells * math.log2(cells + 2) / _CELLS_PER_S

    @property
    def late(self) -> bool:
        """More than half of it is spent: time to be less exact."""
        return self.spent > self.seconds / 2

    @property
    def done(self) -> bool:
        return self.spent >= self.seconds


@dataclass(slots=True)
class Paths:
    """The field prefixes in use, by number. A path's full order: the path, then the rest of `base`.

    free: bool (paths or more, columns), the fields that are not on the path yet.
    """

    base: tuple[int, ...]
    most_orders: int
    known: list[tuple[int, ...]] = field(default_factory=list)
    free: np.ndarray = field(init=False)
    _numbers: dict[tuple[int, ...], int] = field(default_factory=dict)
    _orders: set[tuple[int, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.free = np.empty((0, len(self.base)), bool)
        self.number(())

    def number(self, path: tuple[int, ...]) -> int:
        """The path's number, -1 when it would make one field order too many."""
        if path in self._numbers:
            return self._numbers[path]
        full = path + self.behind(path)
        if full not in self._orders and len(self._orders) >= self.most_orders:
            return -1
        self._orders.add(full)
        number = self._numbers[path] = len(self.known)
        self.known.append(path)
        if number == len(self.free):
            more = np.ones((number + 64, len(self.base)), bool)
            self.free = np.concatenate([self.free, more])
        self.free[number, list(path)] = False
        return number

    def behind(self, path: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(column for column in self.base if column not in path)


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups still at work, numbered from 0.

    places: int64, where their rows are in `order`, ascending and group by group; inside a group
        the rows are in the file's order.
    group: int64, the group of each place, ascending; path: int64 (groups,).
    """

    places: np.ndarray
    group: np.ndarray
    path: np.ndarray

    @classmethod
    def whole(cls, rows: int) -> Groups:
        return cls(np.arange(rows), np.zeros(rows, np.int64), np.zeros(min(rows, 1), np.int64))

    @property
    def sizes(self) -> np.ndarray:
        return np.bincount(self.group, minlength=len(self.path))

    @property
    def firsts(self) -> np.ndarray:
        """The item (index into `places`) with which each group begins."""
        return np.searchsorted(self.group, np.arange(len(self.path)))

    def keep(self, groups: np.ndarray) -> Groups:
        """Those of bool `groups`, numbered anew."""
        if groups.all():
            return self
        kept = groups[self.group]
        number = np.cumsum(groups) - 1
        return Groups(self.places[kept], number[self.group[kept]], self.path[groups])


@dataclass(frozen=True, slots=True)
class Choice:
    """The field that each place's row puts next, -1 for a row that has none worth it.

    repeats: how many rows of its group must put that value for it to split off; None: two.
    """

    column: np.ndarray
    repeats: np.ndarray | None = None

    def keep(self, items: np.ndarray) -> Choice:
        return Choice(self.column[items], None if self.repeats is None else self.repeats[items])


class Tree:
    """One growing tree over `table`, from all rows in the file's order as one group.

    order: int64 (rows,), the rows as they are to be sent; path: int32 (rows,), by row, into `paths`.
    """

    def __init__(self, table: Table, paths: Paths, determined: tuple[tuple[int, ...], ...]) -> None:
        self.table = table
        self.paths = paths
        self.determined = determined
        self.order = np.arange(table.rows)
        self.path = np.zeros(table.rows, np.int32)

    def grow(self, policy: Policy, work: Work) -> None:
        """Grow to the end, or until the work or the field orders are used up; the rest is sorted."""
        groups = Groups.whole(self.table.rows)
        while len(groups.places) and not work.done:
            groups = self._level(groups, policy, work)
        self.sort(groups)

    def sort(self, groups: Groups) -> None:
        """Sort each group by the fields behind its path, in the order of `paths.base`."""
        paths, of_group = np.unique(groups.path, return_inverse=True)
        behind = [self.paths.behind(self.paths.known[path]) for path in paths.tolist()]
        nth = np.full((max(map(len, behind), default=0), len(paths)), -1)
        for index, columns in enumerate(behind):
            nth[: len(columns), index] = columns
        groups = replace(groups, path=of_group)
        for columns in nth:
            groups = groups.keep((columns[groups.path] >= 0) & (groups.sizes > 1))
            if not len(groups.places):
                return
            label, _settled = self._labels(groups, Choice(columns[groups.path][groups.group]))
            groups, _leaders = self._split(groups, label)

    def _level(self, groups: Groups, policy: Policy, work: Work) -> Groups:
        """Put one more field behind each group's path; returns the groups that may go on."""
        groups = self._put_same(groups.keep(groups.sizes > 1))
        choose = self._choose_column if policy.by == "column" else self._choose_value
        choice = choose(groups, policy, work)
        groups, choice = _only(groups, choice, choice.column >= 0)
        if work.late:
            choice = Choice(choice.column)
        label, settled = self._labels(groups, choice)
        path = self._branch(groups, choice, settled)
        if (capped := _having(groups, path < 0)).any():
            self.sort(groups.keep(capped))
            kept = ~capped[groups.group]
            groups, label, path = groups.keep(~capped), label[kept], path[kept]
        groups, leaders = self._split(groups, label)
        groups = replace(groups, path=path[leaders])
        self._note(groups)
        return groups

    def _note(self, groups: Groups) -> None:
        self.path[self.order[groups.places]] = groups.path[groups.group]

    def _put_same(self, groups: Groups) -> Groups:
        """Put the fields that are the same in a whole group behind its path, in the order of the base."""
        if not len(groups.path):
            return groups
        rows = self.order[groups.places]
        firsts = groups.firsts
        free = self.paths.free[groups.path]
        same = np.zeros_like(free)
        for column in np.flatnonzero(free.any(axis=0)):
            codes = self.table.codes[column, rows]
            equal = codes == codes[firsts][groups.group]
            same[:, column] = np.logical_and.reduceat(equal, firsts) & free[:, column]
        changed = np.flatnonzero(same.any(axis=1))
        if not len(changed):
            return groups
        leaders, kind = _unique_rows(groups.path[changed], same[changed])
        numbers = np.array(
            [self._path_with(groups.path[group], same[group]) for group in changed[leaders].tolist()]
        )
        path = groups.path.copy()
        path[changed] = np.where(numbers < 0, path[changed[leaders]], numbers)[kind]
        groups = replace(groups, path=path)
        self._note(groups)
        return groups

    def _path_with(self, path: int, columns: np.ndarray) -> int:
        behind = tuple(column for column in self.paths.base if columns[column])
        return self.paths.number(self.paths.known[path] + behind)

    def _repeats(
        self, groups: Groups, column: int, policy: Policy, work: Work
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The column's values that repeat within a group: score, number of rows and group of each value,
        and the items that have them, value by value.
        """
        rows = self.order[groups.places]
        free = self.paths.free[groups.path, column]
        items = np.arange(len(rows)) if free.all() else np.flatnonzero(free[groups.group])
        work.spend(len(items))
        codes = self.table.codes[column, rows[items]]
        by, heads = runs((groups.group[items], len(groups.path)), (codes, self.table.values(column)))
        sizes = run_sizes(heads, len(by))
        many = sizes > 1
        leaders = items[by[heads[many]]]
        group = groups.group[leaders]
        score = self.table.lengths(column, rows[leaders]).astype(float) ** policy.power
        for other in self.determined[column]:
            saved = self.table.lengths(other, rows[leaders]).astype(float) ** policy.power
            score += saved * self.paths.free[groups.path[group], other]
        score *= (sizes[many] - 1) / sizes[many] ** policy.share
        return score, sizes[many], group, items[by[np.repeat(many, sizes)]]

    def _choose_column(self, groups: Groups, policy: Policy, work: Work) -> Choice:
        best = np.zeros(len(groups.path))
        chosen = np.full(len(groups.path), -1)
        for column in self.paths.base:
            if not self.paths.free[groups.path, column].any():
                continue
            score, _sizes, group, _items = self._repeats(groups, column, policy, work)
            saved = np.bincount(group, score, minlength=len(best))
            better = saved > best
            best[better] = saved[better]
            chosen[better] = column
        return Choice(chosen[groups.group])

    def _choose_value(self, groups: Groups, policy: Policy, work: Work) -> Choice:
        best = np.zeros(len(groups.places))
        chosen = np.full(len(best), -1)
        repeats = np.zeros(len(best), np.int64)
        for column in self.paths.base:
            if not self.paths.free[groups.path, column].any():
                continue
            score, sizes, _group, items = self._repeats(groups, column, policy, work)
            score, sizes = np.repeat(score, sizes), np.repeat(sizes, sizes)
            better = score > best[items]
            items = items[better]
            best[items] = score[better]
            repeats[items] = sizes[better]
            chosen[items] = column
        return Choice(chosen, repeats)

    def _labels(self, groups: Groups, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        """For each place the first row of its new group, and whether a value split that off."""
        rows = self.order[groups.places]
        items = np.flatnonzero(choice.column >= 0)
        column = choice.column[items]
        codes = self.table.codes[column, rows[items]]
        values = int(np.diff(self.table.starts).max())
        by, heads = runs(
            (groups.group[items], len(groups.path)), (column, self.table.columns), (codes, values)
        )
        by = items[by]
        sizes = run_sizes(heads, len(by))
        splits = sizes > 1 if choice.repeats is None else sizes == choice.repeats[by[heads]]
        label = np.empty(len(rows), np.int64)
        settled = np.zeros(len(rows), bool)
        label[by] = np.repeat(rows[by[heads]], sizes)
        settled[by] = np.repeat(splits, sizes)
        rest = np.flatnonzero(~settled)
        _groups, firsts, of_rest = np.unique(groups.group[rest], return_index=True, return_inverse=True)
        label[rest] = rows[rest[firsts]][of_rest]
        return label, settled

    def _branch(self, groups: Groups, choice: Choice, settled: np.ndarray) -> np.ndarray:
        """The new path of each place: with its choice behind it where that splits off; -1: one too many."""
        path = groups.path[groups.group]
        wanted = path[settled] * self.table.columns + choice.column[settled]
        branches, of_item, rows = np.unique(wanted, return_inverse=True, return_counts=True)
        numbers = np.empty(len(branches), np.int64)
        for branch in np.argsort(-rows, kind="stable"):
            old, column = divmod(int(branches[branch]), self.table.columns)
            numbers[branch] = self.paths.number((*self.paths.known[old], column))
        path[settled] = numbers[of_item]
        return path

    def _split(self, groups: Groups, label: np.ndarray) -> tuple[Groups, np.ndarray]:
        """Part each group by label, the groups that come first in the file before the others.

        Returns the new groups, with the old ones' paths, and the old item that leads each of them.
        """
        by, heads = runs((groups.group, len(groups.path)), (label, len(self.order)))
        self.order[groups.places] = self.order[groups.places[by]]
        leaders = by[heads]
        number = np.repeat(np.arange(len(heads)), run_sizes(heads, len(by)))
        return Groups(groups.places, number, groups.path[groups.group[leaders]]), leaders


def _having(groups: Groups, items: np.ndarray) -> np.ndarray:
    """Which groups have one of the items (bool)."""
    having = np.zeros(len(groups.path), bool)
    having[groups.group[items]] = True
    return having


def _only(groups: Groups, choice: Choice, items: np.ndarray) -> tuple[Groups, Choice]:
    kept = _having(groups, items)
    return groups.keep(kept), choice.keep(kept[groups.group])


def _unique_rows(path: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the different (path, flags) pairs: the index of one of each, and each one's number."""
    kind = path
    for start in range(0, flags.shape[1], 32):
        part = flags[:, start : start + 32]
        bits = part @ (1 << np.arange(part.shape[1]))
        _kinds, leaders, kind = np.unique(kind << 32 | bits, return_index=True, return_inverse=True)
    return leaders, kind
