"""RoleBook: the role of each record in a batch, and how it follows names, frameworks, headers and use."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmio_probe.identity.path_patterns import PathPattern
from llmio_probe.identity.role_rules import Rule, builtin_role_rules
from llmio_probe.identity.roles import (
    FIRST_UNDECIDED,
    HEADER_TRIES,
    HEADERS_AT_ONCE,
    MOST_UNDECIDED,
    OTHER_ROLE,
    ROLES,
    RoleBook,
)
from llmio_probe.kernel.records import REQUEST, Engine, Op, OwnerKind, Records, RequestFlag

FLEXGEN, VLLM, PLAIN = 2, 3, 4
"""Owners of the tests, beside those that they make themselves."""

SECOND = 1_000_000_000
KIB = 1024


def npy(*shape: int) -> bytes:
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return (b"\x93NUMPY\x01\x00v\x00" + text).ljust(128) + bytes(128)


KV_HEADER, WEIGHTS_HEADER = npy(71, 48, 64), npy(768, 768)


@dataclass(eq=False)
class HandFile:
    path: str | None
    device: int = 8
    inode: int = 1


@dataclass
class Host:
    """Files, frameworks, page cache and clock, as the test sets them."""

    files: dict[int, HandFile] = field(default_factory=dict)
    frameworks: dict[int, str | None] = field(default_factory=lambda: {FLEXGEN: "flexgen", VLLM: "vllm"})
    headers: dict[int, bytes | OSError | None] = field(default_factory=dict)
    reads: list[int] = field(default_factory=list)
    now: float = 1000.0
    last: int = 0

    def file(self, path: str | None) -> int:
        self.last += 1
        self.files[self.last] = HandFile(path, inode=self.last)
        return self.last

    def read_header(self, path: str, device: int, inode: int) -> bytes | None:
        assert (path, device) == (self.files[inode].path, 8)
        self.reads.append(inode)
        found = self.headers.get(inode)
        if isinstance(found, OSError):
            raise found
        return found


@pytest.fixture
def host() -> Host:
    return Host()


MakeBook = Callable[..., RoleBook]


@pytest.fixture
def make_book(host: Host) -> MakeBook:
    def make(*rules: Rule, undecided: bool = False, headers: bool = False) -> RoleBook:
        return RoleBook(
            (*rules, *builtin_role_rules()),
            host.files,
            lambda owner: host.frameworks.get(owner),
            undecided=undecided,
            clock=lambda: host.now,
            read_header=host.read_header if headers else None,
        )

    return make


@pytest.fixture
def book(make_book: MakeBook) -> RoleBook:
    """A daemon's: always the role that is known now."""
    return make_book()


@pytest.fixture
def session(make_book: MakeBook) -> RoleBook:
    return make_book(undecided=True)


def request(
    op: Op = Op.READ, engine: Engine = Engine.MMAP, at: float = 1.0, size: int = 128 * KIB, **more: Any
) -> Records:
    """One record, made and done in second ``at``."""
    record = np.zeros(1, REQUEST)
    record["op"], record["engine"], record["bytes"] = op, engine, size
    record["made_ns"] = record["done_ns"] = int(at * SECOND)
    record["owner"], record["owner_start_ns"] = OwnerKind.PROCESS, 77
    for name, value in more.items():
        record[name] = value
    return record


def ids_of(book: RoleBook, *who: tuple[int, int], records: Records | None = None) -> list[int]:
    """(file, owner) of each record."""
    if records is None:
        records = np.concatenate([request()] * len(who))
    pairs = np.array(who, np.int32)
    ids: list[int] = book.resolve(records, pairs[:, 1], pairs[:, 0]).tolist()
    return ids


def roles_of(book: RoleBook, *who: tuple[int, int], records: Records | None = None) -> list[str]:
    return [ROLES[id] for id in ids_of(book, *who, records=records)]


def role_after(book: RoleBook, file: int, *records: Records, owner: int = FLEXGEN) -> str:
    """What the last of these records of one file counts as."""
    batch = np.concatenate(records)
    return roles_of(book, *[(file, owner)] * len(batch), records=batch)[-1]


def read(at: float, **more: Any) -> Records:
    return request(Op.READ, Engine.MMAP, at, **more)


def written(at: float, engine: Engine = Engine.POSIX, **more: Any) -> Records:
    return request(Op.WRITE, engine, at, **more)


# By name and framework


def test_each_record_has_the_role_of_its_file_for_its_owner(host: Host, book: RoleBook) -> None:
    weights, kv, plain = host.file("/m/a.safetensors"), host.file("/kv/m@1@0@7f@half.pt"), host.file("/var/log/x")
    who = [(kv, VLLM), (weights, VLLM), (plain, PLAIN), (weights, PLAIN), (kv, VLLM), (0, VLLM)]
    ids = book.resolve(
        np.concatenate([request()] * 6),
        np.array([o for _, o in who], np.int32),
        np.array([f for f, _ in who], np.int32),
    )
    assert ids.dtype == np.int64
    assert [ROLES[id] for id in ids] == ["kv_cache", "weights", "other", "weights", "kv_cache", "other"]
    assert ROLES[OTHER_ROLE] == "other"


def test_a_batch_without_records_has_no_roles(book: RoleBook, session: RoleBook) -> None:
    nothing: NDArray[np.int32] = np.empty(0, np.int32)
    for each in (book, session):
        ids = each.resolve(np.empty(0, REQUEST), nothing, nothing)
        assert ids.shape == (0,)
        assert ids.dtype == np.int64
        assert each.settle() == {}


def test_a_users_rules_come_first(host: Host, make_book: MakeBook) -> None:
    book = make_book(Rule("mine", "checkpoint", (PathPattern("/keep/**"),)))
    kept, other = host.file("/keep/a.safetensors"), host.file("/m/a.safetensors")
    assert roles_of(book, (kept, VLLM), (other, VLLM)) == ["checkpoint", "weights"]


def test_a_rule_for_a_framework_is_for_its_workers_only(host: Host, book: RoleBook) -> None:
    offload = host.file("/offload/lm_head.dat")
    host.frameworks[5] = "accelerate"
    assert roles_of(book, (offload, 5), (offload, VLLM), (offload, PLAIN)) == ["weights", "other", "other"]


def test_what_is_no_process_is_never_asked_for_a_framework_of_its_own(host: Host, session: RoleBook) -> None:
    host.frameworks[9] = "accelerate"  # an owner of the kernel's that, by mistake, has one
    offload = host.file("/offload/lm_head.dat")
    for kind in (OwnerKind.KERNEL, OwnerKind.UNKNOWN):
        assert ids_of(session, (offload, 9), records=request(owner=kind)) == [OTHER_ROLE]


def test_a_raw_device_is_a_file_too(host: Host, make_book: MakeBook) -> None:
    book = make_book(Rule("raw", "kv_cache", (PathPattern("/dev/nvme1n1"),)))
    assert roles_of(book, (host.file("/dev/nvme1n1"), VLLM), (host.file("/dev/nvme0n1"), VLLM)) == ["kv_cache", "other"]


def test_a_renamed_file_has_the_role_of_its_new_name_from_then_on(host: Host, book: RoleBook) -> None:
    file = host.file("/m/download.part")
    assert roles_of(book, (file, VLLM)) == ["other"]
    host.files[file].path = "/m/a.safetensors"
    assert roles_of(book, (file, VLLM)) == ["weights"]
    host.files[file].path = None
    assert roles_of(book, (file, VLLM)) == ["other"]


def test_a_framework_that_shows_late_counts_from_then_on(host: Host, book: RoleBook) -> None:
    files = [host.file(f"/offload/{n}.dat") for n in range(3)]
    assert roles_of(book, (files[0], 7), (files[1], 7), (files[2], PLAIN)) == ["other"] * 3
    host.frameworks[7] = "accelerate"
    assert roles_of(book, (files[0], 7)) == ["weights"]
    assert roles_of(book, (files[1], 7), (files[2], PLAIN)) == ["weights", "other"]


def test_many_pairs_are_told_apart_whatever_the_batches(host: Host, book: RoleBook) -> None:
    names = ["/m/{}.safetensors", "/x/{}.dat", "/n/optimizer/rank0/{}.tensor.swp", "/log/{}"]
    files = np.array([host.file(names[n % 4].format(n)) for n in range(3000)], np.int32)
    host.frameworks |= dict.fromkeys(range(100, 120), "accelerate") | dict.fromkeys(range(120, 140), None)
    random = np.random.default_rng(1)
    for size in (1, 7, 40_000, 100_000, 5):
        chosen, owners = random.choice(files, size), random.integers(100, 140, size).astype(np.int32)
        ids = book.resolve(np.repeat(request(), size), owners, chosen)
        by_name = np.array([ROLES.index(role) for role in ("weights", "weights", "optimizer", "other")])
        expected = by_name[(chosen - 1) % 4]
        expected[((chosen - 1) % 4 == 1) & (owners >= 120)] = OTHER_ROLE
        assert np.array_equal(ids, expected)


# Roles that may still change, in a session


def test_a_file_of_a_process_whose_framework_may_show_is_kept_apart(host: Host, session: RoleBook) -> None:
    offload, log = host.file("/offload/lm_head.dat"), host.file("/log")
    late, never, log_id = ids_of(session, (offload, 7), (offload, PLAIN), (log, PLAIN))
    assert {late, never} == {FIRST_UNDECIDED, FIRST_UNDECIDED + 1}
    assert log_id == OTHER_ROLE
    host.frameworks[7] = "accelerate"
    assert roles_of(session, (offload, 7)) == ["weights"]
    assert session.settle() == {late: ROLES.index("weights"), never: OTHER_ROLE}


def test_what_shows_only_at_the_end_still_counts(host: Host, session: RoleBook) -> None:
    offload, nameless = host.file("/offload/lm_head.dat"), host.file(None)
    undecided = ids_of(session, (offload, 7), (nameless, VLLM))
    host.frameworks[7], host.files[nameless].path = "accelerate", "/m/a.safetensors"
    assert [ROLES[session.settle()[id]] for id in undecided] == ["weights", "weights"]
    assert (session.role(offload, 7), session.role(nameless, VLLM)) == ("weights", "weights")


def test_a_file_that_is_decided_is_not_kept_apart(host: Host, session: RoleBook) -> None:
    swap, offload = host.file("/n/optimizer/rank0/1.tensor.swp"), host.file("/offload/lm_head.dat")
    assert ids_of(session, (swap, PLAIN), (offload, VLLM), (0, PLAIN)) == [
        ROLES.index("optimizer"),
        OTHER_ROLE,
        OTHER_ROLE,
    ]
    assert session.settle() == {}


def test_only_so_many_are_kept_apart(host: Host, session: RoleBook) -> None:
    files = [host.file(f"/nvme/t_{n}") for n in range(MOST_UNDECIDED + 5)]
    host.frameworks[FLEXGEN] = "flexgen"
    ids = ids_of(session, *[(file, FLEXGEN) for file in files])
    assert ids[:MOST_UNDECIDED] == list(range(FIRST_UNDECIDED, FIRST_UNDECIDED + MOST_UNDECIDED))
    assert [ROLES[id] for id in ids[MOST_UNDECIDED:]] == ["weights"] * 5
    assert set(session.settle().values()) == {ROLES.index("weights")}
    assert session.role(files[-1], FLEXGEN) == "weights"


def test_files_without_a_name_leave_room_for_others(host: Host, session: RoleBook) -> None:
    ids_of(session, *[(host.file(None), PLAIN) for _ in range(MOST_UNDECIDED)])
    assert len(session.settle()) == MOST_UNDECIDED // 2
    (id,) = ids_of(session, (host.file("/nvme/t_1"), FLEXGEN))
    assert id >= FIRST_UNDECIDED


def test_a_daemon_keeps_nothing_apart(host: Host, book: RoleBook) -> None:
    who = [(host.file("/nvme/t_1"), FLEXGEN), (host.file("/offload/lm_head.dat"), PLAIN), (host.file(None), PLAIN)]
    assert all(id < FIRST_UNDECIDED for id in ids_of(book, *who))
    assert book.settle() == {}


def test_the_role_of_a_pair_that_no_record_was_for(host: Host, book: RoleBook) -> None:
    assert book.role(host.file("/m/a.safetensors"), VLLM) == "weights"
    assert book.role(host.file("/nvme/t_1"), FLEXGEN) == "other"  # nothing is known of its use
    assert (book.role(0, VLLM), book.role(99, VLLM), book.role(host.file(None), VLLM)) == ("other",) * 3


# By use


SEEN: list[tuple[str, list[Records], str]] = [
    ("only read", [read(1), read(2)], "weights"),
    ("written by system calls", [written(1)], "weights"),
    ("written by system calls, then read", [written(1), read(9), read(99)], "weights"),
    ("written through a mapping", [written(1, Engine.MMAP)], "kv_cache"),
    ("its first page by a call, the rest not", [written(1, size=4 * KIB), written(2, Engine.MMAP)], "kv_cache"),
    ("its first and its last page by calls", [written(1, size=mmap.PAGESIZE), written(2, size=mmap.PAGESIZE)], "other"),
    ("the same, then read", [written(1, size=mmap.PAGESIZE), written(2, size=mmap.PAGESIZE), read(3)], "weights"),
    ("a page more by calls", [written(1, size=mmap.PAGESIZE), written(2, size=2 * mmap.PAGESIZE)], "weights"),
    ("a page by a call", [written(1, size=mmap.PAGESIZE)], "weights"),
    ("two pages by a call", [written(1, size=2 * mmap.PAGESIZE)], "weights"),
    ("mostly by calls", [written(1), written(2, Engine.MMAP, size=4 * KIB)], "weights"),
    ("nobody knows how it was written", [written(1, Engine.UNKNOWN)], "other"),
    ("written by the kernel, then read", [written(1, Engine.KERNEL), read(2)], "weights"),
    ("read while its writeback goes on", [written(1), read(5), written(30), written(64)], "weights"),
    ("written a minute after it was read", [written(1), read(5), written(65)], "kv_cache"),
    ("the same, unknown how", [read(5), written(65, Engine.UNKNOWN)], "kv_cache"),
    ("read, written and read again", [read(5), written(65), read(70)], "kv_cache"),
    ("written a minute before it was read", [written(1), read(99), written(100)], "weights"),
    ("a part of a request, which has no times", [read(5), written(0, flags=RequestFlag.PART), read(64)], "weights"),
    ("a late part of a request", [read(5), written(0, flags=RequestFlag.PART), read(65)], "kv_cache"),
    ("only discarded", [request(Op.DISCARD)], "other"),
]


@pytest.mark.parametrize(("records", "role"), [seen[1:] for seen in SEEN], ids=[seen[0] for seen in SEEN])
@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one by one"])
def test_use_tells_what_the_names_of_flexgen_cannot(
    host: Host, make_book: MakeBook, records: list[Records], role: str, together: bool
) -> None:
    if any(record["flags"] & RequestFlag.PART for record in records):
        together = True  # a part comes in the batch of its request
    file, other = host.file("/nvme/t_7"), host.file("/nvme/t_8")
    book, session = make_book(), make_book(undecided=True)
    ids: list[int] = []
    for batch in [np.concatenate(records)] if together else records:
        now = role_after(book, file, batch)
        ids += ids_of(session, *[(file, FLEXGEN)] * len(batch), records=batch)
        ids_of(session, (other, FLEXGEN))
    assert now == book.role(file, FLEXGEN) == session.role(file, FLEXGEN) == role
    final = session.settle()
    assert {final.get(id, id) for id in ids} == {ROLES.index(role)}
    assert len(final) == 2


def test_use_counts_for_one_owner_only(host: Host, book: RoleBook) -> None:
    file = host.file("/nvme/t_7")
    host.frameworks[5] = "flexgen"
    assert role_after(book, file, written(1, Engine.MMAP), owner=5) == "kv_cache"
    assert role_after(book, file, read(2)) == "weights"
    assert role_after(book, file, read(3), owner=PLAIN) == "other"


def test_use_decides_from_its_first_batch_on_and_by_all_batches(host: Host, book: RoleBook) -> None:
    file = host.file("/nvme/t_7")
    assert role_after(book, file, read(1)) == "weights"
    assert role_after(book, file, written(30)) == "weights"
    assert role_after(book, file, written(62)) == "kv_cache"
    assert role_after(book, file, read(63)) == "kv_cache"


def test_a_restarted_worker_takes_its_files_over_without_their_past(host: Host, make_book: MakeBook) -> None:
    book, file = make_book(headers=True), host.file("/nvme/t_7")
    role_after(book, file, read(1), written(62))
    assert role_after(book, file, read(63)) == "kv_cache"
    assert role_after(book, file, written(64, owner_start_ns=78)) == "weights"
    host.headers[file] = KV_HEADER
    host.now += 1000
    assert role_after(book, file, read(65, owner_start_ns=78)) == "kv_cache"
    host.headers[file] = WEIGHTS_HEADER
    role_after(book, file, read(66, owner_start_ns=79))
    assert role_after(book, file, read(67, owner_start_ns=79)) == "weights"


# By header


@pytest.mark.parametrize(
    ("header", "role"), [(KV_HEADER, "kv_cache"), (WEIGHTS_HEADER, "weights"), (npy(4, 64, 768), "other")]
)
def test_a_header_decides_whatever_the_use(host: Host, make_book: MakeBook, header: bytes, role: str) -> None:
    book, session = make_book(headers=True), make_book(headers=True, undecided=True)
    file = host.file("/nvme/t_7")
    host.headers[file] = header
    assert role_after(book, file, read(1), written(2, Engine.MMAP), written(90), read(91)) == role
    assert roles_of(session, (file, FLEXGEN)) == [role]
    assert session.settle() == {}
    assert host.reads == [file, file]


def test_a_header_is_read_of_files_that_it_may_decide_only(host: Host, make_book: MakeBook) -> None:
    book = make_book(headers=True)
    ids_of(book, (host.file("/m/a.safetensors"), FLEXGEN), (host.file("/nvme/t_7"), VLLM), (host.file(None), FLEXGEN))
    ids_of(book, (host.file("…/t_7"), FLEXGEN), (0, FLEXGEN))
    assert host.reads == []


def test_a_header_that_is_not_there_is_looked_for_less_and_less_often(host: Host, make_book: MakeBook) -> None:
    book, file = make_book(headers=True), host.file("/nvme/t_7")
    tried = []
    for _ in range(3000):
        before = len(host.reads)
        roles_of(book, (file, FLEXGEN))
        if len(host.reads) > before:
            tried.append(host.now - 1000)
        host.now += 1
    assert tried == [0, 1, 3, 7, 15, 31, 63, 127, 255, 511]
    assert len(tried) == HEADER_TRIES


def test_a_header_that_comes_later_settles_what_was_undecided(host: Host, make_book: MakeBook) -> None:
    session, file = make_book(headers=True, undecided=True), host.file("/nvme/t_7")
    for early in (None, bytes(256), b"", FileNotFoundError()):
        host.headers[file] = early
        assert ids_of(session, (file, FLEXGEN)) == [FIRST_UNDECIDED]
        host.now += 10
    host.headers[file] = KV_HEADER
    assert roles_of(session, (file, FLEXGEN)) == ["kv_cache"]
    assert session.settle() == {FIRST_UNDECIDED: ROLES.index("kv_cache")}


def test_the_end_of_a_session_is_one_more_chance(host: Host, make_book: MakeBook) -> None:
    session = make_book(headers=True, undecided=True)
    files = [host.file(f"/nvme/t_{n}") for n in range(HEADERS_AT_ONCE + 50)]
    ids_of(session, *[(file, FLEXGEN) for file in files])
    host.headers = dict.fromkeys(files, KV_HEADER)
    assert session.settle() == {FIRST_UNDECIDED + n: ROLES.index("kv_cache") for n in range(len(files))}


def test_only_so_many_headers_are_read_in_a_batch(host: Host, make_book: MakeBook) -> None:
    book = make_book(headers=True)
    who = [(host.file(f"/nvme/t_{n}"), FLEXGEN) for n in range(2 * HEADERS_AT_ONCE + 1)]
    host.headers = {file: KV_HEADER for file, _ in who}
    counts = []
    for _ in range(4):
        ids_of(book, *who)
        counts.append(len(host.reads))
    assert counts == [HEADERS_AT_ONCE, 2 * HEADERS_AT_ONCE, 2 * HEADERS_AT_ONCE + 1, 2 * HEADERS_AT_ONCE + 1]
    assert set(roles_of(book, *who)) == {"kv_cache"}


def test_without_rights_headers_are_given_up_and_use_decides(host: Host, make_book: MakeBook) -> None:
    book, file = make_book(headers=True), host.file("/nvme/t_7")
    host.headers[file] = PermissionError(13, "Permission denied")
    for at in range(1, 6):
        assert role_after(book, file, read(at)) == "weights"
        host.now += 100
    assert host.reads == [file]


def test_what_is_no_npy_file_is_decided_by_use(host: Host, make_book: MakeBook) -> None:
    book, file = make_book(headers=True), host.file("/nvme/t_7")
    host.headers[file] = b"something else"
    assert role_after(book, file, written(1, Engine.MMAP)) == "kv_cache"
    host.now += 100
    assert role_after(book, file, read(2)) == "kv_cache"
    assert host.reads == [file]


def test_a_renamed_file_is_looked_at_anew(host: Host, make_book: MakeBook) -> None:
    book, file = make_book(headers=True), host.file("/nvme/t_7")
    host.headers[file] = PermissionError(13, "Permission denied")
    assert role_after(book, file, read(1)) == "weights"
    host.files[file].path, host.headers[file] = "/other/t_7", KV_HEADER
    assert role_after(book, file, read(2)) == "kv_cache"


# Memory


def test_what_is_forgotten_begins_anew(host: Host, book: RoleBook) -> None:
    first, second = host.file("/nvme/t_1"), host.file("/nvme/t_2")
    host.frameworks[5] = "flexgen"
    who = [(first, FLEXGEN), (second, FLEXGEN), (second, 5)]
    assert roles_of(book, *who, records=np.repeat(written(1, Engine.MMAP), 3)) == ["kv_cache"] * 3
    book.forget(files=[first])
    assert roles_of(book, *who) == ["weights", "kv_cache", "kv_cache"]
    book.forget(owners=[FLEXGEN, 99])
    assert roles_of(book, *who[::-1]) == ["kv_cache", "weights", "weights"]
    book.forget()
    assert roles_of(book, *who) == ["weights", "weights", "kv_cache"]


def test_an_undecided_id_outlives_what_it_was_given_for(host: Host, session: RoleBook) -> None:
    first, second = host.file("/nvme/t_1"), host.file("/nvme/t_2")
    ids = ids_of(session, (first, FLEXGEN), records=written(1, Engine.MMAP))
    session.forget(files=[first])
    ids += ids_of(session, (second, FLEXGEN))
    assert session.settle() == {ids[0]: ROLES.index("kv_cache"), ids[1]: ROLES.index("weights")}


def test_files_that_are_no_longer_known_are_dropped(host: Host, book: RoleBook) -> None:
    stays = host.file("/nvme/t_1")
    role_after(book, stays, written(1, Engine.MMAP))
    for _ in range(20):
        files = [host.file(f"/m/{n}.safetensors") for n in range(500)]
        assert set(roles_of(book, *[(file, VLLM) for file in files])) == {"weights"}
        assert len(book) < 2500
        for file in files:
            del host.files[file]
    assert role_after(book, stays, read(2)) == "kv_cache"


def test_samples_stand_for_records_whose_times_say_how_a_file_is_used(host: Host, make_book: MakeBook) -> None:
    """Read at 5 s, and once at 99; written by calls within a minute of the first read, and a minute after it."""
    file = host.file("/nvme/t_7")
    for last, role in ((64, "weights"), (65, "kv_cache")):
        book = make_book()
        records = np.concatenate([read(99), read(5), *(written(second) for second in (30, 31, last))])
        samples, of = records[[0, 2]].copy(), np.array([0, 0, 1, 1, 1])
        samples["made_ns"] = samples["done_ns"] = 0
        owners, files = np.full(2, FLEXGEN, np.int32), np.full(2, file, np.int32)
        book.resolve(samples, owners, files, (records, partial(np.take, indices=of)))
        assert book.role(file, FLEXGEN) == role


def test_other_rules_hold_from_then_on_and_only_they(host: Host, make_book: MakeBook) -> None:
    book = make_book(Rule("mine", "checkpoint", (PathPattern("/keep/**"),)))
    kept, model, nameless = host.file("/keep/a.safetensors"), host.file("/m/a.safetensors"), host.file(None)
    who = ((kept, VLLM), (model, VLLM), (nameless, VLLM))
    assert roles_of(book, *who) == ["checkpoint", "weights", "other"]
    book.use((Rule("theirs", "kv_cache", (PathPattern("/m/**"),)), *builtin_role_rules()), None)
    assert roles_of(book, *who) == ["weights", "kv_cache", "other"]
    book.use((), None)
    assert roles_of(book, *who) == ["other", "other", "other"]


def test_headers_are_looked_for_once_that_is_allowed(host: Host, make_book: MakeBook) -> None:
    book = make_book()
    file = host.file("/offload/t_5")
    host.headers[file] = npy(16, 4096)
    roles_of(book, (file, FLEXGEN))
    assert host.reads == []
    book.use(builtin_role_rules(), host.read_header)
    roles_of(book, (file, FLEXGEN))
    assert host.reads == [file]
