"""The YAML file of ``llmio-probe daemon --config FILE``: its keys, their defaults, and what is wrong with one by line.

deploy/llmio-probe.yaml is the same, written for people; a test holds the two together. Nothing but reading and checking
may go in here: whether a device exists or an address can be listened on shows where it is used.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import yaml

from llmio_probe.errors import ProbeError
from llmio_probe.identity.role_rules import Rule, read_role_rules
from llmio_probe.text import escape
from llmio_probe.yaml_nodes import BadNodeError, Reader, compose, one_of, read_mapping, scalar, wrong

if TYPE_CHECKING:  # whoever only reads the rules in a configuration needs no NumPy
    from llmio_probe.kernel.loading import LoaderName


class Address(NamedTuple):
    """Where the exporter listens; port 0 lets the kernel choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class DaemonConfig:
    listen: Address = field(default_factory=lambda: Address("127.0.0.1", 9464))
    web_config: str | None = None
    """A file in the format of the Prometheus exporters: TLS and passwords. None: neither."""
    user: str | None = None
    """Who the daemon becomes when root starts it. None: llmio-probe where there is such an account, else nobody."""
    devices: tuple[str, ...] | None = None
    """As the user wrote them; None is all."""
    workers: int = 24
    """How many have series of their own."""
    series: int = 5_000
    """At most so many in all."""
    grace_seconds: float = 300.0
    """How long a worker that ended keeps its series."""
    interval_seconds: float = 1.0
    """How old the numbers that a scrape shows may be."""
    calls: bool = True
    """The app's view: what io_submit and the like asked for."""
    loader: LoaderName = "auto"
    program_cost: Literal["start", "continuous", "off"] = "start"
    """When the kernel times our programs, which costs: for two seconds, always, never."""
    log_level: str = "info"
    read_headers: bool = True
    """Whether the first bytes of a file may be looked at where its name cannot tell its role."""
    roles: tuple[Rule, ...] = ()
    """The user's own rules, which come before the built-in ones."""


AT_START = ("listen", "user", "series", "calls", "loader", "program_cost")
"""Keys that a running daemon cannot change: what they ask for needs rights that it has given up, or new programs, or
counters that begin anew."""


def needs_restart(running: DaemonConfig, wanted: DaemonConfig) -> tuple[str, ...]:
    """The keys that differ and are not taken over by a reload."""
    return tuple(key for key in AT_START if getattr(running, key) != getattr(wanted, key))


def load(path: str | os.PathLike[str]) -> DaemonConfig:
    """Read and check the file; a key that it leaves out has its default. Raises ProbeError in one sentence."""
    name = escape(os.fspath(path))
    try:
        with open(path, "rb") as stream:
            root = compose(stream, name)
    except OSError as error:
        raise ProbeError(f"cannot read the configuration {name}: {(error.strerror or str(error)).lower()}") from error
    if root is None:
        return DaemonConfig()
    try:
        return DaemonConfig(**read_mapping(root, _READERS))
    except BadNodeError as error:
        raise ProbeError(f"{name}:{error.line}: {error}") from error


def _listen(key: str, node: yaml.Node) -> Address:
    value = scalar(node)
    match = re.fullmatch(r"(?:\[([^]]+)\]|([^:]+)):([0-9]{1,5})", value) if isinstance(value, str) else None
    if match:
        v6, v4, port = match.group(1), match.group(2), int(match.group(3))
        try:
            host = ipaddress.IPv6Address(v6) if v6 else ipaddress.IPv4Address(v4)
        except ValueError:
            pass
        else:
            if port <= 65535:
                return Address(str(host), port)
    raise wrong(key, node, 'an IP address and a port in quotes, such as "127.0.0.1:9464" or "[::1]:9464"')


def _file_name(key: str, node: yaml.Node) -> str:
    value = scalar(node)
    if isinstance(value, str) and value.startswith("/") and value.isprintable():
        return value
    raise wrong(key, node, "the full name of a file, such as /etc/llmio-probe/web.yaml")


def _account(key: str, node: yaml.Node) -> str:
    value = scalar(node)
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*\$?", value):
        return value
    raise wrong(key, node, "the name of an account of this host, such as llmio-probe")


def _devices(key: str, node: yaml.Node) -> tuple[str, ...]:
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise wrong(key, node, "a list of device names, such as [nvme0n1, nvme1n1]; left out, it is all devices")
    return tuple(_device(key, item) for item in node.value)


def _device(key: str, node: yaml.Node) -> str:
    value = scalar(node)
    if not isinstance(value, str) or not value or not value.isprintable() or " " in value:
        raise wrong(f"each of {key}", node, "a device name, such as nvme0n1")
    return value


def _whole_number(low: int, high: int) -> Callable[[str, yaml.Node], int]:
    def read(key: str, node: yaml.Node) -> int:
        value = scalar(node)
        if type(value) is int and low <= value <= high:  # exactly int: true and false are ints too
            return value
        raise wrong(key, node, f"a whole number from {low:,} to {high:,}")

    return read


def _number(low: float, high: float) -> Callable[[str, yaml.Node], float]:
    def read(key: str, node: yaml.Node) -> float:
        value = scalar(node)
        if type(value) in (int, float) and low <= value <= high:  # true and .nan are neither
            return float(value)
        raise wrong(key, node, f"a number from {low:,g} to {high:,g}")

    return read


def _yes_or_no(key: str, node: yaml.Node) -> bool:
    value = scalar(node)
    if isinstance(value, bool):
        return value
    raise wrong(key, node, "true or false")


def _program_cost(key: str, node: yaml.Node) -> str:
    allowed = ("start", "continuous", "off")
    # By its letters: to YAML, off is false.
    if isinstance(node, yaml.ScalarNode) and node.value in allowed:
        return str(node.value)
    raise wrong(key, node, f"one of {', '.join(allowed)}")


_READERS: Mapping[str, Reader] = {
    "listen": _listen,
    "web_config": _file_name,
    "user": _account,
    "devices": _devices,
    "workers": _whole_number(1, 1_000),
    # Below, little but "other" would find room; above, no Prometheus wants one target to be.
    "series": _whole_number(1_000, 100_000),
    "grace_seconds": _number(0, 86_400),
    "interval_seconds": _number(0.1, 60),
    "calls": _yes_or_no,
    "loader": one_of("auto", "core", "bcc"),
    "program_cost": _program_cost,
    "log_level": one_of("debug", "info", "warning", "error"),
    "read_headers": _yes_or_no,
    "roles": lambda _, node: read_role_rules(node),
}
