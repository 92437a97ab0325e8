"""Guests that run at the same time: all of them, one result each, and an end when somebody wants one."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm import suite
from tests.vm.emulator import DIED, Emulators, Options, boot
from tests.vm.kernels import kernel
from tests.vm.store import Store

SECONDS = 30
"""Nothing here takes a tenth of it."""


@pytest.mark.usefixtures("own_boots")
def test_guests_run_at_the_same_time(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each waits until there are two."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv(
        "GUEST", f'touch {here}/$$; tries=0; while [ $(ls {here} | wc -l) -lt 2 ] && [ $tries -lt 300 ]; do '
        f"sleep 0.1; tries=$((tries + 1)); done; echo together: $(ls {here} | wc -l)"
    )  # fmt: skip
    assert suite.run_suite(Store(cache), ["6.1"], 2, None, None) == 1  # no test has come back
    said = capfd.readouterr().out
    assert "6.1 default| together: 2\n" in said
    assert "6.1 multipath| together: 2\n" in said
    assert said.count("the guest did not boot, or died") == 2


@pytest.fixture
def own_boots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "chosen_tests", lambda: {"default": ["a.py::b"], "multipath": ["a.py::c"]})
    monkeypatch.setattr(suite, "BOOTS", {way: replace(boots, headers=False) for way, boots in suite.BOOTS.items()})


def test_all_that_run_can_be_stopped_and_no_other_begins(
    cache: Path, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUEST", "exec sleep 600")
    store, emulators, said = Store(cache), Emulators(), list[str]()
    build = store.build(kernel("6.1"))
    options = Options(command=["true"], payload=payload)
    begin = time.monotonic()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(boot, store, build, options, said.append, emulators)
        while not said:
            assert time.monotonic() < begin + SECONDS
            time.sleep(0.01)
        emulators.stop()
        assert first.result().status == DIED
        assert boot(store, build, options, said.append, emulators).status == DIED
    assert time.monotonic() < begin + SECONDS
