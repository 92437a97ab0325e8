"""Names from outside cannot steer a terminal, and stay readable otherwise."""

from __future__ import annotations

import sys

import pytest

from llmio_probe.text import escape


@pytest.mark.parametrize("name", ["", "flexgen", "/nvme/t_12 (a)", "Gewichte-für-ä", "模型.safetensors", "a\\x1b"])
def test_what_can_be_shown_is_left_as_it_is(name: str) -> None:
    assert escape(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\x0ab\x09c\x0d"),
        ("\x00\x7f", r"\x00\x7f"),
        ("\x9b31m", r"\x9b31m"),
        ("\udc80\udcff", r"\x80\xff"),
        ("\ud800", r"\ud800"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\u2028", r"\u2028"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_what_cannot_be_shown_becomes_a_backslash_escape(name: str, shown: str) -> None:
    assert escape(name) == shown


def test_undecodable_bytes_of_a_file_name_are_shown_as_bytes() -> None:
    assert escape(b"/nvme/\xff\xfe".decode("utf-8", "surrogateescape")) == r"/nvme/\xff\xfe"


def test_every_character_comes_out_printable_and_once_is_enough() -> None:
    for code in [*range(0x3000), *range(0xD700, 0xE100), *range(0xE0000, 0xE0100), sys.maxunicode]:
        shown = escape(chr(code))
        assert shown.isprintable()
        assert escape(shown) == shown
