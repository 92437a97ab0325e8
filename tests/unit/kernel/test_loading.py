"""Which programs are needed, how large the tables are, and which loader is asked."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmio_probe.kernel import loaders
from llmio_probe.kernel.loading import (
    FILLED_AT_ONCE,
    LRU_MAPS,
    RING_LEAST_BYTES,
    RINGS_BYTES,
    RINGS_MAX,
    SLOTS,
    LoaderName,
    ProbeOptions,
    map_sizes,
    online_cpus,
    ring_bytes,
    ring_count,
)
from llmio_probe.kernel.records import REQUEST_SLOT

ROOT = Path(__file__).parents[3]
BLOCK = ("block_rq_issue", "raw_tp/block_rq_issue")
FOLLOWING = [("sched_process_fork", "tp_btf/sched_process_fork"), ("sched_process_exit", "raw_tp/sched_process_exit")]
VIEW = [
    ("enter_io_submit", "tracepoint/syscalls/sys_enter_io_submit"),
    ("enter_io_submit", "fentry/__x64_sys_io_submit"),
    ("exit_io_submit", "fexit/__x64_sys_io_submit"),
    ("io_uring_submit_req", "tp_btf/io_uring_submit_req"),
    ("io_uring_submit_sqe", "raw_tp/io_uring_submit_sqe"),
]
"""The app's."""


@pytest.mark.parametrize("calls", [True, False])
@pytest.mark.parametrize("follow", [True, False])
def test_only_the_programs_for_what_is_asked_are_wanted(calls: bool, follow: bool) -> None:
    options = ProbeOptions(1, calls, follow)
    assert options.wants(*BLOCK)
    assert {options.wants(*program) for program in VIEW} == {calls}
    assert {options.wants(*program) for program in FOLLOWING} == {follow}


@pytest.mark.parametrize(("entries", "places"), [(1, 1), (2, 2), (4096, 4096), (4097, 8192), (131072, 131072)])
def test_the_array_of_requests_has_a_power_of_two_of_places(entries: int, places: int) -> None:
    sizes = map_sizes(ProbeOptions(entries, follow=True), plain=True, starts_with_bio=False, cpus=1)
    assert {name: sizes[name] for name in ("requests", "displaced_requests", "made_bios")} == {
        "requests": places, "displaced_requests": entries, "made_bios": 1,
    }  # fmt: skip


def test_what_reads_by_helpers_has_the_hash_and_no_array() -> None:
    sizes = map_sizes(ProbeOptions(4097, follow=True), plain=False, starts_with_bio=True, cpus=1)
    assert (sizes["requests"], sizes["displaced_requests"], sizes["made_bios"]) == (1, 4097, 4097)


@pytest.mark.parametrize(("cpus", "entries"), [(1, 4096), (16, 4096), (32, 8192), (200, 16384)])
def test_what_overflows_has_room_for_as_many_owners_on_every_host(cpus: int, entries: int) -> None:
    sizes = map_sizes(ProbeOptions(1), plain=True, starts_with_bio=False, cpus=cpus)
    assert (sizes["overflow"], sizes["call_totals"]) == (entries, entries)


@pytest.mark.parametrize(("cpus", "least"), [(1, 8192), (32, 8192), (64, 16384), (200, 51200)])
def test_maps_that_forget_have_more_room_than_what_all_cpus_hold_back(cpus: int, least: int) -> None:
    sizes = map_sizes(ProbeOptions(1), plain=True, starts_with_bio=False, cpus=cpus)
    assert {name: sizes[name] for name in LRU_MAPS} == {name: max(size, least) for name, size in LRU_MAPS.items()}


def test_the_maps_that_forget_are_as_large_as_the_source_says() -> None:
    source = (ROOT / "bpf" / "maps.h").read_text()
    sizes = {name.lower(): int(size) for name, size in re.findall(r"#define (\w+)_MAX (\d+)", source)}
    assert {name: sizes[name] for name in LRU_MAPS} == LRU_MAPS


def test_filling_the_rings_takes_fewer_threads_than_the_service_may_have() -> None:
    unit = (ROOT / "deploy" / "llmio-probe.service").read_text()
    limit = re.search(r"^TasksMax=(\d+)$", unit, re.MULTILINE)
    assert limit
    assert int(limit[1]) // 2 > FILLED_AT_ONCE


def test_nobody_is_followed_where_nobody_asked_for_it() -> None:
    assert map_sizes(ProbeOptions(1), plain=True, starts_with_bio=False, cpus=1)["followed"] == 1


@pytest.mark.parametrize(
    ("cpus", "rings"), [(1, 1), (2, 2), (3, 4), (16, 16), (52, 64), (64, 64), (65, 64), (200, 64), (1024, 64)]
)
def test_a_ring_is_one_cpus_or_of_many_cpus_a_few_ones(cpus: int, rings: int) -> None:
    assert ring_count(cpus) == rings <= RINGS_MAX


@pytest.mark.parametrize(("online", "cpus"), [("0\n", 1), ("0-1\n", 2), ("0,2-3,6\n", 7), ("0-127\n", 128)])
def test_rings_are_for_cpus_that_run(tmp_path: Path, online: str, cpus: int) -> None:
    (tmp_path / "online").write_text(online)
    assert online_cpus(tmp_path / "online") == cpus


@pytest.mark.parametrize("cpus", [1, 2, 6, 64, 200])
def test_rings_are_powers_of_two_of_whole_pages_and_as_large_together_on_every_host(cpus: int) -> None:
    size, count = ring_bytes(ring_count(cpus)), ring_count(cpus)
    assert size & (size - 1) == 0
    assert size % RING_LEAST_BYTES == 0
    assert size * count == RINGS_BYTES <= 16 << 20
    assert SLOTS % count == 0
    assert SLOTS * REQUEST_SLOT.itemsize <= 16 << 20


# The choice of a loader


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """load(asked, types=...): which loader was called on a kernel that offers its types, or none."""

    def ask(asked: LoaderName, *, types: bool) -> Any:
        path = tmp_path / "vmlinux"
        if types:
            path.touch()
        which = loaders.which
        monkeypatch.setattr(loaders, "which", lambda asked: which(asked, path))
        for name in ("core", "bcc"):
            loader = SimpleNamespace(load=lambda libbpf, options, name=name: name)
            monkeypatch.setattr(f"llmio_probe.kernel.{name}_loader", loader, raising=False)
            monkeypatch.setitem(sys.modules, f"llmio_probe.kernel.{name}_loader", loader)
        return loaders.load(None, ProbeOptions(1, loader=asked))  # type: ignore[arg-type]

    return ask


@pytest.mark.parametrize(
    ("asked", "types", "called"),
    [
        ("auto", True, "core"),
        ("auto", False, "bcc"),
        ("core", True, "core"),
        ("core", False, "core"),  # it says what is missing
        ("bcc", True, "bcc"),
        ("bcc", False, "bcc"),
    ],
)
def test_core_is_asked_where_the_kernel_offers_its_types_and_bcc_elsewhere(
    load: Callable[..., Any], asked: LoaderName, types: bool, called: str
) -> None:
    assert load(asked, types=types) == called
