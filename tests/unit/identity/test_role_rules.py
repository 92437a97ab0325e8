"""The built-in rules over names that the frameworks give, how one is chosen, and that docs/roles.md shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmio_probe.identity import frameworks
from llmio_probe.identity.path_patterns import PathPattern
from llmio_probe.identity.role_rules import (
    BEHAVIOURS,
    ROLES,
    SURE,
    Answer,
    Rule,
    RuleSet,
    Verdict,
    builtin_role_rules,
    decide,
    shape_behaviour,
)

DOCS = Path(__file__).parents[3] / "docs" / "roles.md"

BUILTIN = builtin_role_rules()
YES, NO = Answer(True, True), Answer(False, True)
NOT_YET, FOR_NOW = Answer(False, False), Answer(True, False)

HEX = "0123456789abcdef" * 4


def role_of(path: str, framework: str | None) -> tuple[str, str]:
    rule = decide(RuleSet(BUILTIN).for_path(path), framework, lambda behaviour: NO).rule
    return (rule.role, rule.name) if rule is not None else ("other", "")


@pytest.mark.parametrize(
    ("path", "framework", "expected"),
    [
        # DeepSpeed
        ("/nvme/zero_stage_3/bfloat16params/rank0/17_param.tensor.swp", "deepspeed", "weights deepspeed-parameters"),
        ("/nvme/zero_stage_3/float16params/rank12/0_param.tensor.swp", None, "weights deepspeed-parameters"),
        ("/nvme/zero_stage_3/optimizer/rank0/17.tensor.swp", "deepspeed", "optimizer deepspeed-optimizer"),
        ("/nvme/zero_stage_3/optimizer/rank0/1_2.tensor.swp", "deepspeed", "optimizer deepspeed-optimizer"),
        ("/nvme/zero_stage_3/optimizer/rank1/4_gradient_0_99.tensor.swp", "deepspeed", "optimizer deepspeed-optimizer"),
        ("/nvme/zero_stage_3/bfloat16params/rank0/x.tensor.swp", "deepspeed", "other "),
        ("/out/global_step10/mp_rank_00_model_states.pt", "deepspeed", "checkpoint deepspeed-checkpoint"),
        ("/out/a/zero_pp_rank_0_mp_rank_00_optim_states.pt", None, "checkpoint deepspeed-checkpoint"),
        ("/out/a/bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt", None, "checkpoint deepspeed-checkpoint"),
        # FlexGen: the last of its rules, as no behaviour holds
        ("/nvme/t_12", "flexgen", "other "),
        ("/w/opt-30b-np/decoder.layers.0.self_attn.q_proj.weight", "flexgen", "weights flexgen-weights-source"),
        # accelerate
        ("/offload/model.decoder.layers.0.fc1.weight.dat", None, "weights accelerate-offload-parameter"),
        ("/offload/lm_head.dat", "accelerate", "weights accelerate-offload"),
        ("/var/lib/x.dat", None, "other "),
        # vLLM
        ("/m/model-00001-of-00002.safetensors", "vllm", "weights served-safetensors"),
        ("/m/checkpoint-500/model.safetensors", "vllm", "weights served-safetensors"),
        ("/m/pytorch_model.bin", "vllm", "weights served-torch"),
        (f"/tmp/{HEX[:32]}/model.layers.0.self_attn.attn.safetensors", "vllm", "kv_cache vllm-example-connector"),
        (f"/tmp/{HEX[:32]}/transformer.h.0.attn.attn.safetensors", "vllm", "kv_cache vllm-example-connector"),
        (f"/hub/snapshots/{HEX[:40]}/model-00001-of-00002.safetensors", "vllm", "weights served-safetensors"),
        (f"/kv/org_model_0a1b_r0/012/34_g0/{HEX}.bin", "vllm", "kv_cache vllm-file-tier"),
        (f"/kv/org_model_0a1b_r0/012/34_g0/{HEX}.bin_8123.tmp", None, "kv_cache vllm-file-tier"),
        ("/vllm-workspace/mnt/hf3fs/hf3fs_vllm_data_file_3", "vllm", "kv_cache vllm-hf3fs"),
        # LMCache
        ("/kv/meta-llama-Llama-3.1-8B@2@1@-7f3a@bfloat16.pt", "vllm", "kv_cache lmcache-local-disk"),
        ("/kv/m@1@0@7f3a@bfloat16@a%b.pt", "sglang", "kv_cache lmcache-local-disk"),
        ("/kv/meta-llama-SEP-Llama@1@0@7f3a@bfloat16.data", None, "kv_cache lmcache-fs-connector"),
        ("/kv/meta-llama-SEP-Llama@1@0@7f3a@bfloat16.tmp", None, "kv_cache lmcache-fs-connector"),
        (f"/kv/m-SEP-x@0x01000100@0@{HEX}.data", None, "kv_cache lmcache-fs-l2"),
        (f"/kv/m-SEP-x@0x01000100@0@{HEX}@salt.data", None, "kv_cache lmcache-fs-l2"),
        ("/gds/ab/cd/m%40x.kvcache.safetensors", "vllm", "kv_cache lmcache-gds"),
        ("/gds/ab/cd/m%40x.kvcache.safetensors.metadata.tmpa1B2c3D4", "vllm", "kv_cache lmcache-gds"),
        ("/gds/ab/cd/m%40x.kvcache.safetensors.tmpa1B2c3D4", None, "kv_cache lmcache-gds"),
        ("/gds/ab/cd/m%40x.weka1", None, "kv_cache lmcache-gds"),
        ("/nixl/obj_17_0a3f.bin", "vllm", "kv_cache lmcache-nixl"),
        # SGLang
        (f"/tmp/hicache/{HEX}_org-model_0_1.bin", "sglang", "kv_cache sglang-hicache"),
        (f"/tmp/hicache/{HEX}_org-model_0_1.bin.tmp.12.34.{HEX[:32]}", None, "kv_cache sglang-hicache"),
        (f"/tmp/hicache/{HEX}_org-model_0_1.bin.{HEX[:32]}.tmp", None, "kv_cache sglang-hicache"),
        (f"/tmp/hicache/.{HEX[:32]}.tmp", None, "kv_cache sglang-hicache"),
        (f"/nvme/{HEX}_org-model_0_1.bin", "sglang", "kv_cache sglang-hicache-elsewhere"),
        (f"/nvme/.{HEX[:32]}.tmp", "sglang", "kv_cache sglang-hicache-elsewhere"),
        (f"/nvme/.{HEX[:32]}.tmp", None, "other "),
        ("/data/hicache.0.bin", None, "kv_cache sglang-hf3fs"),
        (f"/tmp/hicache_storage/3f/{HEX}_k", "sglang", "kv_cache sglang-nixl"),
        # llama.cpp, Dynamo, Mooncake
        ("/m/llama-2-7b.Q4_K_M-00001-of-00003.gguf", "llama.cpp", "weights gguf"),
        ("/kv/slot-0.bin", "llama.cpp", "kv_cache llama-slot"),
        ("/tmp/dynamo-kvbm-disk-cache-a1B2c3", "vllm", "kv_cache dynamo-kvbm"),
        ("/data/file_storage/0/17.bucket", None, "kv_cache mooncake-store"),
        ("/nvme/17.bucket", "sglang", "kv_cache mooncake-bucket"),
        # Checkpoints and weights of others
        ("/out/checkpoint-500/model.safetensors", None, "checkpoint trainer-checkpoint"),
        ("/out/checkpoint-500/optimizer.pt", "deepspeed", "checkpoint saved-optimizer"),
        ("/out/checkpoints/checkpoint_3/random_states_0.pkl", "accelerate", "checkpoint trainer-checkpoint"),
        ("/out/dcp/__0_0.distcp", None, "checkpoint torch-distributed-checkpoint"),
        ("/out/ckpt/a/last.pth", None, "checkpoint checkpoint-folder"),
        ("/out/lightning/epoch=3.ckpt", None, "checkpoint checkpoint-folder"),
        ("/m/model.safetensors", None, "weights safetensors"),
        ("/m/pytorch_model-00001-of-00003.bin", "deepspeed", "weights pytorch-model"),
        (f"/home/u/.cache/huggingface/hub/models--a--b/blobs/{HEX}", "vllm", "weights hub-cache"),
        (f"/home/u/.cache/huggingface/hub/models--a--b/blobs/{HEX}.0a1b2c3d.incomplete", None, "weights hub-cache"),
        (f"/home/u/.cache/huggingface/hub/blobs/01/{HEX}", None, "weights hub-cache"),
        # What is none of all that
        ("/usr/lib/python3/dist-packages/distutils-precedence.pth", None, "other python-path"),
        ("/opt/venv/lib/python3.11/site-packages/distutils-precedence.pth", "vllm", "other python-path"),
        ("/models/consolidated.00.pth", "vllm", "weights served-torch"),
        ("/var/lib/postgresql/base/1/2619", None, "other "),
        ("/nvme/t_12", None, "other "),
        ("/m/config.json", "vllm", "other "),
    ],
)
def test_the_built_in_rules_know_the_frameworks_names(path: str, framework: str | None, expected: str) -> None:
    assert " ".join(role_of(path, framework)) == expected


def test_every_built_in_rule_has_a_file_that_it_names_and_is_reached() -> None:
    marks = test_the_built_in_rules_know_the_frameworks_names.pytestmark  # type: ignore[attr-defined]
    named = {expected.split()[1] for *_, expected in marks[0].args[1] if not expected.endswith(" ")}
    by_use = {rule.name for rule in BUILTIN if rule.behaviour is not None}
    assert named | by_use == {rule.name for rule in BUILTIN}


def test_every_built_in_rule_says_how_sure_it_is_and_why() -> None:
    known = {rule.framework for rule in frameworks.builtin_rules()}
    for rule in BUILTIN:
        assert rule.sure in SURE
        assert rule.evidence
        assert rule.role in ROLES
        assert known.issuperset(rule.frameworks)
        assert rule.behaviour is None or rule.behaviour in BEHAVIOURS
        assert rule.where == ""


def test_a_path_of_which_only_the_end_is_known_is_matched_by_it() -> None:
    (rule,) = RuleSet(BUILTIN).for_path("…/rank0/optimizer/rank0/1.tensor.swp")
    assert rule.name == "deepspeed-optimizer"
    assert RuleSet([Rule("a", "weights", (PathPattern("/x"),))]).for_path("…/x") == ()


# Choosing one


def rule(role: str, behaviour: str | None = None, framework: str | None = None) -> Rule:
    return Rule(f"{role}-{behaviour}", role, (PathPattern("*"),), (framework,) if framework else (), behaviour)


KV, WEIGHTS, FLEXGEN = rule("kv_cache", "mapped"), rule("weights"), rule("kv_cache", framework="flexgen")


@pytest.mark.parametrize(
    ("rules", "framework", "may_show", "answer", "expected"),
    [
        ([], None, True, NO, Verdict(None, False)),
        ([WEIGHTS, KV], None, True, YES, Verdict(WEIGHTS, False)),
        # By framework: another one is no match; an unknown one that may show leaves it open, if that changes anything
        ([FLEXGEN, WEIGHTS], "flexgen", False, NO, Verdict(FLEXGEN, False)),
        ([FLEXGEN, WEIGHTS], "vllm", False, NO, Verdict(WEIGHTS, False)),
        ([FLEXGEN, WEIGHTS], None, False, NO, Verdict(WEIGHTS, False)),
        ([FLEXGEN, WEIGHTS], None, True, NO, Verdict(WEIGHTS, True)),
        ([FLEXGEN], None, True, NO, Verdict(None, True)),
        ([rule("weights", framework="vllm"), WEIGHTS], None, True, NO, Verdict(WEIGHTS, False)),
        ([rule("other", framework="vllm")], None, True, NO, Verdict(None, False)),
        # By behaviour
        ([KV, WEIGHTS], None, False, YES, Verdict(KV, False)),
        ([KV, WEIGHTS], None, False, NO, Verdict(WEIGHTS, False)),
        ([KV, WEIGHTS], None, False, NOT_YET, Verdict(WEIGHTS, True)),
        ([KV], None, False, NOT_YET, Verdict(None, True)),
        ([KV, WEIGHTS], None, False, FOR_NOW, Verdict(KV, True)),
        ([KV, rule("kv_cache")], None, False, NOT_YET, Verdict(rule("kv_cache"), False)),
    ],
)
def test_the_first_rule_that_holds_and_whether_it_may_become_another(
    rules: list[Rule], framework: str | None, may_show: bool, answer: Answer, expected: Verdict
) -> None:
    assert decide(rules, framework, lambda _: answer, may_show=may_show) == expected


@pytest.mark.parametrize(
    ("shape", "behaviour"),
    [
        ((4096,), "npy-flat"),  # a bias
        ((50272, 768), "npy-flat"),  # a matrix
        ((64, 2, 4096), "npy-flat"),  # the scales of a compressed matrix
        ((71, 48, 64), "npy-heads"),  # tokens, batch * heads, head size
        ((71, 2, 64), "npy-heads"),
        ((71, 48, 32), "npy-heads"),  # compressed
        ((71, 48, 2, 2), "npy-heads"),  # its scales
        ((4, 64, 768), "npy-other"),  # activations: batch, tokens, hidden size
        ((), "npy-other"),
        ((1, 1, 1, 1, 1), "npy-other"),
    ],
)
def test_what_a_shape_is_in_flexgen(shape: tuple[int, ...], behaviour: str) -> None:
    assert shape_behaviour(shape) == behaviour


# The documentation


def table_of_rules() -> str:
    lines = ["| rule | role | framework | path | if | sure | evidence |", "|---|---|---|---|---|---|---|"]
    for each in BUILTIN:
        paths = ", ".join(f"`{pattern.text}`" for pattern in each.patterns)
        cells = [each.name, each.role, " or ".join(each.frameworks), paths, each.behaviour or "", each.sure]
        lines.append(f"| {' | '.join(cells)} | {each.evidence.replace('<', '&lt;')} |")
    return "\n".join(lines)


def test_the_documentation_shows_the_rules_as_they_are() -> None:
    assert table_of_rules() in DOCS.read_text(encoding="utf-8"), f"docs/roles.md needs this table:\n{table_of_rules()}"


def test_the_documentation_shows_every_behaviour_and_word() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name, what in BEHAVIOURS.items():
        assert f"| {name} | {what} |" in text
    assert all(f"`{word}`" in text for word in (*SURE, *ROLES))
