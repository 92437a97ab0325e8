"""`make test-vm`: the tests for guests on each kernel, one guest a way of booting, and what came of it.

Nothing passes by not running: a guest that does not boot, runs out of time or loses a test fails the run.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

from tests.vm.archive import ArchiveError
from tests.vm.collect import DEFAULT, Chosen, chosen_tests
from tests.vm.emulator import (
    BOOTS_AT_MOST,
    DIED,
    STOOD_STILL,
    TIMED_OUT,
    Emulators,
    End,
    Options,
    boot,
    prepare,
    to_stdout,
)
from tests.vm.kernels import kernel
from tests.vm.report import Name, Result, cases, complaints, merged, name_of, table, write_table
from tests.vm.store import Build, Store

BOOTS: Mapping[str, Options] = {
    DEFAULT: Options(command=(), disks=("1G", "null")),
    "no-btf": Options(command=(), btf=False, headers=True),
    "systemd": Options(command=(), systemd=True),
    "systemd-no-btf": Options(command=(), systemd=True, btf=False, headers=True),
    "multipath": Options(command=(), multipath=True),
}
"""How guests are booted, by the name that `@pytest.mark.guest` gives, what takes longest first. no-btf: with what BCC
needs in its place."""
BOOT_SECONDS = 480
"""With the service under systemd compiled by BCC, which a busy machine has taken 340 s for."""
TEST_SECONDS = 60
"""Emulated, a session of llmio-probe takes 10 s; an architecture may take a multiple of all of these."""
HANG_FACTOR = 5
"""How many times as long a step of a test may take as on a machine."""
FIRST_OF_A_HANG = 10 * TEST_SECONDS
"""A test that hangs is shown after this."""


@dataclass(frozen=True)
class Guest:
    """One boot of one kernel. kernel: its name in the table (kernels.py)."""

    kernel: str
    build: Build
    boot: str
    tests: Sequence[str]

    @property
    def name(self) -> str:
        return f"Linux {self.build.release}, boot {self.boot}"


def run_suite(store: Store, kernels: Sequence[str], at_once: int, junit: Path | None, page: Path | None) -> int:
    """0 when all has passed, else 1. at_once: how many guests run at the same time."""
    chosen = chosen_tests()
    wrong = sorted(set(chosen) - set(BOOTS))
    if wrong:
        raise ValueError(f"no guest boots as {', '.join(wrong)}: use one of {', '.join(BOOTS)} in @pytest.mark.guest")
    guests: list[Guest] = []
    results: list[Result] = []
    for name in kernels:
        made, missing = _guests_of(store, name, chosen)
        guests += made
        results += missing
    guests.sort(key=lambda guest: list(BOOTS).index(guest.boot))
    emulators = Emulators()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            results += pool.map(lambda guest: _run(store, guest, emulators), guests)
        except BaseException:  # Ctrl-C; map itself cancels those that have not begun
            emulators.stop()
            raise
    results.sort(key=lambda result: kernels.index(result.kernel))
    found = complaints(results)
    if junit:
        merged(results).write(junit, encoding="utf-8", xml_declaration=True)
    made_table = table(results)
    print(f"\n{made_table}\n")
    if page:
        write_table(page, made_table, date.today())
    for complaint in found:
        print(f"error: {complaint}")
    return 1 if found or not results else 0


def _guests_of(store: Store, name: str, chosen: Chosen) -> tuple[Sequence[Guest], Sequence[Result]]:
    """A kernel's guests, with all that they need fetched and built; or why there are none."""
    wanted = kernel(name)
    tests_of = {
        way: left
        for way, tests in chosen.items()
        if way not in wanted.architecture.left_out
        and (left := [test for test in tests if not any(word in test for word in wanted.lacks)])
    }
    try:
        build = store.build(wanted)
        for way in tests_of:
            prepare(store, build, BOOTS[way])
    except ArchiveError as error:
        return [], [
            Result(name, "", way, [name_of(test) for test in tests], complaint=str(error))
            for way, tests in tests_of.items()
        ]
    return [Guest(name, build, way, tests) for way, tests in tests_of.items()], []


def _run(store: Store, guest: Guest, emulators: Emulators) -> Result:
    asked = [name_of(test) for test in guest.tests]
    patience = guest.build.architecture.patience
    timeout = patience * (BOOT_SECONDS + TEST_SECONDS * len(asked))
    print(f"== {guest.name}: {len(asked)} tests", flush=True)
    with tempfile.TemporaryDirectory(prefix="llmio-vm-") as folder:
        command = [pytest_line(guest.tests, patience)]
        options = replace(BOOTS[guest.boot], command=command, out=Path(folder), timeout=timeout)
        end = boot(store, guest.build, options, partial(_show, guest), emulators)
        found = cases(Path(folder) / "junit.xml")
    print(f"== {guest.name}: {end.seconds:.0f} s", flush=True)
    why = complaint(end, timeout, found, asked)
    return Result(guest.kernel, guest.build.release, guest.boot, asked, found, why)


def _show(guest: Guest, line: str) -> None:
    """Of guests that run at the same time."""
    to_stdout(f"{guest.kernel} {guest.boot}| {line}")


def pytest_line(tests: Sequence[str], patience: int = 1) -> str:
    """For the guest's shell."""
    words = [
        "python3", "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "--durations=5",
        "-o", f"faulthandler_timeout={patience * FIRST_OF_A_HANG}", "--junitxml=/out/junit.xml",
    ]  # fmt: skip
    return f"LLMIO_REQUIRE_LIVE=1 LLMIO_PATIENCE={patience * HANG_FACTOR} {shlex.join([*words, *tests])}"


def complaint(end: End, timeout: float, found: Mapping[Name, object], asked: Sequence[Name]) -> str:
    """Why not all came back, with how the console ended; empty if all did."""
    if end.status == TIMED_OUT:
        why = f"the guest was stopped: it was not done after {timeout:.0f} s"
    elif end.status == STOOD_STILL:
        why = f"the guest stood still while it booted, {BOOTS_AT_MOST} times"
    elif end.status == DIED:
        why = "the guest did not boot, or died before its tests were done"
    elif not found:
        why = f"no test was reported, pytest ended with {end.status}"
    elif set(asked) - set(found):
        why = f"only {len(set(asked) & set(found))} of {len(asked)} tests were reported, pytest ended with {end.status}"
    elif end.status > 1:
        why = f"pytest ended with {end.status}"
    else:
        return ""
    return "\n".join([f"{why}; its console ended with", *end.last])
