"""Worker names: which slot a process fills, and what the slot is called.

Only slots and names may go in here: no process is looked at, and nothing is counted. A slot of a framework has room
for one process, so that two FlexGen servers in one cgroup are told apart; a plain command's slot takes any number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from llmio_probe.identity.facts import ProcessId
from llmio_probe.text import escape

_LONGEST_NAME = 64  # an argv[0] may have a megabyte
_RESERVED = re.compile(r"unknown$|other$|kernel:")


class SlotKey(NamedTuple):
    base: str  # the worker's name without a number
    framework: str | None
    rank: str | None
    cgroup: str | None


@dataclass(eq=False)
class Slot:
    key: SlotKey
    worker: str
    members: set[ProcessId] = field(default_factory=set)  # those that live
    vacant_since: float | None = None  # when the last one left; None while there are any


class Slots:
    def __init__(self) -> None:
        self._by_name: dict[str, Slot] = {}
        self._by_key: dict[SlotKey, list[Slot]] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._by_name.values()))

    def join(self, key: SlotKey, vacant: Callable[[Slot], bool]) -> Slot | None:
        """A slot of this key that has room. A plain command always has; vacant() is asked for those of frameworks.

        Where the cgroup is not known, the only one of that name will do: a process that ended too early is no worker of
        its own.
        """
        alike = self._by_key.get(key, [])
        if not alike and key.cgroup is None:
            named = [slot for slot in self if slot.key._replace(cgroup=None) == key]
            alike = named if len(named) == 1 else []
        return next((slot for slot in alike if key.framework is None or vacant(slot)), None)

    def open(self, key: SlotKey) -> Slot:
        """A new slot, under the first of base, base#2, base#3, … that no other has."""
        names = (key.base if number == 1 else f"{key.base}#{number}" for number in count(1))
        slot = Slot(key, next(name for name in names if name not in self._by_name))
        self._by_name[slot.worker] = slot
        self._by_key.setdefault(key, []).append(slot)
        return slot

    def close(self, slot: Slot) -> None:
        del self._by_name[slot.worker]
        self._by_key[slot.key].remove(slot)
        if not self._by_key[slot.key]:
            del self._by_key[slot.key]


def plain_name(argv0: str, comm: str) -> str | None:
    """What a plain command is called: its executable's base name, its comm, or None when it has neither.

    What a process chose must not pass for one of the reserved names: "kernel:flush" is shown as "process:kernel:flush".
    """
    # "-bash" is a login shell, "postgres: writer" a title.
    executable = argv0.partition(": ")[0].rpartition("/")[2].lstrip("-").rstrip(":")
    name = escape(executable.strip() or comm.strip())[:_LONGEST_NAME].strip()
    if not name:
        return None
    return f"process:{name}" if _RESERVED.match(name) else name


def kernel_name(comm: str) -> str:
    """One name for all kernel threads of a kind: the comm without what numbers or names the instance.

    That is all from the first '/', ':' or '-<digit>' on, or a number at the end; where there is neither, the digits
    that end the first word.
    """
    kind = re.split(r"/|:|-(?=\d)|_(?=\d+$)", comm, maxsplit=1)[0]
    if kind == comm:
        kind = re.sub(r"^([A-Za-z]+)\d+(?=_|$)", r"\1", comm)
    return f"kernel:{escape(kind) or 'other'}"
