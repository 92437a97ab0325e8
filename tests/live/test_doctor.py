"""doctor on the real kernel. That no program stays attached is checked by conftest.py after each test."""

from __future__ import annotations

import subprocess

import pytest

from tests.live.harness import HANG, PROBE


@pytest.mark.guest
def test_doctor_finds_that_a_session_will_work_here() -> None:
    done = subprocess.run([*PROBE, "doctor"], capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stderr) == (0, "")
    assert "FAIL" not in done.stdout
    assert "first record" in " ".join(done.stdout.split())
    assert "\nA session will work here." in done.stdout
