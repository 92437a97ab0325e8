"""deploy/prometheus: promtool accepts all of it, its unit tests pass, and every alert tells a person what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmio_probe.outputs.metrics import METRICS
from llmio_probe.outputs.status import HARMLESS

HERE = Path(__file__).parent
DEPLOYED = Path(__file__).parents[3] / "deploy" / "prometheus"
RULE_FILES = ("llmio-probe.recording.yml", "llmio-probe.alerts.yml")

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for name in RULE_FILES
        for group in yaml.safe_load((DEPLOYED / name).read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]


ALERTS = [rule for rule in rules() if "alert" in rule]


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_accepts_the_configuration_and_its_rules() -> None:
    promtool("check", "config", DEPLOYED / "prometheus.yml")


@needs_promtool
def test_the_rules_pass_their_unit_tests() -> None:
    promtool("test", "rules", HERE / "rules.test.yml")


def test_the_configuration_has_every_rule_file() -> None:
    configuration = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text(encoding="utf-8"))
    assert set(configuration["rule_files"]) == set(RULE_FILES) == {path.name for path in DEPLOYED.glob("llmio-probe.*")}


def test_every_alert_and_every_recorded_series_is_in_the_unit_tests() -> None:
    tests = (HERE / "rules.test.yml").read_text(encoding="utf-8")
    assert not [rule for rule in rules() if (rule.get("alert") or rule["record"]) not in tests]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_what_happened_where_and_what_to_do(alert: dict[str, Any]) -> None:
    said = alert["annotations"]
    assert set(said) == {"summary", "description", "runbook"}
    assert "{{ $labels.instance }}" in said["summary"]
    assert len(said["summary"]) < 120
    assert said["description"].endswith(".")
    assert len(said["runbook"]) > 80
    assert alert["labels"]["severity"] in ("info", "warning", "critical")


def test_rules_use_metrics_that_exist_with_labels_that_they_have() -> None:
    known = {metric.name: set(metric.labels) for metric in METRICS}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        expression = rule["expr"]
        for name, selector in re.findall(r"(?<![:\w])(llmio_\w+)(?:\{([^}]*)\})?", expression):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in known or base in known, f"{name} in {expression}"
            labels = set(re.findall(r"(\w+)\s*[!=]~?\"", selector))
            assert labels <= known.get(name, known.get(base, set())) | {"le", "job", "instance"}, expression
        assert set(re.findall(r"\w+:llmio_\w+:\w+", expression)) <= recorded


def test_the_alert_on_errors_leaves_out_what_is_none() -> None:
    [alert] = [rule for rule in ALERTS if rule["alert"] == "LlmioRequestErrors"]
    left_out = set(re.findall(r'status!~"([^"]*)"', alert["expr"]))
    assert {frozenset(names.split("|")) for names in left_out} == {HARMLESS}
