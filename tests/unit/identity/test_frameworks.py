"""The built-in rules over real command lines, and the check of rules that users write."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmio_probe.errors import ProbeError
from llmio_probe.identity.facts import ProcessFacts, ProcessId
from llmio_probe.identity.frameworks import Identification, Rule, identify, load_rules, program_of, worker_name

DEEPSPEED = {"CROSS_RANK": "0", "CROSS_SIZE": "1", "LOCAL_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0"}


def facts_of(argv: list[str], environ: dict[str, str] | None = None) -> ProcessFacts:
    return ProcessFacts(ProcessId(1, 1), "python", tuple(argv), environ or {})


def no_maps() -> frozenset[str]:
    return frozenset()


@pytest.mark.parametrize(
    ("command", "framework", "rank"),
    [
        ("/usr/bin/python3 /opt/bin/vllm serve facebook/opt-125m", "vllm", None),
        ("python3.11 -m vllm.entrypoints.openai.api_server --model m", "vllm", None),
        ("VLLM::EngineCore", "vllm", None),
        ("VLLM::EngineCore_DP1", "vllm", "dp1"),
        ("VLLM::Worker_TP1", "vllm", "tp1"),
        ("VLLM::Worker_DP0_PP1_TP3_EP3", "vllm", "dp0-pp1-tp3"),
        ("VLLM::APIServer_0", "vllm", None),
        ("python -m sglang.launch_server --model-path m", "sglang", None),
        ("python /usr/local/bin/sglang serve m", "sglang", None),
        ("sglang::scheduler_TP0", "sglang", "tp0"),
        ("sglang::scheduler_DP1_TP2", "sglang", "dp1-tp2"),
        ("sglang::detokenizer", "sglang", None),
        ("python -m flexgen.flex_opt --model facebook/opt-125m", "flexgen", None),
        ("python -u /src/flexgen/dist_flex_opt.py --model m", "flexgen", None),
        ("python tools/flexgen_cpu.py --path _DUMMY_ --offload-dir /nvme --percent 0 0 100 0 100 0", "flexgen", None),
        ("python run.py --percent 0 0 100 0 100 0 --offload-dir=/nvme", "flexgen", None),
        ("/opt/llama/llama-server -m x.gguf", "llama.cpp", None),
        ("llama-cli -m x.gguf", "llama.cpp", None),
        ("python3 -m llama_cpp.server --model x.gguf", "llama.cpp", None),
        ("python -m dynamo.vllm --model m", "dynamo", None),
        ("/usr/bin/mooncake_master --port 50051", "mooncake", None),
        ("python /usr/bin/mooncake_client --host h", "mooncake", None),
        ("python -m mooncake.mooncake_store_service --config c", "mooncake", None),
        ("python /usr/bin/lmcache_server localhost 65432", "lmcache", None),
        ("python -m lmcache.v1.server", "lmcache", None),
        ("python /usr/bin/deepspeed --num_gpus 2 train.py", "deepspeed", None),
        ("python -u -m deepspeed.launcher.launch --world_info=e30= train.py", "deepspeed", None),
        ("python -u train.py --local_rank=0 --deepspeed ds.json", "deepspeed", None),
        ("python train.py --config conf/ds_config_zero3.json", "deepspeed", None),
        ("python /usr/bin/accelerate launch train.py", "accelerate", None),
        ("python -m accelerate.commands.launch train.py", "accelerate", None),
    ],
)
def test_a_stack_is_known_by_what_runs(rules: tuple[Rule, ...], command: str, framework: str, rank: str | None) -> None:
    assert identify(rules, facts_of(command.split()), no_maps) == Identification(framework, rank)


@pytest.mark.parametrize(
    "argv",
    [
        ["grep", "deepspeed"],
        ["vim", "flexgen.py"],
        ["vim", "-m", "flexgen.flex_opt"],
        ["tail", "-f", "VLLM::Worker_TP1"],
        ["python", "grep.py", "deepspeed"],
        ["python", "-m", "json.tool", "ds_config.json"],
        ["python", "-m", "pip", "install", "vllm", "deepspeed", "accelerate"],
        ["python", "-m", "pytest", "tests/vllm"],
        ["python", "-c", "import deepspeed; deepspeed.launch() --deepspeed"],
        ["sh", "-c", "deepspeed train.py --deepspeed ds.json"],
        ["timeout", "120", "python", "-m", "flexgen.flex_opt"],
        ["ssh", "host", "vllm", "serve", "m"],
        ["python"],
        ["python", "-"],
        [],
        [""],
    ],
    ids=" ".join,
)
def test_a_command_that_only_mentions_a_stack_is_none(rules: tuple[Rule, ...], argv: list[str]) -> None:
    assert identify(rules, facts_of(argv), no_maps) == Identification(None, None)


def test_a_deepspeed_worker_has_its_rank_and_its_launcher_none(rules: tuple[Rule, ...]) -> None:
    worker = identify(rules, facts_of(["python", "-u", "train.py"], DEEPSPEED), no_maps)
    assert worker == Identification("deepspeed", "1")
    local = {**DEEPSPEED, "RANK": ""}
    assert identify(rules, facts_of(["python", "train.py"], local), no_maps) == Identification("deepspeed", "0")
    assert identify(rules, facts_of(["python", "/usr/bin/deepspeed", "train.py"]), no_maps).rank is None


def test_a_rank_that_is_no_number_is_none(rules: tuple[Rule, ...]) -> None:
    environ = {**DEEPSPEED, "RANK": "-1", "LOCAL_RANK": "x\n"}
    assert identify(rules, facts_of(["python", "t.py"], environ), no_maps).rank is None


def test_a_compiler_that_inherits_a_workers_environment_is_none(rules: tuple[Rule, ...]) -> None:
    found = identify(rules, facts_of(["gcc", "-c", "a.c"], DEEPSPEED), lambda: frozenset({"async_io.so"}))
    assert found == Identification(None, None)


@pytest.mark.parametrize("name", ["async_io.so", "async_io_op.cpython-311-x86_64-linux-gnu.so", "gds.so"])
def test_deepspeed_is_known_by_its_mapped_operators(rules: tuple[Rule, ...], name: str) -> None:
    found = identify(rules, facts_of(["python", "ds_zero3.py", "/nvme"], {"RANK": "0"}), lambda: frozenset({name}))
    assert found == Identification("deepspeed", "0")


@pytest.mark.parametrize("name", ["libllama.so", "libllama.so.0", "xllamacpp.abi3.so"])
def test_llama_cpp_within_python_is_known_by_its_library(rules: tuple[Rule, ...], name: str) -> None:
    found = identify(rules, facts_of(["python", "chat.py"]), lambda: frozenset({name}))
    assert found == Identification("llama.cpp", None)


def test_deepspeed_under_accelerate_is_deepspeed(rules: tuple[Rule, ...]) -> None:
    environ = {"ACCELERATE_MIXED_PRECISION": "bf16", "RANK": "3"}
    assert identify(rules, facts_of(["python", "t.py"], environ), no_maps) == Identification("accelerate", "3")
    found = identify(rules, facts_of(["python", "t.py"], environ), lambda: frozenset({"async_io.so"}))
    assert found == Identification("deepspeed", "3")


def test_lmcache_inside_vllm_is_vllm(rules: tuple[Rule, ...]) -> None:
    assert identify(rules, facts_of(["python", "/bin/vllm", "serve", "--kv", "lmcache"]), no_maps).framework == "vllm"


def test_maps_are_read_once_at_most_and_only_where_they_could_decide(rules: tuple[Rule, ...]) -> None:
    reads: list[str] = []

    def maps_for(what: str) -> frozenset[str]:
        reads.append(what)
        return frozenset()

    for command in ("VLLM::Worker_TP0", "fio job.ini", "llama-server -m x", "python vllm serve m", "python plain.py"):
        identify(rules, facts_of(command.split()), lambda command=command: maps_for(command))  # type: ignore[misc]
    assert reads == ["python plain.py"]


@pytest.mark.parametrize(
    ("argv", "program"),
    [
        (["/usr/bin/python3.11", "-uB", "/a/b.py", "x"], "python b.py x"),
        (["python", "-X", "importtime", "-Wignore", "-W", "error", "b.py"], "python b.py"),
        (["python", "-Im", "mod", "x"], "python -m mod x"),
        (["python", "-mmod", "x"], "python -m mod x"),
        (["python", "--check-hash-based-pycs", "always", "b.py"], "python b.py"),
        (["python", "-uc", "anything"], "python -c"),
        (["python", "-", "x"], "python - x"),
        (["python", "-m"], "python -m"),
        (["/opt/bin/fio", "/a/b"], "fio /a/b"),
    ],
)
def test_interpreter_options_are_left_out(argv: list[str], program: str) -> None:
    assert program_of(argv) == program


def test_worker_names() -> None:
    assert worker_name("deepspeed", "0") == "deepspeed-rank0"
    assert worker_name("flexgen", None) == "flexgen"
    assert worker_name("vllm", "tp1") == "vllm-tp1"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: b", "must be a list"),
        ("[", "not YAML"),
        ("- x", "rule 1: must be a mapping"),
        ("- cmdline: [a]", "rule 1: framework must be a name"),
        ("- framework: 'kernel:x'", "framework must be a name"),
        ("- framework: other", "framework must be a name"),
        ("- {framework: a, cmdlin: [b]}", r"rule 1 \(a\): unknown key cmdlin; known are cmdline"),
        ("- {framework: a, cmdline: ['(']}", r"rule 1 \(a\): cmdline: bad regular expression '\('"),
        ("- {framework: a, maps: x}", r"maps must be a list"),
        ("- {framework: a, environ: [1]}", r"environ must be a list of non-empty strings"),
        ("- {framework: a, environ: [' ']}", r"environ must be a list of non-empty strings"),
        ("- {framework: a, rank: x}", "rank must be a mapping"),
        ("- {framework: a, rank: {tilte: x}}", "rank: unknown key tilte"),
        ("- {framework: a, rank: {title: 'TP'}}", "rank.title needs one group"),
        ("- {framework: a, rank: {title: 1}}", "rank.title: must be a regular expression"),
        ("- {framework: a, rank: {title: '(a)', environ: [R]}}", "not both"),
        ("- framework: a\n- framework: a", "more than one rule for a"),
    ],
)
def test_rules_that_are_wrong_are_refused_with_what_and_where(text: str, complaint: str) -> None:
    with pytest.raises(ProbeError, match=complaint):
        load_rules(text)


def test_rules_may_come_from_a_file_which_errors_name(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    with pytest.raises(ProbeError, match=r"cannot read framework rules .*rules\.yaml"):
        load_rules(path)
    path.write_text("- {framework: mine, cmdline: ['mine ']}")
    assert identify(load_rules(path), facts_of(["/bin/mine", "x"]), no_maps).framework == "mine"
    path.write_text("- {framework: 1}")
    with pytest.raises(ProbeError, match=r"rules\.yaml: rule 1"):
        load_rules(path)
