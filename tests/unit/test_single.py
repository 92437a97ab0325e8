"""Proves llmio_probe.single: the second one is told who the first is, and nothing is left of one that has ended."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from llmio_probe.errors import ProbeError
from llmio_probe.single import only_daemon

NAME = f"\0llmio-unit-single-{os.getpid()}"


def test_the_second_is_told_who_the_first_is() -> None:
    with (
        only_daemon(NAME),
        pytest.raises(ProbeError, match=rf"^a daemon runs on this host already \(process {os.getpid()}\): stop it "),
    ):
        only_daemon(NAME)
    only_daemon(NAME).close()


def test_a_killed_one_is_not_in_the_way() -> None:
    code = f"import time; from llmio_probe.single import only_daemon; l = only_daemon({NAME!r}); print(1, flush=True)"
    with subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(99)"], stdout=subprocess.PIPE) as first:
        assert first.stdout
        first.stdout.readline()
        with pytest.raises(ProbeError, match=re.escape(f"(process {first.pid})")):
            only_daemon(NAME)
        first.kill()
    only_daemon(NAME).close()


def test_many_who_ask_do_not_make_it_hang() -> None:
    with only_daemon(NAME):
        for _ in range(300):
            with pytest.raises(ProbeError, match="runs on this host already"):
                only_daemon(NAME)
