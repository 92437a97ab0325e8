"""The daemon in service: what it may do once it runs, how it is told things, and how it ends, whoever ends it."""

from __future__ import annotations

import json
import os
import pwd
import re
import select
import signal
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.live.daemons import Daemon, configuration, running_daemon
from tests.live.harness import HANG, PROBE, Disk, fio, fio_totals, run, task_io, tracing_programs

REQUESTS = 20011
SYS_PTRACE, BPF = 1 << 19, 1 << 39
TABLES_WITHOUT_RIGHTS_SINCE = (5, 19)
LOAD = ("--direct=1", "--rw=randread", "--bs=4k", "--blockalign=8k", "--ioengine=libaio", "--iodepth=32")

Start = Callable[..., Daemon]


def kernel() -> tuple[int, ...]:
    return tuple(map(int, os.uname().release.split(".")[:2]))


def status_of(task: Path) -> dict[str, str]:
    """The fields of /proc/PID/status, or of a thread's."""
    lines = (task / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


# Rights


def test_it_is_nobody_and_holds_one_capability(daemon: Start) -> None:
    """By what the kernel says of each of its threads: those that talk to the network have none at all."""
    running = daemon()
    running.scrape()
    account = next(user for user in pwd.getpwall() if user.pw_name in ("llmio-probe", "nobody"))
    needed = SYS_PTRACE if kernel() >= TABLES_WITHOUT_RIGHTS_SINCE else SYS_PTRACE | BPF
    threads = {
        int(task.name): dict(
            line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line
        )
        for task in Path(f"/proc/{running.process.pid}/task").iterdir()
    }
    assert len(threads) > 1
    for thread, status in threads.items():
        assert set(status["Uid"].split()) == {str(account.pw_uid)}
        assert set(status["Gid"].split()) == {str(account.pw_gid)}
        assert status["Groups"].split() == []
        held = needed if thread == running.process.pid else 0
        assert [int(status[name], 16) for name in ("CapPrm", "CapEff")] == [held, held]
        assert [int(status[name], 16) for name in ("CapInh", "CapBnd", "CapAmb")] == [0, 0, 0]
        assert status["NoNewPrivs"] == "1"


def test_it_holds_no_file_open_but_its_lock_and_what_it_was_started_with(daemon: Start) -> None:
    running = daemon()
    folder = Path(f"/proc/{running.process.pid}/fd")
    kinds = Counter(re.sub(r"\d+", "N", os.readlink(fd)) for fd in folder.iterdir() if int(fd.name) > 2)
    assert set(kinds) <= {
        "anon_inode:bpf-map", "anon_inode:bpf-prog", "anon_inode:bpf_link", "anon_inode:[perf_event]",
        "anon_inode:btf", "anon_inode:bpf-stats", "anon_inode:[eventpoll]", "socket:[N]",
        "/run/llmio-probe/daemon",
    }, kinds  # fmt: skip


def test_nobody_else_gets_at_its_memory(daemon: Start) -> None:
    """Other processes' environments are in it: a user of the same id may not look, and there is no core dump."""
    running = daemon()
    maps = f"/proc/{running.process.pid}/maps"
    assert os.stat(maps).st_uid == 0  # as of a process that leaves no core dump (proc(5))
    nobody = pwd.getpwnam("nobody")
    as_nobody = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    done = subprocess.run([*as_nobody, "cat", maps], capture_output=True, text=True, timeout=HANG)
    assert (done.stdout, done.stderr) == ("", f"cat: {maps}: Permission denied\n")


# One a host


def test_a_second_daemon_says_so_and_leaves(daemon: Start, tmp_path: Path) -> None:
    running = daemon()
    other = tmp_path / "other"
    other.mkdir()
    second = [*PROBE, "daemon", "--config", str(configuration(other))]  # on another port
    command = " ".join([*map(str, PROBE), "daemon", "--config", str(running.config)])
    done = subprocess.run(second, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 1
    assert done.stderr == (
        f"llmio-probe: a daemon runs on this host already (process {running.process.pid}: {command}): "
        "stop it first, or watch beside it with llmio-probe --all\n"
    )
    running.scrape()


# How it ends


def test_killed_under_load_it_leaves_nothing_and_the_load_goes_on(
    daemon: Start, loop_disk: Disk, open_folder: Path, tmp_path: Path
) -> None:
    programs, maps = tracing_programs(), bpf_maps()
    running = daemon()
    assert tracing_programs() > programs
    report = tmp_path / "fio.json"
    job = fio(loop_disk, *LOAD, "--rw=randrw", requests=3 * REQUESTS, report=report)
    with subprocess.Popen(job) as load:
        time.sleep(0.5)
        assert load.poll() is None
        running.process.kill()
        running.process.wait(HANG)
        assert load.wait(HANG) == 0
    jobs = json.loads(report.read_text()[report.read_text().index("{") :])["jobs"]
    assert [one["error"] for one in jobs] == [0]
    assert sum(requests for requests, _ in fio_totals(report).values()) == 3 * REQUESTS
    deadline = time.monotonic() + 10  # the kernel frees them a little after their last descriptor
    while (tracing_programs(), bpf_maps()) != (programs, maps) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tracing_programs(), bpf_maps()) == (programs, maps)
    with running_daemon(open_folder) as again:  # nothing of it is in the way
        again.scrape()


def bpf_maps() -> set[int]:
    """Those of tracing programs that others may start meanwhile are not looked at: nobody else has these names."""
    names = (
        "requests", "request_slots", "requests_rings", "ring_positions", "displaced_reque", "overflow", "call_totals",
        "call_states", "calls", "processes_ring", "files_ring", "device_counts",
    )  # fmt: skip
    return {entry["id"] for entry in json.loads(run("bpftool", "-j", "map", "show")) if entry.get("name") in names}


ENDS_WITHIN = 2.0
"""Seconds from SIGTERM to its end, as is promised."""


def test_it_ends_in_time_under_load_with_a_scrape_in_flight_and_clients_that_hold_on(
    daemon: Start, loop_disk: Disk, tmp_path: Path
) -> None:
    running = daemon()
    host, _, port = running.address.partition(":")
    report = tmp_path / "fio.json"
    endless = ("--time_based", f"--runtime={HANG}")
    load = subprocess.Popen(fio(loop_disk, *LOAD, *endless, requests=10**9, report=report))
    held = [socket.create_connection((host, int(port)), HANG) for _ in range(3)]
    try:
        held[1].sendall(b"GET /metrics HTTP/1.1\r\nHost:")  # and never the rest; the first says nothing at all
        while not running.value("llmio_requests_total", device=loop_disk.device, worker="fio"):
            assert load.poll() is None
        assert load.poll() is None
        held[2].sendall(b"GET /metrics HTTP/1.0\r\n\r\n")  # whose answer nobody waits for
        asked = time.monotonic()
        running.process.terminate()
        assert running.process.wait(HANG) == 0
        assert time.monotonic() - asked < ENDS_WITHIN
        assert load.poll() is None  # all the time
    finally:
        for connection in held:
            connection.close()
        load.kill()
        load.wait()


# What it is told


def test_a_reload_loses_no_count_and_detaches_nothing(daemon: Start, loop_disk: Disk, tmp_path: Path) -> None:
    running = daemon()
    programs = tracing_programs()
    report = tmp_path / "fio.json"
    for number in (1, 2):  # what the host does not show of the first is expired by the second
        with subprocess.Popen(fio(loop_disk, *LOAD, requests=number * REQUESTS, report=report)) as load:
            for seconds in (60, 70, 80):
                said = running.reload(f"grace_seconds: {seconds}\nlog_level: debug\nworkers: {seconds}\n")
                assert "INFO the configuration was read again\n" in said
            assert load.wait(HANG) == 0
    assert tracing_programs() == programs
    labels = {"device": loop_disk.device, "worker": "fio", "op": "read"}
    running.eventually("llmio_requests_total", 3 * REQUESTS, 1, **labels)
    running.eventually("llmio_bytes_total", 4096 * 3 * REQUESTS, 4096, **labels)


def test_a_reload_takes_over_rules_and_devices(daemon: Start, ext4_disk: Disk, loop_disk: Disk, tmp_path: Path) -> None:
    running = daemon()
    report = tmp_path / "fio.json"
    hidden = 64 * 4096
    """At most as much of the end of a job the host may not show (tests/live/harness.py)."""

    def seen(role: str) -> float:
        return running.value("llmio_bytes_total", worker="fio", device=ext4_disk.device, engine="libaio", role=role)

    def read(requests: int, role: str) -> None:
        before = seen(role)
        subprocess.run(fio(ext4_disk, *LOAD, requests=requests, report=report), check=True, timeout=HANG)
        deadline = time.monotonic() + 30
        while seen(role) - before < fio_totals(report)["read"][1] - hidden and time.monotonic() < deadline:
            time.sleep(0.2)
        assert seen(role) - before >= fio_totals(report)["read"][1] - hidden

    read(1009, "other")
    rule = f"{{name: ours, role: kv_cache, path: '{ext4_disk.path}'}}"
    running.reload(f"roles: [{rule}]\n")
    counted = seen("other")
    read(1013, "kv_cache")
    assert seen("other") == counted  # what was counted under a role stays there
    running.reload(f"roles: [{rule}]\ndevices: [{loop_disk.device}]\n")
    counted = seen("kv_cache")
    subprocess.run(fio(ext4_disk, *LOAD, requests=1019, report=report), check=True, timeout=HANG)
    subprocess.run(fio(loop_disk, *LOAD, requests=1021, report=report), check=True, timeout=HANG)
    running.eventually("llmio_requests_total", 1021, 1, device=loop_disk.device, worker="fio")
    assert seen("kv_cache") == counted


def test_a_wrong_configuration_changes_nothing(daemon: Start) -> None:
    running = daemon()
    said = running.reload("grace_seconds: 10\nworkers: many\n")
    assert said == (
        f"ERROR the configuration stays as it was: {running.config}:4: "
        "workers must be a whole number from 1 to 1,000, not many\n"
    )
    right, read = "llmio_config_last_reload_successful", "llmio_config_last_reload_success_timestamp_seconds"
    running.eventually(right, 0)
    before = running.value(read)
    running.reload("grace_seconds: 10\n")
    running.eventually(right, 1)
    assert before < running.value(read) < time.time()


def test_what_only_a_restart_takes_over_is_named(daemon: Start) -> None:
    running = daemon()
    said = running.reload("calls: false\nprogram_cost: off\nworkers: 3\n")
    assert said.startswith("WARNING only a restart takes over what is new of calls, program_cost\n")
    assert running.reload("").endswith("INFO the configuration was read again\n")


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """The end of sd_notify(3) that is systemd's. By an abstract name, which every user reaches."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0llmio-test-{os.getpid()}")
        yield end


def told(manager: socket.socket, until: str) -> list[str]:
    """All messages up to the first one with that in it."""
    messages: list[str] = []
    while not messages or until not in messages[-1]:
        ready, _, _ = select.select([manager], [], [], HANG)
        assert ready, f"no {until} after {messages}"
        messages.append(manager.recv(4096).decode())
    return messages


def test_the_manager_is_told_how_it_is(daemon: Start, manager: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": f"@llmio-test-{os.getpid()}", "WATCHDOG_USEC": "4000000"}
    running = daemon(environ=environ)
    told(manager, f"READY=1\nSTATUS=serving http://{running.address}/metrics")
    for _ in range(3):
        told(manager, "WATCHDOG=1")
    running.reload()
    [*_, reloading] = told(manager, "RELOADING=1")
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)
    [*_, ready] = told(manager, "READY=1")
    assert ready == f"READY=1\nSTATUS=serving http://{running.address}/metrics"
    running.reload("workers: many\n")
    told(manager, f"{ready}; the last reload was refused, the log says why")
    running.process.terminate()
    told(manager, "STOPPING=1")
    assert running.process.wait(HANG) == 0


def test_the_watchdog_hears_nothing_of_a_daemon_whose_pipeline_hangs(daemon: Start, manager: socket.socket) -> None:
    """Its main thread waits for a configuration that nobody writes. The threads that answer scrapes go on, but it is
    not they who say so.
    """
    running = daemon(environ={"NOTIFY_SOCKET": f"@llmio-test-{os.getpid()}", "WATCHDOG_USEC": "4000000"})
    told(manager, "WATCHDOG=1")
    running.config.unlink()
    os.mkfifo(running.config)
    running.config.chmod(0o644)  # for its account
    before = running.log.stat().st_size
    running.process.send_signal(signal.SIGHUP)
    told(manager, "RELOADING=1")
    silent_until = time.monotonic() + 3.5  # three words are due
    while time.monotonic() < silent_until:
        assert "llmio_build_info" in running.scrape()
    assert not select.select([manager], [], [], 0)[0]
    configuration(running.config.parent)
    running.says("the configuration was read again\n", before)
    told(manager, "WATCHDOG=1")


def test_the_journal_gets_a_level_a_line(open_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "journal.log"
    log.touch()
    status = log.stat()
    environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    with running_daemon(open_folder, log=log, environ=environ) as running:
        running.reload("workers: many\n")
        said = log.read_text().splitlines()
    assert [line[:3] for line in said] == ["<6>", "<3>"]


def test_a_start_that_fails_is_an_error_in_the_journal(tmp_path: Path) -> None:
    log = tmp_path / "journal.log"
    with log.open("w") as stream:
        status = os.fstat(stream.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        command = [*PROBE, "daemon", "--config", str(configuration(tmp_path, more="user: nobodys\n"))]
        assert subprocess.run(command, stderr=stream, env=environ, timeout=HANG).returncode == 1
    assert log.read_text().startswith("<3>there is no account nobodys: create it, or name another with user: ")


# What it costs


def costs(running: Daemon) -> dict[str, float]:
    samples = running.families()["llmio_program_cost_seconds"].samples
    return {sample.labels["program"]: sample.value for sample in samples}


def statistics_on(running: Daemon) -> bool:
    """Whether the kernel times programs for this daemon: that hangs on a descriptor. Others may go while we look."""
    links = set()
    for fd in Path(f"/proc/{running.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.add(os.readlink(fd))
    return "anon_inode:bpf-stats" in links


@pytest.mark.parametrize(
    ("when", "early", "late"), [("start", True, False), ("continuous", True, True), ("off", False, False)]
)
def test_the_programs_are_timed_when_the_configuration_says(
    daemon: Start, loop_disk: Disk, tmp_path: Path, when: str, early: bool, late: bool
) -> None:
    running = daemon(f"program_cost: {when}\n")
    assert statistics_on(running) == early
    job = fio(loop_disk, *LOAD, requests=REQUESTS, report=tmp_path / "fio.json")
    subprocess.run(job, check=True, timeout=HANG)
    time.sleep(3)
    assert statistics_on(running) == late
    assert ("block_rq_complete" in costs(running)) == (when != "off")


def test_its_own_disk_io_is_told_as_its_own(ext4_folder: Path, open_folder: Path) -> None:
    """Its log is on the disk, and a page long: that is what each flush of it writes."""
    flushes = 5
    with running_daemon(open_folder, log=ext4_folder / "daemon.log") as running:
        for _ in range(flushes):
            running.reload()
            os.sync()
        assert running.log.stat().st_size < 4096
        # By the kernel's account of the process it is that much at least: it has atimes of files in it, too.
        assert task_io(running.process.pid)["write_bytes"] >= flushes * 4096
        running.eventually("llmio_bytes_total", flushes * 4096, worker="llmio-probe", op="write")
        assert running.value("process_cpu_seconds_total") > 0


def test_a_configuration_can_be_checked_without_root_and_beside_a_daemon(daemon: Start) -> None:
    running = daemon()
    command = [*PROBE, "daemon", "--check", "--config", str(running.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{running.config}: right\n", "")
    configuration(running.config.parent, more="wrokers: 3\n")
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"llmio-probe: {running.config}:3: there is no key wrokers")


@pytest.fixture
def roots_key(open_folder: Path) -> str:
    """What a configuration says for TLS by a key that only root may read."""
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
        "-keyout", open_folder / "key.pem", "-out", open_folder / "cert.pem", "-subj", "/CN=127.0.0.1",
    )  # fmt: skip
    (open_folder / "key.pem").chmod(0o600)
    (open_folder / "web.yaml").write_text("tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n")
    return f"web_config: {open_folder}/web.yaml\n"


def test_a_key_of_roots_is_read_at_the_start_and_not_by_a_reload(
    daemon: Start, open_folder: Path, roots_key: str
) -> None:
    """Of a daemon that root starts. Nothing breaks by a reload, and the log says what has to be done."""
    running = daemon(roots_key)
    host, _, port = running.address.partition(":")
    certificate = (open_folder / "cert.pem").read_text()
    cannot = f"{open_folder}/web.yaml: the certificate and key cannot be read: permission denied; "
    assert f"WARNING as user id {pwd.getpwnam('nobody').pw_uid} a reload will not work: {cannot}" in (
        running.log.read_text()
    )
    assert ssl.get_server_certificate((host, int(port)), timeout=HANG) == certificate
    said = running.reload(roots_key + "workers: 3\n")
    assert said.startswith(f"ERROR the configuration stays as it was: {cannot}")
    assert ssl.get_server_certificate((host, int(port)), timeout=HANG) == certificate


def test_a_configuration_that_its_account_may_not_read_is_told_at_the_start(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as running:
        said = running.log.read_text()
        assert re.match(r"WARNING as user id \d+ a reload will not work: ", said)
        assert str(running.config) in said
