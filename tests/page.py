"""Puts what was made by a program into a page of the documentation, between two marks that are there already."""

from __future__ import annotations

from pathlib import Path

END = "<!-- end -->"


def put(page: Path, begin: str, made: str) -> None:
    """Replace what stands between the lines ``begin`` and ``<!-- end -->``. ValueError when they are not there."""
    text = page.read_text()
    before, mark, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{page} has no place for the table: it goes between the lines {begin} and {END}")
    page.write_text(f"{before}{begin}\n{made}\n{END}{after}")
