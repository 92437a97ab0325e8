"""What the wheel brings along, on a host that has nothing but Python; and a start without root, as systemd does it."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmio_probe.single import FOLDER
from tests.live.daemons import running_daemon
from tests.live.harness import HANG, Actor, Disk, check, run
from tests.live.system import Volume
from tests.live.wheels import Installed, installed_wheel

BLOCK = 4096
REQUESTS = 1009
SYSTEMS = ("libbpf.so.1", "libelf.so.1", "libatomic.so.1")
"""What is hidden; not libz, which half the system needs."""
SYS_PTRACE = 1 << 19


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    with installed_wheel() as made:
        yield made


def hidden() -> str:
    """Shell: in a mount namespace of its own, those libraries are no libraries, and no program can be found by name."""
    listed = run("/sbin/ldconfig", "-p")
    paths = {
        os.path.realpath(path) for name in SYSTEMS for path in re.findall(rf"{re.escape(name)} .*=> (\S+)", listed)
    }
    assert len(paths) == len(SYSTEMS)
    hide = "".join(f"mount --bind /dev/null {path} && " for path in sorted(paths))
    return f"{hide} PATH=/nonexistent exec"


def without_libraries(*command: str | Path) -> subprocess.CompletedProcess[str]:
    words = ["unshare", "--mount", "sh", "-c", f'{hidden()} "$@"', "sh", *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, timeout=HANG)


def test_what_it_brings_has_its_licence_beside_it(installed: Installed) -> None:
    [wheel] = (installed.folder.parent / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name.removeprefix("llmio_probe/kernel/carried/") for name in archive.namelist() if "/carried/" in name]
        notices = [archive.read(name).decode() for name in archive.namelist() if "/carried/licences/" in name]
    libraries = sorted(name for name in names if ".so" in name)
    assert libraries == ["libatomic.so.1", "libbpf.so.1", "libelf.so.1", "libz.so.1"]
    for library in libraries:
        [notice] = [text for text in notices if text.startswith(f"{library}, of the Debian package ")]
        assert "Its source is Debian's source package " in notice
        assert len(notice.splitlines()) > 30


def test_a_host_without_compiler_and_libraries_uses_those_of_the_wheel(installed: Installed, loop_disk: Disk) -> None:
    output = installed.folder.parent / "summary.json"
    done = without_libraries(
        installed.program, "--json", "--output", output, "--device", loop_disk.device, "--",
        "/usr/bin/dd", f"if={loop_disk.path}", "of=/dev/null", f"bs={BLOCK}", f"count={REQUESTS}", "iflag=direct",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = check(json.loads(output.read_text()))
    in_flight = report["accounting"]["in_flight"]
    found = [(s["requests"], s["bytes"]) for s in report["streams"] if s["op"] == "read" and s["pid"]]
    assert found == [(REQUESTS - in_flight, BLOCK * (REQUESTS - in_flight))]


LOADED = """
from llmio_probe.kernel.atomics import Atomics
from llmio_probe.kernel.libbpf import Libbpf
Libbpf(), Atomics()
paths = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(*sorted(path for path in paths if any(name in path for name in ("libbpf", "libelf", "libatomic"))), sep="\\n")
"""


def test_the_systems_libraries_come_first(installed: Installed) -> None:
    theirs = without_libraries(installed.python, "-I", "-c", LOADED)
    assert theirs.returncode == 0, theirs.stderr
    lines = theirs.stdout.splitlines()
    assert [Path(line).name for line in lines] == ["libatomic.so.1", "libbpf.so.1", "libelf.so.1"]
    assert all(line.startswith(f"{installed.folder}/") for line in lines)
    ours = run(installed.python, "-I", "-c", LOADED)
    assert len(ours.splitlines()) == len(SYSTEMS)
    assert str(installed.folder) not in ours


def test_capabilities_are_enough_without_root(installed: Installed, ext4_volume: Volume, open_folder: Path) -> None:
    """As systemd starts it: some user with four capabilities, who may not open the files that it tells the roles of.

    The worker is root's, and what makes it DeepSpeed's third is in its environment.
    """
    nobody = pwd.getpwnam("nobody")
    rights = "+bpf,+perfmon,+syslog,+sys_ptrace"
    service = (
        "setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups",
        f"--inh-caps={rights}", f"--ambient-caps={rights}", installed.program,
    )  # fmt: skip
    folder = ext4_volume.folder / "private"
    folder.mkdir(mode=0o700, exist_ok=True)
    weights = folder / "model-00001-of-00002.safetensors"
    with weights.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2 * BLOCK * REQUESTS)
        file.write(os.urandom(2 * BLOCK * REQUESTS))
        os.fsync(file.fileno())
    weights.chmod(0o600)
    environ = ("env", "CROSS_RANK=3", "CROSS_SIZE=4", "LOCAL_SIZE=4", "RANK=3")
    device = ext4_volume.disk.device
    with (
        runtime_directory(nobody.pw_uid),
        running_daemon(open_folder, program=service) as running,
        Actor(*environ) as actor,
    ):
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        assert re.search(rf"^Uid:\t{nobody.pw_uid}\t{nobody.pw_uid}\t", status, re.MULTILINE)
        held = {name: int(re.search(rf"^{name}:\t(\w+)$", status, re.MULTILINE)[1], 16) for name in CAPABILITIES}  # type: ignore[index]
        assert held["CapPrm"] & ~(1 << 39) == held["CapEff"] & ~(1 << 39) == SYS_PTRACE
        assert held["CapInh"] == held["CapAmb"] == 0
        actor.do("submit", weights, "read", BLOCK, REQUESTS, 0, 2 * BLOCK)
        assert actor.io()["read_bytes"] >= BLOCK * REQUESTS
        running.eventually(
            "llmio_bytes_total", BLOCK * REQUESTS, BLOCK,
            device=device, worker="deepspeed-rank3", op="read", role="weights", engine="libaio", path="direct",
        )  # fmt: skip
        said = running.end()
    assert "Traceback" not in said
    assert "llmio_program_cost_seconds is missing" in said


@contextmanager
def runtime_directory(uid: int) -> Iterator[None]:
    """The folder of the daemon's lock as RuntimeDirectory= makes it; root's own is made anew when one is needed."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    os.chown(FOLDER, uid, -1)
    try:
        yield
    finally:
        shutil.rmtree(FOLDER)


CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")
