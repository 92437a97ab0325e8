"""A pytest plugin for this machine: which tests are for guests, and in which boots. Runs none of them.

The guests get the tests by name, so that nothing is left out there unseen, and the runner knows what must come back.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.vm.payload import PROJECT

PLACES = ("tests/live", "tests/vm/guest")
DEFAULT = "default"

Chosen = Mapping[str, Sequence[str]]
"""Test ids by boot."""


class CollectionError(Exception):
    """The tests cannot even be read here."""


def chosen_tests() -> Chosen:
    with tempfile.NamedTemporaryFile(suffix=".json") as output:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", "-p", __name__,
             f"--guest-tests={output.name}", *PLACES],
            cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        text = Path(output.name).read_text()
    if done.returncode or not text:
        raise CollectionError(f"pytest cannot collect the tests for guests:\n{done.stdout}")
    found: Chosen = json.loads(text)
    return found


def by_boot(tests: Sequence[tuple[str, pytest.Mark | None]]) -> Chosen:
    """`@pytest.mark.guest` is for the default boot, `@pytest.mark.guest("default", "no-btf")` for these."""
    chosen: dict[str, list[str]] = {}
    for name, mark in tests:
        for boot in (mark.args or (DEFAULT,)) if mark else ():
            chosen.setdefault(boot, []).append(name)
    return chosen


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--guest-tests", metavar="FILE", help="where to write the names of the tests for guests")


def pytest_collection_finish(session: pytest.Session) -> None:
    chosen = by_boot([(item.nodeid, item.get_closest_marker("guest")) for item in session.items])
    Path(session.config.getoption("--guest-tests")).write_text(json.dumps(chosen))
