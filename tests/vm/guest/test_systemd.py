"""The shipped unit on a host that systemd has booted: what it serves from its sandbox is what root sees without one."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.live.harness import HANG, Actor, Live, run
from tests.live.system import Volume
from tests.vm.guest.devices import wait_until
from tests.vm.guest.service import CONFIG, DROP_INS, installed_service, logged, scrape, shown

pytestmark = pytest.mark.guest("systemd")

BLOCK = 4096
READS, WRITES = 211, 101
SYS_PTRACE, BPF = 1 << 19, 1 << 39
TABLES_WITHOUT_RIGHTS_SINCE = (5, 19)
DEEPSPEED = ("env", "CROSS_RANK=3", "CROSS_SIZE=4", "LOCAL_SIZE=4", "RANK=3")

Streams = dict[tuple[str, ...], tuple[float, float]]
"""Requests and bytes of the worker, by itself, op, engine, path and role."""
WORKER = "deepspeed-rank3"
LABELS = ("worker", "op", "engine", "path", "role")
READ = (WORKER, "read", "libaio", "direct", "weights")
WRITTEN = (WORKER, "write", "posix", "writeback", "checkpoint")


@pytest.fixture(autouse=True)
def nothing_stays_attached() -> None:
    """In place of the live tests': the service stays between tests, and is looked after when it has gone."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with installed_service(tmp_path_factory.mktemp("pip")) as name:
        yield name


def served(device: str) -> Streams:
    families = {family.name: family for family in text_string_to_metric_families(scrape())}
    requests, size = (
        {
            tuple(sample.labels[label] for label in LABELS): sample.value
            for sample in families[name].samples
            if sample.labels["device"] == device and sample.labels["op"] in ("read", "write")
        }
        for name in ("llmio_requests", "llmio_bytes")
    )
    return {key: (requests[key], size[key]) for key in requests if key[0] == WORKER}


def seen(session: Live, device: str) -> Streams:
    """The same of root's session, whose streams are by process."""
    counted: Counter[tuple[tuple[str, ...], str]] = Counter()
    for stream in session.interrupt()["streams"]:
        if stream["device"] == device and stream["op"] in ("read", "write") and stream["worker"] == WORKER:
            key = tuple(stream[label] for label in LABELS)
            for what in ("requests", "bytes"):
                counted[key, what] += stream[what]
    return {key: (counted[key, "requests"], counted[key, "bytes"]) for key, _ in counted}


def play(volume: Volume) -> None:
    """A worker of DeepSpeed's reads weights directly and writes a checkpoint through the page cache.

    It stays until the daemon has seen who it is: an emulated one may take longer than the I/O.
    """
    folder = volume.folder / "private"
    folder.mkdir(mode=0o700, exist_ok=True)
    weights = folder / "model-00001-of-00002.safetensors"
    if not weights.exists():
        weights.write_bytes(os.urandom(2 * BLOCK * READS))
        weights.chmod(0o600)
        volume.settle()
    before = reads_served(volume)
    with Actor(*DEEPSPEED) as actor:
        actor.do("submit", weights, "read", BLOCK, READS, 0, 2 * BLOCK)
        actor.do("write", folder / "mp_rank_00_model_states.pt", 0, WRITES * BLOCK)
        volume.settle()
        wait_until(lambda: reads_served(volume) > before, scrape)


def reads_served(volume: Volume) -> float:
    return served(volume.disk.device).get(READ, (0.0, 0.0))[0]


def test_its_numbers_are_those_of_a_session_outside_of_the_sandbox(
    service: str, ext4_volume: Volume, live: Callable[..., Live]
) -> None:
    device = ext4_volume.disk.device
    once = {READ: READS * BLOCK, WRITTEN: WRITES * BLOCK}
    play(ext4_volume)
    run("systemctl", "reload", service)
    wait_until(lambda: {key: size for key, (_, size) in served(device).items()} == once, scrape)
    before = served(device)
    session = live("--all", "--device", device)
    play(ext4_volume)
    expected = seen(session, device)
    assert expected[READ] == (READS, READS * BLOCK)
    assert expected[WRITTEN][1] == WRITES * BLOCK

    def increase() -> Streams:
        after = served(device)
        grown = {key: tuple(b - a for a, b in zip(before.get(key, (0, 0)), after[key], strict=True)) for key in after}
        return {key: (requests, size) for key, (requests, size) in grown.items() if requests or size}

    wait_until(lambda: increase()[READ] == expected[READ], "the daemon has not counted the reads")
    wait_until(lambda: increase()[WRITTEN] == expected[WRITTEN], "the daemon has not counted the writes")
    assert increase() == expected

    run("systemctl", "restart", service)
    assert READ not in served(device)
    play(ext4_volume)
    wait_until(lambda: served(device).get(READ) == expected[READ], "a restarted daemon does not count")


def opened(folder: Path) -> set[str]:
    """What the descriptors beyond the standard ones lead to; those that are closed meanwhile are left out."""
    found = set()
    for fd in folder.iterdir():
        with suppress(FileNotFoundError):
            if int(fd.name) > 2:
                found.add(os.readlink(fd))
    time.sleep(0.3)
    return found


def test_it_holds_no_file_open_but_its_lock(service: str) -> None:
    folder = Path(f"/proc/{shown(service, 'MainPID')}/fd")
    held = opened(folder)
    while (still := held & opened(folder)) != held:  # what it reads of other processes, it opens and closes
        held = still
    files = {name for name in held if name.startswith("/") and not name.startswith("/memfd:")}  # libffi's, in memory
    assert files == {"/run/private/llmio-probe/daemon"}


def test_it_never_is_root_and_holds_what_it_needs_only(service: str) -> None:
    pid = int(shown(service, "MainPID"))
    kernel = tuple(map(int, os.uname().release.split(".")[:2]))
    needed = SYS_PTRACE if kernel >= TABLES_WITHOUT_RIGHTS_SINCE else SYS_PTRACE | BPF
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        fields = dict(re.findall(r"^(\w+):\t(.*)$", status, re.MULTILINE))
        assert "0" not in fields["Uid"].split()
        held = needed if int(task.name) == pid else 0
        assert [int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")] == [held, held, 0, 0]
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


PRIVATE = ("web.yaml", "cert.pem", "key.pem")
COPIES = Path("/run/credentials/llmio-probe.service")


@pytest.fixture
def by_tls(service: str) -> Iterator[Callable[..., None]]:
    """Serve by TLS, with one of the two settings in deploy/tls.conf, and the web configuration in that folder."""
    config, drop_in = CONFIG / "llmio-probe.yaml", DROP_INS / "tls.conf"
    before = config.read_text()
    run("groupadd", "--force", "--system", "ssl-cert")
    renew(CONFIG)
    (CONFIG / "web.yaml").write_text("tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n")
    for name in PRIVATE:
        (CONFIG / name).chmod(0o600)

    def restart() -> None:
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", service)

    def serve(folder: Path, *settings: str) -> None:
        lines = Path("/usr/local/share/llmio-probe/tls.conf").read_text().splitlines()
        chosen = [line.removeprefix("# ") for line in lines if line.removeprefix("# ").startswith(settings)]
        assert chosen
        drop_in.write_text("\n".join(["[Service]", *chosen, ""]))
        config.write_text(f"{before}\nweb_config: {folder}/web.yaml\n")
        restart()

    yield serve
    config.write_text(before)
    drop_in.unlink(missing_ok=True)
    for name in PRIVATE:
        (CONFIG / name).unlink()
    restart()


def renew(folder: Path) -> None:
    """Into the same files, whose rights stay as they are."""
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
        "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-subj", "/CN=127.0.0.1",
    )  # fmt: skip


def served_certificate() -> str:
    """An emulated daemon needs longer than it gives a handshake, at times."""
    deadline = time.monotonic() + HANG
    while True:
        try:
            return ssl.get_server_certificate(("127.0.0.1", 9464), timeout=HANG)
        except OSError:
            assert time.monotonic() < deadline, "no handshake came through"


def test_a_reload_takes_over_a_renewed_key_that_a_group_may_read(service: str, by_tls: Callable[..., None]) -> None:
    for name in PRIVATE:
        shutil.chown(CONFIG / name, group="ssl-cert")
        (CONFIG / name).chmod(0o640)
    by_tls(CONFIG, "SupplementaryGroups=")
    assert shown(service, "StatusText") == "serving https://127.0.0.1:9464/metrics"
    first = (CONFIG / "cert.pem").read_text()
    assert served_certificate() == first
    renew(CONFIG)
    run("systemctl", "reload", service)
    renewed = (CONFIG / "cert.pem").read_text()
    assert renewed != first
    wait_until(lambda: served_certificate() == renewed, "the old certificate is still served")


def test_a_restart_takes_over_a_renewed_key_that_is_roots_alone(service: str, by_tls: Callable[..., None]) -> None:
    by_tls(COPIES, "LoadCredential=", "ExecReload=")
    assert served_certificate() == (CONFIG / "cert.pem").read_text()
    renew(CONFIG)
    run("systemctl", "reload", service)  # of the copies that it has got: nothing breaks
    run("systemctl", "restart", service)
    assert served_certificate() == (CONFIG / "cert.pem").read_text()
    assert shown(service, "NRestarts") == "0"


def test_a_reload_of_a_wrong_configuration_fails_and_changes_nothing(service: str) -> None:
    config = CONFIG / "llmio-probe.yaml"
    before = config.read_text()
    pid = shown(service, "MainPID")
    config.write_text(f"{before}\nfew: 1\n")
    try:
        assert subprocess.run(["systemctl", "reload", service], timeout=HANG).returncode == 1
        line = before.count("\n") + 2
        why = f"{config}:{line}: "
        wait_until(lambda: why in logged(service), "the log does not say why")
        assert "llmio_config_last_reload_successful 1.0" in scrape()
    finally:
        config.write_text(before)
    run("systemctl", "reload", service)
    assert (shown(service, "MainPID"), shown(service, "NRestarts")) == (pid, "0")


OURS = ("/usr/local/bin/llmio-probe", "daemon", "--config", str(CONFIG / "llmio-probe.yaml"))


def test_roots_daemon_is_told_of_the_service(service: str) -> None:
    second = subprocess.run(OURS, capture_output=True, text=True, timeout=HANG)
    assert second.returncode == 1
    assert second.stderr.startswith(
        "llmio-probe: a daemon runs on this host already "
        f"(process {shown(service, 'MainPID')}: /usr/bin/python3 -I {' '.join(OURS)}): stop it first, "
    )


@pytest.mark.parametrize("folder", ["systemd's", "root's"])
def test_the_service_does_not_start_beside_roots_daemon(service: str, folder: str) -> None:
    """Whoever made the lock's folder: a start that fails, and fails again, must not take the lock away."""
    run("systemctl", "stop", service)
    if folder == "root's":
        run("rm", "-r", "/run/llmio-probe", "/run/private/llmio-probe")
    with subprocess.Popen(OURS, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr
        why = f"a daemon runs on this host already (process {first.pid}: "
        try:
            while not first.stderr.readline().startswith("INFO serving"):
                assert first.poll() is None
            for _ in range(2):
                assert subprocess.run(["systemctl", "start", service], timeout=HANG).returncode == 1
                run("systemctl", "stop", service)  # else it tries again by itself
            wait_until(lambda: logged(service).count(why) >= 2, "the log does not say why")
        finally:
            first.kill()
    run("systemctl", "start", service)


def test_systemd_knows_how_it_is(service: str) -> None:
    assert shown(service, "ActiveState") == "active"
    assert shown(service, "StatusText") == "serving http://127.0.0.1:9464/metrics"
    assert shown(service, "WatchdogUSec") == "30s"
    run("systemctl", "stop", service)
    assert shown(service, "Result") == "success"
    run("systemctl", "start", service)
    assert shown(service, "NRestarts") == "0"
