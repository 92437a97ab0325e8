"""An ad-hoc session: attach, watch some processes, a command or the whole host, sum up, leave nothing behind."""

from __future__ import annotations

import math
import platform
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal, TextIO

from llmio_probe.aggregate.series import Series
from llmio_probe.command import Command
from llmio_probe.errors import ProbeError
from llmio_probe.events import Events
from llmio_probe.identity.devices import Devices
from llmio_probe.identity.facts import FactSource, PsutilSource, clock_tick_ns
from llmio_probe.identity.files import Files
from llmio_probe.identity.frameworks import builtin_rules
from llmio_probe.identity.headers import cached_start
from llmio_probe.identity.mounts import Mounts
from llmio_probe.identity.owners import Identity
from llmio_probe.identity.pidns import require_host_pids
from llmio_probe.identity.role_rules import builtin_role_rules
from llmio_probe.identity.roles import RoleBook
from llmio_probe.kernel.loading import LoaderName
from llmio_probe.kernel.probe import Probe
from llmio_probe.options import probe_options
from llmio_probe.outputs import document
from llmio_probe.outputs.live import LiveView
from llmio_probe.outputs.shapes import Owner
from llmio_probe.pipeline import Pipeline, Rooms
from llmio_probe.rights import require_loading

SWEEP_SECONDS = 1.0
"""How often to look who has ended."""


@dataclass(frozen=True)
class SessionOptions:
    """What to watch and for how long. No pids and no command: the whole host."""

    pids: tuple[int, ...] = ()
    command: tuple[str, ...] = ()
    user: str | None = None
    duration: float | None = None
    devices: tuple[str, ...] = ()
    calls: bool = True
    loader: LoaderName = "auto"


@dataclass(frozen=True)
class Live:
    """Where the rolling lines go, and how often. alone: so does all else, so that it is over when nobody reads them."""

    stream: TextIO
    interval: float
    alone: bool


@dataclass(frozen=True)
class Outcome:
    """document: the summary. status: COMMAND's own, None without one or while it still runs."""

    document: document.Document
    status: int | None


def rooms(source: FactSource, mounts: Mounts, devices: Devices) -> Rooms:
    """By process, in full detail, and with roles that may still be decided at the end."""
    identity = Identity(source, builtin_rules(), time.monotonic, tick_ns=clock_tick_ns(), per_process=True, limit=None)
    files = Files(mounts, devices)
    roles = RoleBook(
        builtin_role_rules(), files.files, identity.framework_of,
        undecided=True, clock=time.monotonic, read_header=cached_start,
    )  # fmt: skip
    return Rooms(identity, files, roles, Series(detail=True))


class Session:
    """One session. ``run`` returns when it is over; the probe is closed by then, whatever happened."""

    def __init__(
        self,
        options: SessionOptions,
        live: Live | None = None,
        stdout: int | None = None,
        keep_fds: frozenset[int] = frozenset(),
    ) -> None:
        """stdout: where COMMAND's standard output goes instead of ours; keep_fds: other descriptors it inherits."""
        self._options = options
        self._live = live
        self._stdout = stdout
        self._keep_fds = keep_fds
        self._devices = Devices()
        self._source = PsutilSource()
        self._rooms = rooms(self._source, Mounts(), self._devices)
        self._identity, self._files = self._rooms.identity, self._rooms.files
        self._roles, self._series = self._rooms.roles, self._rooms.series
        self._command: Command | None = None
        self._chosen: frozenset[int] | None = None
        self._failure: ProbeError | None = None
        """What ended the watching early."""

    def run(self, finish: Callable[[document.Document], None]) -> Outcome:
        """Watch, then hand the summary to ``finish``. A COMMAND that outlives the watching is waited for after that.

        ProbeError before there is anything to sum up, or, when the watching failed on its way, after all of that.
        """
        options = self._options
        require_loading()
        require_host_pids()
        self._chosen = frozenset(self._devices.resolve(name) for name in options.devices) or None
        pids = list(options.pids)
        with ExitStack() as stack:
            events = stack.enter_context(Events((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)))
            if options.command:
                self._command = stack.enter_context(
                    Command.prepare(options.command, user=options.user, stdout=self._stdout, keep_fds=self._keep_fds)
                )
                pids = [self._command.pid]
            roots = [(pid, self._start_of(pid)) for pid in pids]
            with Probe(probe_options(calls=options.calls, follow=bool(roots), loader=options.loader)) as probe:
                summary = self._watch(probe, events, roots)
                if self._command is None:
                    events.release()  # from here on another Ctrl-C aborts
                # Counting has stopped; taking the programs out takes longer than anybody should wait for the answer.
                finish(summary)
            status = None if self._command is None else self._outlive(events, self._command)
        if self._failure is not None:
            raise self._failure
        return Outcome(summary, status)

    def _start_of(self, pid: int) -> int:
        start, leader = self._source.start_ticks(pid), self._source.group_leader(pid)
        if start is None or leader is None:
            raise ProbeError(f"there is no process {pid}: look for the right one with ps")
        if leader != pid:
            raise ProbeError(f"{pid} is a thread of process {leader}: use --pid {leader}")
        if self._source.is_kernel_thread(pid):
            raise ProbeError(f"{pid} is a thread of the kernel, whose I/O is not a session's: use --all")
        return start

    def _watch(self, probe: Probe, events: Events, roots: list[tuple[int, int]]) -> document.Document:
        pipeline = self._rooms.pipeline(probe, self._chosen)
        for root in roots:
            probe.follow(*root)
        self._follow_descendants(probe, roots)
        for fd in probe.wake_fds:
            events.watch(fd)
        if self._command is not None and self._command.pidfd is not None:
            events.watch(self._command.pidfd)
        self._devices.remember()
        started, clock = datetime.now(timezone.utc), time.monotonic()
        probe.start()
        for warning in probe.warnings:
            print(f"llmio-probe: {warning}", file=sys.stderr)
        self._follow_descendants(probe, roots)  # forked while the programs were being attached
        if self._command is not None:
            self._command.release()
        else:
            what = (
                f"{len(roots)} process{'es' if len(roots) > 1 else ''} and what they start"
                if roots
                else "the whole host"
            )
            print(f"llmio-probe: watching {what}; Ctrl-C sums up", file=sys.stderr, flush=True)

        def in_session(owner: Owner) -> bool:
            process = self._identity.owners[owner.index].process
            return not roots or (process is not None and process.followed)

        end: Literal["completed", "interrupted", "partial"]
        try:
            end = self._until_over(probe, pipeline, events, clock, in_session, following=bool(roots))
        except ProbeError as error:
            end, self._failure = "partial", error  # what was counted so far is still worth its summary
        duration = time.monotonic() - clock
        probe.stop()
        try:
            while self._failure is None and pipeline.run():
                pass
        except ProbeError as error:
            end, self._failure = "partial", error
        for shortage in probe.shortages():
            print(f"llmio-probe: {shortage}", file=sys.stderr)
        facts = document.SessionFacts(
            start=started,
            duration_seconds=duration,
            end=end,
            kernel=platform.release(),
            loader=probe.loader,
            hooks=probe.hooks,
            command=list(self._options.command) or None,
            exit_status=None if self._command is None else self._command.poll(),
            session=in_session if roots else None,
            device_filter=self._chosen,
        )
        # Only now, when nothing is counted any more: looking at files may cause I/O.
        self._files.refresh()
        self._series.settle_roles(self._roles.settle())
        return document.build(
            facts, self._series, self._identity.owners, self._devices, self._files, self._roles.role, probe.state(),
            self._series.device_busy_seconds(),
        )  # fmt: skip

    def _follow_descendants(self, probe: Probe, roots: list[tuple[int, int]]) -> None:
        """Those that are already there; the kernel adds the ones to come."""
        known = probe.followed()
        for pid, _ in roots:
            for child in self._source.children(pid):
                start = self._source.start_ticks(child)
                if start is not None and (child, start) not in known:
                    probe.follow(child, start)

    def _until_over(
        self,
        probe: Probe,
        pipeline: Pipeline,
        events: Events,
        clock: float,
        in_session: Callable[[Owner], bool],
        *,
        following: bool,
    ) -> Literal["completed", "interrupted"]:
        duration, live, command = self._options.duration, self._live, self._command
        deadline = math.inf if duration is None else clock + duration
        interval = live.interval if live else math.inf
        view = LiveView(live.stream, self._identity.owners, self._devices) if live else None
        shown, next_sweep = clock, clock + SWEEP_SECONDS
        end: Literal["completed", "interrupted"] = "completed"
        while True:
            now = time.monotonic()
            events.wait(min(pipeline.wait, deadline - now, shown + interval - now, next_sweep - now))
            pipeline.run()
            for received in events.signals():
                if command is None:
                    return "interrupted"
                # The terminal has sent a SIGINT to COMMAND too: it decides, we wait and sum up.
                end = "interrupted"
                if received is not signal.SIGINT:
                    command.terminate()
            now = time.monotonic()
            if view is not None and now >= shown + interval:
                try:
                    view.update(now - clock, now - shown, self._series.streams(), in_session)
                except OSError as error:
                    if live is not None and live.alone and isinstance(error, BrokenPipeError):
                        raise
                    view.discard()
                    view, interval = None, math.inf  # the lines are lost, the summary is not
                shown = now
            if now >= next_sweep:
                self._identity.expire()
                probe.give_back(self._identity.has_ended)
                if following:
                    self._forget_ended(probe)
                next_sweep = now + SWEEP_SECONDS
            if now >= deadline:
                return end
            if command is not None:
                if command.poll() is not None:
                    return end
            elif following and not probe.followed():
                return end

    def _forget_ended(self, probe: Probe) -> None:
        """Whoever ended before the kernel told us of ends."""
        for pid, start in probe.followed():
            if self._source.start_ticks(pid) != start:
                probe.unfollow(pid, start)

    def _outlive(self, events: Events, command: Command) -> int:
        """--duration ends the watching, never COMMAND."""
        while (status := command.poll()) is None:
            events.wait(SWEEP_SECONDS)
            if any(received is not signal.SIGINT for received in events.signals()):
                command.terminate()
        return status
