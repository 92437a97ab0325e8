"""The exporter that runs for months: the whole host, by worker slot, served to Prometheus on /metrics.

The pipeline runs in the main thread and puts a finished snapshot in place now and then; the HTTP threads only read the
newest one. So a scrape never blocks the pipeline, nor the pipeline a scrape.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from prometheus_client import start_http_server

from llmio_probe import __version__
from llmio_probe.aggregate.series import Series
from llmio_probe.config import DaemonConfig, load
from llmio_probe.errors import ProbeError
from llmio_probe.events import Events
from llmio_probe.identity.devices import Devices
from llmio_probe.identity.facts import PsutilSource, clock_tick_ns
from llmio_probe.identity.files import Files
from llmio_probe.identity.frameworks import builtin_rules
from llmio_probe.identity.headers import cached_start
from llmio_probe.identity.mounts import Mounts
from llmio_probe.identity.owners import Identity
from llmio_probe.identity.pidns import require_host_pids
from llmio_probe.identity.role_rules import builtin_role_rules
from llmio_probe.identity.roles import RoleBook
from llmio_probe.kernel.probe import Probe
from llmio_probe.kernel.state import ProbeState
from llmio_probe.options import probe_options
from llmio_probe.outputs.metrics import WORKER_SERIES
from llmio_probe.outputs.prometheus import Snapshot, exposition
from llmio_probe.pipeline import Pipeline
from llmio_probe.session import require_root

COST_SECONDS = 2.0
"""For how long, at start, the kernel times our programs; timing them costs, too."""
SWEEP_SECONDS = 1.0
FILES = 20_000
"""Remembered at once: more than the kernel side does (FILES_MAX), so that one which is forgotten is named again."""

log = logging.getLogger("llmio-probe")


def run(config_path: str) -> int:
    """Serve until SIGTERM or SIGINT. ProbeError when it cannot start."""
    config = load(config_path)
    require_root()
    require_host_pids()
    logging.basicConfig(level=config.log_level.upper(), format="%(levelname)s %(message)s", stream=sys.stderr)
    with (
        Events((signal.SIGINT, signal.SIGTERM)) as events,
        Probe(probe_options(calls=config.calls, loader=config.loader)) as probe,
    ):
        Exporter(config, probe, events).serve()
    return 0


class Exporter:
    def __init__(self, config: DaemonConfig, probe: Probe, events: Events) -> None:
        self._config = config
        self._probe = probe
        self._events = events
        self._devices = Devices()
        self._chosen = None if config.devices is None else frozenset(map(self._devices.resolve, config.devices))
        self._identity = Identity(
            PsutilSource(), builtin_rules(), time.monotonic, tick_ns=clock_tick_ns(),
            per_process=False, limit=config.workers, grace=config.grace_seconds,
        )  # fmt: skip
        self._files = Files(Mounts(), self._devices, limit=FILES)
        self._roles = RoleBook(
            (*config.roles, *builtin_role_rules()), self._files.files, self._identity.framework_of,
            undecided=False, clock=time.monotonic, read_header=cached_start if config.read_headers else None,
        )  # fmt: skip
        self._series = Series(detail=False, most_series=WORKER_SERIES)
        self._pipeline = Pipeline(probe, self._identity, self._files, self._roles, self._series, self._chosen)
        self._snapshot = self._take_snapshot()

    def serve(self) -> None:
        address = self._config.listen
        try:
            server, thread = start_http_server(address.port, address.host, exposition(lambda: self._snapshot))
        except OSError as error:
            raise ProbeError(
                f"cannot listen on {address}: {(error.strerror or str(error)).lower()}; "
                "choose another with listen: in the configuration"
            ) from None
        try:
            for fd in self._probe.wake_fds:
                self._events.watch(fd)
            self._probe.start()
            for warning in self._probe.warnings:
                log.warning("%s", warning)
            log.info("serving http://%s/metrics", address._replace(port=server.server_port))
            self._loop()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _loop(self) -> None:
        now = time.monotonic()
        end_cost: Callable[[], None] | None = self._probe.begin_cost()
        cost_until, next_snapshot, next_sweep = now + COST_SECONDS, now, now + SWEEP_SECONDS
        told = 0
        while not self._events.signals():
            self._events.wait(min(self._pipeline.wait, next_snapshot - time.monotonic()))
            self._pipeline.run()
            now = time.monotonic()
            if end_cost is not None and now >= cost_until:
                end_cost()
                end_cost = None
            if now >= next_sweep:
                ended = self._identity.expire()
                self._series.forget(ended)
                self._roles.forget(owners=ended)
                next_sweep = now + SWEEP_SECONDS
            if now >= next_snapshot:
                shortages = self._probe.shortages()
                if len(shortages) > told:  # once each; how many shows in llmio_requests_unowned_total
                    log.warning("%s", "; ".join(shortages))
                told = len(shortages)
                self._snapshot = self._take_snapshot()
                next_snapshot = now + self._config.interval_seconds

    def _take_snapshot(self) -> Snapshot:
        series, identity = self._series, self._identity
        return Snapshot(
            streams=series.streams(),
            request_distributions=series.request_distributions(),
            errors=series.errors(),
            submissions=series.submissions(),
            call_distributions=series.call_distributions(),
            device_use=series.device_use(),
            attributed_bytes=series.attributed_bytes(),
            state=self._state(),
            # The pipeline goes on changing its owners while a scrape reads these.
            owners={index: replace(owner) for index, owner in identity.owners.items()},
            devices=self._devices,
            folded=identity.folded + series.folded,
            version=__version__,
            loader=self._probe.loader,
        )

    def _state(self) -> ProbeState:
        state = self._probe.state()
        if self._chosen is None:
            return state
        return replace(state, devices=[counts for counts in state.devices if counts.device in self._chosen])
