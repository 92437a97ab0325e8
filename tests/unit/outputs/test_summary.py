"""The summary for people, word for word: whoever changes it sees what users will see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llmio_probe.aggregate.rows import STAGES, ErrorCount, FileUse, Percentiles, Stream, Submission
from llmio_probe.kernel.records import Engine, Op, Path
from llmio_probe.kernel.state import ProbeState
from llmio_probe.outputs.document import Document
from llmio_probe.outputs.summary import TOP_FILES, TOP_STREAMS, WIDTH, render

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture
def busy(
    document: Any,
    stream: Callable[..., Stream],
    submission: Callable[..., Submission],
    file_use: Callable[..., FileUse],
) -> Callable[..., Document]:
    """A FlexGen run that reads weights, writes its cache and has a neighbour; give what differs in the facts."""

    latency = {  # the sums: of all its requests, while the disk is busy for 4 s
        "queue": Percentiles(2e-6, 4e-6, 8e-6, 9e-6, 0.05),
        "device": Percentiles(98e-6, 0.0004, 0.0012, 0.0025, 9.95),
        "total": Percentiles(0.0001, 0.0004, 0.00121, 0.00251, 10.0),
    }

    def make(**different: Any) -> Document:
        made: Document = document(
            [
                stream(requests=10240, bytes=5 * GIB // 4, latency_seconds=latency),
                stream(op=Op.WRITE, path=Path.WRITEBACK, role="kv_cache", requests=512, bytes=GIB // 16),
                stream(op=Op.FLUSH, engine=Engine.UNKNOWN, path=Path.UNKNOWN, role="other", requests=3, bytes=0),
                stream(owner=3, requests=4000, bytes=GIB // 2),
                stream(owner=0, requests=4, bytes=GIB // 64),
            ],
            [
                submission(calls=1024, requests=32768, submit_seconds=0.012),
                submission(op=None, calls=100, submit_seconds=None, wait_seconds=3.1),
            ],
            used=[
                file_use(read_bytes=5 * GIB // 4),
                file_use(file=2, read_bytes=0, write_bytes=GIB // 16, shared=True),
                file_use(owner=3),
                file_use(file=3, owner=0),
            ],
            shared=GIB // 16,
            **different,
        )
        return made

    return make


def test_a_session_with_a_neighbour(busy: Callable[..., Document]) -> None:
    assert (
        render(busy())
        == """\
llmio-probe watched for 5.0 s.

Requests spent most of their time on the device: 0.5 % queue, 99.5 % device.
nvme0n1 is shared: 27.4 % of its bytes are of backup[456].

Devices  session                  others                 busy  depth
nvme0n1  1.3 GiB  268.8 MiB/s  528.0 MiB  105.6 MiB/s  80.0 %    2.5
(rates over the whole time; depth: requests that it had while it was busy)

Who did what, by bytes
    requests      bytes    mean rate   queue p50       p99  device p50       p99
flexgen[123] read weights mmap/page_cache nvme0n1, 128.0 KiB each (p50)
      10,240    1.2 GiB  256.0 MiB/s      2.0 us    8.0 us     98.0 us    1.2 ms
flexgen[123] write kv_cache mmap/writeback nvme0n1, 128.0 KiB each (p50)
         512   64.0 MiB   12.8 MiB/s      2.0 us    8.0 us     98.0 us    1.2 ms
flexgen[123] flush - nvme0n1
           3        0 B        0 B/s      2.0 us    8.0 us     98.0 us    1.2 ms

Which files, by bytes
        read     written
/nvme/t_12
     1.2 GiB         0 B  weights, flexgen[123], nvme0n1
           seen by it as  /data/t_12
/nvme/cache (deleted)
         0 B    64.0 MiB  kv_cache, flexgen[123], nvme0n1, several writers

What programs asked       calls  requests/call  in submit  in wait
flexgen[123] libaio wait    100              -          -    3.1 s
flexgen[123] libaio read  1,024           32.0    12.0 ms        -
(in submit, in wait: added up over all calls and threads)

Everybody's 1.9 GiB on disks: workers 99.2 %, kernel 0.0 %, unknown 0.8 %.
Of which files: 99.2 % known, 0.8 % unknown (the kernel's own count as known).
64.0 MiB went to files that several processes wrote; the last one is named.
2 requests of the host had not ended yet: not in the figures above.
Exact: no record was lost and no request went missing.
"""
    )


def test_a_session_without_requests_says_why_and_what_to_try(document: Any) -> None:
    assert (
        render(document([], command=["sleep", "1"], exit_status=0))
        == """\
llmio-probe watched sleep 1 for 5.0 s.
The command ended with status 0.

No block request was made by what was watched. Usual reasons, and what to try:
  * All of it came from the page cache. Run it with a cold cache:
      sync; echo 3 > /proc/sys/vm/drop_caches
  * What was written is still in the page cache; the kernel writes it back after
    up to 30 s. Run sync before the session ends, or watch for longer.
  * The files are on tmpfs (/dev/shm, often /tmp), which has no device, or on a
    network filesystem (NFS, Lustre, FUSE), whose I/O leaves by the network:
      findmnt -T FILE
  * A bypass: SPDK drives the device from user space, and GPUDirect Storage
    (GDS) can move data past the kernel's block layer; is it in use?
      gdscheck -p
  * Another process does the I/O, one that is no child of what was watched, or
    it goes to a device that --device leaves out. Try llmio-probe --all.

2 requests of the host had not ended yet: not in the figures above.
Exact: no record was lost and no request went missing.
"""
    )


def test_losses_are_called_out_and_nothing_is_exact_then(document: Any, state: ProbeState) -> None:
    losses = replace(state.losses, requests=1200, missed_probes={"issue": 3})
    counts = [replace(row, expired=1) for row in state.devices]
    text = render(document([], state=replace(state, losses=losses, devices=counts)))
    assert text.endswith(
        """
NOT EXACT: 1,200 records found no room anywhere: requests count as nobody's, calls not at all.
NOT EXACT: 3 runs of our programs skipped by the kernel.
NOT EXACT: 1 request whose end the kernel did not show: counted, without times.
"""
    )
    assert "\nExact" not in text


@pytest.mark.parametrize(
    ("ending", "heading"),
    [
        ({"end": "interrupted"}, "llmio-probe watched for 5.0 s, until it was interrupted."),
        ({"end": "partial"}, "llmio-probe watched for 5.0 s, then had to stop early."),
        ({"command": ["a b"]}, "llmio-probe watched 'a b' for 5.0 s.\nThe command still runs."),
        (
            {"command": ["x" * 60], "exit_status": 3},
            f"llmio-probe watched {'x' * 38}.. for 5.0 s.\nThe command ended with status 3.",
        ),
    ],
)
def test_the_heading_says_how_it_ended(document: Any, ending: dict[str, Any], heading: str) -> None:
    assert render(document([], **ending)).startswith(heading + "\n\n")


def test_a_long_queue_is_named_before_anything_else(document: Any, stream: Callable[..., Stream]) -> None:
    slow = Percentiles(0.001, 0.001, 0.005, 0.006, 0.3)  # of a few: the median would not tell
    fast = Percentiles(0.001, 0.001, 0.001, 0.001, 0.1)
    text = render(document([stream(latency_seconds={"queue": slow, "device": fast, "total": slow})]))
    assert text.splitlines()[2] == "Requests spent most of their time in the queue: 75.0 % queue, 25.0 % device."


def test_an_idle_device_is_not_blamed(document: Any, stream: Callable[..., Stream]) -> None:
    text = render(document([stream()], duration_seconds=16.0))
    assert "\nnvme0n1 had nothing to do for 75.0 % of the time: it waited for the program.\n" in text


def test_the_device_with_most_of_the_bytes_is_the_one_to_talk_about(
    document: Any, stream: Callable[..., Stream], dm: int
) -> None:
    text = render(document([stream(bytes=4096), stream(device=dm, bytes=GIB)], duration_seconds=16.0))
    assert "nvme0n1 had nothing to do" not in text


def test_a_layer_on_disks_does_not_count_its_time_again(document: Any, stream: Callable[..., Stream], dm: int) -> None:
    slow = Percentiles(1.0, 1.0, 1.0, 1.0, 100.0)
    text = render(document([stream(), stream(device=dm, latency_seconds=dict.fromkeys(STAGES, slow))]))
    assert text.splitlines()[2].endswith("on the device: 0.5 % queue, 99.5 % device.")


def test_requests_held_in_front_of_an_idle_device_are_not_the_programs_fault(
    document: Any, stream: Callable[..., Stream]
) -> None:
    long, short = Percentiles(0.1, 0.1, 0.1, 0.1, 1.0), Percentiles(0.001, 0.001, 0.001, 0.001, 0.01)
    held = stream(latency_seconds={"queue": long, "device": short, "total": long})
    text = render(document([held], duration_seconds=16.0))
    assert (
        "\nnvme0n1 had nothing to do for 75.0 % of the time, while requests were held in front of it: see\n"
        "  /sys/block/nvme0n1/queue/scheduler\n"
    ) in text


def test_the_neighbour_with_most_bytes_is_named(
    document: Any, stream: Callable[..., Stream], owners: dict[int, Any], worker: Any
) -> None:
    more = {**owners, 5: worker(5, "mysqld", 812)}
    text = render(
        document([stream(bytes=MIB), stream(owner=3, bytes=MIB), stream(owner=5, bytes=2 * MIB)], owners=more)
    )
    assert "\nnvme0n1 is shared: 75.0 % of its bytes are of 2 others, most of all mysqld[812] 2.0 MiB.\n" in text


def test_bytes_of_nobody_known_are_not_called_a_neighbours(document: Any, stream: Callable[..., Stream]) -> None:
    text = render(document([stream(bytes=MIB), stream(owner=0, bytes=MIB), stream(owner=4, bytes=MIB)]))
    assert "is shared" not in text
    assert "\nWhose 33.3 % of nvme0n1's bytes are is not known: written before the watching\nbegan, or held" in text


def test_with_the_whole_host_there_are_no_others(document: Any, stream: Callable[..., Stream]) -> None:
    text = render(document([stream(), stream(owner=3)], session=None))
    assert text.startswith("llmio-probe watched the whole host for 5.0 s.\n")
    assert "others" not in text
    assert "Try llmio-probe --all" not in render(document([], session=None))


def test_a_disk_that_hardly_worked_is_told_with_where_else_to_look(
    document: Any, stream: Callable[..., Stream]
) -> None:
    hint = "Little reached a disk: what came from the page cache, tmpfs or the network is not seen."
    assert hint in render(document([stream()], duration_seconds=100.0)).splitlines()
    assert hint not in render(document([stream(bytes=GIB)], duration_seconds=100.0)).splitlines()


def test_what_takes_the_time_is_shown_however_few_bytes_it_moves(document: Any, stream: Callable[..., Stream]) -> None:
    engines = list(Engine)[:4]
    many = [
        stream(op=op, engine=engine, path=path, bytes=GIB)
        for op in (Op.READ, Op.WRITE) for engine in engines for path in (Path.DIRECT, Path.PAGE_CACHE)
    ]  # fmt: skip
    slow = Percentiles(0.1, 0.1, 0.1, 0.1, 9.0)
    flush = stream(op=Op.FLUSH, role="other", bytes=0, latency_seconds=dict.fromkeys(STAGES, slow))
    text = render(document([*many, flush]))
    assert f"\nWho did what, by bytes (the top {TOP_STREAMS + 1} of 17)\n" in text
    assert "\nflexgen[123] flush mmap/page_cache nvme0n1\n" in text


def test_errors_are_called_out_by_what_they_were(document: Any, stream: Callable[..., Stream], nvme: int) -> None:
    errors = [
        ErrorCount(2, nvme, Op.READ, 10, 2),
        ErrorCount(2, nvme, Op.WRITE, 7, 1),
        ErrorCount(3, nvme, Op.READ, 2, 9),
    ]
    text = render(document([stream(errors=2)], errors=errors))
    assert "\nRequests ended with an error: 2 ioerr, 1 medium on nvme0n1.\nSee the kernel log (dmesg).\n" in text


def test_what_a_device_does_not_know_is_no_error(document: Any, stream: Callable[..., Stream], nvme: int) -> None:
    errors = [ErrorCount(2, nvme, Op.DISCARD, 1, 2), ErrorCount(2, nvme, Op.READ, 12, 2)]
    assert "error" not in render(document([stream(errors=4)], errors=errors))


def test_what_the_kernel_does_not_count_is_not_called_exact(document: Any, state: ProbeState) -> None:
    text = render(document([], state=replace(state, losses=replace(state.losses, missed_probes={}))))
    assert text.endswith("\nNo record was lost; whether programs were skipped is not counted by this kernel.\n")


def test_unknown_latencies_are_a_dash_and_no_guess(document: Any, stream: Callable[..., Stream]) -> None:
    text = render(document([stream(latency_seconds={"queue": None, "device": None, "total": None})]))
    assert "Requests spent" not in text
    assert "          10    1.2 MiB  256.0 KiB/s           -         -           -         -\n" in text


def test_an_upper_layer_is_marked_because_its_bytes_come_twice(
    document: Any, stream: Callable[..., Stream], dm: int
) -> None:
    text = render(document([stream(), stream(device=dm)]))
    assert "\ndm-0 (upper)  1.2 MiB  256.0 KiB/s" in text
    assert "\n(upper: a layer on disks; the same bytes come again on the disk below)\n" in text


def test_only_the_top_streams_are_shown_and_it_says_so(
    document: Any, stream: Callable[..., Stream], owners: dict[int, Any], worker: Any
) -> None:
    many = {**owners, **{index: worker(index, f"w{index}", index) for index in range(10, 22)}}
    streams = [stream(owner=index, bytes=index << 20) for index in range(10, 22)]
    text = render(document(streams, owners=many, session=lambda owner: True))
    assert "\nWho did what, by bytes (the top 10 of 12)\n" in text
    shown = [line.split("[")[0] for line in text.splitlines() if "weights" in line]
    assert shown == [f"w{index}" for index in range(21, 21 - TOP_STREAMS, -1)]


def test_the_kernels_own_work_is_shown_by_what_it_was(document: Any, stream: Callable[..., Stream]) -> None:
    text = render(document([stream(owner=4, op=Op.WRITE, path=Path.UNKNOWN, role="other")], session=lambda owner: True))
    assert "\nkernel:journal write mmap nvme0n1, 128.0 KiB each (p50)\n" in text
    assert "\nOf which files: 100.0 % known, 0.0 % unknown" in text


def test_a_stream_of_parts_only_is_shown_with_its_bytes(document: Any, stream: Callable[..., Stream]) -> None:
    part = stream(requests=0, bytes=4096, size_bytes=None, latency_seconds=dict.fromkeys(STAGES))
    text = render(document([part]))
    assert "\nflexgen[123] read weights mmap/page_cache nvme0n1\n" in text
    assert "\n           0    4.0 KiB      819 B/s           -         -           -         -\n" in text


def test_only_the_top_files_are_shown_and_it_says_so(
    document: Any, file_use: Callable[..., FileUse], files: Any
) -> None:
    paths = {index: f"/nvme/t_{index}" for index in range(10, 22)}
    for index, path in paths.items():
        files.files[index] = replace(files.files[1], path=path)
    text = render(document([], used=[file_use(file=index, read_bytes=index) for index in paths]))
    assert "\nWhich files, by bytes (the top 10 of 12)\n" in text
    assert [line for line in text.splitlines() if line.startswith("/nvme")] == [*paths.values()][: 11 - TOP_FILES : -1]


def test_what_is_not_known_of_a_file_is_said(document: Any, file_use: Callable[..., FileUse]) -> None:
    text = render(document([], used=[file_use(file=3, owner=0)], session=lambda owner: True))
    assert (
        """
inode 14 on nvme0n1, whose name is not known
     1.0 MiB         0 B  no known process, nvme0n1
"""
        in text
    )


def test_of_a_long_path_the_end_is_shown(document: Any, file_use: Callable[..., FileUse], files: Any) -> None:
    files.files[2].path = "/nvme/" + "d" * 80 + "/t_12"
    text = render(document([], used=[file_use(file=2)]))
    (line,) = [line for line in text.splitlines() if line.startswith("..")]
    assert line.endswith("ddd/t_12 (deleted)")
    assert len(line) == WIDTH


def test_nothing_is_wider_than_a_terminal(
    busy: Callable[..., Document], owners: dict[int, Any], worker: Any, files: Any
) -> None:
    long = {**owners, 2: worker(2, "deepspeed-rank0-" + "x" * 80, 4194304)}
    for index, file in list(files.files.items()):
        files.files[index] = replace(file, path=file.path and file.path * 40)
        files.seen_as[index, 4194304] = "/data" * 40
    wide = busy(owners=long, session=lambda owner: True, command=["python"] * 40, exit_status=0)
    assert max(map(len, render(wide).splitlines())) <= WIDTH
    assert max(map(len, render(busy(end="interrupted")).splitlines())) <= WIDTH
