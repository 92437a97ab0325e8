"""A session from the outside: its ends, exit codes, signals and streams, as the design promises them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.harness import HANG, PROBE, Disk, Live, check, watch

FOREVER = "while :; do sleep 0.1; done"
WORKLOAD = Path(__file__).parent / "workload.py"


def session(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*PROBE, *map(str, arguments)], capture_output=True, text=True, timeout=HANG, **options
    )


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
)
def test_the_commands_own_status_is_ours(script: str, status: int) -> None:
    watched = watch(["sh", "-c", script])
    assert watched.status == status
    assert watched.report["command"] == {"argv": ["sh", "-c", script], "exit_status": status}


def test_a_command_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    done = session("--", "/no/such/program")
    assert done.returncode == 127
    assert done.stderr == "llmio-probe: cannot start /no/such/program: there is no such program\n"
    plain = tmp_path / "plain"
    plain.write_text("")
    done = session("--", plain)
    assert done.returncode == 126
    assert done.stderr.count("\n") == 1


def test_failures_of_ours_are_125_with_a_command_and_1_without() -> None:
    done = session("--device", "nosuchdisk", "--", "true")
    assert done.returncode == 125
    assert "nosuchdisk" in done.stderr
    assert session("--device", "nosuchdisk", "--all").returncode == 1


def test_stdin_passes_through_and_output_stays_apart() -> None:
    done = session("--json", "--", "sh", "-c", "cat; echo note >&2", input="through\n")
    assert done.returncode == 0
    check(json.loads(done.stdout))
    assert "through\n" in done.stderr
    assert "note\n" in done.stderr


def test_with_output_the_command_keeps_standard_output(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")
    path.chmod(0o644)
    done = session("--json", "--output", path, "--", "echo", "mine")
    assert done.stdout == "mine\n"
    check(json.loads(path.read_text()))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_command_inherits_no_descriptor_of_ours() -> None:
    done = session("--json", "--", "ls", "-l", "/proc/self/fd")
    links = [line for line in done.stderr.splitlines() if "->" in line]
    assert {line.split()[8] for line in links} == {"0", "1", "2", "3"}  # 3 is the listing itself
    assert not [line for line in links if "anon_inode" in line]


def test_user_runs_the_command_as_that_user() -> None:
    assert "65534\n" in session("--user", "nobody", "--", "id", "-u").stdout


def test_duration_ends_the_watching_but_never_the_command(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    begin = time.monotonic()
    done = session("--json", "--output", path, "--duration", "0.5", "--", "sh", "-c", "sleep 2; exit 5")
    assert done.returncode == 5
    assert time.monotonic() - begin >= 2
    report = check(json.loads(path.read_text()))
    assert report["command"]["exit_status"] is None
    assert report["duration_seconds"] < 2
    assert report["end"] == "completed"


def test_the_first_interrupt_gives_the_whole_summary(live: Callable[..., Live]) -> None:
    running = live("--all")
    time.sleep(0.3)
    report = running.interrupt()
    assert report["end"] == "interrupted"
    assert report["command"] is None


def test_a_sigterm_sums_up_too(live: Callable[..., Live]) -> None:
    running = live("--all")
    running.process.send_signal(signal.SIGTERM)
    assert running.finish()["end"] == "interrupted"


_FAILS_ON_ITS_WAY = """
import sys
from llmio_probe.cli import main
from llmio_probe.errors import ProbeError
from llmio_probe.kernel.probe import Probe
read, times = Probe.read, iter([1])
def fails(self):
    if not next(times, 0):
        raise ProbeError("the tables cannot be read any more")
    return read(self)
Probe.read = fails
sys.exit(main(sys.argv[1:]))
"""


def test_a_failure_on_the_way_still_gives_what_was_counted_until_then(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    words = ["--json", "--output", str(path), "--", "sleep", "3"]  # it is read once a second at least
    done = subprocess.run(
        [sys.executable, "-c", _FAILS_ON_ITS_WAY, *words], capture_output=True, text=True, timeout=HANG
    )
    assert (done.returncode, done.stderr) == (125, "llmio-probe: the tables cannot be read any more\n")
    report = json.loads(path.read_text())
    assert report["end"] == "partial"
    assert 0 < report["duration_seconds"] < 3
    assert report["command"]["exit_status"] is None


def test_a_sigterm_is_forwarded_to_the_command(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    ready = tmp_path / "ready"
    with subprocess.Popen(
        [*PROBE, "--json", "--output", path, "--", "sh", "-c", f"trap 'exit 9' TERM; touch {ready}; {FOREVER}"]
    ) as process:
        while not ready.exists():
            time.sleep(0.05)
        process.terminate()
        assert process.wait(HANG) == 9
    assert check(json.loads(path.read_text()))["command"]["exit_status"] == 9


def test_an_interrupt_from_the_terminal_reaches_the_command_and_we_sum_up(tmp_path: Path) -> None:
    """A terminal signals the whole foreground group; here a group of its own stands in for it."""
    path, ready = tmp_path / "summary.json", tmp_path / "ready"
    with subprocess.Popen(
        [*PROBE, "--json", "--output", path, "--", "sh", "-c", f"trap 'exit 3' INT; touch {ready}; {FOREVER}"],
        start_new_session=True,
    ) as process:
        while not ready.exists():
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(HANG) == 3
    assert check(json.loads(path.read_text()))["command"]["exit_status"] == 3


def test_a_closed_pipe_ends_quietly() -> None:
    with subprocess.Popen(
        [*PROBE, "--all", "--interval", "0.1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(HANG) == 0
    assert b"Traceback" not in errors
    assert errors.count(b"\n") == 1


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""As for a user."""


@pytest.mark.parametrize("where", ["closed", "/dev/full"])
def test_live_lines_that_nobody_gets_cost_no_summary(tmp_path: Path, where: str) -> None:
    path = tmp_path / "summary.json"
    words = ["--all", "--json", "--output", str(path), "--interval", "0.1", "--duration", "1"]
    if where == "closed":
        reading, stdout = os.pipe()
        os.close(reading)
    else:
        stdout = os.open(where, os.O_WRONLY)
    with subprocess.Popen([*PROBE, *words], stdout=stdout, stderr=subprocess.PIPE, text=True, env=BUFFERED) as process:
        os.close(stdout)
        assert process.stderr
        errors = process.stderr.read()
        assert process.wait(HANG) == 0, errors
    assert errors.count("\n") == 1
    assert check(json.loads(path.read_text()))["end"] == "completed"


def test_live_lines_that_nobody_gets_do_not_hide_the_commands_status() -> None:
    with open("/dev/full", "w") as full:
        words = ["--interval", "0.1", "--", "sh", "-c", "sleep 0.5; exit 7"]
        done = subprocess.run(
            [*PROBE, *words], stdout=subprocess.DEVNULL, stderr=full, timeout=HANG, check=False, env=BUFFERED
        )
    assert done.returncode == 7


def test_a_closed_pipe_does_not_hide_the_commands_status() -> None:
    with subprocess.Popen(
        [*PROBE, "--", "sh", "-c", "exit 5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(HANG) == 5


def test_a_thread_is_no_process_and_a_kernel_thread_no_worker() -> None:
    """iotop and top -H show thread ids; by one nothing would ever be found."""
    with subprocess.Popen(
        [sys.executable, "-c", "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()"]
    ) as process:
        try:
            deadline = time.monotonic() + HANG
            while len(threads := os.listdir(f"/proc/{process.pid}/task")) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            [thread] = set(threads) - {str(process.pid)}
            done = session("--pid", thread)
        finally:
            process.kill()
    assert done.returncode == 1
    assert done.stderr == f"llmio-probe: {thread} is a thread of process {process.pid}: use --pid {process.pid}\n"
    done = session("--pid", "2")
    assert done.returncode == 1
    assert "thread of the kernel" in done.stderr


def test_no_such_process_is_one_sentence() -> None:
    done = session("--pid", "4194303")
    assert done.returncode == 1
    assert done.stderr == "llmio-probe: there is no process 4194303: look for the right one with ps\n"


def test_what_hosts_may_lack_is_one_sentence_each(tmp_path: Path) -> None:
    """No BTF, no object, an object of another build: through the same code, with other paths."""
    program = """
import sys
from pathlib import Path
from unittest import mock
from llmio_probe import cli
from llmio_probe.kernel import core_loader
what, path = sys.argv[1:]
with mock.patch.object(core_loader, what, Path(path) if what.isupper() else lambda: Path(path)):
    sys.exit(cli.main(["--all", "--loader", "core"]))
"""
    for what, path, words in (
        ("VMLINUX_BTF", "/no/btf", "CONFIG_DEBUG_INFO_BTF"),
        ("object_path", str(tmp_path / "none.o"), "make setup"),
        ("object_path", str(WORKLOAD), "make setup"),
    ):
        done = subprocess.run([sys.executable, "-c", program, what, path], capture_output=True, text=True, timeout=HANG)
        assert done.returncode == 1, done.stderr
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_control_bytes_in_names_reach_nobodys_terminal(loop_disk: Disk, tmp_path: Path) -> None:
    evil = tmp_path / "a\x1b[2Jb\nc"
    evil.symlink_to(sys.executable)
    done = session("--", evil, WORKLOAD, "-", loop_disk.path, "pread", "101")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "a\\x1b[2Jb\\x0ac" in done.stdout


def test_a_killed_session_leaves_nothing_attached(live: Callable[..., Live]) -> None:
    running = live("--all")
    running.process.kill()
    running.process.wait(HANG)  # nothing_stays_attached looks


def test_requests_in_flight_at_attach_are_counted_apart(
    loop_disk: Disk, live: Callable[..., Live], tmp_path: Path
) -> None:
    """A queue that is full while the programs attach: what was made before has no owner, and no start."""
    job = [
        "fio", "--name=full", f"--filename={loop_disk.path}", f"--size={loop_disk.size}", "--time_based",
        "--runtime=60", "--rw=randread", "--bs=1M", "--direct=1", "--ioengine=libaio", "--iodepth=64", "--norandommap",
        f"--output={tmp_path / 'fio'}",
    ]  # fmt: skip
    with subprocess.Popen(job) as process:
        try:
            time.sleep(1)
            running = live("--all", "--device", loop_disk.device)
            time.sleep(1)
            report = running.interrupt()
        finally:
            process.terminate()
            process.wait(HANG)
    assert report["accounting"]["in_flight_at_attach"] > 0
    unknown = [s for s in report["streams"] if s["worker"] == "unknown"]
    assert sum(s["requests"] for s in unknown) == report["accounting"]["in_flight_at_attach"]
    assert all(s["pid"] is None and s["engine"] is None for s in unknown)


@pytest.mark.guest
def test_in_a_pid_namespace_it_refuses_with_the_reason() -> None:
    """The kernel's process ids are the host's: in a container with its own they would name other processes."""
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *PROBE, "--pid", "1"],
        capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 1
    assert "this is not the host's PID namespace" in done.stderr
    assert "--pid=host" in done.stderr
    assert done.stderr.count("\n") == 1
