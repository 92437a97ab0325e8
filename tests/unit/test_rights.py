"""Proves llmio_probe.rights: what is held is what the kernel says, and what was given up does not come back.

Each in a process of its own, since that cannot be undone; by root, who alone has something to give up.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from typing import Any

import pytest

from llmio_probe import rights
from llmio_probe.errors import ProbeError
from llmio_probe.rights import Capability

by_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up")

STATUS = """
import json, os, sys
from llmio_probe import rights
from llmio_probe.rights import Capability
def status():
    lines = open("/proc/thread-self/status").read().splitlines()
    return dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
def tell(*more):
    now = status()
    found = {name: int(now[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    print(json.dumps([now["Uid"].split(), now["Gid"].split(), found, now["NoNewPrivs"], *more]))
"""


def python(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", STATUS + code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@by_root
def test_root_becomes_somebody_else_with_what_it_keeps() -> None:
    nobody = pwd.getpwnam("nobody")
    uids, gids, sets, sealed, groups = python(
        "rights.become(rights.account('nobody'))\n"
        "rights.hold([Capability.SYS_PTRACE])\nrights.seal()\ntell(os.getgroups())"
    )
    assert (set(uids), set(gids), groups) == ({str(nobody.pw_uid)}, {str(nobody.pw_gid)}, [])
    held = 1 << Capability.SYS_PTRACE
    assert sets == {"CapInh": 0, "CapPrm": held, "CapEff": held, "CapBnd": 0, "CapAmb": 0}
    assert sealed == "1"


@by_root
def test_root_of_a_container_that_may_not_become_nobody_is_told_so() -> None:
    *_, said = python(
        "rights.hold([Capability.BPF])\n"
        "try:\n    rights.require_change(rights.account('nobody'))\n"
        "except rights.ProbeError as error:\n    tell(str(error))"
    )
    needs, helps = "becoming nobody takes CAP_SETGID and CAP_SETUID", "give the container these, or set user: root in"
    assert said == f"{needs}: {helps} the configuration"


@by_root
def test_root_that_stays_root_needs_no_right_for_that() -> None:
    uids, *_ = python(
        "rights.hold([Capability.BPF])\nroot = rights.account('root')\n"
        "rights.require_change(root)\nrights.become(root)\ntell()"
    )
    assert set(uids) == {"0"}


@by_root
def test_what_is_in_reserve_is_not_in_force_until_it_is_asked_for() -> None:
    ptrace, bpf = 1 << Capability.SYS_PTRACE, 1 << Capability.BPF
    *_, sets, _ = python("rights.hold([Capability.SYS_PTRACE], in_reserve=[Capability.BPF])\ntell()")
    assert (sets["CapPrm"], sets["CapEff"]) == (ptrace | bpf, ptrace)
    *_, sets, _ = python(
        "rights.hold([Capability.SYS_PTRACE], in_reserve=[Capability.BPF])\n"
        "rights.hold([Capability.SYS_PTRACE, Capability.BPF])\ntell()"
    )
    assert (sets["CapPrm"], sets["CapEff"]) == (ptrace | bpf, ptrace | bpf)


@by_root
def test_what_was_given_up_does_not_come_back() -> None:
    *_, sets, _ = python("rights.hold([])\nrights.hold(list(Capability))\ntell()")
    assert (sets["CapPrm"], sets["CapEff"]) == (0, 0)


def test_what_is_held_is_what_the_kernel_says() -> None:
    *_, sets, _, told = python("tell(sorted(rights.effective()))")
    assert told == sorted(c for c in Capability if sets["CapEff"] >> c & 1)


@pytest.mark.parametrize(
    ("held", "lacking"),
    [
        (set(), {Capability.BPF, Capability.PERFMON}),
        ({Capability.BPF}, {Capability.PERFMON}),
        ({Capability.BPF, Capability.PERFMON}, set()),
        ({Capability.SYS_ADMIN}, set()),
        ({Capability.SYSLOG, Capability.PERFMON}, {Capability.BPF}),
    ],
)
def test_what_lacks_for_loading(held: set[Capability], lacking: set[Capability]) -> None:
    assert rights.lacking_for_loading(frozenset(held)) == lacking


def test_loading_without_rights_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights, "effective", lambda: frozenset({Capability.BPF}))
    with pytest.raises(ProbeError, match=r"^loading BPF programs needs CAP_PERFMON: run it with sudo$"):
        rights.require_loading()
    monkeypatch.setattr(rights, "effective", lambda: rights.LOADING)
    rights.require_loading()


def test_the_account_is_the_named_one_or_ours_or_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {name: pwd.struct_passwd((name, "x", 1, 1, "", "/", "")) for name in ("nobody", "somebody", "llmio-probe")}
    ours = there.pop("llmio-probe")
    monkeypatch.setattr(pwd, "getpwnam", lambda name: there[name])
    assert rights.account("somebody").pw_name == "somebody"
    assert rights.account(None).pw_name == "nobody"
    there["llmio-probe"] = ours
    assert rights.account(None).pw_name == "llmio-probe"
    with pytest.raises(ProbeError, match=r"^there is no account nobodys: create it, or name another with user: in"):
        rights.account("nobodys")
