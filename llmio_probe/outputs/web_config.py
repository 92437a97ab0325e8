"""Who may scrape, and through what: the web configuration file of the Prometheus exporters, as far as it is of use.

Format: prometheus/exporter-toolkit, docs/web-configuration.md. Its keys that are not here are refused by name, so that
nobody believes in a protection that is none. Only reading and checking may go in here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmio_probe.errors import ProbeError
from llmio_probe.text import escape
from llmio_probe.yaml_nodes import BadNodeError, Reader, compose, one_of, read_mapping, scalar, wrong

CheckPassword = Callable[[bytes, bytes], bool]
"""Password and its bcrypt hash."""

# What the library takes; at the rest it raises, but only once somebody asks. (A salt's last letter has two bits.)
_HASH = re.compile(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_REMEMBERED = 100
_OF_A_CLIENT = 2
"""Passwords that are being checked or wait for it."""
PATIENCE_SECONDS = 2.0
"""For how long one waits: Prometheus gives up after 5 s where it scrapes as often."""


@dataclass(frozen=True)
class Access:
    """What the file says, ready for use. tls: None for plain HTTP; users: None where everybody may read."""

    tls: ssl.SSLContext | None = None
    users: Users | None = None

    @property
    def scheme(self) -> str:
        return "http" if self.tls is None else "https"


class BusyError(Exception):
    """Other passwords are being checked."""


class Users:
    """Checks what a request says of itself. A bcrypt hash takes 50 ms and more, so what was right is remembered."""

    def __init__(self, hashes: Mapping[str, bytes], check: CheckPassword, before: Users | None = None) -> None:
        """before: whose place it takes. What was right there still is, if the hash is the same."""
        self._hashes = hashes
        self._check = check
        # Of a user that there is not, some hash is tried as well: how long it takes must not tell who there is.
        self._some_hash = next(iter(hashes.values()))
        self._key: bytes = os.urandom(32) if before is None else before._key
        self._right: dict[bytes, str] = {}
        """Marks of what was said, and the name in it."""
        if before is not None:
            kept = {name for name, hashed in hashes.items() if before._hashes.get(name) == hashed}
            self._right = {mark: name for mark, name in before._right.copy().items() if name in kept}
        # Whoever tries many passwords gets one CPU at most, and few connections that wait for it. Who comes from
        # elsewhere, or asks only once, gets a turn all the same.
        self._one_at_a_time = threading.Lock()
        self._clients: Counter[str] = Counter()
        self._changing = threading.Lock()

    def allow(self, authorization: str | None, client: str) -> bool:
        """The value of the header: "Basic " and name:password in base64. BusyError where it cannot be checked now.

        client: where it comes from.
        """
        scheme, _, encoded = (authorization or "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            said = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        name, colon, password = said.partition(b":")
        if not colon or b"\0" in password:
            return False
        mark = hmac.digest(self._key, said, hashlib.sha256)
        if mark in self._right:
            return True
        user = name.decode(errors="replace")
        known = self._hashes.get(user)
        with self._turn(client):
            right = self._check(password[:72], known or self._some_hash) and known is not None  # bcrypt's limit
        if right and len(self._right) < _REMEMBERED:
            self._right[mark] = user
        return right

    @contextmanager
    def _turn(self, client: str) -> Iterator[None]:
        with self._changing:
            if self._clients[client] >= _OF_A_CLIENT:
                raise BusyError
            self._clients[client] += 1
        try:
            if not self._one_at_a_time.acquire(timeout=PATIENCE_SECONDS):
                raise BusyError
            try:
                yield
            finally:
                self._one_at_a_time.release()
        finally:
            with self._changing:
                self._clients[client] -= 1
                if not self._clients[client]:
                    del self._clients[client]


@dataclass(frozen=True)
class _Tls:
    cert_file: str = ""
    key_file: str = ""
    client_auth_type: str = "NoClientCert"
    client_ca_file: str = ""
    min_version: str = "TLS12"


@dataclass(frozen=True)
class _File:
    tls_server_config: _Tls | None = None
    basic_auth_users: Mapping[str, bytes] = field(default_factory=dict)


def load_access(path: str | None, before: Access | None = None) -> Access:
    """Read, check, and load the certificate. ProbeError in one sentence. Without a file, all may read, by HTTP.

    before: what it takes the place of.
    """
    if path is None:
        return Access()
    name = escape(path)
    try:
        with open(path, "rb") as stream:
            root = compose(stream, name)
    except OSError as error:
        raise ProbeError(
            f"cannot read the web configuration {name}: {(error.strerror or str(error)).lower()}"
        ) from error
    try:
        found = _File() if root is None else _File(**read_mapping(root, _READERS))
    except BadNodeError as error:
        raise ProbeError(f"{name}:{error.line}: {error}") from error
    tls = None if found.tls_server_config is None else _context(found.tls_server_config, Path(path).parent, name)
    known = before.users if before is not None else None
    users = Users(found.basic_auth_users, _bcrypt(name), known) if found.basic_auth_users else None
    return Access(tls, users)


def _context(tls: _Tls, folder: Path, name: str) -> ssl.SSLContext:
    """Names of files are relative to the configuration's folder."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.min_version]
    _load(name, "certificate and key", lambda: context.load_cert_chain(folder / tls.cert_file, folder / tls.key_file))
    if tls.client_auth_type == "RequireAndVerifyClientCert":
        _load(name, "client_ca_file", lambda: context.load_verify_locations(folder / tls.client_ca_file))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(name: str, what: str, load: Callable[[], None]) -> None:
    try:
        load()
    except ssl.SSLError as error:
        raise ProbeError(f"{name}: the {what} cannot be used: {str(error.reason or error).lower()}") from None
    except OSError as error:
        raise ProbeError(
            f"{name}: the {what} cannot be read: {(error.strerror or str(error)).lower()}; "
            "the daemon's account must be allowed to (docs/daemon.md, Keys and passwords)"
        ) from None


def _bcrypt(name: str) -> CheckPassword:
    """An extra, as most leave the daemon on loopback, where nobody asks for a password."""
    try:
        import bcrypt
    except ImportError:
        raise ProbeError(
            f"{name}: basic_auth_users needs the Python package bcrypt (on Debian and Ubuntu python3-bcrypt)"
        ) from None
    check: CheckPassword = bcrypt.checkpw
    return check


def _tls(key: str, node: yaml.Node) -> _Tls:
    found = _Tls(**read_mapping(node, _TLS_READERS))
    for needed, wanted in (
        ("cert_file", True), ("key_file", True), ("client_ca_file", found.client_auth_type != "NoClientCert"),
    ):  # fmt: skip
        if wanted and not getattr(found, needed):
            raise BadNodeError(node, f"{key} needs {needed}")
    return found


def _users(key: str, node: yaml.Node) -> dict[str, bytes]:
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise wrong(key, node, "lines of the form name: bcrypt hash")
    users: dict[str, bytes] = {}
    for name, value in node.value:
        hashed = scalar(value)
        if not isinstance(hashed, str) or not _HASH.fullmatch(hashed):
            # Not what stands there: it may be the password.
            raise BadNodeError(value, f"each of {key} must be a bcrypt hash, as htpasswd -nB makes it: $2y$…")
        users[str(name.value)] = hashed.encode()
    return users


def _file_name(key: str, node: yaml.Node) -> str:
    value: Any = scalar(node)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise wrong(key, node, "the name of a file")
    return value


_TLS_READERS: Mapping[str, Reader] = {
    "cert_file": _file_name,
    "key_file": _file_name,
    "client_auth_type": one_of("NoClientCert", "RequireAndVerifyClientCert"),
    "client_ca_file": _file_name,
    "min_version": one_of(*_VERSIONS),
}
_READERS: Mapping[str, Reader] = {"tls_server_config": _tls, "basic_auth_users": _users}
