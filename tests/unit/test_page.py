"""What programs put into pages of the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.page import put

BEGIN = "<!-- table: make it -->"


def test_what_is_made_goes_between_the_marks_and_replaces_what_was_there(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n<!-- end -->\nafter\n")
    for _ in range(2):
        put(page, BEGIN, "new")
        assert page.read_text() == f"before\n{BEGIN}\nnew\n<!-- end -->\nafter\n"


def test_a_page_without_marks_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN} and no end")
    with pytest.raises(ValueError, match="has no place for the table"):
        put(page, BEGIN, "new")
    assert page.read_text() == f"{BEGIN} and no end"
