"""Reads the JUnit reports for .ci/run: counts, seconds and the verdict on them. Nothing else may go in here.

counts.py MINIMUM REPORT…: prints one line a suite and "N passed, N failed" last; exit status 1 when a test failed, a
live test or one of the frameworks' did not run, or fewer ran than the file MINIMUM demands. A report that is not there
has no tests. Deselected tests leave no trace in a report: that none of the live ones is, tests/conftest.py sees to.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

PREFIXES = {"tests.live": "live", "tests.frameworks": "frameworks", "vm.": "vm"}
"""Of the names of modules in a report; all others are unit tests."""


def main(minimum: Path, *reports: Path) -> int:
    counts: dict[str, Counter[str]] = {suite: Counter() for suite in ("unit", *PREFIXES.values())}
    seconds = dict.fromkeys(counts, 0.0)
    for case in (case for report in reports if report.exists() for case in ElementTree.parse(report).iter("testcase")):
        name = case.get("classname", "")
        suite = next((suite for prefix, suite in PREFIXES.items() if name.startswith(prefix)), "unit")
        counts[suite][_outcome(case)] += 1
        seconds[suite] += float(case.get("time", 0))

    complaints = []
    for suite, least in _minimum(minimum).items():
        count = counts[suite]
        print(
            f"{suite}: {count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped, "
            f"at least {least} demanded, {seconds[suite]:.1f} s"
        )
        if count["passed"] < least:
            complaints.append(f"{suite}: only {count['passed']} of at least {least} tests passed")
    for suite in ("live", "frameworks"):
        if counts[suite]["skipped"]:
            complaints.append(f"{suite}: {counts[suite]['skipped']} tests did not run")
    for complaint in complaints:
        print(f"error: {complaint}")

    total = sum(counts.values(), Counter[str]())
    print(f"{total['passed']} passed, {total['failed']} failed")
    return 1 if complaints or total["failed"] else 0


def _outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"


def _minimum(path: Path) -> dict[str, int]:
    lines = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    return {suite: int(least) for suite, least in lines}


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
