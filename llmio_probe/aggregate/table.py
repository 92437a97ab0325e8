"""Rows of running totals, found by an integer key, for whole arrays of keys at once. No meaning, only storage."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_SPARSE = 8
"""From so many places a record on, adding one by one beats a bincount of the whole table: 10,000 records into 200 rows
of 1,665 columns take 40 us instead of 240. Below it they are even, and NumPy before 1.25 is slow at the former."""


class Rows:
    """A growing set of rows; each has a unique int64 key and, per field, an array of totals that starts at zero.

    fields: name to (dtype, shape of one row). Row numbers are stable until ``keep``.
    """

    def __init__(self, fields: Mapping[str, tuple[DTypeLike, tuple[int, ...]]]) -> None:
        self._sorted = np.empty(0, np.int64)
        self._row_of = np.empty(0, np.int64)
        self._keys = np.empty(0, np.int64)
        self._fields = {name: np.zeros((0, *shape), dtype) for name, (dtype, shape) in fields.items()}

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> NDArray[np.int64]:
        """The keys in the order of the rows, shape (rows,)."""
        return self._keys

    def __getitem__(self, field: str) -> NDArray[Any]:
        """The totals of a field, shape (rows, …): a view to add to."""
        return self._fields[field][: len(self)]

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each key, shape as keys; rows are made for those not seen before."""
        if len(self._sorted):
            place = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
            if (self._sorted.take(place) == keys).all():
                return self._row_of.take(place)
        self._append(np.setdiff1d(keys, self._sorted))
        return self._row_of[np.searchsorted(self._sorted, keys)]

    @property
    def shown(self) -> NDArray[np.int64]:
        """The rows that something may be counted in, in order."""
        return np.arange(len(self))

    def rows(self) -> Iterator[tuple[int, int]]:
        """Each of these, and its key."""
        return zip(self.shown.tolist(), self._keys[self.shown].tolist(), strict=True)

    def add(self, field: str, rows: NDArray[np.int64], amounts: NDArray[Any] | None = None) -> None:
        """Add amounts (1 each without) to a one-number field, rows repeating freely. Exact below 2^53 a batch."""
        add_at_places(self[field], rows, amounts)

    def add_at(
        self, field: str, rows: NDArray[np.int64], columns: NDArray[Any], amounts: NDArray[Any] | None = None
    ) -> None:
        """Add amounts (1 each without) at (row, column) for each pair, in a field of shape (columns,)."""
        totals = self[field]
        places = rows * totals.shape[1]
        places += columns
        add_at_places(totals.reshape(-1), places, amounts)

    def raise_to(self, field: str, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Keep the largest value seen in a one-number field."""
        totals = self[field]
        np.maximum.at(totals, rows, values.astype(totals.dtype, copy=False))

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Forget the rows where mask, shape (rows,), is False; the others move up."""
        self._fields = {name: self[name][mask] for name in self._fields}
        self._index(self._keys[mask])

    def merged(self, keys: NDArray[np.int64], largest: Collection[str] = ()) -> tuple[Rows, NDArray[np.int64]]:
        """A new table with these keys, shape (rows,), instead, and in which of its rows each row has gone.

        Rows that now have the same key are added up; of the fields in ``largest`` the largest value stays.
        """
        table = Rows({name: (totals.dtype, totals.shape[1:]) for name, totals in self._fields.items()})
        rows = table.find(keys)
        joined = [(row, np.flatnonzero(rows == row)) for row in np.flatnonzero(np.bincount(rows) > 1).tolist()]
        for name in self._fields:
            totals, join = self[name], np.maximum if name in largest else np.add
            table[name][rows] = totals
            for row, members in joined:  # 10 times faster than reduceat where rows are wide
                table[name][row] = join.reduce(totals[members], axis=0, dtype=totals.dtype)
        return table, rows

    def _append(self, keys: NDArray[np.int64]) -> None:
        self._index(np.concatenate([self._keys, keys]))
        for name, totals in self._fields.items():
            if len(totals) < len(self):
                grown = np.zeros((max(len(self), 2 * len(totals)), *totals.shape[1:]), totals.dtype)
                grown[: len(totals)] = totals
                self._fields[name] = grown

    def _index(self, keys: NDArray[np.int64]) -> None:
        self._keys = keys
        self._row_of = np.argsort(keys)
        self._sorted = keys[self._row_of]


def add_at_places(totals: NDArray[Any], places: NDArray[np.int64], amounts: NDArray[Any] | None) -> None:
    """Add amounts (1 each without) to totals, shape (places there are,), places repeating freely."""
    if len(totals) > _SPARSE * len(places):
        # Of the field's own type: with any other, NumPy takes a path that is 30 times slower.
        np.add.at(totals, places, totals.dtype.type(1) if amounts is None else amounts.astype(totals.dtype))
    else:
        totals += np.bincount(places, amounts, len(totals)).astype(totals.dtype)
