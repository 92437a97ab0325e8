"""`make test-vm`: the tests for guests on each kernel, one guest a way of booting, and what came of it.

Nothing passes by not running: a guest that does not boot, runs out of time or loses a test fails the run.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from tests.vm.archive import ArchiveError
from tests.vm.collect import DEFAULT, Chosen, chosen_tests
from tests.vm.emulator import DIED, TIMED_OUT, End, Options, boot, to_stdout
from tests.vm.kernels import kernel
from tests.vm.report import Name, Result, cases, complaints, merged, name_of, table, write_table
from tests.vm.store import Build, Store

BOOTS: Mapping[str, Options] = {
    DEFAULT: Options(command=(), disks=("1G", "null")),
    "multipath": Options(command=(), multipath=True),
    "no-btf": Options(command=(), btf=False, headers=True),
    "systemd": Options(command=(), systemd=True),
}
"""How guests are booted, by the name that `@pytest.mark.guest` gives. no-btf: with what BCC needs in its place."""
BOOT_SECONDS = 120
TEST_SECONDS = 60
"""Emulated, a session of llmio-probe takes 10 s; an architecture may take a multiple of all of these."""
FIRST_OF_A_HANG = 5 * TEST_SECONDS
"""A test that hangs is shown after this."""


def run_suite(store: Store, kernels: Sequence[str], junit: Path | None, page: Path | None) -> int:
    """0 when all has passed, else 1."""
    chosen = chosen_tests()
    wrong = sorted(set(chosen) - set(BOOTS))
    if wrong:
        raise ValueError(f"no guest boots as {', '.join(wrong)}: use one of {', '.join(BOOTS)} in @pytest.mark.guest")
    results = [result for name in kernels for result in _on(store, name, chosen)]
    found = complaints(results)
    if junit:
        merged(results).write(junit, encoding="utf-8", xml_declaration=True)
    made = table(results)
    print(f"\n{made}\n")
    if page:
        write_table(page, made, date.today())
    for complaint in found:
        print(f"error: {complaint}")
    return 1 if found or not results else 0


def _on(store: Store, name: str, chosen: Chosen) -> Sequence[Result]:
    wanted = kernel(name)
    chosen = {
        way: [test for test in tests if not any(word in test for word in wanted.lacks)]
        for way, tests in chosen.items()
        if way not in wanted.architecture.left_out
    }
    try:
        build = store.build(wanted)
    except ArchiveError as error:
        return [
            Result(name, "", way, [name_of(test) for test in tests], complaint=str(error))
            for way, tests in chosen.items()
        ]
    return [_in_guest(store, name, build, way, tests) for way, tests in chosen.items()]


def _in_guest(store: Store, kernel_name: str, build: Build, way: str, tests: Sequence[str]) -> Result:
    asked = [name_of(test) for test in tests]
    patience = build.architecture.patience
    timeout = patience * (BOOT_SECONDS + TEST_SECONDS * len(tests))
    print(f"== Linux {build.release}, boot {way}: {len(tests)} tests", flush=True)
    with tempfile.TemporaryDirectory(prefix="llmio-vm-") as folder:
        command = [pytest_line(tests, patience * FIRST_OF_A_HANG)]
        options = replace(BOOTS[way], command=command, out=Path(folder), timeout=timeout)
        end = boot(store, build, options, to_stdout)
        found = cases(Path(folder) / "junit.xml")
    print(f"== Linux {build.release}, boot {way}: {end.seconds:.0f} s", flush=True)
    return Result(kernel_name, build.release, way, asked, found, complaint(end, timeout, found, asked))


def pytest_line(tests: Sequence[str], hang: int = FIRST_OF_A_HANG) -> str:
    """For the guest's shell."""
    words = [
        "python3", "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "--durations=5",
        "-o", f"faulthandler_timeout={hang}", "--junitxml=/out/junit.xml",
    ]  # fmt: skip
    return f"LLMIO_REQUIRE_LIVE=1 {shlex.join([*words, *tests])}"


def complaint(end: End, timeout: float, found: Mapping[Name, object], asked: Sequence[Name]) -> str:
    """Why not all came back, with how the console ended; empty if all did."""
    if end.status == TIMED_OUT:
        why = f"the guest was stopped: it was not done after {timeout:.0f} s"
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
