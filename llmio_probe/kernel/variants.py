"""Which of the object's programs fit the running kernel, decided by its types (BTF) and never by its version.

Tracepoints come, go and change their arguments; bpf/variant.h says what the object holds for that. Only the choice may
go in here: who loads is for the loaders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from llmio_probe.errors import ProbeError

PLAIN_READS = "bpf_rdonly_cast"  # a kfunc, since 6.2
BIO_START = "block_getrq"
PREEMPTIBLE = "class_srcu_fast_notrace_t"  # a type: tracepoints' programs can be preempted, since 7.0
AGAIN = "_again"
"""Ends the name of the second program on a hook, which does what the first was skipped for (bpf/variant.h)."""
_PROBE = "probe"
_AT = "_at"
_FENTRY = "fentry"

ARGUMENT = {
    "block_rq_issue": "request",
    "block_rq_merge": "request",
    "block_getrq": "bio",
    "block_bio_backmerge": "bio",
    "block_bio_frontmerge": "bio",
    "io_uring_submit_req": "io_kiocb",
    "io_uring_submit_sqe": "io_kiocb",
}
"""Where a tracepoint's arguments have moved, the struct that its program wants."""

_ALTERNATIVES = (
    ("block_io_start", BIO_START),  # 6.5
    ("writeback_dirty_folio", "writeback_dirty_page"),  # 5.18
    ("io_uring_submit_req", "io_uring_submit_sqe"),  # 6.3
)
"""Tracepoints of which one is wanted, the better one first, and the version that brought that."""

_NAMELESS = ["void", "void"]
"""io_uring's ring and request, before 5.19 in some stable kernels; of 5.10.0 only the ring came."""

_OPTIONAL = frozenset({"io_uring_submit_req", "io_uring_submit_sqe"})  # the app's view; kernels without io_uring


class KernelTypes(Protocol):
    """What is asked of the kernel's types; tests hand in some made by hand."""

    def has_function(self, name: str) -> bool: ...

    def has_typedef(self, name: str) -> bool: ...

    def tracepoint(self, name: str) -> list[str] | None:
        """The names of its arguments' types, of pointers what they lead to; None when there is no such tracepoint."""


@dataclass(frozen=True)
class Variant:
    """The programs to load, and in which words to name the choice."""

    programs: Mapping[str, str]
    """Name, such as ``block_getrq``, to the object's name, such as ``block_getrq__probe_at1``."""
    plain: bool
    starts_with_bio: bool
    fentry: bool = False
    """The app's view comes from the system calls' functions; else from their tracepoints."""
    missing: tuple[str, ...] = field(default=())
    """Optional tracepoints that the kernel lacks."""

    @property
    def text(self) -> str:
        """``plain loads, requests from block_io_start``."""
        reads = "plain loads" if self.plain else "probe reads"
        return f"{reads}, requests from {BIO_START if self.starts_with_bio else 'block_io_start'}"


def choose(types: KernelTypes, sections: Mapping[str, str], fentry: bool = False) -> Variant:
    """The programs that fit. ``sections``: the object's programs and what they attach to. ProbeError when none does.

    fentry: programs can attach to the kernel's functions.
    """
    names = {section.partition("/")[2] for section in sections.values() if section.startswith(("tp_btf/", "raw_tp/"))}
    arguments = {name: found for name in sorted(names) if (found := types.tracepoint(name)) is not None}
    wanted = names.copy()
    for better, other in _ALTERNATIVES:
        wanted.discard(other if better in arguments else better)
    if lacking := sorted(wanted - arguments.keys() - _OPTIONAL):
        raise ProbeError(f"this kernel lacks the tracepoints {', '.join(lacking)}: it needs Linux 5.10 or newer")
    # An older tracepoint, or one whose arguments have moved, is in one variant only, the one for older kernels.
    plain = types.has_function(PLAIN_READS) and all(
        _program_of(name, arguments[name], plain=True) in sections for name in wanted & arguments.keys() - _OPTIONAL
    )
    programs: dict[str, str] = {}
    missing = []
    for name in sorted(wanted):
        program = _program_of(name, arguments.get(name), plain)
        if program is not None and program in sections:
            programs[name] = program
        elif name in _OPTIONAL:
            missing.append(name)
        else:
            raise ProbeError(f"this kernel's tracepoint {name} has arguments that are not known: report its version")
    kinds = ("fentry/", "fexit/") if fentry else ("tracepoint/",)
    suffix = "_".join(([] if plain else [_PROBE]) + ([_FENTRY] if fentry else []))
    for name, section in sections.items():
        base, _, its_suffix = name.partition("__")
        if section.startswith(kinds) and its_suffix == suffix:
            programs[base] = name
    if plain and types.has_typedef(PREEMPTIBLE):
        for name, program in list(programs.items()):
            base, _, its_suffix = program.partition("__")
            second = "__again_".join((base, its_suffix)) if its_suffix else f"{base}__again"
            if second in sections:
                programs[name + AGAIN] = second
    return Variant(programs, plain, BIO_START in programs, fentry, tuple(missing))


def missed_by_all(missed: Mapping[str, int]) -> dict[str, int]:
    """Runs that the kernel skipped, by program. Of two for the same, the fewer: at most so often neither has run."""
    return {
        name: min(count, missed.get(name + AGAIN, count)) for name, count in missed.items() if not name.endswith(AGAIN)
    }


def _program_of(name: str, arguments: list[str] | None, plain: bool) -> str | None:
    """None when the kernel gives no argument of the kind that is wanted."""
    if arguments is None:
        return None
    index = 0
    if wanted := ARGUMENT.get(name):
        if wanted in arguments:
            index = arguments.index(wanted)
        elif wanted == "io_kiocb" and arguments[:2] == _NAMELESS:
            index = 1
        else:
            return None
    if plain:
        return name if index == 0 else None
    return f"{name}__{_PROBE}{f'{_AT}{index}' if index else ''}"
