"""Reports of several guests as one: the verdict, the XML, the table."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tests.vm.collect import by_boot
from tests.vm.emulator import DIED, STOOD_STILL, TIMED_OUT, End
from tests.vm.report import Result, cases, complaints, merged, name_of, table, write_table
from tests.vm.suite import complaint, pytest_line

REPORT = """<testsuites><testsuite>
<testcase classname="tests.live.test_a" name="test_one[x-1]" time="1.5"/>
<testcase classname="tests.live.test_a" name="test_one[y-2]"><failure message="no"/></testcase>
<testcase classname="tests.vm.guest.test_b" name="test_two"><skipped/></testcase>
<testcase classname="tests.live.test_a" name="test_three"/>
<testcase classname="tests.live.test_a" name="test_three"><error message="at its end"/></testcase>
</testsuite></testsuites>"""
X, Y, TWO, THREE = (
    ("tests.live.test_a", "test_one[x-1]"), ("tests.live.test_a", "test_one[y-2]"),
    ("tests.vm.guest.test_b", "test_two"), ("tests.live.test_a", "test_three"),
)  # fmt: skip


@pytest.fixture
def old(tmp_path: Path) -> Result:
    """All kinds of outcomes."""
    (tmp_path / "old.xml").write_text(REPORT)
    return Result("5.10", "5.10.0-46", "default", [X, Y, TWO, THREE], cases(tmp_path / "old.xml"))


@pytest.fixture
def new(tmp_path: Path) -> Result:
    """All passed."""
    (tmp_path / "new.xml").write_text(
        "<testsuite>"
        + "".join(f'<testcase classname="{module}" name="{name}"/>' for module, name in (X, Y, TWO, THREE))
        + "</testsuite>"
    )
    return Result("6.1", "6.1.0-56", "default", [X, Y, TWO, THREE], cases(tmp_path / "new.xml"))


def test_names_are_as_in_the_report() -> None:
    assert name_of("tests/live/test_a.py::test_one[x::y/z]") == ("tests.live.test_a", "test_one[x::y/z]")


def test_a_test_that_failed_when_it_was_over_has_failed(old: Result) -> None:
    assert [old.outcome(name) for name in old.asked] == ["passed", "failed", "skipped", "failed"]


def test_when_all_passes_there_is_nothing_to_complain_about(new: Result) -> None:
    assert complaints([new]) == []


def test_failures_are_named(old: Result, new: Result) -> None:
    assert complaints([old, new]) == ["Linux 5.10.0-46, boot default: 2 failed: test_one[y-2], test_three"]


def test_a_test_that_runs_on_none_of_several_kernels_is_a_failure(old: Result) -> None:
    words = "test_two has run on none of these kernels in boot default"
    assert complaints([old, replace(old, kernel="6.1")])[-1] == words
    assert words not in complaints([old])


def test_what_did_not_come_back_is_a_failure() -> None:
    lost = Result("6.1", "6.1.0-56", "no-btf", [X], complaint="the guest did not boot; its console ended with\npanic")
    assert complaints([lost]) == [
        "Linux 6.1.0-56, boot no-btf: the guest did not boot; its console ended with\npanic",
        "Linux 6.1.0-56, boot no-btf: 1 missing: test_one[x-1]",
    ]


def test_a_report_that_is_not_there_has_no_tests(tmp_path: Path) -> None:
    assert cases(tmp_path / "none.xml") == {}


def test_one_report_of_all(old: Result, tmp_path: Path) -> None:
    lost = Result("6.1", "6.1.0-56", "no-btf", [X], complaint="the guest did not boot\npanic")
    merged([old, lost]).write(tmp_path / "all.xml", encoding="utf-8", xml_declaration=True)
    suites = ElementTree.parse(tmp_path / "all.xml").getroot()
    first, second = suites
    assert (first.get("name"), first.get("tests"), first.get("failures")) == ("vm.5.10.default 5.10.0-46", "5", "2")
    assert (second.get("tests"), second.get("failures")) == ("1", "1")
    names = [case.get("classname") for case in suites.iter("testcase")]
    assert names[:2] == ["vm.5.10.default", "vm.5.10.default.tests.live.test_a"]
    assert names[-1] == "vm.6.1.no-btf"
    assert first[1].get("time") == "1.5"
    assert second.findtext("testcase/failure") == "the guest did not boot\npanic"


def test_a_row_is_a_test_and_a_column_a_kernel(old: Result, new: Result) -> None:
    other = Result("6.1", "6.1.0-56", "no-btf", [X], complaint="lost")
    assert table([old, new, other]).splitlines() == [
        "| test | 5.10.0-46 | 6.1.0-56 |",
        "|---|---|---|",
        "| a: one | **1 of 2 failed** | 2 passed |",
        "| a: one (no-btf) | - | **1 of 1 failed** |",
        "| a: three | **1 of 1 failed** | passed |",
        "| b: two | - | passed |",
    ]


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: make test-vm -->\nold\n<!-- end -->\nafter\n")
    for _ in range(2):
        write_table(page, "| new |", date(2026, 1, 2))
        assert page.read_text() == (
            "before\n<!-- table: make test-vm -->\nMeasured on 2026-01-02.\n\n| new |\n<!-- end -->\nafter\n"
        )


def test_a_page_without_marks_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(ValueError, match="has no place for the table"):
        write_table(page, "| new |", date(2026, 1, 2))
    assert page.read_text() == "text"


def test_boots_are_chosen_by_the_mark() -> None:
    marks = {"a": pytest.mark.guest.mark, "b": pytest.mark.guest("default", "no-btf").mark, "c": None}
    assert by_boot(list(marks.items())) == {"default": ["a", "b"], "no-btf": ["b"]}


@pytest.mark.parametrize(
    ("status", "found", "words"),
    [
        (0, [X, Y], ""),
        (1, [X, Y], ""),
        (TIMED_OUT, [X, Y], "it was not done after 60 s"),
        (STOOD_STILL, [], "stood still while it booted, 3 times"),
        (DIED, [], "did not boot, or died"),
        (4, [], "no test was reported, pytest ended with 4"),
        (0, [], "no test was reported"),
        (0, [X], "only 1 of 2 tests were reported"),
        (2, [X, Y], "pytest ended with 2"),
    ],
)
def test_why_not_all_came_back(status: int, found: list[tuple[str, str]], words: str) -> None:
    said = complaint(End(status, 1, ["last words"]), 60, dict.fromkeys(found), [X, Y])
    assert words in said
    assert bool(said) == bool(words)
    assert not said or said.endswith("last words")


def test_test_names_pass_the_shell() -> None:
    assert pytest_line(["a.py::b[kill $$]"]).endswith(" 'a.py::b[kill $$]'")
