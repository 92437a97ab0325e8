"""Which devices a daemon counts, and under which numbers, while disks come, go and take each other's dev_t and name.

What has been counted under a number stays there (identity/devices.py says when another one begins). Records get their
numbers in the pipeline; what the kernel itself counts goes on by dev_t, and is divided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace

from llmio_probe.identity.devices import Devices
from llmio_probe.kernel.state import DeviceCounts

_COUNTS = [field.name for field in fields(DeviceCounts) if field.name not in ("device", "in_flight")]

Counts = Iterable[DeviceCounts]


class DeviceBook:
    """chosen: the dev_t of those to count, None for all. missing: of the names that were asked for, those not there."""

    def __init__(self, devices: Devices, names: Iterable[str] | None) -> None:
        """names: None for all devices. ProbeError when there is one that does not exist."""
        self._devices = devices
        self._before: dict[int, DeviceCounts] = {}  # by dev_t: what its earlier numbers have of the kernel's counts
        self._earlier: dict[int, DeviceCounts] = {}  # the same by number
        self._shown: set[int] = set()  # numbers of those that are or were counted
        self.chosen: frozenset[int] | None = None
        devices.remember()
        self.use(names, self.resolve(names))

    def resolve(self, names: Iterable[str] | None) -> frozenset[int] | None:
        """ProbeError when there is one that does not exist."""
        return None if names is None else frozenset(map(self._devices.resolve, names))

    def use(self, names: Iterable[str] | None, chosen: frozenset[int] | None) -> None:
        """Other devices from now on: chosen is what resolve() has found for the names."""
        self._names = None if names is None else tuple(names)
        self.missing: tuple[str, ...] = ()
        # What one had under another number must not be missing from the sums of its name.
        called = {self._devices.name(self._devices.number(dev)) for dev in chosen or ()}
        before = self._earlier.keys() if self.chosen is None else self._shown
        self._shown = {number for number in before if self._devices.name(number) in called}
        self._count(chosen)

    def look(self, counts: Callable[[], Counts]) -> bool:
        """What disks are there now? Whether that makes others to be counted, or under other numbers.

        counts: what the kernel has counted, asked for only if it has to be divided.
        """
        before = self._devices.renumbered()
        self._devices.remember()
        now = self._devices.renumbered()
        moved = {dev for dev in before.keys() | now.keys() if before.get(dev) != now.get(dev)}
        if moved:
            for each in counts():
                if each.device in moved:
                    self._divide(each, before.get(each.device, each.device))
        chosen = self.chosen
        if self._names is not None:
            found = {name: self._devices.find(name) for name in self._names}
            self.missing = tuple(name for name, dev in found.items() if dev is None)
            chosen = frozenset(dev for dev in found.values() if dev is not None)
        changed = bool(moved) or chosen != self.chosen
        self._count(chosen)
        return changed

    def divided(self, counts: Counts) -> list[DeviceCounts]:
        """The kernel's counts of the chosen devices by number."""
        now = [replace(self._since(each), device=self._devices.number(each.device)) for each in counts]
        rows = [*self._earlier.values(), *now]
        return rows if self.chosen is None else [row for row in rows if row.device in self._shown]

    def _count(self, chosen: frozenset[int] | None) -> None:
        self.chosen = chosen
        self._shown.update(map(self._devices.number, chosen or ()))

    def _divide(self, counts: DeviceCounts, number: int) -> None:
        """The number has all until now. Nothing is in flight any more of a disk that has left its name to another."""
        since = replace(self._since(counts), device=number, in_flight={})
        known = self._earlier.get(number)
        self._earlier[number] = since if known is None else _plus(known, since)
        self._before[counts.device] = counts

    def _since(self, counts: DeviceCounts) -> DeviceCounts:
        before = self._before.get(counts.device)
        return counts if before is None else _plus(counts, before, -1)


def _plus(counts: DeviceCounts, others: DeviceCounts, sign: int = 1) -> DeviceCounts:
    return replace(counts, **{name: getattr(counts, name) + sign * getattr(others, name) for name in _COUNTS})
