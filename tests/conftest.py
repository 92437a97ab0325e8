"""What holds for every test: where it may be left out, and that signals reach it.

The gate of the live tests: what lies under tests/live and tests/frameworks is marked live, and never passes by not
running. A plain `pytest` without root skips them and says how to run them. With LLMIO_REQUIRE_LIVE=1 (make test, CI) a
live test that is skipped, deselected or lacks root is a failure. Other fixtures live beside their tests.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import pytest

LIVE = tuple(Path(__file__).parent / name for name in ("live", "frameworks"))


@pytest.fixture(autouse=True, scope="session")
def signals_are_not_ignored() -> Iterator[None]:
    """A shell's background job has SIGINT ignored, nohup's SIGHUP, and so has all that they start."""
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGHUP, hang_up)


def pytest_configure(config: pytest.Config) -> None:
    required = os.environ.get("LLMIO_REQUIRE_LIVE") == "1"
    config.pluginmanager.register(_RequiredLive() if required else _OptionalLive())


def pytest_itemcollected(item: pytest.Item) -> None:
    if _lies_in_live(item.path):
        item.add_marker("live")


class _OptionalLive:
    """Without root, live tests are skipped with a reason that helps."""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if _is_live(item) and os.geteuid() != 0:
            pytest.skip("needs root and the real kernel: sudo make test")


class _RequiredLive:
    """No live test may be left out, whatever the reason."""

    def __init__(self) -> None:
        self._deselected = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if _is_live(item) and os.geteuid() != 0:
            pytest.fail("LLMIO_REQUIRE_LIVE=1, but live tests need root: sudo make test", pytrace=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if report.skipped and _lies_in_live(collector.path):
            report.outcome, report.longrepr = "failed", _not_skipped(report.longrepr)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.skipped and _is_live(item):
            vars(report).pop("wasxfail", None)  # an expected failure is skipped in pytest's eyes; not here
            report.outcome, report.longrepr = "failed", _not_skipped(report.longrepr)
        return report

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._deselected += sum(map(_is_live, items))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._deselected and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._deselected:
            terminalreporter.write_line(
                f"LLMIO_REQUIRE_LIVE=1, but {self._deselected} live tests were deselected", red=True
            )


def _lies_in_live(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in LIVE)


def _is_live(item: pytest.Item) -> bool:
    return item.get_closest_marker("live") is not None


def _not_skipped(longrepr: object) -> str:
    reason = longrepr[2] if isinstance(longrepr, tuple) else longrepr
    return f"LLMIO_REQUIRE_LIVE=1, but this live test did not run: {reason}"
