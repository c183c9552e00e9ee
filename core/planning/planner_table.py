"""A table as the planner sees it: codes for values, a length for each, and sorting in whole arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SAMPLE_ROWS = 2048
"""Rows on which a dependency is tried first: most pairs of columns fail there."""


@dataclass(frozen=True, slots=True)
class Table:
    """Values as codes. Make it with `of`.

    codes: int32 (columns, rows), equal code = equal value within a column.
    sizes: what a cell adds to the prompt, in characters or tokens: int32, all columns' values
        behind each other; the value `code` of `column` is at `starts[column] + code`.
    """

    codes: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(
        cls,
        codes: Sequence[np.ndarray] | np.ndarray,
        lengths: Sequence[np.ndarray],
        overheads: Sequence[int] | None = None,
    ) -> Table:
        """`codes[column][row]` from 0 up, `lengths[column][code]` the value's length.

        `overheads[column]`: length of what stands around each of the column's values, such as
        `"name": ` and the comma; 0 gives the paper's own measures. An int32 array
        (columns, rows) is used as it is, not copied. Raises ValueError when the parts don't fit.
        """
        try:
            grid = np.asarray(codes if len(codes) else np.empty((0, 0)), dtype=np.int32)
        except ValueError as error:
            raise ValueError("the planner needs columns of the same number of rows") from error
        if grid.ndim != 2 or len(lengths) != len(grid):
            raise ValueError(f"the planner needs one array of lengths a column, not {len(lengths)}")
        overheads = [0] * len(grid) if overheads is None else overheads
        for column, (of_column, of_values) in enumerate(zip(grid, lengths, strict=True)):
            if len(of_column) and not 0 <= of_column.min() <= of_column.max() < len(of_values):
                raise ValueError(f"column {column} has codes outside its {len(of_values)} lengths")
        sized = [
            np.asarray(of_values, np.int32) + np.int32(more)
            for of_values, more in zip(lengths, overheads, strict=True)
        ]
        starts = np.cumsum([0, *map(len, sized)])
        return cls(grid, np.concatenate([np.zeros(0, np.int32), *sized]), starts)

    @property
    def rows(self) -> int:
        return self.codes.shape[1]

    @property
    def columns(self) -> int:
        return self.codes.shape[0]

    def values(self, column: int) -> int:
        """How many codes the column may have."""
        return int(self.starts[column + 1] - self.starts[column])

    def lengths(self, columns: np.ndarray | int, rows: np.ndarray) -> np.ndarray:
        """What the cells (columns, rows), taken in pairs, add to the prompt: int32."""
        return self.sizes[self.starts[columns] + self.codes[columns, rows]]

    def counts(self, column: int) -> np.ndarray:
        """How many rows have each of the column's codes."""
        return np.bincount(self.codes[column], minlength=self.values(column))

    def of_values(self, column: int) -> np.ndarray:
        """What each of the column's values adds to a prompt: int64, by code."""
        return self.sizes[self.starts[column] : self.starts[column + 1]].astype(np.int64)

    def total(self) -> int:
        """What all cells together add to the prompts."""
        return sum(int(self.counts(column).dot(self.of_values(column))) for column in range(self.columns))


def runs(*keys: tuple[np.ndarray, int]) -> tuple[np.ndarray, np.ndarray]:
    """Group n items by several keys, each (int array of n from 0 up, a number above them all).

    Returns (by, heads): `by` int64[n] are the items sorted by the keys, ties in their own
    order; `heads` are the positions in `by` at which a new combination of keys begins.
    """
    count = len(keys[0][0])
    bits = max(count - 1, 1).bit_length()
    space = 1
    for _key, above in keys:
        space *= max(above, 1)
    if space.bit_length() + bits > 63:
        return _runs_of_many([key for key, _above in keys])
    # keys and position in one number: sorting numbers is several times faster than sorting indexes
    packed = keys[0][0].astype(np.int64)
    for key, above in keys[1:]:
        packed *= above
        packed += key
    packed <<= bits
    packed |= np.arange(count)
    packed.sort()
    by = packed & ((1 << bits) - 1)
    packed >>= bits
    return by, _heads(packed[1:] != packed[:-1], count)


def _runs_of_many(keys: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    by = np.lexsort(keys[::-1])
    differs = np.zeros(max(len(by) - 1, 0), bool)
    for key in keys:
        differs |= key[by[1:]] != key[by[:-1]]
    return by, _heads(differs, len(by))


def _heads(differs: np.ndarray, count: int) -> np.ndarray:
    """Where runs begin: `differs[i]`: item i + 1 differs from item i."""
    return np.concatenate([np.zeros(min(count, 1), np.int64), np.flatnonzero(differs) + 1])


def run_sizes(heads: np.ndarray, count: int) -> np.ndarray:
    """How many items each run has."""
    return np.diff(heads, append=count)


def dependencies(table: Table) -> tuple[tuple[int, ...], ...]:
    """For each column the others that it determines: each of its values comes with one of theirs.

    Exact. A column whose values are all distinct, and so determines everything, has none here:
    nothing repeats in it.
    """
    sample = table.codes[:, :: max(table.rows // _SAMPLE_ROWS, 1)]
    return tuple(
        tuple(
            other
            for other in range(table.columns)
            if other != column
            and repeats
            and _determines(sample[column], sample[other], table.values(column))
            and _determines(table.codes[column], table.codes[other], table.values(column))
        )
        for column in range(table.columns)
        for repeats in [table.counts(column).max(initial=0) > 1]
    )


def _determines(codes: np.ndarray, others: np.ndarray, values: int) -> bool:
    one_of_theirs = np.zeros(values, np.int32)
    one_of_theirs[codes] = others
    return bool((one_of_theirs[codes] == others).all())
