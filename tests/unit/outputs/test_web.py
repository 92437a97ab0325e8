"""Proves llmio_probe.outputs.web: what it serves, to whom, and that no request hurts the next one."""

from __future__ import annotations

import base64
import gzip
import http.client
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as Counted

from llmio_probe.outputs import web_config as web_config_module
from llmio_probe.outputs.web import REQUEST_BYTES, MetricsServer
from llmio_probe.outputs.web_config import Access, BusyError, Users, load_access

HANG = 30
SECONDS = 1.0
"""How long a connection of these servers may last."""


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counted("llmio_test", "A number.", registry=registry).inc(7)
    return registry


Serve = Callable[..., MetricsServer]


@pytest.fixture
def serve(registry: CollectorRegistry) -> Iterator[Serve]:
    servers = []

    def start(access: Access | None = None, seconds: float = HANG, connections: int = 4) -> MetricsServer:
        address = ("127.0.0.1", 0)
        server = MetricsServer(address, registry, access or Access(), connections=connections, seconds=seconds)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.close()


def ask(server: MetricsServer, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANG)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def connect(server: MetricsServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=HANG)


def said(connection: socket.socket) -> bytes:
    """All that comes until the other side ends it."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def eventually(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert happened()


# What it serves


def test_metrics_are_at_their_place_and_nothing_else_is(serve: Serve) -> None:
    server = serve()
    status, body = ask(server)
    assert status == 200
    assert b"\nllmio_test_total 7.0\n" in body
    assert ask(server, "/metrics?name[]=x")[0] == 200
    assert ask(server, "/") == (200, b"llmio-probe: the metrics are at /metrics\n")
    assert ask(server, "/etc/passwd")[0] == 404
    assert ask(server, "/metrics/../metrics")[0] == 404
    assert ask(server, method="POST")[0] == 501


def test_openmetrics_and_compression_are_given_when_asked_for(serve: Serve) -> None:
    server = serve()
    _, plain = ask(server, Accept="application/openmetrics-text; version=1.0.0")
    assert plain.endswith(b"# EOF\n")
    _, zipped = ask(server, Accept_Encoding="gzip", Accept="application/openmetrics-text; version=1.0.0")
    assert gzip.decompress(zipped) == plain


def test_an_address_that_is_taken_is_an_error_at_once(serve: Serve, registry: CollectorRegistry) -> None:
    with pytest.raises(OSError, match="in use"):
        MetricsServer(("127.0.0.1", serve().port), registry, Access())


def test_what_is_to_be_done_first_is_done_in_its_thread(registry: CollectorRegistry) -> None:
    threads: list[str] = []
    server = MetricsServer(("127.0.0.1", 0), registry, Access())
    server.start(first=lambda: threads.append(threading.current_thread().name))
    assert ask(server)[0] == 200
    server.close()
    assert threads == ["metrics"]


# What no request can do


def test_a_slow_request_is_cut_off(serve: Serve) -> None:
    server = serve(seconds=SECONDS)
    with connect(server) as slow:
        slow.sendall(b"GET /metr")
        for letter in b"ics HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"y" * 200:
            time.sleep(SECONDS / 20)  # never silent for long
            try:
                slow.sendall(bytes([letter]))
            except OSError:
                break
        else:
            pytest.fail("it was let go on")


def test_whoever_does_not_read_the_answer_is_cut_off(serve: Serve, registry: CollectorRegistry) -> None:
    many = Counted("llmio_many", "Too much for the kernel's buffers.", ["n"], registry=registry)
    for number in range(100):
        many.labels(f"{number:0{1 << 18}}")
    server = serve(seconds=SECONDS)
    with connect(server) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        eventually(lambda: any(connection.asked for connection in server._open))
        eventually(lambda: not server._open)
    assert ask(server, "/")[0] == 200


def test_silent_connections_make_room_for_a_scrape(serve: Serve) -> None:
    server = serve(connections=4)
    silent = [connect(server) for _ in range(40)]
    try:
        for connection in silent:
            connection.sendall(b"GET /")
        assert ask(server)[0] == 200
        assert len(server._open) <= 4
    finally:
        for connection in silent:
            connection.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"x" * (2 * REQUEST_BYTES) + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: " + b"y" * (2 * REQUEST_BYTES) + b"\r\n\r\n", b"431"),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", b"431"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"\xff\xfe\x00\r\n\r\n", b"400"),
        (b"GET http://[/metrics HTTP/1.1\r\n\r\n", b""),
        (b"\r\n", b""),
        (b"", b""),
    ],
    ids=["line", "header", "headers", "version", "tls", "word", "bytes", "address", "empty", "nothing"],
)
def test_a_huge_or_malformed_request_is_refused_and_the_next_one_served(
    serve: Serve, request_: bytes, status: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve()
    with connect(server) as connection:
        try:
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has heard enough
        answer = said(connection)
    if answer:  # it may be lost where there was more to say than was heard
        assert answer.startswith(b"HTTP/1.0 " + status) or b"Error code: " + status in answer  # HTTP/0.9 has no status
    assert ask(server)[0] == 200
    assert capfd.readouterr().err == ""


def test_closing_waits_for_nobody(serve: Serve) -> None:
    server = serve()
    with connect(server) as silent:
        silent.sendall(b"GET ")
        ask(server)
        server.close()
        assert said(silent) == b""


# TLS and passwords


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem and key.pem, for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    openssl = shutil.which("openssl")
    assert openssl, "install the package openssl"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def web_config(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "web.yaml"
        path.write_text(text)
        return str(path)

    return write


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def test_tls_is_spoken_with_the_certificate_of_the_file(
    serve: Serve, certificate: Path, web_config: Callable[[str], str]
) -> None:
    path = web_config(f"tls_server_config:\n  cert_file: {certificate}/cert.pem\n  key_file: {certificate}/key.pem\n")
    server = serve(load_access(path))
    trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=HANG, context=trusting)
    connection.request("GET", "/metrics")
    assert b"llmio_test_total 7.0" in connection.getresponse().read()
    connection.close()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLS"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, OSError)), connect(server) as raw:
        old.wrap_socket(raw)


def test_who_speaks_no_tls_or_is_slow_with_it_hurts_nobody(
    serve: Serve, certificate: Path, web_config: Callable[[str], str]
) -> None:
    path = web_config(f"tls_server_config: {{cert_file: {certificate}/cert.pem, key_file: {certificate}/key.pem}}")
    server = serve(load_access(path), seconds=SECONDS)
    with connect(server) as plain:
        plain.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b"llmio" not in said(plain)
    with connect(server) as silent:  # never says hello
        assert said(silent) == b""
    trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    with connect(server) as raw, trusting.wrap_socket(raw, server_hostname="127.0.0.1") as mute:
        assert said(mute) == b""


def test_a_password_is_asked_for_and_checked(serve: Serve) -> None:
    asked: list[tuple[bytes, bytes]] = []

    def check(password: bytes, hashed: bytes) -> bool:
        asked.append((password, hashed))
        return (password, hashed) == (b"open sesame", b"HASH")

    server = serve(Access(users=Users({"prometheus": b"HASH"}, check)))
    assert ask(server) == (401, b"who are you?\n")
    assert asked == []
    assert ask(server, Authorization=basic("prometheus", "open sesame"))[0] == 200
    assert ask(server, Authorization=basic("prometheus", "open sesame"))[0] == 200
    assert asked == [(b"open sesame", b"HASH")]  # what was right is remembered
    assert ask(server, Authorization=basic("prometheus", "guess"))[0] == 401
    assert ask(server, Authorization=basic("nobody", "open sesame"))[0] == 401
    assert len(asked) == 3  # of a name that there is not, one is tried as well
    for header in ("Basic", "Basic !", "Basic " + base64.b64encode(b"no colon").decode(), "Bearer x", ""):
        assert ask(server, Authorization=header)[0] == 401
    assert len(asked) == 3


def test_a_bcrypt_hash_of_the_file_is_what_counts(serve: Serve, web_config: Callable[[str], str]) -> None:
    import bcrypt

    hashed = bcrypt.hashpw(b"open sesame", bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")  # as htpasswd has it
    server = serve(load_access(web_config(f"basic_auth_users:\n  prometheus: {hashed}\n")))
    assert ask(server, Authorization=basic("prometheus", "open sesame"))[0] == 200
    assert ask(server, Authorization=basic("prometheus", "open"))[0] == 401
    assert ask(server, Authorization=basic("prometheus", "x" * 100))[0] == 401


def test_who_may_scrape_can_be_exchanged_while_it_serves(serve: Serve) -> None:
    server = serve()
    assert ask(server)[0] == 200
    server.access = Access(users=Users({"a": b"H"}, lambda password, hashed: False))
    assert ask(server)[0] == 401


def test_who_was_let_in_is_so_after_a_reload_unless_the_hash_is_another() -> None:
    asked: list[bytes] = []

    def check(password: bytes, hashed: bytes) -> bool:
        asked.append(password)
        return password == hashed

    before = Users({"a": b"one", "b": b"two", "c": b"three"}, check)
    for name, password in (("a", "one"), ("b", "two"), ("c", "three")):
        assert before.allow(basic(name, password), "x")
    asked.clear()
    after = Users({"a": b"one", "b": b"2", "d": b"three"}, check, before)
    assert after.allow(basic("a", "one"), "x")
    assert asked == []
    assert not after.allow(basic("b", "two"), "x")
    assert not after.allow(basic("c", "three"), "x")
    assert asked == [b"two", b"three"]


def test_a_file_that_is_read_again_asks_nobody_again(web_config: Callable[[str], str]) -> None:
    import bcrypt

    hashed = bcrypt.hashpw(b"open sesame", bcrypt.gensalt(4)).decode()
    before = load_access(web_config(f"basic_auth_users: {{prometheus: {hashed}}}"))
    assert before.users is not None
    assert before.users.allow(basic("prometheus", "open sesame"), "x")
    after = load_access(web_config(f"# new\nbasic_auth_users: {{prometheus: {hashed}}}"), before)
    assert after.users is not None
    after.users._check = lambda password, hashed: pytest.fail("it was asked again")
    assert after.users.allow(basic("prometheus", "open sesame"), "x")


@dataclass
class SlowCheck:
    """Of the password "slow", for as long as is wanted."""

    began: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def __call__(self, password: bytes, hashed: bytes) -> bool:
        if password == b"slow":
            self.began.set()
            assert self.go_on.wait(10)
        return password == b"right"


@pytest.fixture
def slow() -> Iterator[tuple[Users, SlowCheck]]:
    """While a guesser's password is being checked, and another of his waits for that."""
    check = SlowCheck()
    users = Users({"prometheus": b"hash", "known": b"hash"}, check)
    assert users.allow(basic("known", "right"), "guesser")
    guesses = [threading.Thread(target=users.allow, args=(basic("x", "slow"), "guesser")) for _ in range(2)]
    for guess in guesses:
        guess.start()
    assert check.began.wait(10)
    eventually(lambda: users._clients["guesser"] == 2)
    yield users, check
    check.go_on.set()
    for guess in guesses:
        guess.join()


def test_while_a_password_is_checked_who_is_known_is_let_in_and_the_guesser_is_sent_away(
    slow: tuple[Users, SlowCheck],
) -> None:
    users, check = slow
    assert users.allow(basic("known", "right"), "guesser")
    with pytest.raises(BusyError):
        users.allow(basic("prometheus", "right"), "guesser")
    check.go_on.set()
    eventually(lambda: not users._clients)
    assert users.allow(basic("prometheus", "right"), "guesser")


def test_who_comes_from_elsewhere_waits_for_its_turn(slow: tuple[Users, SlowCheck]) -> None:
    users, check = slow
    threading.Timer(0.1, check.go_on.set).start()
    assert users.allow(basic("prometheus", "right"), "prometheus")


def test_nobody_waits_for_ever(slow: tuple[Users, SlowCheck], monkeypatch: pytest.MonkeyPatch) -> None:
    users, _ = slow
    monkeypatch.setattr(web_config_module, "PATIENCE_SECONDS", 0.01)
    with pytest.raises(BusyError):
        users.allow(basic("prometheus", "right"), "prometheus")


@pytest.mark.parametrize(("guesser", "at_once"), [("127.0.0.1", 1), ("127.0.0.2", 6)])
def test_a_guesser_who_never_stops_keeps_no_scraper_out(serve: Serve, guesser: str, at_once: int) -> None:
    """At one's own address as long as he asks one thing after the other; from elsewhere however many at once."""

    def check(password: bytes, hashed: bytes) -> bool:
        time.sleep(0.02)
        return password == b"right"

    server = serve(Access(users=Users({"prometheus": b"hash"}, check)), connections=16)
    refused: Counter[int] = Counter()
    enough = threading.Event()

    def guess() -> None:
        while not enough.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", server.port, HANG, source_address=(guesser, 0))
            connection.request("GET", "/metrics", headers={"Authorization": basic("prometheus", "guess")})
            refused[connection.getresponse().status] += 1
            connection.close()

    guesses = [threading.Thread(target=guess) for _ in range(at_once)]
    for thread in guesses:
        thread.start()
    try:
        eventually(lambda: refused[401] >= 5)
        assert ask(server, Authorization=basic("prometheus", "right"))[0] == 200  # the very first time
    finally:
        enough.set()
        for thread in guesses:
            thread.join()
    assert set(refused) <= {401, 503}
