"""Proves tests/conftest.py by running pytest on small suites with that same file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).parents[1] / "conftest.py"
PASSES = "def test_live(): pass"
SKIPS = "import pytest\ndef test_live(): pytest.skip('no loop device')"
SKIPS_WHOLE_FILE = "import pytest\npytest.skip('no loop device', allow_module_level=True)"


class Suite:
    """A suite with one unit test and the given live test."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pytester = pytester
        self._monkeypatch = monkeypatch
        for name in ("unit", "live", "frameworks"):
            (pytester.path / "tests" / name).mkdir(parents=True)
        (pytester.path / "tests" / "conftest.py").write_text(CONFTEST.read_text())
        (pytester.path / "tests" / "unit" / "test_unit.py").write_text("def test_unit(): pass")
        pytester.makeini("[pytest]\nmarkers = live: x\naddopts = --strict-markers")

    def run(self, live: str, *arguments: str, root: bool, required: bool) -> pytest.RunResult:
        (self._pytester.path / "tests" / "live" / "test_live.py").write_text(live)
        self._monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
        self._monkeypatch.setenv("LLMIO_REQUIRE_LIVE", "1" if required else "")
        return self._pytester.runpytest_inprocess("-rs", *arguments)


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    return Suite(pytester, monkeypatch)


@pytest.mark.parametrize("required", [False, True])
def test_root_runs_the_live_tests(suite: Suite, required: bool) -> None:
    result = suite.run(PASSES, root=True, required=required)
    result.assert_outcomes(passed=2)
    assert result.ret == 0


def test_what_lies_under_live_is_marked(suite: Suite) -> None:
    suite.run(PASSES, "-m", "live", root=True, required=False).assert_outcomes(passed=1, deselected=1)


def test_the_frameworks_tests_are_live_ones(suite: Suite, pytester: pytest.Pytester) -> None:
    (pytester.path / "tests" / "frameworks" / "test_framework.py").write_text(SKIPS)
    result = suite.run(PASSES, root=True, required=True)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*did not run: *no loop device*"])


def test_without_root_live_tests_are_skipped_and_say_how_to_run_them(suite: Suite) -> None:
    result = suite.run(PASSES, root=False, required=False)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*sudo make test*"])


def test_required_live_tests_fail_without_root(suite: Suite) -> None:
    result = suite.run(PASSES, root=False, required=True)
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == 1


def test_a_live_test_may_skip_itself_when_not_required(suite: Suite) -> None:
    suite.run(SKIPS, root=True, required=False).assert_outcomes(passed=1, skipped=1)


def test_a_required_live_test_that_skips_itself_fails(suite: Suite) -> None:
    result = suite.run(SKIPS, root=True, required=True)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*did not run: *no loop device*"])


def test_a_required_live_file_that_skips_itself_fails(suite: Suite) -> None:
    result = suite.run(SKIPS_WHOLE_FILE, root=True, required=True)
    result.assert_outcomes(errors=1)
    assert result.ret != 0


def test_a_required_live_test_that_is_expected_to_fail_fails(suite: Suite) -> None:
    live = "import pytest\n@pytest.mark.xfail\ndef test_live(): assert False"
    assert suite.run(live, root=True, required=True).ret == 1


def test_deselecting_required_live_tests_fails(suite: Suite) -> None:
    result = suite.run(PASSES, "-m", "not live", root=True, required=True)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*1 live tests were deselected*"])


def test_a_unit_test_may_skip_when_live_ones_are_required(suite: Suite, pytester: pytest.Pytester) -> None:
    (pytester.path / "tests" / "unit" / "test_unit.py").write_text("import pytest\ndef test_unit(): pytest.skip('x')")
    suite.run(PASSES, root=True, required=True).assert_outcomes(passed=1, skipped=1)
