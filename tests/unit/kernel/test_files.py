"""Records of any length, and the files that they tell of."""

from __future__ import annotations

import numpy as np
import pytest

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.files import file_sight
from llmio_probe.kernel.records import FILE, FileFlag
from llmio_probe.kernel.ring import BytesRing
from tests.unit.kernel.conftest import HandRing


def record(names: list[bytes], flags: int = 0, **fields: int) -> bytes:
    path = b"".join(name + b"\0" for name in names)
    head = np.zeros(1, FILE)
    head["flags"], head["path_bytes"] = flags, len(path)
    for name, value in fields.items():
        head[name] = value
    return head.tobytes() + path


def test_records_of_all_lengths_come_whole_and_in_order_at_every_wrap_position() -> None:
    for begin in range(0, 256, 8):
        hand = HandRing(256, begin=begin)
        ring = BytesRing(hand.memory, Atomics())
        for length in (1, 8, 33, 100):
            payloads = [bytes([length + n]) * length for n in range(2)]
            for payload in payloads:
                hand.append(payload)
            assert ring.read() == payloads
        assert ring.read() == []


def test_what_is_discarded_is_skipped_and_what_is_busy_stops() -> None:
    hand = HandRing()
    ring = BytesRing(hand.memory, Atomics())
    hand.append(b"one")
    hand.append(b"dropped", discard=True)
    position = hand.append(b"busy still", busy=True)
    hand.append(b"behind it")
    assert ring.read() == [b"one"]
    assert hand.consumed == position
    hand.finish_payload(position, b"busy still")
    assert ring.read() == [b"busy still", b"behind it"]


def test_a_path_reads_from_the_root_of_its_filesystem() -> None:
    sight = file_sight(
        record([b"file", b"folder", b"top"], inode=11, file_device=12, mount_device=13, tgid=14, size=15)
    )
    assert (sight.path, sight.inode, sight.device, sight.mount_device, sight.tgid, sight.size) == (
        b"/top/folder/file", 11, 12, 13, 14, 15,
    )  # fmt: skip
    assert not sight.deleted
    assert not sight.cut


def test_a_file_without_a_name_has_no_path() -> None:
    assert file_sight(record([], FileFlag.NAMELESS)).path is None


def test_the_root_itself_is_a_slash() -> None:
    assert file_sight(record([])).path == b"/"


def test_flags_tell_what_is_deleted_and_what_is_cut() -> None:
    sight = file_sight(record([b"a"], FileFlag.DELETED | FileFlag.CUT))
    assert sight.deleted
    assert sight.cut


def test_a_record_of_another_layout_is_refused() -> None:
    with pytest.raises(ProbeError, match="do not belong together"):
        file_sight(b"short")
