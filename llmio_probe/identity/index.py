"""The row of each key in a table, for whole arrays of keys: a few NumPy operations, whatever the number of rows.

Only this search may go in here; what a row holds is for others (files.py, roles.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Word = NDArray[np.uint64]

_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
"""Odd numbers without a pattern that keys might share."""


class Index:
    """Found by hashing: open addressing, at most half full. Row 0 is nobody's, and what has no row has that.

    A key is one or two 64-bit words, given as an array each.
    """

    def __init__(self, words: int) -> None:
        self._words = [np.zeros(1, np.uint64) for _ in range(words)]
        self._rows = 1
        self._build()

    def __len__(self) -> int:
        """How many rows there are, with row 0."""
        return self._rows

    def find(self, *key: Word) -> NDArray[np.int32]:
        """The row of each, shape (n,)."""
        slots = self._home(key)
        rows = self._slots.take(slots)
        wrong = np.flatnonzero(self._differs(rows, key))
        while len(wrong := wrong[rows[wrong] != 0]):  # an empty slot ends the search
            slots[wrong] = (slots[wrong] + 1) & (len(self._slots) - 1)
            rows[wrong] = found = self._slots[slots[wrong]]
            wrong = wrong[self._differs(found, [word[wrong] for word in key])]
        return rows

    def add(self, *key: Word) -> None:
        """They are new and different, and get the next rows."""
        first, self._rows = self._rows, self._rows + len(key[0])
        self._words = [grown(word, self._rows) for word in self._words]
        for word, values in zip(self._words, key, strict=True):
            word[first : self._rows] = values
        if 2 * self._rows > len(self._slots):
            self._build()
        else:
            self._fill(first)

    def keep(self, stays: NDArray[np.bool_]) -> None:
        """stays: of each row. The others go, and those behind them move up."""
        self._words = [word[: self._rows][stays] for word in self._words]
        self._rows = len(self._words[0])
        self._build()

    def _differs(self, rows: NDArray[np.int32], key: Sequence[Word]) -> NDArray[np.bool_]:
        differs: NDArray[np.bool_] = self._words[0].take(rows) != key[0]
        for word, values in zip(self._words[1:], key[1:], strict=True):
            differs |= word.take(rows) != values
        return differs

    def _home(self, key: Sequence[Word]) -> NDArray[np.int64]:
        """The slot to look at first: the top bits of a multiplicative hash, as neighbours must not crowd together."""
        mixed = key[0] * _MIX[0]
        for values, mix in zip(key[1:], _MIX[1:], strict=False):
            mixed += values * mix
        slots: NDArray[np.int64] = (mixed >> np.uint64(65 - len(self._slots).bit_length())).astype(np.int64)
        return slots

    def _build(self) -> None:
        self._slots = np.zeros(max(1024, 1 << (4 * self._rows - 1).bit_length()), np.int32)
        self._fill(1)

    def _fill(self, first: int) -> None:
        rows = np.arange(first, self._rows, dtype=np.int32)
        slots = self._home([word[first : self._rows] for word in self._words])
        while len(rows):
            free = self._slots[slots] == 0
            self._slots[slots[free]] = rows[free]
            lost = self._slots[slots] != rows  # the slot was taken, or another got it in this round
            rows, slots = rows[lost], (slots[lost] + 1) & (len(self._slots) - 1)


def grown(column: NDArray[Any], rows: int) -> NDArray[Any]:
    """With room for so many rows, and for more to come: not every addition has to copy."""
    return column if rows <= len(column) else np.concatenate([column, np.zeros(rows, column.dtype)])
