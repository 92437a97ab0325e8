"""Addresses of the kernel's functions, from files made by hand after /proc/kallsyms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmio_probe.kernel.symbols import addresses_of

AddressesOf = Callable[[str], dict[str, int]]
NAMES = ("bio_chain_endio", "btrfs_simple_end_io", "loop_workfn")


@pytest.fixture
def found(tmp_path: Path) -> AddressesOf:
    """found(text): what is found of NAMES in such a file."""

    def find(text: str) -> dict[str, int]:
        (tmp_path / "kallsyms").write_text(text)
        return addresses_of(NAMES, tmp_path / "kallsyms")

    return find


def test_functions_of_the_kernel_and_of_modules_are_found(found: AddressesOf) -> None:
    assert found(
        "ffffffff81000000 T _stext\n"
        "ffffffff81600010 t bio_chain_endio\n"
        "ffffffffc0a00020 t btrfs_simple_end_io\t[btrfs]\n"
        "ffffffffc0b00000 t lo_open\t[loop]\n"
    ) == {"bio_chain_endio": 0xFFFFFFFF81600010, "btrfs_simple_end_io": 0xFFFFFFFFC0A00020}


@pytest.mark.parametrize("line", ["t __bio_chain_endio", "t bio_chain_endio.cold", "t bio_chain_endio2\t[dm]"])
def test_a_name_is_a_whole_one(found: AddressesOf, line: str) -> None:
    assert found(f"ffffffff81600010 {line}\n") == {}


def test_of_two_functions_with_one_name_none_is_taken(found: AddressesOf) -> None:
    lines = "ffffffff81600010 t bio_chain_endio\n", "ffffffffc0a00010 t bio_chain_endio\t[dm]\n"
    other = "ffffffffc0b00010 t loop_workfn\t[loop]\n"
    assert found(lines[0] + other + lines[1]) == {"loop_workfn": 0xFFFFFFFFC0B00010}


def test_one_function_may_be_listed_twice(found: AddressesOf) -> None:
    assert found("ffffffff81600010 t bio_chain_endio\n" * 2) == {"bio_chain_endio": 0xFFFFFFFF81600010}


def test_hidden_addresses_are_0(found: AddressesOf) -> None:
    hidden = f"{0:016x} t "
    text = f"{hidden}bio_chain_endio\n{hidden}loop_workfn\t[loop]\n{hidden}bio_chain_endio\t[dm]\n"
    assert found(text) == {"bio_chain_endio": 0, "loop_workfn": 0}


def test_without_the_file_nothing_is_found(tmp_path: Path) -> None:
    assert addresses_of(NAMES, tmp_path / "none") == {}
