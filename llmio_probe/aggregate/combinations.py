"""A batch by combination: the requests that are alike in everything but their times, sector and queue are one.

Traffic repeats the same owner, file, device, op, size and so on again and again. Whatever depends on these alone is
then done once for a combination, with the number of its records, and no longer for each record. Only the search may go
in here: it knows which fields it leaves out and nothing of what the others mean.

The trick: a record is a row of 64-bit words, and so is a combination. The words are mixed into one number, which leads
to the combination through a hash table, and comparing all words tells whether it is the right one. So it is exact
whatever the mixing does, and costs about 40 ns a record; np.unique costs 10 times as much. Who reads a large file makes
many records that are alike in a row: then one of a run is looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmio_probe.kernel.records import REQUEST, Records

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

LEFT_OUT = ("made_ns", "issued_ns", "done_ns", "sector", "hw_queue")
"""Fields that do not make another combination."""

MOST = 1 << 13
"""Combinations that are kept, in some 2 MB. With more the table begins anew: hardly any load repeats so many."""

PIECE = 1 << 14
"""Records at once: what is made of so many stays in a CPU's own cache. A run ends where a piece does."""

_TRIED = 128
"""Records at the begin of a piece that tell whether they come in runs."""

_FEWER = 4
"""Looking for runs costs less than it saves where there are so many fewer of them than records."""

_ROOM = 16
"""Places a combination in the table: then 31 of 32 are where they are looked for first."""


_Found = tuple[NDArray[np.int32], "Ints | None"]
"""Rows in the table, of runs or, with None, of records; and how long those runs are."""


def _mask() -> Words:
    """The bits of a record that make a combination."""
    record = np.frombuffer(b"\xff" * REQUEST.itemsize, REQUEST).copy()
    for name in LEFT_OUT:
        record[name] = 0
    words: Words = record.view(np.uint64)
    return words


_MASK = _mask()
_FIRST = int(np.flatnonzero(_MASK)[0])
_PARTLY = [int(word) for word in np.flatnonzero(~_MASK[_FIRST:])]
"""Words behind the first of which not all bits count."""
_WORDS = len(_MASK) - _FIRST
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 by the golden ratio: odd, and without a pattern that the words might share."""
_MIX = np.array([pow(_GOLDEN, 1 + word, 1 << 64) for word in range(_WORDS)], np.uint64)
_dot = getattr(np, "vecdot", np.matmul)
"""A third faster than matmul; since NumPy 2.0."""
_OPAQUE = np.dtype(f"V{REQUEST.itemsize}")
"""A record as NumPy copies it in a block, and not field by field."""
_KEYED = np.dtype([("before", f"V{8 * _FIRST}"), ("key", f"V{8 * _WORDS}")])
"""The same of its words from the first that makes a combination on."""


@dataclass(frozen=True)
class Combined:
    """A batch of n requests in k combinations.

    records: all n, as they came. samples: shape (k,), one record of each, 0 in the fields that are left out.
    counts: shape (k,), how many records there are of each. lengths: of the runs of records that are alike, also in
    their queue, and so of one combination; None: hardly any follows one that it is like.
    """

    records: Records
    samples: Records
    counts: Ints
    lengths: Ints | None
    _index: Ints  # by run, or record
    _places: Ints  # by combination: where in the table

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """What each combination has, shape (k,), for each of the records, shape (n,)."""
        by_place = np.empty(int(self._places[-1]) + 1 if len(self._places) else 0, values.dtype)
        by_place[self._places] = values
        spread: NDArray[Any] = by_place.take(self._index)
        return spread if self.lengths is None else np.repeat(spread, self.lengths)


def select(records: Records, chosen: NDArray[np.bool_]) -> Records:
    """The chosen ones, as records[chosen], but 20 times as fast: as opaque bytes and not field by field."""
    selected: Records = records.view(_OPAQUE)[chosen].view(REQUEST)
    return selected


class Combinations:
    """Finds them. It remembers those of earlier batches, since they come again; open addressing, no deletion."""

    def __init__(self) -> None:
        self._clear()

    def __len__(self) -> int:
        """How many are remembered."""
        return self._rows

    def find(self, records: Records) -> Combined:
        """records: REQUEST records, contiguous, shape (n,)."""
        if self._rows > MOST:
            self._clear()
        found = [self._find(records[first : first + PIECE]) for first in range(0, len(records), PIECE)]
        counts = np.zeros(self._rows, np.int64)
        for rows, lengths in found:
            each = np.bincount(rows, lengths)
            counts[: len(each)] += each.astype(np.int64)
        places = counts.nonzero()[0]
        index, lengths = _as_one(found)
        samples = np.zeros((len(places), len(_MASK)), np.uint64)
        samples[:, _FIRST:] = self._keys.take(places, axis=0)
        return Combined(records, samples.view(REQUEST).reshape(-1), counts[places], lengths, index, places)

    def _clear(self) -> None:
        self._rows = 1
        # An empty slot leads to row 0. Its key is as good as any other: a record that had it would be found there.
        self._keys = np.zeros((1, _WORDS), np.uint64)
        self._slots = np.zeros(_ROOM, np.int32)

    def _find(self, records: Records) -> _Found:
        """The row of each run of records that are alike, and the runs' lengths; None: of each record."""
        keys = _keys(records)
        if _FEWER * len(_heads(keys[:_TRIED])) > len(keys[:_TRIED]):
            return self._rows_of(_masked(keys)), None
        heads = _heads(keys)
        return self._rows_of(_masked(keys[heads])), np.concatenate([heads[1:], [len(keys)]]) - heads

    def _rows_of(self, keys: Words) -> NDArray[np.int32]:
        mixed = _mixed(keys)
        rows, missing = self._search(keys, mixed)
        while len(missing):
            self._add(keys[missing], mixed[missing])
            rows, missing = self._search(keys, mixed)
        return rows

    def _search(self, keys: Words, mixed: Words) -> tuple[NDArray[np.int32], Ints]:
        """The row of each key, and which keys have none."""
        slots = self._home(mixed)
        rows = self._slots.take(slots)
        wrong = _with_any(self._keys.take(rows, axis=0) != keys)
        missing = [wrong[rows[wrong] == 0]]  # an empty slot ends the search
        while len(wrong := wrong[rows[wrong] != 0]):
            slots[wrong] = slots[wrong] + 1 & len(self._slots) - 1
            rows[wrong] = self._slots[slots[wrong]]
            wrong = wrong[(self._keys[rows[wrong]] != keys[wrong]).any(axis=1)]
            missing.append(wrong[rows[wrong] == 0])
        return rows, np.concatenate(missing)

    def _add(self, keys: Words, mixed: Words) -> None:
        """Keys that are not in it, some of them more than once. Of different ones that mix alike only one is taken."""
        new = np.unique(mixed, return_index=True)[1]
        first, self._rows = self._rows, self._rows + len(new)
        if self._rows > len(self._keys):
            more = self._rows + self._rows // 2 - len(self._keys)
            self._keys = np.concatenate([self._keys, np.zeros((more, _WORDS), np.uint64)])
        self._keys[first : self._rows] = keys[new]
        if _ROOM * self._rows > len(self._slots):
            self._slots = np.zeros(1 << (_ROOM * self._rows).bit_length(), np.int32)
            first = 1
        self._fill(np.arange(first, self._rows))

    def _fill(self, rows: Ints) -> None:
        slots = self._home(_mixed(self._keys[rows]))
        while len(rows):
            free = self._slots[slots] == 0
            self._slots[slots[free]] = rows[free]
            lost = self._slots[slots] != rows  # the slot was taken, or another got it in this round
            rows, slots = rows[lost], slots[lost] + 1 & len(self._slots) - 1

    def _home(self, mixed: Words) -> Ints:
        """The slot to look at first: the top bits, which all words have a part in."""
        slots: Ints = (mixed >> np.uint64(65 - len(self._slots).bit_length())).astype(np.int64)
        return slots


def _as_one(found: Sequence[_Found]) -> tuple[Ints, Ints | None]:
    """The pieces' rows and lengths as one."""
    if not found:
        return np.empty(0, np.int64), None
    index = np.concatenate([rows for rows, _ in found])
    if all(lengths is None for _, lengths in found):
        return index, None
    return index, np.concatenate([np.ones(len(rows), np.int64) if each is None else each for rows, each in found])


def _keys(records: Records) -> Words:
    """The words that make combinations, shape (n, _WORDS), together with the few other bits among them."""
    keys: Words = records.view(_KEYED)["key"].copy().view(np.uint64).reshape(len(records), _WORDS)
    return keys


def _masked(keys: Words) -> Words:
    """Without these, in place."""
    for word in _PARTLY:
        keys[:, word] &= _MASK[_FIRST + word]
    return keys


def _heads(keys: Words) -> Ints:
    """Which are not like the one before."""
    return np.concatenate([[0], _with_any(keys[1:] != keys[:-1]) + 1])


def _with_any(marked: NDArray[np.bool_]) -> Ints:
    """The rows that are True anywhere, of shape (n, _WORDS); faster than any() where these are few."""
    found: Ints = marked.ravel().nonzero()[0] // _WORDS
    return found[np.concatenate([[True], found[1:] != found[:-1]])] if len(found) else found


def _mixed(keys: Words) -> Words:
    """One number of each key. The sum alone is as regular as the keys are, and those would crowd together."""
    mixed: Words = _dot(keys, _MIX)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(_GOLDEN)
    return mixed
