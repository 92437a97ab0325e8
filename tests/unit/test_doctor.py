"""What doctor says of hosts made by hand; needs no root and no BPF."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llmio_probe import doctor
from llmio_probe.doctor import CHECKS, Contents, Finding, Host
from llmio_probe.errors import ProbeError
from llmio_probe.identity.pidns import HOST_PID_NAMESPACE
from llmio_probe.kernel.records import Path as IoPath
from llmio_probe.kernel.variants import Variant
from llmio_probe.trial import Trial

ALL = (1 << 41) - 1
SYMBOLS = ("iomap_dio_bio_end_io", "bio_chain_endio", "blkdev_bio_end_io", "blkdev_bio_end_io_async", "loop_workfn")
CONTENTS = Contents(
    {
        "block_io_start": "tp_btf/block_io_start",
        "enter_io_submit": "tracepoint/syscalls/sys_enter_io_submit",
        "enter_io_submit__probe": "tracepoint/syscalls/sys_enter_io_submit",
    },
    SYMBOLS,
)
PLAIN = Variant({}, plain=True, starts_with_bio=False)
RECORDED = Trial(16, {"requests_rings": 16 << 20, "seen": 1 << 20}, 0.25, IoPath.DIRECT)


@dataclass
class HandHost(Host):
    """A host on which everything works, until a test takes something away."""

    release: str = "6.18.0-1-amd64"
    machine: str = "x86_64"
    euid: int = 0
    fitting: Variant | ProbeError = PLAIN
    tracepoints: frozenset[str] = frozenset(CONTENTS.sections.values())
    bcc: str = ""
    """What it lacks."""
    tracefs: bool = True
    statistics: bool = True
    outcome: Trial | ProbeError | OSError = RECORDED

    contents = CONTENTS

    @property
    def variant(self) -> Variant:
        if isinstance(self.fitting, ProbeError):
            raise self.fitting
        return self.fitting

    def require_bcc(self) -> None:
        if self.bcc:
            raise ProbeError(self.bcc)

    def tracepoint_ids(self, names: Iterable[str]) -> dict[str, int]:
        if not self.tracefs:
            raise PermissionError(1, "Operation not permitted")
        return {name: 1 for name in names if f"tracepoint/{name}" in self.tracepoints}

    def enable_statistics(self) -> None:
        if not self.statistics:
            raise PermissionError(1, "Operation not permitted")

    def trial(self) -> Trial:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


Make = Callable[..., HandHost]


@pytest.fixture
def host(tmp_path: Path) -> Make:
    files = {
        "proc/self/status": f"Name:\tx\nCapEff:\t{ALL:016x}\n",
        "proc/kallsyms": "".join(f"ffffffff8{n:07x} t {name}\n" for n, name in enumerate(SYMBOLS)),
        "sys/kernel/btf/vmlinux": "btf",
        "sys/block/vda/dev": "254:0\n",
        "sys/block/vda/size": "2048\n",
        "sys/block/vda/queue/scheduler": "none [mq-deadline]\n",
        "sys/block/vda/mq/0/nr_tags": "256\n",
        "sys/block/loop0/dev": "7:0\n",
        "sys/block/loop0/size": "0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "proc/self/ns").mkdir()
    (tmp_path / "proc/self/ns/pid").symlink_to(HOST_PID_NAMESPACE)

    def make(**different: object) -> HandHost:
        return HandHost(sys_root=tmp_path / "sys", proc_root=tmp_path / "proc", **different)  # type: ignore[arg-type]

    return make


def finding(name: str, host: Host) -> Finding:
    return doctor._answer(CHECKS[name], host)


def examine(host: Host) -> tuple[int, str]:
    stream = io.StringIO()
    return doctor.run(stream, host), stream.getvalue()


LIBRARIES = ("libbpf", "libatomic", "fio")
"""Checks that ask the machine that the tests run on."""


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic"])
def test_disks_that_a_program_drives_are_told(host: Make, driver: str) -> None:
    good = host()
    for name, kind in (("0000:01:00.0", "0x010802"), ("0000:02:00.0", "0x030000")):
        device = good.sys_root / "bus/pci/drivers" / driver / name
        device.mkdir(parents=True)
        (device / "class").write_text(kind + "\n")
    found = finding("bypasses", good)
    assert found.state == "warn"
    assert found.found == f"NVMe disks that a program drives by itself: 0000:01:00.0 ({driver})"


def test_a_way_from_disk_to_gpu_is_told(host: Make) -> None:
    good = host()
    (good.sys_root / "module/nvidia_fs").mkdir(parents=True)
    assert finding("bypasses", good).found.startswith("nvidia-fs is loaded")


def test_every_check_of_a_good_host_is_ok(host: Make) -> None:
    good = host()
    assert {name: finding(name, good).state for name in CHECKS if name not in LIBRARIES} == dict.fromkeys(
        (name for name in CHECKS if name not in LIBRARIES), "ok"
    )


def test_warnings_leave_the_exit_status_at_0(host: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"one": lambda _: Finding("warn", "found", "helps")})
    status, text = examine(host())
    assert (status, text) == (
        0,
        "warn  one           found\n"
        "                    -> helps\n"
        "\nA session will work here. What is marked warn will be missing.\n",
    )


def test_one_failure_makes_it_1_and_the_rest_is_still_checked(host: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Host) -> Finding:
        raise ProbeError("it is broken: mend it")

    monkeypatch.setattr(doctor, "CHECKS", {"one": broken, "two": lambda _: Finding("ok", "fine")})
    status, text = examine(host())
    assert status == 1
    assert text.splitlines()[:2] == ["FAIL  one           it is broken: mend it", "ok    two           fine"]


def test_a_check_that_cannot_read_something_warns(host: Make) -> None:
    assert finding("trial", host(outcome=OSError(30, "Read-only file system", "/var/tmp"))).state == "warn"


def test_this_machine_without_root_is_examined_and_refused() -> None:
    here = Host(euid=65534)
    here.held = frozenset()
    status, text = examine(here)
    assert status == 1
    assert text.startswith("FAIL  rights        user id 65534, without CAP_BPF and CAP_PERFMON, which")
    assert text.count("not tried: it needs the rights above") == 3
    assert max(map(len, text.splitlines())) <= doctor.WIDTH


@pytest.mark.parametrize(
    ("lacking", "state", "named"),
    [
        ((39, 21), "fail", "CAP_BPF"),
        ((38, 21), "fail", "CAP_PERFMON"),
        ((39, 38), "ok", ""),  # SYS_ADMIN includes both
        ((34,), "warn", "CAP_SYSLOG"),
        ((21,), "warn", "CAP_SYS_ADMIN"),
        ((6, 7), "warn", "CAP_SETGID and CAP_SETUID"),
    ],
)
def test_rights(host: Make, lacking: tuple[int, ...], state: str, named: str) -> None:
    made = host()
    held = ALL - sum(1 << bit for bit in lacking)
    (made.proc_root / "self" / "status").write_text(f"CapEff:\t{held:016x}\n")
    found = finding("rights", made)
    assert found.state == state
    assert named in found.found


@pytest.mark.parametrize(
    ("release", "machine", "state"),
    [
        ("5.10.0-33-amd64", "x86_64", "ok"),
        ("6.8.0-1021-gcp", "aarch64", "ok"),
        ("7.1-rc3", "x86_64", "ok"),
        ("5.4.0-200-generic", "x86_64", "fail"),
        ("6.18.0", "riscv64", "fail"),
    ],
)
def test_kernel(host: Make, release: str, machine: str, state: str) -> None:
    assert finding("kernel", host(release=release, machine=machine)).state == state


def test_a_locked_down_kernel_fails(host: Make) -> None:
    made = host()
    (made.sys_root / "kernel/security").mkdir()
    (made.sys_root / "kernel/security/lockdown").write_text("none integrity [confidentiality]\n")
    assert finding("kernel", made).state == "fail"
    (made.sys_root / "kernel/security/lockdown").write_text("none [integrity] confidentiality\n")
    assert finding("kernel", made).state == "ok"


@pytest.fixture
def typeless(host: Make) -> Make:
    """A kernel that offers no types."""
    (host().sys_root / "kernel/btf/vmlinux").unlink()
    return host


def test_a_kernel_without_types_is_for_bcc(typeless: Make) -> None:
    found = finding("types (BTF)", typeless())
    assert found.state == "ok"
    assert "vmlinux is missing; BCC compiles" in found.found
    assert finding("tracepoints", typeless(fitting=ProbeError("not asked"))).state == "ok"


@pytest.mark.parametrize("asked", ["auto", "bcc"])
def test_without_types_what_bcc_needs_fails(typeless: Make, asked: str) -> None:
    found = finding("types (BTF)", typeless(asked=asked, bcc="BCC is not installed: install it"))
    assert found.state == "fail"
    assert found.found.endswith("vmlinux is missing; BCC is not installed: install it")
    assert found.helps == "or use a kernel built with CONFIG_DEBUG_INFO_BTF=y"


def test_what_bcc_needs_is_asked_only_for_bcc(host: Make) -> None:
    lacking = "BCC is not installed: install it"
    assert finding("types (BTF)", host(bcc=lacking)).state == "ok"
    assert finding("types (BTF)", host(bcc=lacking, asked="bcc")).state == "fail"


def test_a_kernel_without_types_fails_for_core(typeless: Make) -> None:
    found = finding("types (BTF)", typeless(asked="core"))
    assert (found.state, found.helps) == ("fail", "use a kernel built with CONFIG_DEBUG_INFO_BTF=y")


@pytest.mark.parametrize("library", ["libbpf", "libatomic"])
def test_a_missing_library_names_its_package(host: Make, library: str) -> None:
    found = finding(library, host(**{library: "libnothing.so.9"}))
    assert found.state == "fail"
    assert "install" in found.found


def test_another_pid_namespace_fails(host: Make) -> None:
    made = host()
    link = made.proc_root / "self/ns/pid"
    link.unlink()
    link.symlink_to("pid:[1]")
    assert finding("PID namespace", made).state == "fail"


@pytest.mark.parametrize(
    ("fitting", "text"),
    [
        (PLAIN, "CO-RE, plain loads, requests from block_io_start"),
        (Variant({}, plain=False, starts_with_bio=True), "CO-RE, probe reads, requests from block_getrq"),
    ],
)
def test_the_variant_for_the_kernels_tracepoints_is_named(host: Make, fitting: Variant, text: str) -> None:
    assert finding("tracepoints", host(fitting=fitting)) == Finding("ok", text)


def test_tracepoints_that_no_variant_fits_fail(host: Make) -> None:
    refused = ProbeError("this kernel lacks the tracepoints block_getrq: it needs Linux 5.10 or newer")
    assert finding("tracepoints", host(fitting=refused)) == Finding("fail", str(refused))


def test_a_missing_optional_tracepoint_warns(host: Make) -> None:
    found = finding("tracepoints", host(fitting=replace(PLAIN, missing=("io_uring_submit_sqe",))))
    assert found.state == "warn"
    assert found.found.endswith("; no io_uring_submit_sqe")


def test_for_bcc_the_trial_tells(host: Make) -> None:
    found = finding("tracepoints", host(asked="bcc", fitting=ProbeError("not asked")))
    assert (found.state, found.found[:5]) == ("ok", "BCC, ")


@pytest.fixture
def kallsyms(host: Make) -> Callable[[Mapping[str, int]], Finding]:
    """kallsyms({name: address}): what doctor says of such symbols."""

    def look(symbols: Mapping[str, int]) -> Finding:
        made = host()
        text = "".join(f"{address:016x} t {name}\n" for name, address in symbols.items())
        (made.proc_root / "kallsyms").write_text(text)
        return finding("symbols", made)

    return look


def test_hidden_symbols_warn(kallsyms: Callable[..., Finding]) -> None:
    assert "kptr_restrict" in kallsyms(dict.fromkeys(SYMBOLS, 0)).helps
    assert kallsyms({}).state == "warn"


@pytest.mark.parametrize(
    ("lacking", "missing"),
    [
        (("iomap_dio_bio_end_io",), "iomap_dio_bio_end_io"),
        (("bio_chain_endio",), "bio_chain_endio"),
        (("blkdev_bio_end_io", "blkdev_bio_end_io_async"), "blkdev_bio_end_io and blkdev_bio_end_io_async"),
        (("blkdev_bio_end_io",), None),
        (("blkdev_bio_end_io_async", "loop_workfn"), None),  # as before 5.14
    ],
)
def test_only_symbols_that_every_kernel_has_are_missed(
    kallsyms: Callable[..., Finding], lacking: tuple[str, ...], missing: str | None
) -> None:
    found = kallsyms({name: 0xFFFFFFFF81000000 for name in SYMBOLS if name not in lacking})
    assert found.state == ("warn" if missing else "ok")
    assert ("unknown" in found.helps) is (missing == "iomap_dio_bio_end_io")
    assert missing is None or found.found == f"not in this kernel, or twice: {missing}"


def test_the_apps_view(host: Make) -> None:
    assert finding("app's view", host(tracefs=False)).state == "warn"  # a session works without it
    assert "--no-calls" in finding("app's view", host(tracefs=False)).helps
    found = finding("app's view", host(tracepoints=frozenset()))
    assert (found.state, found.found) == ("warn", "0 of 1 syscall tracepoints")


def test_the_apps_view_by_functions_needs_no_tracefs(host: Make) -> None:
    assert finding("app's view", host(fitting=replace(PLAIN, fentry=True), tracefs=False)).state == "ok"
    refused = ProbeError("said by another check")
    assert finding("app's view", host(fitting=refused)).state == "ok"  # by tracepoints


def test_refused_statistics_warn(host: Make) -> None:
    assert finding("statistics", host(statistics=False)).state == "warn"


def test_the_trial(host: Make) -> None:
    assert finding("trial", host()).found == (
        "16 programs loaded, attached and detached; they take 16.0 MiB of rings and 1.0 MiB of tables; "
        "first record 250.0 ms after the start"
    )
    assert finding("trial", host(outcome=ProbeError("no"))).state == "fail"
    assert "no record came" in finding("trial", host(outcome=Trial(16, {}, None, None))).found
    less = ("another table is full", "the app's view is missing, this user gets no perf events (Permission denied)")
    found = finding("trial", host(outcome=replace(RECORDED, warnings=less)))
    assert (found.state, less[0] in found.found, less[1] in found.found) == ("warn", False, True)
    assert "another path" in finding("trial", host(outcome=Trial(16, {}, 0.1, IoPath.PAGE_CACHE))).found


def test_disks_are_those_with_a_medium(host: Make) -> None:
    made = host()
    assert finding("disks", made).found == "vda (disk, scheduler mq-deadline, 1 queue)"
    (made.sys_root / "block/vda/size").write_text("0\n")
    assert finding("disks", made).state == "warn"


def test_fio_is_only_wanted(host: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert finding("fio", host()).state == "warn"
