"""A hash map is read as a whole while the kernel goes on changing it, from a map made by hand."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmio_probe.kernel import tables
from llmio_probe.kernel.records import PROCESS_KEY
from llmio_probe.kernel.tables import Table, TableError

U4 = np.dtype("u4")
USED = "the programs' tables cannot be used"
BUCKETS = 64


class HandMap:
    """What libbpf answers for a hash map of PROCESS_KEY to u32, in buckets as in kernel/bpf/hashtab.c."""

    def __init__(self, tgids: range) -> None:
        self.entries = {tgid: 7 * tgid for tgid in tgids}
        self.calls = 0
        self.meanwhile: Callable[[list[int]], None] = lambda handed_out: None

    def number(self, name: str, fd: int, *arguments: Any) -> int:
        self.calls += 1
        return int(getattr(self, name)(*arguments))

    def bpf_map_lookup_batch(
        self, position: int | None, token: int, keys: int, values: int, count: int, options: None
    ) -> int:
        room = ctypes.c_uint32.from_address(count)
        bucket = 0 if position is None else ctypes.c_uint32.from_address(position).value
        found: list[int] = []
        while bucket < BUCKETS and len(found) + len(self._bucket(bucket)) <= room.value:
            found += self._bucket(bucket)
            bucket += 1
        ctypes.memmove(keys, b"".join(map(self._key, found)), PROCESS_KEY.itemsize * len(found))
        ctypes.memmove(values, np.array([self.entries[tgid] for tgid in found], U4).tobytes(), 4 * len(found))
        ctypes.c_uint32.from_address(token).value = bucket
        room.value = len(found)
        self.meanwhile(found)
        if bucket == BUCKETS:
            raise FileNotFoundError(errno.ENOENT, "")
        return 0

    def _bucket(self, bucket: int) -> list[int]:
        return [tgid for tgid in self.entries if tgid % BUCKETS == bucket]

    def _key(self, tgid: int) -> bytes:
        return np.array((10 * tgid, tgid), PROCESS_KEY).tobytes()


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[range], tuple[HandMap, Table]]:
    monkeypatch.setattr(tables, "_BATCH", 20)

    def make(tgids: range) -> tuple[HandMap, Table]:
        hand: Any = HandMap(tgids)
        return hand, Table(hand, 3, PROCESS_KEY, U4)

    return make


Make = Callable[[range], tuple[HandMap, Table]]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EPERM, "No"),
            f"{USED} (No): before Linux 5.19 give CAP_BPF",
        ),
        (OSError(errno.ENOMEM, "Full"), f"{USED} (Full)"),
    ],
)
def test_what_the_kernel_refuses_is_one_sentence(make: Make, error: OSError, said: str) -> None:
    hand, table = make(range(3))

    def refuse(handed_out: list[int]) -> None:
        raise error

    hand.meanwhile = refuse
    with pytest.raises(TableError) as found:
        table.items()
    assert (str(found.value), found.value.why) == (said, error.strerror)


@pytest.mark.parametrize("count", [0, 1, 20, 200])
def test_all_keys_come_with_their_values_in_few_calls(make: Make, count: int) -> None:
    hand, table = make(range(1, count + 1))
    keys, values = table.items()
    found = dict(zip(keys["tgid"].tolist(), values[:, 0].tolist(), strict=True))
    assert found == hand.entries
    assert keys["start"].tolist() == [10 * tgid for tgid in found]
    assert sorted(table.keys()["tgid"].tolist()) == sorted(hand.entries)
    assert hand.calls <= 2 * (count // 10 + 1)


def test_entries_that_go_while_all_are_read_make_none_come_twice(make: Make) -> None:
    """As processes that end or exec do in `followed` and `seen`."""
    hand, table = make(range(1, 201))
    gone: set[int] = set()

    def meanwhile(handed_out: list[int]) -> None:
        for tgid in [tgid for tgid in handed_out if tgid % 3 == 0]:
            del hand.entries[tgid]
            gone.add(tgid)

    hand.meanwhile = meanwhile
    found = table.keys()["tgid"].tolist()
    assert len(found) == len(set(found))
    assert set(found) == gone | hand.entries.keys()
    assert hand.calls <= 21
