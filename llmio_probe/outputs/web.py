"""The exporter's HTTP server: /metrics for whoever may read it, and nothing that a request could do to us.

Python's own server underneath, since one page is all there is; what it lacks is here: how many connections at once, how
long each may take, how much it may say. What is served is for prometheus.py, how it is written for text_format.py, to
whom for web_config.py.
"""

from __future__ import annotations

import gzip
import http.client
import logging
import math
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry

from llmio_probe.outputs.text_format import encode, format_for
from llmio_probe.outputs.web_config import Access, BusyError

CONNECTIONS = 16
"""At once. Prometheus holds one, for as long as a scrape takes."""
SECONDS = 10.0
"""From being accepted to the last byte of the answer: Prometheus gives up after as long by default."""
REQUEST_BYTES = 1 << 17
"""Of a request, its headers included; http.server sees to it that its first line has at most half of that."""
_START = b"llmio-probe: the metrics are at /metrics\n"

log = logging.getLogger("llmio-probe")


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    until: float
    asked: bool = False
    """Has it said what it wants?"""

    def cut(self) -> None:
        """Its thread notices at once, whatever it waits for. Past TLS: that would want to say goodbye."""
        with suppress(OSError):  # it has gone by itself
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class MetricsServer(socketserver.TCPServer):
    """Listens when made, serves between ``start`` and ``close``. OSError when the address cannot be had."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        registry: CollectorRegistry,
        access: Access,
        *,
        connections: int = CONNECTIONS,
        seconds: float = SECONDS,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.registry = registry
        self.access = access
        """May be exchanged while it serves; who is connected already is not asked again."""
        self.rendering = threading.Lock()
        """One exposition at a time: however many ask, the pipeline shares its CPU with one thread."""
        self._most = connections
        self._seconds = seconds
        self._open: dict[_Connection, None] = {}
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        super().__init__(address, _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def start(self, first: Callable[[], None] = lambda: None) -> None:
        """first: done in the thread that serves, before it starts any other."""

        def serve() -> None:
            first()
            while not self._closed:
                self.timeout = self._until_next_cut()
                self.handle_request()
                self._cut_late()

        self._thread = threading.Thread(target=serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody is waited for: who is in the middle of an answer may ask the next daemon."""
        self._closed = True
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # its thread notices at once, whatever it waits for
        if self._thread is not None:
            self._thread.join()
        self.server_close()
        for connection in list(self._open):
            connection.cut()

    # --- in the thread that serves, which sleeps while nobody is connected

    def _until_next_cut(self) -> float | None:
        until = min((connection.until for connection in list(self._open)), default=math.inf)
        return None if until == math.inf else max(until - time.monotonic(), 0)

    def _cut_late(self) -> None:
        now = time.monotonic()
        for connection in list(self._open):
            if now >= connection.until:
                connection.cut()
                connection.until = math.inf  # its thread may take a while to notice

    def process_request(self, request: Any, client_address: Any) -> None:
        connection = _Connection(request, time.monotonic() + self._seconds)
        if not self._admit(connection):
            self.shutdown_request(request)
            return
        try:
            threading.Thread(target=self._answer, args=(connection, client_address), daemon=True).start()
        except RuntimeError:  # no more threads
            self._leave(connection)

    def _admit(self, connection: _Connection) -> bool:
        """Where there is no room, the one that has been silent for longest makes some: it is no scraper."""
        with self._changing:
            if len(self._open) >= self._most:
                silent = next((other for other in self._open if not other.asked), None)
                if silent is None:
                    return False
                silent.cut()
                del self._open[silent]
            self._open[connection] = None
            return True

    def _leave(self, connection: _Connection) -> None:
        with self._changing:
            self._open.pop(connection, None)
        self.shutdown_request(connection.socket)

    # --- in a thread of the connection

    def _answer(self, connection: _Connection, client_address: Any) -> None:
        try:
            if (tls := self.access.tls) is not None:
                connection.socket = tls.wrap_socket(
                    connection.socket, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
                )
                connection.socket.do_handshake()
            _Handler(connection, client_address, self)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: closed while in use
            log.debug("a connection from %s ended: %s", client_address[0], error)
        finally:
            self._leave(connection)


class _AtMost:
    """Reads lines, not more than so many bytes of them in all."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = REQUEST_BYTES

    def readline(self, size: int = -1) -> bytes:
        if self._left <= 0:
            raise http.client.LineTooLong("header")  # answered with 431 by http.server
        line: bytes = self._stream.readline(self._left if size < 0 else min(size, self._left))
        self._left -= len(line)
        return line

    def close(self) -> None:
        self._stream.close()

    @property
    def closed(self) -> bool:
        return bool(self._stream.closed)


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer
    server_version = "llmio-probe"
    sys_version = ""

    def __init__(self, connection: _Connection, client_address: Any, server: MetricsServer) -> None:
        self._connection = connection
        super().__init__(connection.socket, client_address, server)

    def setup(self) -> None:
        super().setup()
        self.rfile: Any = _AtMost(self.rfile)

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self._connection.asked = True
        return parsed

    def do_GET(self) -> None:
        users = self.server.access.users
        try:
            allowed = users is None or users.allow(self.headers.get("Authorization"), self.client_address[0])
        except BusyError:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"busy: ask again\n", ("Retry-After", "1"))
            return
        if not allowed:
            who = ("WWW-Authenticate", 'Basic realm="llmio-probe"')
            self._send(HTTPStatus.UNAUTHORIZED, "text/plain", b"who are you?\n", who)
            return
        path = urlsplit(self.path).path
        if path == "/metrics":
            self._send_metrics()
        elif path == "/":
            self._send(HTTPStatus.OK, "text/plain; charset=utf-8", _START)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send_metrics(self) -> None:
        content_type = format_for(self.headers.get("Accept", ""))
        zipped = "gzip" in self.headers.get("Accept-Encoding", "")
        with self.server.rendering:
            body = encode(self.server.registry, content_type)
            body = gzip.compress(body, 1) if zipped else body
        self._send(HTTPStatus.OK, content_type, body, *([("Content-Encoding", "gzip")] if zipped else []))

    def _send(self, status: HTTPStatus, content_type: str, body: bytes, *more: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", content_type), ("Content-Length", str(len(body))), *more):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a line for each scrape helps nobody, and what is asked for is not ours to repeat."""
