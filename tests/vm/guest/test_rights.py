"""What a probe can still do after it has given up the rights with which it started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.live.harness import HANG, Actor, Disk

pytestmark = pytest.mark.guest

BLOCK = 4096
REQUESTS = 211
NOBODY = 65534
TABLES_WITHOUT_RIGHTS_SINCE = (5, 19)

PROBE = f"""
import json, os, sys
from llmio_probe.kernel.loading import ProbeOptions
from llmio_probe.kernel.probe import Probe, request_entries
from llmio_probe.kernel.tables import TableError

with Probe(ProbeOptions(request_entries(cpus=2), calls=False)) as probe:
    probe.start()
    os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
    print("ready", flush=True)
    pid = int(sys.stdin.readline())
    requests = probe.read().requests
    try:
        probe.state()
        refused = None
    except TableError as error:
        refused = error.why
    mine = requests[requests["tgid"] == pid]
    print(json.dumps([len(mine), int(mine["bytes"].sum()), refused]), flush=True)
"""


def test_a_probe_without_rights_reads_its_records(nvme_disk: Disk) -> None:
    """The rings are memory of its own, so that every record is read on any kernel. Its counts are in tables: before
    5.19 each look at one needs CAP_BPF where unprivileged BPF is switched off; since then an open descriptor is enough.
    """
    command = [sys.executable, "-c", PROBE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdout
        try:
            assert probe.stdout.readline() == "ready\n"
            with Actor() as actor:
                actor.do("submit", nvme_disk.path, "read", BLOCK, REQUESTS, 0, 2 * BLOCK)
                read = actor.io()["read_bytes"]
            output, _ = probe.communicate(f"{actor.pid}\n", timeout=HANG)
        finally:
            probe.kill()
    found: Any = json.loads(output)
    assert found[:2] == [REQUESTS, REQUESTS * BLOCK]
    assert read >= REQUESTS * BLOCK
    major, minor = map(int, os.uname().release.split(".")[:2])
    assert found[2] == (None if (major, minor) >= TABLES_WITHOUT_RIGHTS_SINCE else "Operation not permitted")
