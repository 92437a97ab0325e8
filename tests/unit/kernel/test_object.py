"""What the built object may not hold, whatever compiler made it: kernels refuse it that this one does not show."""

from __future__ import annotations

import re
import subprocess

import pytest

from llmio_probe.kernel.loading import object_path

FRAME = 32
"""A frame of the BPF stack is rounded up to so many bytes."""
STACK = 512
"""MAX_BPF_STACK: of all frames of a chain of calls together; since 6.13 kernels with a private stack allow more."""
CHAIN = ("complete_alone", "share_out", "share_out_round__probe", "emit_part", "overflow_part")
"""The longest chain below block_rq_complete, by the names that its functions have in the probe variant."""


@pytest.fixture(scope="module")
def code() -> str:
    """Disassembled."""
    command = ["llvm-objdump", "-d", str(object_path())]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_adding_is_the_only_atomic_that_5_10_has(code: str) -> None:
    """Compare-and-swap came with 5.12, and is in the programs that only load where bpf_rdonly_cast is, from 6.2 on."""
    atomics = {line.split("\t")[-1] for line in code.splitlines() if re.search(r"\block \*|atomic|xchg", line)}
    assert any("+=" in text for text in atomics)
    assert [text for text in atomics if "+=" not in text and "cmpxchg" not in text] == []


def test_the_longest_chain_of_calls_has_stack_enough(code: str) -> None:
    deepest = frames(code)
    # The second one, for 7.0, completes nothing alone.
    programs = [size for name, size in deepest.items() if re.fullmatch(r"block_rq_complete(?!__again)\w*", name)]
    assert programs
    chain = [max(programs), *(deepest[name] for name in CHAIN)]
    assert sum(-(-max(size, 1) // FRAME) * FRAME for size in chain) <= STACK


def frames(code: str) -> dict[str, int]:
    """The lowest place below the frame pointer that each function uses; of namesakes, one in each variant, the most."""
    found: dict[str, int] = {}
    function = ""
    for line in code.splitlines():
        if (name := re.match(r"[0-9a-f]+ <(\w+)>:", line)) and not name[1].startswith("LBB"):
            function = name[1]
            found.setdefault(function, 0)
        for place in re.findall(r"r10 (?:\+ -|- )(\d+)", line):
            found[function] = max(found[function], int(place))
        if (place := re.search(r"r\d+ \+= -(\d+)$", line)) and int(place[1]) <= STACK:
            found[function] = max(found[function], int(place[1]))
    return found
