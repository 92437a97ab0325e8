"""The shipped unit in a guest that systemd has booted: installed from the wheel, and what systemd and it say of it."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.live.harness import HANG, run, tracing_programs
from tests.vm.guest.devices import wait_until

NAME = "llmio-probe"
PAYLOAD = Path("/payload")
CONFIG = Path("/etc/llmio-probe")
DROP_INS = Path(f"/run/systemd/system/{NAME}.service.d")


@contextmanager
def installed_service(folder: Path, drop_ins: Sequence[str] = ()) -> Iterator[str]:
    """llmio-probe.service, installed as `make install` does, and started. drop_ins: which of those that are shipped."""
    before = tracing_programs()
    [wheel] = PAYLOAD.glob("*.whl")
    pip = folder / "pip"  # there is none in a guest; its dependencies are there
    pip.write_text(f'#!/bin/sh\nexec python3 -m zipfile -e {wheel} "$3"\n')
    pip.chmod(0o755)
    settings = {"DESTDIR": "", "PREFIX": "/usr/local", "SYSCONFDIR": "/etc", "INTERPRETER": "/usr/bin/python3"}
    script = [PAYLOAD / "deploy" / "install.sh"]
    environ = {**os.environ, **settings, "PIP": str(pip)}
    run(*script, "install", env=environ)
    DROP_INS.mkdir(parents=True, exist_ok=True)
    for name in drop_ins:
        (DROP_INS / name).write_text(Path(f"/usr/local/share/llmio-probe/{name}").read_text())
    # What is emulated takes its time, and tests start it often.
    patience = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nTimeoutStartSec=600\nTimeoutStopSec=600\n"
    (DROP_INS / "patience.conf").write_text(patience)
    run("systemctl", "daemon-reload")
    run("systemctl", "start", NAME)
    yield NAME
    run(*script, "uninstall", env=environ)
    for left in ("/usr/local/bin/llmio-probe", "/run/llmio-probe", "/run/private/llmio-probe"):
        assert not os.path.lexists(left)
    wait_until(lambda: tracing_programs() == before, "programs are still loaded")


def shown(service: str, name: str) -> str:
    return run("systemctl", "show", "--property", name, "--value", service).strip()


def logged(service: str) -> str:
    return run("journalctl", "--no-pager", "--output=cat", "--unit", service)


def scrape() -> str:
    """What the daemon does not give in ten seconds it does not give at all: an emulated one is asked again."""
    deadline = time.monotonic() + HANG
    while True:
        try:
            with urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=HANG) as answer:
                return str(answer.read().decode())
        except OSError:
            assert time.monotonic() < deadline, "no scrape came through"
