"""The exporter that runs for months: the whole host, by worker slot, served to Prometheus on /metrics.

The pipeline runs in the main thread. A scrape, in a thread of its own, asks it for a finished snapshot where the last
one is too old, and takes the last one all the same if the pipeline has no time soon. So a scrape never blocks the
pipeline, nor the pipeline a scrape, and where nobody asks nothing is made. What happens in which order from the start
to the end is here; docs/daemon.md says the same to who runs it.
"""

from __future__ import annotations

import logging
import math
import os
import pwd
import signal
import sys
import threading
import time
from dataclasses import replace

from llmio_probe import __version__, allocator, rights
from llmio_probe.aggregate.series import Series
from llmio_probe.config import DaemonConfig, load, needs_restart
from llmio_probe.device_book import DeviceBook
from llmio_probe.errors import ProbeError
from llmio_probe.events import Events
from llmio_probe.identity.devices import Devices
from llmio_probe.identity.facts import FactSource, PsutilSource, clock_tick_ns
from llmio_probe.identity.files import Files
from llmio_probe.identity.frameworks import builtin_rules
from llmio_probe.identity.headers import cached_start
from llmio_probe.identity.mounts import Mounts, host_process
from llmio_probe.identity.owners import Identity
from llmio_probe.identity.pidns import require_host_pids
from llmio_probe.identity.role_rules import Rule, builtin_role_rules
from llmio_probe.identity.roles import ReadHeader, RoleBook
from llmio_probe.kernel.probe import EndCost, Probe
from llmio_probe.kernel.tables import TableError
from llmio_probe.options import probe_options
from llmio_probe.outputs.metrics import OTHER_SERIES
from llmio_probe.outputs.prometheus import Snapshot, exposition
from llmio_probe.outputs.web import MetricsServer
from llmio_probe.outputs.web_config import load_access
from llmio_probe.pipeline import Rooms
from llmio_probe.rights import Capability
from llmio_probe.single import only_daemon
from llmio_probe.systemd import Manager, log_to

COST_SECONDS = 2.0
"""For how long, at start, the kernel times our programs; timing them costs, too."""
COST_WINDOW_SECONDS = 15.0
"""Where it always does, over which time the means are taken."""
SWEEP_SECONDS = 10.0
"""How often at least to look who has ended and what found no room; oftener where workers are soon forgotten."""
PATIENCE_SECONDS = 1.0
"""How long a scrape waits for a new snapshot."""
FILES = 17_500
"""Remembered at once: more than the kernel side does (FILES_MAX), so that one which is forgotten is named again."""

log = logging.getLogger("llmio-probe")


def check(config_path: str) -> int:
    """Read the configuration as a start would, and the web configuration with it. ProbeError in one sentence."""
    load_access(load(config_path).web_config)
    print(f"{config_path}: right")
    return 0


def run(config_path: str) -> int:
    """Serve until SIGTERM or SIGINT. ProbeError when it cannot start, which a journal gets as what it is, an error."""
    in_journal = log_to(sys.stderr, os.environ)
    allocator.share_arena()
    try:
        _serve(config_path)
    except ProbeError as error:
        if not in_journal:
            raise
        log.error("%s", error)
        return error.exit_code
    return 0


def _serve(config_path: str) -> None:
    config = load(config_path)
    logging.getLogger().setLevel(config.log_level.upper())
    rights.require_loading()
    require_host_pids()
    user = rights.account(config.user) if os.geteuid() == 0 else None
    if user is not None:
        rights.require_change(user)
    with (
        only_daemon(),
        Events((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as events,
        Probe(probe_options(calls=config.calls, loader=config.loader)) as probe,
    ):
        Exporter(config_path, config, probe, events, Manager(os.environ)).serve(user)


def rooms(config: DaemonConfig, source: FactSource, mounts: Mounts, devices: Devices) -> Rooms:
    """By worker slot, and no more than so many workers, files and series."""
    identity = Identity(
        source, builtin_rules(), time.monotonic, tick_ns=clock_tick_ns(),
        per_process=False, limit=config.workers, grace=config.grace_seconds,
    )  # fmt: skip
    files = Files(mounts, devices, limit=FILES)
    rules, read_header = _role_rules(config)
    roles = RoleBook(
        rules, files.files, identity.framework_of, undecided=False, clock=time.monotonic, read_header=read_header
    )
    series = Series(
        detail=False, most_series=config.series - OTHER_SERIES,
        preferred=lambda owner: identity.framework_of(owner) is not None,
    )  # fmt: skip
    return Rooms(identity, files, roles, series)


class Exporter:
    def __init__(self, path: str, config: DaemonConfig, probe: Probe, events: Events, manager: Manager) -> None:
        self._path = path
        self._config = config
        self._config_right, self._config_read = True, time.time()
        self._probe = probe
        self._events = events
        self._manager = manager
        host = host_process()
        self._devices = Devices(host=host)
        self._book = DeviceBook(self._devices, config.devices)
        furnished = rooms(config, PsutilSource(), Mounts(host=host), self._devices)
        self._identity, self._roles, self._series = furnished.identity, furnished.roles, furnished.series
        self._pipeline = furnished.pipeline(probe, self._book.chosen)
        self._asked, self._answered = threading.Event(), threading.Event()
        self._renew()

    def serve(self, user: pwd.struct_passwd | None) -> None:
        """user: who to become, of root; None of who is somebody already."""
        server = self._listen()
        try:
            for fd in self._probe.wake_fds:
                self._events.watch(fd)
            self._probe.start()
            for warning in self._probe.warnings:
                log.warning("%s", warning)
            end_cost = self._begin_cost()
            self._give_up_rights(user)
            server.start(first=lambda: rights.hold(()))  # who talks to the network needs none at all
            log.info("%s", self._status(server))
            self._manager.ready(self._status(server))
            self._loop(server, end_cost)
            self._manager.stopping()
        finally:
            server.close()

    def _listen(self) -> MetricsServer:
        """While we may still open any port and read any key."""
        address = self._config.listen
        access = load_access(self._config.web_config)
        try:
            return MetricsServer(address, exposition(self._newest), access)
        except OSError as error:
            raise ProbeError(
                f"cannot listen on {address}: {(error.strerror or str(error)).lower()}; "
                "choose another with listen: in the configuration"
            ) from None

    def _begin_cost(self) -> EndCost | None:
        if self._config.program_cost == "off":
            return None
        try:
            return self._probe.begin_cost()
        except PermissionError:
            log.info("llmio_program_cost_seconds is missing: the kernel times programs for CAP_SYS_ADMIN only")
            return None

    def _give_up_rights(self, user: pwd.struct_passwd | None) -> None:
        """What the programs needed to be attached is not needed any more. Later threads have what is left here."""
        if user is not None:
            rights.become(user)
        rights.hold(rights.FOR_LIFE, in_reserve=[Capability.BPF])
        try:
            self._probe.shortages()
            kept = rights.FOR_LIFE
        except TableError:  # before 5.19
            kept = rights.FOR_LIFE | {Capability.BPF}
        rights.hold(kept)
        rights.seal()
        try:
            load_access(load(self._path).web_config)
        except ProbeError as error:
            log.warning("as user id %d a reload will not work: %s", os.geteuid(), error)
        if missing := kept - rights.effective():
            log.warning("without %s, workers of other users have no framework and no rank", rights.names(missing))

    def _status(self, server: MetricsServer) -> str:
        return f"serving {server.access.scheme}://{self._config.listen._replace(port=server.port)}/metrics"

    def _loop(self, server: MetricsServer, end_cost: EndCost | None) -> None:
        now = time.monotonic()
        continuous = self._config.program_cost == "continuous"
        cost_seconds = COST_WINDOW_SECONDS if continuous else COST_SECONDS
        cost_until = now + COST_SECONDS if end_cost is not None else math.inf
        next_sweep = next_word = now
        told = 0
        while True:
            next_look = min(cost_until, next_sweep, next_word)
            self._events.wait(min(self._pipeline.wait, next_look - time.monotonic()))
            received = self._events.signals()
            if {signal.SIGTERM, signal.SIGINT} & set(received):
                return
            if signal.SIGHUP in received:
                self._config_right = self._reload(server)
                refused = "" if self._config_right else "; the last reload was refused, the log says why"
                self._manager.ready(self._status(server) + refused)
            asked = self._asked.is_set()  # before the pass: who asks during it wants what came during it, too
            self._pipeline.run()
            now = time.monotonic()
            if end_cost is not None and now >= cost_until:
                end_cost(go_on=continuous)
                end_cost, cost_until = (end_cost, now + cost_seconds) if continuous else (None, math.inf)
            if now >= next_word:
                self._manager.alive()
                next_word = now + self._manager.longest_silence
            if now >= next_sweep:
                ended = self._identity.expire()
                self._probe.give_back(self._identity.has_ended)
                self._series.forget(ended)
                self._roles.forget(owners=ended)
                self._look_at_devices()
                if ended:
                    allocator.give_back()
                shortages = self._probe.shortages()
                if len(shortages) > told:  # once each; how many shows in llmio_requests_unowned_total
                    log.warning("%s", "; ".join(shortages))
                told = len(shortages)
                next_sweep = now + min(max(self._config.grace_seconds / 30, 1), SWEEP_SECONDS)
            if asked:
                self._asked.clear()
                self._renew()
                self._answered.set()

    def _reload(self, server: MetricsServer) -> bool:
        """Take over what the file says now: all of it, or, where it is wrong, nothing. Whether it did."""
        self._manager.reloading()
        try:
            wanted = load(self._path)
            chosen = self._book.resolve(wanted.devices)
            access = load_access(wanted.web_config, server.access)
        except ProbeError as error:
            log.error("the configuration stays as it was: %s", error)
            return False
        if keys := needs_restart(self._config, wanted):
            log.warning("only a restart takes over what is new of %s", ", ".join(keys))
        if (access.tls is None) != (server.access.tls is None):
            log.info("from now on by %s", access.scheme)
        self._config_read = time.time()
        self._config = replace(wanted, **{key: getattr(self._config, key) for key in keys})
        logging.getLogger().setLevel(wanted.log_level.upper())
        server.access = access
        self._book.use(wanted.devices, chosen)
        self._pipeline.choose(chosen)
        self._identity.adjust(limit=wanted.workers, grace=wanted.grace_seconds)
        self._roles.use(*_role_rules(wanted))
        log.info("the configuration was read again")
        return True

    def _look_at_devices(self) -> None:
        """Disks come and go, and one may come back with another name or dev_t."""
        missing = self._book.missing
        if self._book.look(lambda: self._probe.state().devices):
            self._pipeline.choose(self._book.chosen)
            self._pipeline.renumber(self._devices.renumbered())
        if self._book.missing != missing:
            log.warning("of the devices to count these are not there: %s", ", ".join(self._book.missing) or "none")

    def _newest(self) -> Snapshot:
        """In a thread of the server, one at a time: what was counted up to now, or a moment ago."""
        if time.monotonic() - self._taken >= self._config.interval_seconds:
            self._answered.clear()
            self._asked.set()
            self._events.wake()
            self._answered.wait(PATIENCE_SECONDS)
        return self._snapshot

    def _renew(self) -> None:
        self._snapshot, self._taken = self._take_snapshot(), time.monotonic()

    def _take_snapshot(self) -> Snapshot:
        series, identity, state = self._series, self._identity, self._probe.state()
        # Looks at those that have come since the last sweep, too.
        state = replace(state, devices=self._book.divided(state.devices))
        return Snapshot(
            streams=series.streams(),
            request_distributions=series.request_distributions(),
            errors=series.errors(),
            submissions=series.submissions(),
            call_distributions=series.call_distributions(),
            device_use=series.device_use(),
            attributed_bytes=series.attributed_bytes(),
            state=state,
            # The pipeline goes on changing its owners while a scrape reads these.
            owners={index: replace(owner) for index, owner in identity.owners.items()},
            devices=self._devices.known(),  # a scrape's thread has no right to look by itself
            folded=identity.folded + series.folded,
            version=__version__,
            loader=self._probe.loader,
            config_right=self._config_right,
            config_read=self._config_read,
        )


def _role_rules(config: DaemonConfig) -> tuple[tuple[Rule, ...], ReadHeader | None]:
    return (*config.roles, *builtin_role_rules()), cached_start if config.read_headers else None
