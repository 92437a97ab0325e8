"""A running daemon for the live tests: started as a user would, asked as Prometheus does."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.live.harness import HANG, PROBE


@dataclass
class Daemon:
    process: subprocess.Popen[str]
    address: str
    log: Path
    config: Path

    def scrape(self) -> str:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=HANG) as answer:
            return str(answer.read().decode())

    def families(self) -> dict[str, Metric]:
        return {family.name: family for family in text_string_to_metric_families(self.scrape())}

    def value(self, name: str, **labels: str) -> float:
        """The sum over all samples of that name that carry the labels."""
        return self._whole(name, 0, labels)

    def eventually(self, name: str, value: float, each: float = 0, /, **labels: str) -> None:
        """A snapshot is at most 0.2 s old here, older where others keep the host busy.

        each: what a request lacks whose end the host has not shown, and which is in flight on the device therefore.
        """
        deadline = time.monotonic() + 30
        while (found := self._whole(name, each, labels)) != value and time.monotonic() < deadline:
            time.sleep(0.1)
        assert found == value, f"{name} of {labels} is {found:,.0f}, not {value:,.0f}"

    def _whole(self, name: str, each: float, labels: dict[str, str]) -> float:
        samples = [sample for family in self.families().values() for sample in family.samples]

        def total(of: str, wanted: dict[str, str]) -> float:
            return sum(s.value for s in samples if s.name == of and wanted.items() <= s.labels.items())

        in_flight = total("llmio_requests_in_flight", {"device": labels["device"]}) if each else 0
        return total(name, labels) + each * in_flight

    def reload(self, more: str | None = None) -> str:
        """With another configuration below what all have. What it says, once it has taken it over or refused it."""
        if more is not None:
            configuration(self.config.parent, more=more)
        before = self.log.stat().st_size
        self.process.send_signal(signal.SIGHUP)
        return self.says("the configuration ", before)

    def says(self, text: str, before: int = 0) -> str:
        """The log from there on, once the text is in it."""
        deadline = time.monotonic() + HANG
        while text not in (said := self.log.read_text()[before:]) and time.monotonic() < deadline:
            assert self.process.poll() is None, said
            time.sleep(0.05)
        assert text in said
        return said

    def end(self) -> str:
        """As systemd stops it. What it said in all its life."""
        self.process.terminate()
        assert self.process.wait(HANG) == 0
        return self.log.read_text()


def configuration(folder: Path, listen: str = "127.0.0.1:0", more: str = "") -> Path:
    path = folder / "llmio-probe.yaml"
    path.write_text(f'listen: "{listen}"\ninterval_seconds: 0.2\n{more}')
    return path


@contextmanager
def running_daemon(
    folder: Path,
    more: str = "",
    *,
    listen: str = "127.0.0.1:0",
    log: Path | None = None,
    program: Sequence[str | Path] = PROBE,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Daemon]:
    """program: what stands in front of ``daemon``; log: where its standard error goes."""
    config, log = configuration(folder, listen, more), log or folder / "daemon.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*program, "daemon", "--config", str(config)],
            stderr=stream,
            text=True,
            env={**os.environ, **(environ or {})},
        )
    try:
        daemon = Daemon(process, "", log, config)
        found = re.search(r"serving https?://(\S+)/metrics", daemon.says("/metrics\n"))
        assert found
        daemon.address = found[1]
        yield daemon
    finally:
        process.kill()
        process.wait()


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Callable[[str], Any]]:
    """A real one that scrapes the address each second. What it yields asks it; empty until it is up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: llmio, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )

    def query(text: str) -> Any:
        url = f"http://{own}/api/v1/query?" + urllib.parse.urlencode({"query": text})
        try:
            with urllib.request.urlopen(url, timeout=HANG) as answer:
                return json.load(answer)["data"]["result"]
        except OSError:
            return []

    with subprocess.Popen(
        ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
         f"--web.listen-address={own}", "--log.level=error"], stderr=subprocess.DEVNULL,
    ) as prometheus:  # fmt: skip
        try:
            yield query
        finally:
            prometheus.terminate()
            prometheus.wait(HANG)
