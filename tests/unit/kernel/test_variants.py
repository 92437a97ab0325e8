"""Which programs fit a kernel: by types made by hand after those of real kernels, from 5.10 on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import pytest

from llmio_probe.errors import ProbeError
from llmio_probe.kernel.libbpf import Libbpf
from llmio_probe.kernel.loading import ProbeObject, object_path
from llmio_probe.kernel.variants import AGAIN, Variant, choose, missed_by_all

Tracepoints = dict[str, list[str]]
"""Name to its arguments' types."""

CALLS = {"enter_io_submit": "fentry", "exit_io_submit": "fexit"}


@dataclass(frozen=True)
class Kernel:
    """What a kernel's types say; functions are those that matter."""

    tracepoints: Mapping[str, list[str]]
    functions: frozenset[str] = frozenset()
    typedefs: frozenset[str] = frozenset()

    def has_typedef(self, name: str) -> bool:
        return name in self.typedefs

    def has_function(self, name: str) -> bool:
        return name in self.functions

    def tracepoint(self, name: str) -> list[str] | None:
        return self.tracepoints.get(name)

    def lacks(self, *names: str) -> Kernel:
        kept = {name: arguments for name, arguments in self.tracepoints.items() if name not in names}
        return Kernel(kept, self.functions - set(names), self.typedefs)

    def has(self, **tracepoints: list[str]) -> Kernel:
        return Kernel({**self.tracepoints, **tracepoints}, self.functions, self.typedefs)

    def has_kfuncs(self) -> Kernel:
        return Kernel(self.tracepoints, frozenset({"bpf_rdonly_cast"}), self.typedefs)

    def has_preemptible_tracepoints(self) -> Kernel:
        return Kernel(self.tracepoints, self.functions, frozenset({"class_srcu_fast_notrace_t"}))


MAINLINE_5_10 = Kernel(
    {
        "block_rq_issue": ["request_queue", "request"],
        "block_rq_merge": ["request_queue", "request"],
        "block_rq_complete": ["request", "int", "unsigned int"],
        "block_getrq": ["request_queue", "bio", "int"],
        "block_bio_backmerge": ["request_queue", "request", "bio"],
        "block_bio_frontmerge": ["request_queue", "request", "bio"],
        "writeback_dirty_page": ["page", "address_space"],
        "io_uring_submit_sqe": ["void", "u8", "u64", "bool", "bool"],
        "sched_process_fork": ["task_struct", "task_struct"],
    }
)
DEBIAN_5_10 = MAINLINE_5_10.has(
    block_rq_issue=["request"],
    block_rq_merge=["request"],
    io_uring_submit_sqe=["void", "void", "u8", "u64", "u32", "bool", "bool"],
)
LINUX_5_15 = DEBIAN_5_10.has(
    block_rq_complete=["request", "blk_status_t", "unsigned int"],
    block_getrq=["bio"],
    block_bio_backmerge=["bio"],
    block_bio_frontmerge=["bio"],
)
LINUX_6_1 = LINUX_5_15.lacks("writeback_dirty_page").has(
    writeback_dirty_folio=["folio", "address_space"], io_uring_submit_sqe=["io_kiocb", "bool"]
)
LINUX_6_4 = LINUX_6_1.lacks("io_uring_submit_sqe").has(io_uring_submit_req=["io_kiocb"]).has_kfuncs()
LINUX_6_12 = LINUX_6_4.has(block_io_start=["request"])
LINUX_6_18 = LINUX_6_12.has(sched_process_fork=["task_struct", "task_struct", "u64"])
LINUX_7 = LINUX_6_18.has_preemptible_tracepoints()


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """The object's programs, as bpf/*.h make them, and what they attach to."""
    made = {}
    for name in LINUX_6_12.tracepoints.keys() | LINUX_5_15.tracepoints.keys():
        made[f"{name}__probe"] = f"raw_tp/{name}"
        if name not in ("block_getrq", "writeback_dirty_page", "io_uring_submit_sqe"):
            made[name] = f"tp_btf/{name}"
    for name in ("block_rq_issue", "block_rq_merge", "block_getrq", "io_uring_submit_sqe"):
        made[f"{name}__probe_at1"] = f"raw_tp/{name}"
    for name in ("block_bio_backmerge", "block_bio_frontmerge"):
        made[f"{name}__probe_at2"] = f"raw_tp/{name}"
    for name, kind in CALLS.items():
        made[name] = made[f"{name}__probe"] = f"tracepoint/syscalls/sys_{name}"
        made[f"{name}__fentry"] = made[f"{name}__probe_fentry"] = f"{kind}/__x64_sys_io_submit"
        made[f"{name}__again_fentry"] = f"{kind}/__x64_sys_io_submit"
    for name in ("block_io_start", "block_rq_issue"):
        made[f"{name}__again"] = f"tp_btf/{name}"
    return made


def moved(variant: Variant) -> dict[str, str]:
    """The programs whose name in the object is not simply that of their variant."""
    suffix = "" if variant.plain else "__probe"
    return {name: program for name, program in variant.programs.items() if program != name + suffix}


def test_arguments_that_come_later_on_5_10_have_programs_of_their_own(sections: dict[str, str]) -> None:
    variant = choose(MAINLINE_5_10, sections)
    assert moved(variant) == {
        "block_rq_issue": "block_rq_issue__probe_at1",
        "block_rq_merge": "block_rq_merge__probe_at1",
        "block_getrq": "block_getrq__probe_at1",
        "block_bio_backmerge": "block_bio_backmerge__probe_at2",
        "block_bio_frontmerge": "block_bio_frontmerge__probe_at2",
    }
    assert variant.text == "probe reads, requests from block_getrq"


def test_a_ring_without_its_request_is_left_out_and_said(sections: dict[str, str]) -> None:
    variant = choose(MAINLINE_5_10, sections)
    assert "io_uring_submit_sqe" not in variant.programs
    assert variant.missing == ("io_uring_submit_sqe",)


def test_debians_5_10_has_moved_some_of_them_already(sections: dict[str, str]) -> None:
    variant = choose(DEBIAN_5_10, sections)
    assert moved(variant) == {
        "block_getrq": "block_getrq__probe_at1",
        "block_bio_backmerge": "block_bio_backmerge__probe_at2",
        "block_bio_frontmerge": "block_bio_frontmerge__probe_at2",
        "io_uring_submit_sqe": "io_uring_submit_sqe__probe_at1",
    }
    assert variant.missing == ()


def test_before_5_18_pages_become_dirty_and_not_folios(sections: dict[str, str]) -> None:
    variant = choose(LINUX_5_15, sections)
    assert moved(variant) == {"io_uring_submit_sqe": "io_uring_submit_sqe__probe_at1"}
    assert set(variant.programs) == {*LINUX_5_15.tracepoints, *CALLS}
    assert variant.starts_with_bio


def test_without_kfuncs_6_1_is_read_by_helpers(sections: dict[str, str]) -> None:
    variant = choose(LINUX_6_1, sections)
    assert moved(variant) == {}
    assert set(variant.programs) == {*LINUX_6_1.tracepoints, *CALLS}
    assert (variant.plain, variant.starts_with_bio) == (False, True)


def test_kfuncs_without_block_io_start_are_not_used(sections: dict[str, str]) -> None:
    """6.2 to 6.4: how a request starts from its bio is only there for helpers."""
    assert choose(LINUX_6_4, sections).text == "probe reads, requests from block_getrq"


def test_block_io_start_without_kfuncs_is_used(sections: dict[str, str]) -> None:
    """As a distribution may bring it to an older kernel."""
    variant = choose(LINUX_6_1.has(block_io_start=["request"]), sections)
    assert variant.text == "probe reads, requests from block_io_start"
    assert "block_getrq" not in variant.programs


@pytest.mark.parametrize("kernel", [LINUX_6_12, LINUX_6_18], ids=["6.12", "6.18"])
def test_since_6_5_memory_is_read_by_plain_loads(sections: dict[str, str], kernel: Kernel) -> None:
    variant = choose(kernel, sections)
    assert moved(variant) == {}
    assert set(variant.programs) == {*kernel.tracepoints, *CALLS} - {"block_getrq"}
    assert variant.text == "plain loads, requests from block_io_start"


@pytest.mark.parametrize("kernel", [MAINLINE_5_10, LINUX_6_1, LINUX_6_12], ids=["5.10", "6.1", "6.12"])
def test_one_program_for_each_call_of_the_variant_that_was_chosen(sections: dict[str, str], kernel: Kernel) -> None:
    for fentry, kinds in ((False, {"tracepoint"}), (True, {"fentry", "fexit"})):
        variant = choose(kernel, sections, fentry)
        chosen = [variant.programs[name] for name in CALLS]
        assert {sections[program].partition("/")[0] for program in chosen} == kinds
        assert all(("__probe" in program) is not variant.plain for program in chosen)
        assert variant.fentry is fentry


def test_where_programs_can_be_preempted_a_second_one_does_what_the_first_was_skipped_for(
    sections: dict[str, str],
) -> None:
    seconds = {"block_io_start_again": "block_io_start__again", "block_rq_issue_again": "block_rq_issue__again"}
    assert moved(choose(LINUX_7, sections)) == seconds
    fentry = choose(LINUX_7, sections, fentry=True).programs
    assert {name: fentry[f"{name}_again"] for name in CALLS} == {name: f"{name}__again_fentry" for name in CALLS}
    without_plain_loads = LINUX_7.lacks("bpf_rdonly_cast").has(block_getrq=["bio"])
    assert not [name for name in choose(without_plain_loads, sections).programs if name.endswith(AGAIN)]


def test_the_object_has_a_second_program_on_each_hook_where_one_can_be_preempted() -> None:
    with closing(ProbeObject(Libbpf(), object_path())) as opened:
        sections = {
            name: section
            for name, section in opened.sections.items()
            if section.startswith(("tp_btf/", "fentry/", "fexit/")) and "__probe" not in name
        }
    seconds = {name for name in sections if "__again" in name}
    firsts = {name.replace("__again_", "__").replace("__again", ""): sections[name] for name in seconds}
    assert firsts == {name: section for name, section in sections.items() if name not in seconds}


def test_a_run_that_one_of_two_programs_was_skipped_for_is_not_missed() -> None:
    missed = {"block_io_start": 2908, "block_io_start_again": 11, "block_rq_complete": 3, "block_rq_issue_again": 7}
    missed["block_rq_issue"] = 0
    assert missed_by_all(missed) == {"block_io_start": 11, "block_rq_complete": 3, "block_rq_issue": 0}


def test_a_kernel_without_io_uring_lacks_that_view_only(sections: dict[str, str]) -> None:
    variant = choose(LINUX_6_12.lacks("io_uring_submit_req"), sections)
    assert variant.missing == ("io_uring_submit_sqe",)
    assert variant.plain


def test_a_tracepoint_that_no_other_stands_in_for_is_needed(sections: dict[str, str]) -> None:
    with pytest.raises(ProbeError, match=r"lacks the tracepoints block_rq_complete, block_rq_issue: .*5\.10"):
        choose(LINUX_6_12.lacks("block_rq_issue", "block_rq_complete"), sections)


@pytest.mark.parametrize(
    ("better", "other"), [("block_io_start", "block_getrq"), ("writeback_dirty_folio", "writeback_dirty_page")]
)
def test_of_two_tracepoints_one_is_needed(sections: dict[str, str], better: str, other: str) -> None:
    with pytest.raises(ProbeError, match=f"lacks the tracepoints {other}: "):
        choose(LINUX_6_12.lacks(better, other), sections)


@pytest.mark.parametrize(
    "arguments",
    [["request_queue"], ["request_queue", "int", "bio"], []],
    ids=["no bio", "a bio where no program takes it", "nothing"],
)
def test_arguments_that_are_not_known_are_refused(sections: dict[str, str], arguments: list[str]) -> None:
    with pytest.raises(ProbeError, match="tracepoint block_getrq has arguments that are not known"):
        choose(LINUX_6_1.has(block_getrq=arguments), sections)


def test_where_an_argument_has_moved_the_variant_for_older_kernels_has_a_program(sections: dict[str, str]) -> None:
    variant = choose(LINUX_6_12.has(block_rq_issue=["request_queue", "request"]), sections)
    assert not variant.plain
    assert variant.programs["block_rq_issue"] == "block_rq_issue__probe_at1"
