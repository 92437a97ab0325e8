"""What came back from the guests as one JUnit report, one table and one verdict. Starts no guest."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from tests.page import put
from tests.vm.collect import DEFAULT

BEGIN = "<!-- table: make test-vm -->"
PASSED, FAILED, SKIPPED, MISSING = "passed", "failed", "skipped", "missing"

Name = tuple[str, str]
"""A test's module, and its name with its parameters: as JUnit has them."""


def name_of(test_id: str) -> Name:
    path, _, name = test_id.partition("::")
    return path.removesuffix(".py").replace("/", "."), name


@dataclass(frozen=True)
class Result:
    """What became of a guest's tests. complaint: why not all that was asked for came back; empty if it did."""

    kernel: str
    release: str
    boot: str
    asked: Sequence[Name]
    cases: Mapping[Name, ElementTree.Element] = field(default_factory=dict)
    complaint: str = ""

    def outcome(self, name: Name) -> str:
        case = self.cases.get(name)
        if case is None:
            return MISSING
        if case.find("failure") is not None or case.find("error") is not None:
            return FAILED
        return SKIPPED if case.find("skipped") is not None else PASSED


def cases(report: Path) -> Mapping[Name, ElementTree.Element]:
    """A test whose teardown failed as well has two entries: the failed one counts."""
    found: dict[Name, ElementTree.Element] = {}
    if not report.exists():
        return found
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("classname", ""), case.get("name", "")
        if name not in found or case.find("error") is not None:
            found[name] = case
    return found


def complaints(results: Sequence[Result]) -> Sequence[str]:
    """Why the run has failed, a sentence each; none when it has not. On a single kernel a test may not apply."""
    found = []
    for result in results:
        where = f"Linux {result.release or result.kernel}, boot {result.boot}"
        if result.complaint:
            found.append(f"{where}: {result.complaint}")
        for outcome in (FAILED, MISSING):
            names = [name[1] for name in result.asked if result.outcome(name) == outcome]
            if names:
                found.append(f"{where}: {len(names)} {outcome}: {', '.join(names)}")
    skipped = [(result.boot, name) for result in results for name in result.asked if result.outcome(name) == SKIPPED]
    ran = {(result.boot, name) for result in results for name in result.asked if result.outcome(name) == PASSED}
    several = len({result.kernel for result in results}) > 1
    for boot, name in sorted(set(skipped) - ran if several else ()):
        found.append(f"{name[1]} has run on none of these kernels in boot {boot}")
    return found


def merged(results: Sequence[Result]) -> ElementTree.ElementTree[ElementTree.Element]:
    """One suite a guest; its complaint is a test of its own that failed."""
    suites = ElementTree.Element("testsuites")
    for result in results:
        prefix = f"vm.{result.kernel}.{result.boot}"
        suite = ElementTree.SubElement(suites, "testsuite", name=f"{prefix} {result.release}".strip())
        guest = ElementTree.SubElement(suite, "testcase", classname=prefix, name="the guest ran all that was asked for")
        if result.complaint:
            ElementTree.SubElement(guest, "failure", message=result.complaint.splitlines()[0]).text = result.complaint
        for (module, name), case in result.cases.items():
            case.set("classname", f"{prefix}.{module}")
            case.set("name", name)
            suite.append(case)
        outcomes = [result.outcome(name) for name in result.cases]
        suite.set("tests", str(len(outcomes) + 1))
        suite.set("failures", str(outcomes.count(FAILED) + bool(result.complaint)))
        suite.set("skipped", str(outcomes.count(SKIPPED)))
    return ElementTree.ElementTree(suites)


def table(results: Sequence[Result]) -> str:
    """In Markdown: a row a test, a column a kernel. The variants of a test are one row."""
    releases = list(dict.fromkeys(result.release or result.kernel for result in results))
    rows: dict[str, dict[str, list[str]]] = {}
    for result in results:
        for name in result.asked:
            outcomes = rows.setdefault(_row(name, result.boot), {})
            outcomes.setdefault(result.release or result.kernel, []).append(result.outcome(name))
    lines = [f"| test | {' | '.join(releases)} |", "|---" * (len(releases) + 1) + "|"]
    for title, outcomes in sorted(rows.items()):
        lines.append(f"| {title} | {' | '.join(_cell(outcomes.get(release, [])) for release in releases)} |")
    return "\n".join(lines)


def write_table(page: Path, made: str, day: date) -> None:
    """Between the two marks of a page."""
    put(page, BEGIN, f"Measured on {day}.\n\n{made}")


def _row(name: Name, boot: str) -> str:
    module, test = name
    title = re.sub(r"\[.*", "", test).removeprefix("test_").replace("_", " ")
    where = module.rpartition(".")[2].removeprefix("test_").replace("_", " ")
    return f"{where}: {title}" + (f" ({boot})" if boot != DEFAULT else "")


def _cell(outcomes: Sequence[str]) -> str:
    """Of the variants of a test: all passed, or how many did, or it does not apply here."""
    ran = [outcome for outcome in outcomes if outcome != SKIPPED]
    if not ran:
        return "-"
    passed = ran.count(PASSED)
    if passed == len(ran):
        return "passed" if passed == 1 else f"{passed} passed"
    return f"**{len(ran) - passed} of {len(ran)} failed**"
