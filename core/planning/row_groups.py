"""Rows that begin alike, made neighbours: what is known of a table's texts as numbers.

A prompt is a row of texts. Rows are grouped by the first text's first 64 characters, then
by more of it, then by the second text, and so on until hardly two rows are left together.
Each group keeps the place of its first row, so that a table whose rows have nothing in
common stays as it is. Pure: numpy and pandas on arrays of one entry a row.
"""

from __future__ import annotations

import numpy as np

PREFIX_CHARS = (64, 256, 1024, 4096)
"""How much of a text is compared before the whole of it. 64 characters are about one KV-cache block."""

_ALONE = 0.99
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


def numbered(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes, firsts), int64: values numbered in the order they first appear, and where each does."""
    import pandas as pd  # takes as long as the start of a command that needs none

    codes, _values = pd.factorize(hashes)
    return codes, np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))


class RowGroups:
    """Groups of `rows` rows, refined text by text; all rows are one group at first.

    `codes`: each row's group, int64. `file_chars`, `ordered_chars`: characters that rows share
    with the row before them at the start of their prompts, in the file's order and in
    `order()`. A text that differs within what was compared counts up to the step before:
    these are lower bounds.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.codes = np.zeros(rows, np.int64)
        self.file_chars = self.ordered_chars = 0.0
        self._groups = min(rows, 1)
        self._keys: list[np.ndarray] = []

    @property
    def apart(self) -> bool:
        """Whether so few rows are still together that going on is of no use."""
        return self._groups > _ALONE * self.rows

    def refine(self, hashes: np.ndarray, chars: np.ndarray | int) -> None:
        """Split the groups by `hashes` (uint64); rows that stay together share `chars` more characters."""
        codes, firsts = numbered(hashes ^ (self.codes.astype(np.uint64) * _SPREAD))
        chars = np.broadcast_to(chars, self.rows)
        self.file_chars += float(chars[1:][codes[1:] == codes[:-1]].sum())
        self.ordered_chars += float(chars.sum() - chars[firsts].sum())
        if len(firsts) > self._groups:
            self._keys.append(codes.astype(np.int32))
        self.codes, self._groups = codes, len(firsts)

    def order(self) -> np.ndarray:
        """Indexes of the rows (int64): groups by first appearance, rows of a group as in the file."""
        if not self._keys:
            return np.arange(self.rows)
        return np.lexsort(self._keys[::-1])
