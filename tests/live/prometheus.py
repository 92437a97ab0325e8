"""A real Prometheus for the live tests, with the configuration and rules that we ship, and the dashboards' queries.

Only asking may go in here: what an answer has to be is for the tests.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.live.harness import HANG

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "deploy" / "prometheus"
SCRAPE_SECONDS = 1
RATE_SECONDS = 4 * SCRAPE_SECONDS
"""What Grafana's $__rate_interval is at the least."""


@dataclass(frozen=True)
class Series:
    """One line of an answer: values[i] at times[i], seconds since the epoch. legend: as the panel writes it."""

    labels: dict[str, str]
    times: list[float]
    values: list[float]
    legend: str = ""

    def integral(self) -> float:
        """Of a rate over the time asked for, a step a scrape: how much there was in all."""
        return sum(self.values) * SCRAPE_SECONDS


class Prometheus:
    """A context manager. folder: for its data. target: whom it scrapes, host:port."""

    def __init__(self, folder: Path, target: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self.target = target
        configuration = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
        configuration["global"] = {"evaluation_interval": f"{SCRAPE_SECONDS}s"}
        configuration["rule_files"] = [str(SHIPPED / name) for name in configuration["rule_files"]]
        [scrape] = configuration["scrape_configs"]
        scrape["scrape_interval"] = scrape["scrape_timeout"] = f"{SCRAPE_SECONDS}s"
        scrape["static_configs"] = [{"targets": [target]}]
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(configuration))
        self._argv = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder / 'tsdb'}",
                      f"--web.listen-address={self._address}", "--log.level=error"]  # fmt: skip

    def __enter__(self) -> Prometheus:
        self._process = subprocess.Popen(self._argv, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + HANG
        while not self._is_up():
            assert time.monotonic() < deadline, "Prometheus does not scrape"
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(HANG)

    def _is_up(self) -> bool:
        try:
            return self.value('up{job="llmio-probe"}') == 1
        except OSError:
            return False

    def get(self, what: str, **arguments: object) -> Any:
        url = f"http://{self._address}/api/v1/{what}?{urllib.parse.urlencode(arguments, doseq=True)}"
        with urllib.request.urlopen(url, timeout=HANG) as answer:
            return json.load(answer)["data"]

    def now(self, query: str, at: float | None = None) -> list[Series]:
        found = self.get("query", query=query, **({} if at is None else {"time": at}))["result"]
        return [Series(each["metric"], [float(each["value"][0])], [float(each["value"][1])]) for each in found]

    def value(self, query: str) -> float:
        """The sum of what the query gives now; 0 where that is nothing."""
        return sum(series.values[0] for series in self.now(query))

    def over(self, query: str, start: float, end: float) -> list[Series]:
        found = self.get("query_range", query=query, start=start, end=end, step=SCRAPE_SECONDS)["result"]
        return [
            Series(each["metric"], [float(t) for t, _ in each["values"]], [float(v) for _, v in each["values"]])
            for each in found
        ]

    def labels(self, label: str, matching: str, start: float, end: float) -> list[str]:
        found: list[str] = self.get(f"label/{label}/values", **{"match[]": matching, "start": start, "end": end})
        return found


def panels() -> dict[str, dict[str, Any]]:
    """Every panel with queries, by "dashboard: title"."""
    return {
        f"{path.stem}: {panel['title']}": panel
        for path in sorted((REPOSITORY / "grafana" / "dashboards").glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        if panel["type"] != "row"
    }


def ask(prometheus: Prometheus, panel: dict[str, Any], start: float, end: float) -> list[Series]:
    """What Grafana would show in the panel, all variables at their defaults, for the time from start to end."""
    disks = prometheus.labels("device", 'llmio_device_info{layer="disk"}', start, end)
    variables = {
        "$instance": prometheus.target,
        "$device": f"({'|'.join(map(re.escape, disks))})",
        "$worker": ".*",
        "$__rate_interval": f"{RATE_SECONDS}s",
        "$__range": f"{max(1, round(end - start))}s",
    }
    answers = []
    for target in panel["targets"]:
        query = target["expr"]
        for name, value in variables.items():
            query = query.replace(name, value.replace("\\", "\\\\"))
        found = prometheus.now(query, end) if target.get("instant") else prometheus.over(query, start, end)
        for series in found:
            legend = re.sub(r"{{(\w+)}}", lambda match, of=series.labels: of.get(match[1], ""), target["legendFormat"])  # type: ignore[misc]
            answers.append(Series(series.labels, series.times, series.values, legend.strip()))
    return answers
