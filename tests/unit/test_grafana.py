"""The dashboards: JSON as the code gives it, every panel explained, every query one that Prometheus can read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmio_probe.outputs.metrics import METRICS

GRAFANA = Path(__file__).parents[2] / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
WIDTH = 24


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """All with queries, with their names."""
    for path in FILES:
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            if panel["type"] != "row":
                yield f"{path.stem}: {panel['title']}", panel


PANELS = [pytest.param(panel, id=name) for name, panel in panels()]


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in FILES]


def test_the_files_are_what_the_code_gives() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="needs Python 3.11")
    from grafana.__main__ import dashboards as written

    there = {path.name: path.read_text(encoding="utf-8") for path in FILES}
    assert written() == there, "run make dashboards"


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_has_a_unit_an_explanation_and_queries(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert len(panel["description"]) > 15
    assert panel["description"].endswith(".")
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == {"type": "prometheus", "uid": "$datasource"}


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_for_metrics_and_labels_that_exist(panel: dict[str, Any]) -> None:
    labels = {metric.name: set(metric.labels) for metric in METRICS}
    for target in panel["targets"]:
        for name, selector in re.findall(r"\b(llmio_\w+)\b(?:\{([^}]*)\})?", target["expr"]):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in labels or base in labels, f"no metric {name}"
            asked = set(re.findall(r"(\w+)[!=]=?~?\"", selector)) - {"instance"}
            assert asked <= labels.get(name, labels.get(base, set())) | {"le"}, f"{name} has no such label"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    rules = [
        {
            "record": f"query:{number}",
            "expr": target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1h"),
        }
        for number, target in enumerate(target for _, panel in panels() for target in panel["targets"])
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_errors_of_a_host_show_the_very_first_and_not_what_is_none(tmp_path: Path) -> None:
    """In the hour that is shown: one error with which its counter appeared, two of one that had seven before, and of
    one that came again after a restart what the new daemon has counted.
    """
    series = {
        'worker="w", device="d", status="medium"': "_x90 1x60",
        'worker="v", device="d", status="ioerr"': "7x90 9x60",
        'worker="u", device="d", status="timeout"': "_x70 1x10 stale _x10 1x60",
        'worker="w", device="d", status="notsupp"': "0+1x150",
        'worker="w", device="d", status="again"': "_x90 5x60",
    }
    [query] = dict(panels())["host: Errors"]["targets"]
    chosen = {"$instance": "h", "$device": "d", "$worker": ".*", "$__range": "1h"}
    expression = query["expr"]
    for name, value in chosen.items():
        expression = expression.replace(name, value)
    case = {
        "interval": "1m",
        "input_series": [
            {"series": f'llmio_request_errors_total{{instance="h", op="read", {labels}}}', "values": values}
            for labels, values in series.items()
        ],
        "promql_expr_test": [
            {"expr": expression, "eval_time": "2h", "exp_samples": [{"labels": "{}", "value": 1 + 2 + 1}]},
            {"expr": expression, "eval_time": "1h", "exp_samples": [{"labels": "{}", "value": 0}]},
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump({"tests": [case]}), encoding="utf-8")
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dashboard", dashboards(), ids=lambda dashboard: str(dashboard["uid"]))
def test_panels_fill_the_grid_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place.get("x", 0), place.get("x", 0) + place["w"])
            for y in range(place.get("y", 0), place.get("y", 0) + place["h"])
        }
        assert max(x for x, _ in cells) < WIDTH
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("dashboard", dashboards(), ids=lambda dashboard: str(dashboard["uid"]))
def test_what_a_query_asks_for_can_be_chosen(dashboard: dict[str, Any]) -> None:
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert {"datasource", "instance"} <= variables
    if dashboard["uid"] != "llmio-probe":
        assert {"device", "worker"} <= variables
    used = set(re.findall(r"\$(\w+)", json.dumps([panel.get("targets") for panel in dashboard["panels"]])))
    assert used - {"__rate_interval", "__range"} <= variables


def test_uids_and_titles_are_one_each() -> None:
    assert len({dashboard["uid"] for dashboard in dashboards()}) == len(FILES) == 4
    names = [name for name, _ in panels()]
    assert len(set(names)) == len(names)


def test_provisioning_finds_the_dashboards_by_a_name_that_the_documentation_has() -> None:
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/llmio-probe.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] in (GRAFANA.parent / "docs" / "dashboards.md").read_text(encoding="utf-8")
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/llmio-probe.yaml").read_text())["datasources"]
    scrape = yaml.safe_load((GRAFANA.parent / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == scrape["scrape_interval"]
