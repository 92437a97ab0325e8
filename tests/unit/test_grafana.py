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
RECORDING = GRAFANA.parent / "deploy" / "prometheus" / "llmio-probe.recording.yml"
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
    rules = yaml.safe_load(RECORDING.read_text(encoding="utf-8"))["groups"][0]["rules"]
    for target in panel["targets"]:
        assert set(re.findall(r"\w+:llmio_\w+:\w+", target["expr"])) <= {rule["record"] for rule in rules}
        for name, selector in re.findall(r"(?<![:\w])(llmio_\w+)\b(?:\{([^}]*)\})?", target["expr"]):
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
    promtool_test(tmp_path, case)


def promtool_test(folder: Path, case: dict[str, Any]) -> None:
    path = folder / "test.yml"
    test = {"rule_files": [str(RECORDING)], "evaluation_interval": "1m", "tests": [case]}
    path.write_text(yaml.safe_dump(test), encoding="utf-8")
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


FLEET = {
    "Hosts": 1,
    "Hosts down": 1,
    "Hosts with losses": 1,
    "Probes": 2,
    "Busiest": 2,
    "Longest queue time": 2,
    "Most bandwidth": 2,
    "Most errors": 2,
    "Bytes with an unknown owner": 2,
    "Records lost": 2,
}
"""How many lines each of its panels has for two hosts."""


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("title", FLEET)
@pytest.mark.parametrize("hosts", [0, 1, 2])
def test_a_fleet_has_a_line_for_each_host_and_no_panel_that_is_empty(tmp_path: Path, title: str, hosts: int) -> None:
    """The disks of two hosts have the same name, and each is below a loop device. No host: one that has no I/O yet."""
    stream = 'worker="w", device="{device}", op="read"'
    series = {"llmio_build_info": ('version="1", loader="libbpf"', "1x40"), "llmio_records_lost_total": ("", "0x40")}
    of_each = {
        "llmio_bytes_total": (f'{stream}, engine="mmap", path="page_cache", role="weights"', "0+600x40"),
        "llmio_device_busy_seconds_total": ('device="{device}", op="read"', "0+60x40"),
        "llmio_request_latency_seconds_sum": (f'{stream}, stage="queue"', "0+6x40"),
        "llmio_request_latency_seconds_count": (f'{stream}, stage="queue"', "0+60x40"),
        "llmio_device_info": ('device="{device}", layer="{layer}"', "1x40"),
    }
    owners = {"llmio_attributed_bytes_total": ('kind="unknown"', "0+6x40")}
    written = [("up", "", "1x40", host) for host in range(max(hosts, 1))]
    for host in range(max(hosts, 1)):
        written += [(name, labels, values, host) for name, (labels, values) in series.items()]
    for host in range(hosts):
        written += [(name, labels, values, host) for name, (labels, values) in owners.items()]
        for device, layer in (("nvme0n1", "disk"), ("loop0", "upper")):
            written += [
                (name, labels.format(device=device, layer=layer), values, host)
                for name, (labels, values) in of_each.items()
            ]
    [query] = dict(panels())[f"fleet: {title}"]["targets"]
    lines = FLEET[title] if hosts == 2 else 1
    case = {
        "interval": "1m",
        "input_series": [
            {"series": f'{name}{{job="llmio-probe", instance="h{host}", {labels}}}', "values": values}
            for name, labels, values, host in written
        ],
        "promql_expr_test": [
            {
                "expr": f"count({query['expr'].replace('$__range', '30m')})",
                "eval_time": "40m",
                "exp_samples": [{"labels": "{}", "value": lines}],
            }
        ],
    }
    promtool_test(tmp_path, case)


def test_every_panel_of_the_fleet_is_tried() -> None:
    assert {name for name, _ in panels() if name.startswith("fleet: ")} == {f"fleet: {title}" for title in FLEET}


def test_a_line_of_the_fleet_leads_to_its_host() -> None:
    uids = {dashboard["uid"] for dashboard in dashboards()}
    linked = [panel for name, panel in panels() if name.startswith("fleet: ") and panel["type"] != "stat"]
    assert len(linked) == len(FLEET) - 3
    for panel in linked:
        label = "__data.fields.instance" if panel["type"] == "table" else "__field.labels.instance"
        urls = [link["url"] for link in panel["fieldConfig"]["defaults"]["links"]]
        assert urls[0].startswith(f"/d/llmio-host?var-instance=${{{label}}}&${{__url_time_range}}")
        assert {url.split("/")[2].split("?")[0] for url in urls} <= uids


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
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    beside = {"llmio-fleet": set(), "llmio-probe": {"instance"}}.get(
        dashboard["uid"], {"instance", "layer", "device", "worker"}
    )
    assert set(variables) == {"datasource"} | beside
    used = set(re.findall(r"\$(\w+)", json.dumps([panel.get("targets") for panel in dashboard["panels"]])))
    assert used - {"__rate_interval", "__range"} <= set(variables)
    if host := variables.get("instance"):  # the disks of two hosts have the same names: no sum is over both
        assert not host["multi"]
        assert not host["includeAll"]
    # Grafana takes a name that is one of several for a pattern, and any other as it is.
    asked = json.dumps([dashboard["panels"], dashboard["templating"]])
    assert "instance=~" not in asked
    assert 'device=\\"$' not in asked


def test_uids_and_titles_are_one_each() -> None:
    assert len({dashboard["uid"] for dashboard in dashboards()}) == len(FILES) == 5
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
