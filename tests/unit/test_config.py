"""Proves llmio_probe.config: the defaults, what is accepted, and that each mistake is one sentence with its line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from llmio_probe.config import AT_START, Address, DaemonConfig, load, needs_restart
from llmio_probe.errors import ProbeError
from llmio_probe.identity.path_patterns import PathPattern
from llmio_probe.identity.role_rules import Rule

EXAMPLE = Path(__file__).parents[2] / "deploy" / "llmio-probe.yaml"

Config = Callable[[str], DaemonConfig]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "llmio-probe.yaml"


@pytest.fixture
def config(file: Path) -> Config:
    def read(text: str) -> DaemonConfig:
        file.write_text(text, encoding="utf-8")
        return load(file)

    return read


@pytest.mark.parametrize("text", ["", "\n", "# nothing but a comment\n", "---\n", "{}\n"])
def test_an_empty_file_gives_the_defaults(config: Config, text: str) -> None:
    assert config(text) == DaemonConfig(
        listen=Address("127.0.0.1", 9464),
        web_config=None,
        user=None,
        devices=None,
        workers=24,
        series=5000,
        grace_seconds=300.0,
        interval_seconds=1.0,
        calls=True,
        loader="auto",
        program_cost="start",
        log_level="info",
        read_headers=True,
        roles=(),
    )


def test_the_shipped_example_states_every_key_and_the_defaults() -> None:
    assert load(EXAMPLE) == DaemonConfig()
    text = EXAMPLE.read_text(encoding="utf-8")
    assert re.findall(r"^(?:# )?([a-z_]+):(?: |$)", text, re.MULTILINE) == [
        field.name for field in fields(DaemonConfig)
    ]


def test_every_key_is_read(config: Config, file: Path) -> None:
    assert config(
        'listen: "[::1]:0"\nweb_config: /etc/web.yaml\nuser: probe\ndevices: [nvme0n1, sda]\nworkers: 7\n'
        "series: 9000\ngrace_seconds: 0\ninterval_seconds: 2.5\ncalls: false\nloader: bcc\nprogram_cost: off\n"
        "log_level: debug\nread_headers: false\nroles: [{name: ours, role: kv_cache, path: /nvme/kv/**}]\n"
    ) == DaemonConfig(
        Address("::1", 0), "/etc/web.yaml", "probe", ("nvme0n1", "sda"), 7, 9000, 0.0, 2.5, False, "bcc", "off",
        "debug", False, (Rule("ours", "kv_cache", (PathPattern("/nvme/kv/**"),), where=f"{file}:14"),),
    )  # fmt: skip


@pytest.mark.parametrize("text", ["127.0.0.1:9464", "0.0.0.0:65535", "[::1]:9464", "[::]:0"])
def test_an_address_is_shown_as_it_is_written(config: Config, text: str) -> None:
    assert str(config(f'listen: "{text}"').listen) == text


@pytest.mark.parametrize(
    "value",
    [
        *("9464", '":9464"', "localhost:9464", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:http", "1.2.3:80"),
        *('"::1:9464"', '"[127.0.0.1]:9464"', '"127.0.0.1:9464 "', '"127.0.0.1:٣"', "[a, b]", "", "true"),
    ],
)
def test_an_address_that_is_none_is_refused(config: Config, file: Path, value: str) -> None:
    with pytest.raises(ProbeError, match=re.escape(f"{file}:2: listen must be an IP address and a port")):
        config(f"workers: 3\nlisten: {value}")


@pytest.mark.parametrize("value", ["0", "-1", "1001", "2.0", "true", '"24"', "many", "", "[24]", "9" * 5000])
def test_a_number_of_workers_that_is_none_is_refused(config: Config, value: str) -> None:
    with pytest.raises(ProbeError, match=r":1: workers must be a whole number from 1 to 1,000, not "):
        config(f"workers: {value}")


@pytest.mark.parametrize("value", ["999", "100001", "5e3", "true", '"5000"', "", "[5000]"])
def test_a_number_of_series_that_leaves_no_room_or_is_none_is_refused(config: Config, value: str) -> None:
    with pytest.raises(ProbeError, match=r":1: series must be a whole number from 1,000 to 100,000, not "):
        config(f"series: {value}")


@pytest.mark.parametrize("value", ["-0.1", "86401", ".nan", ".inf", "soon", "true", "2026-13-01", "9" * 400, "{a: 1}"])
def test_a_time_out_of_range_is_refused(config: Config, value: str) -> None:
    with pytest.raises(ProbeError, match=r":1: grace_seconds must be a number from 0 to 86,400, not "):
        config(f"grace_seconds: {value}")


@pytest.mark.parametrize("value", ['!!int ""', '!!bool "x"', '!!timestamp "x"', "!!float {}", "!mine 5"])
def test_a_tag_that_does_not_fit_its_value_is_refused(config: Config, value: str) -> None:
    for key in ("workers", "calls", "grace_seconds"):
        with pytest.raises(ProbeError, match=rf":1: {key} must be "):
            config(f"{key}: {value}")


def test_an_interval_of_zero_is_refused(config: Config) -> None:
    with pytest.raises(ProbeError, match=r"interval_seconds must be a number from 0\.1 to 60, not 0$"):
        config("interval_seconds: 0")


@pytest.mark.parametrize("value", ["INFO", "verbose", "3", "!!python/name:os.system x"])
def test_an_unknown_log_level_is_refused(config: Config, value: str) -> None:
    with pytest.raises(ProbeError, match="log_level must be one of debug, info, warning, error, not"):
        config(f"log_level: {value}")


@pytest.mark.parametrize("value", ["nvme0n1", "[]", "", "{nvme0n1: 1}"])
def test_devices_that_are_no_list_are_refused(config: Config, value: str) -> None:
    with pytest.raises(ProbeError, match=r":1: devices must be a list of device names"):
        config(f"devices: {value}")


@pytest.mark.parametrize("item", ["8", '""', '"a b"', "[sda]", '"\\e[2J"'])
def test_a_device_that_is_no_name_is_refused_with_its_own_line(config: Config, item: str) -> None:
    with pytest.raises(ProbeError, match=r":3: each of devices must be a device name, such as nvme0n1, not ") as caught:
        config(f"devices:\n  - nvme0n1\n  - {item}")
    assert str(caught.value).isprintable()


def test_an_unknown_key_names_the_allowed_ones(config: Config, file: Path) -> None:
    with pytest.raises(ProbeError) as caught:
        config("workers: 3\n\nworker: 4\n")
    assert str(caught.value) == (
        f"{file}:3: there is no key worker; "
        "allowed are listen, web_config, user, devices, workers, series, grace_seconds, interval_seconds, calls, "
        "loader, program_cost, log_level, read_headers, roles"
    )


def test_a_key_given_twice_is_refused(config: Config) -> None:
    with pytest.raises(ProbeError, match=r":2: workers is here for the second time"):
        config("workers: 3\nworkers: 4")


@pytest.mark.parametrize("text", ["- workers", "workers", "42"])
def test_a_file_that_is_no_mapping_is_refused(config: Config, text: str) -> None:
    with pytest.raises(ProbeError, match=r":1: expected lines of the form key: value, not "):
        config(text)


@pytest.mark.parametrize("text", ["workers: 3\nlisten: [::1]:9464", "workers: 3\n\tlisten: x", "a: 1\n---\nb: 2"])
def test_what_is_not_yaml_is_refused_with_its_line(config: Config, file: Path, text: str) -> None:
    with pytest.raises(ProbeError, match=re.escape(f"{file}:2: this is not YAML: ")) as caught:
        config(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"workers: \xff", b"\x00", b"\xff\xfe\x00"])
def test_a_binary_file_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ProbeError, match="this is not YAML: ") as caught:
        load(file)
    assert str(caught.value).isprintable()


def test_a_missing_file_is_one_sentence(file: Path) -> None:
    with pytest.raises(ProbeError) as caught:
        load(file)
    assert str(caught.value) == f"cannot read the configuration {file}: no such file or directory"


def test_a_directory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"is a directory$"):
        load(tmp_path)


def test_an_unreadable_file_is_one_sentence(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    with pytest.raises(ProbeError) as caught:
        load(file)
    assert str(caught.value) == f"cannot read the configuration {file}: permission denied"


def test_a_hostile_file_name_is_escaped(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"\\x1b\[2J"):
        load(tmp_path / "\x1b[2J")


def test_the_apps_view_can_be_switched_off(config: Config) -> None:
    assert config("calls: false").calls is False
    with pytest.raises(ProbeError, match=r"calls must be true or false, not 0$"):
        config("calls: 0")


# Rules for roles


def test_a_rule_is_read_with_all_that_it_may_have(config: Config, file: Path) -> None:
    rules = config(
        "workers: 3\nroles:\n"
        "  - {name: a, role: weights, path: ['*.w', /w/**], framework: [vllm, sglang], sure: guess, evidence: ours}\n"
        "  - name: b\n    role: other\n    path: t_<digits>\n    framework: flexgen\n    behaviour: rewritten\n"
    ).roles
    assert rules == (
        Rule("a", "weights", (PathPattern("*.w"), PathPattern("/w/**")), ("vllm", "sglang"), None, "guess", "ours",
             f"{file}:3"),
        Rule("b", "other", (PathPattern("t_<digits>"),), ("flexgen",), "rewritten", "certain", "", f"{file}:4"),
    )  # fmt: skip


def test_the_rules_of_the_shipped_example_are_right_once_they_are_no_comments(config: Config) -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    rules = lines[lines.index("# roles:") :]
    assert [rule.name for rule in config("\n".join(line.removeprefix("# ") for line in rules)).roles] == [
        "our-kv-cache",
        "our-shards",
    ]


RULE = "roles:\n  - {name: a, role: weights, path: x}\n  - "


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("roles: weights", r":1: roles must be a list of rules, not weights"),
        ("roles:\n  a: b", r":2: roles must be a list of rules, not a mapping"),
        (RULE + "weights", r":3: expected lines of the form key: value, not weights"),
        (RULE + "{name: b, role: weights}", r":3: a rule needs path"),
        (RULE + "{}", r":3: a rule needs name and role and path"),
        (RULE + "{name: b, role: weights, paths: x}", r":3: there is no key paths; allowed are name, role, framework"),
        (RULE + "{name: a, role: other, path: y}", r":3: there are two rules a"),
        (RULE + "{name: B, role: other, path: y}", r":3: name must be up to 64 of a-z, 0-9, .* not B"),
        (RULE + "{name: b, role: model, path: y}", r":3: role must be one of weights, kv_cache, .*, other, not model"),
        (RULE + "{name: b, role: [other], path: y}", r":3: role must be one of .*, not a list"),
        (RULE + "{name: b, role: other, path: []}", r":3: path must be a text or a list of texts, not an empty list"),
        (RULE + "{name: b, role: other, path: 12}", r":3: path must be a text, not 12"),
        (RULE + "{name: b, role: other, path: [[y]]}", r":3: path must be a text, not a list"),
        (RULE + "name: b\n    path:\n    - y\n    - 'x['\n    role: other", r":6: the path x\[ has \[ without \]"),
        (RULE + '{name: b, role: other, path: "\\u0001a**"}', r":3: the path \\x01a\*\* has \*\* beside"),
        (RULE + "{name: b, role: other, path: y, framework: vlm}", r":3: there is no framework vlm; known are .*vllm"),
        (RULE + "{name: b, role: other, path: y, framework: true}", r":3: framework must be a text, not true"),
        (RULE + "{name: b, role: other, path: y, sure: very}", r":3: sure must be one of certain, likely, guess"),
        (RULE + "{name: b, role: other, path: y, behaviour: odd}", r":3: behaviour must be one of npy-flat, .*, used"),
        (RULE + "{name: b, role: other, path: y, evidence: ''}", r":3: evidence must be a text, not empty"),
    ],
)
def test_a_rule_that_is_none_is_refused_with_its_line_and_what_is_allowed(
    config: Config, text: str, complaint: str
) -> None:
    with pytest.raises(ProbeError, match=complaint) as caught:
        config(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["libbpf", "CORE", "", "1", "[core]"])
def test_a_loader_that_is_none_is_refused(config: Config, value: str) -> None:
    with pytest.raises(ProbeError, match=r":1: loader must be one of auto, core, bcc, not "):
        config(f"loader: {value}")


def test_headers_can_be_left_alone(config: Config) -> None:
    assert config("read_headers: false").read_headers is False
    with pytest.raises(ProbeError, match=r"read_headers must be true or false, not 0$"):
        config("read_headers: 0")


# What the service needs


@pytest.mark.parametrize("value", ["start", "continuous", "off", '"off"'])
def test_when_the_programs_are_timed_is_one_of_three_words(config: Config, value: str) -> None:
    assert config(f"program_cost: {value}").program_cost == value.strip('"')


@pytest.mark.parametrize("value", ["on", "false", "", "[off]", "Start"])
def test_another_word_for_when_they_are_timed_is_refused(config: Config, value: str) -> None:
    with pytest.raises(ProbeError, match=r":1: program_cost must be one of start, continuous, off, not "):
        config(f"program_cost: {value}")


@pytest.mark.parametrize("value", ["web.yaml", "", "[/web.yaml]", '"/web\\e.yaml"', "7"])
def test_a_web_configuration_without_a_full_name_is_refused(config: Config, value: str) -> None:
    with pytest.raises(ProbeError, match=r":1: web_config must be the full name of a file, such as .*, not ") as caught:
        config(f"web_config: {value}")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["0", "a b", "-x", "", "[root]", "../x"])
def test_an_account_that_can_be_none_is_refused(config: Config, value: str) -> None:
    with pytest.raises(ProbeError, match=r":1: user must be the name of an account of this host, such as llmio-probe"):
        config(f"user: {value}")


def test_keys_that_only_a_restart_takes_over_are_named(config: Config) -> None:
    running = config("workers: 3")
    assert needs_restart(running, config("workers: 4\ngrace_seconds: 1\nlog_level: debug\nread_headers: false")) == ()
    changed = config(
        'listen: "[::1]:1"\nuser: x\nseries: 9000\ncalls: false\nloader: bcc\nprogram_cost: off\nworkers: 3'
    )
    assert needs_restart(running, changed) == ("listen", "user", "series", "calls", "loader", "program_cost")


def test_the_shipped_example_marks_the_keys_that_only_a_restart_takes_over() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    blocks = [block for block in text.split("\n\n") if re.search(r"^(?:# )?[a-z_]+:(?: |$)", block, re.MULTILINE)]
    marked = [
        match[1]
        for block in blocks
        if "[restart]" in block and (match := re.search(r"^(?:# )?([a-z_]+):(?: |$)", block, re.MULTILINE))
    ]
    assert tuple(marked) == AT_START
