"""Bytes by file, for the list of files at a session's end: up to some 100,000 of them, so only a few numbers each.

Only this table may go in here: what a file is called and which user is whom is for others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llmio_probe.aggregate.table import Rows

_USER_BITS = 32
_NOBODY = -1

Ints = NDArray[np.int64]


class FileTable:
    """Totals by file and user, both small numbers of the caller's.

    Nearly every record is of the same user as the one before it of the same file, so the row is looked up by the file,
    in 3 ns; a search in the sorted keys of 10,000 files takes 90.
    """

    def __init__(self) -> None:
        self._rows = Rows({"bytes": ("i8", (2,)), "requests": ("i8", ()), "shared": ("?", ())})
        self._last_user = np.empty(0, np.int64)  # by file
        self._last_row = np.empty(0, np.int64)

    def add(
        self, files: Ints, users: Ints, written: NDArray[np.bool_], bytes_: Ints, requests: Ints,
        shared: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        """Count in, shape (n,) each, n > 0. written: by writes. shared: several processes had changed the file."""
        rows = self._find(files, users)
        self._rows.add_at("bytes", rows, written, bytes_)
        self._rows.add("requests", rows, requests)
        self._rows["shared"][rows[shared]] = True

    def _find(self, files: Ints, users: Ints) -> Ints:
        new = int(files.max()) + 1 - len(self._last_user)
        if new > 0:
            self._last_user = np.pad(self._last_user, (0, new + len(self._last_user)), constant_values=_NOBODY)
            self._last_row = np.pad(self._last_row, (0, len(self._last_user) - len(self._last_row)))
        rows = self._last_row.take(files)
        missed = np.flatnonzero(self._last_user.take(files) != users)
        if len(missed):
            file, user = files[missed], users[missed]
            rows[missed] = self._rows.find(file << _USER_BITS | user)
            self._last_user[file], self._last_row[file] = user, rows[missed]
        return rows

    def forget(self, users: Ints) -> None:
        """Drop what these did."""
        self._rows.keep(~np.isin(self._rows.keys & ((1 << _USER_BITS) - 1), users))
        self._last_user[:] = _NOBODY

    def __iter__(self) -> Iterator[tuple[int, int, int, int, int, bool]]:
        """file, user, bytes read, bytes written, requests, whether any of it was shared."""
        totals = self._rows
        read, write = totals["bytes"].T.tolist()
        keys = totals.keys
        return zip(
            (keys >> _USER_BITS).tolist(), (keys & ((1 << _USER_BITS) - 1)).tolist(), read, write,
            totals["requests"].tolist(), totals["shared"].tolist(), strict=True,
        )  # fmt: skip
