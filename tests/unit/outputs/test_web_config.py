"""Proves llmio_probe.outputs.web_config: what of the exporters' format is taken; each mistake is one sentence."""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmio_probe.errors import ProbeError
from llmio_probe.outputs.web_config import Access, load_access

HASH = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi"

Load = Callable[[str], Access]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "web.yaml"


@pytest.fixture
def load(file: Path) -> Load:
    def read(text: str) -> Access:
        file.write_text(text)
        return load_access(str(file))

    return read


@pytest.mark.parametrize("text", ["", "{}", "# nothing\n"])
def test_an_empty_file_asks_for_nothing(load: Load, text: str) -> None:
    assert load(text) == Access()
    assert load_access(None) == Access()
    assert Access().scheme == "http"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tls_server_config:\n  cert_file: a\n", r":2: tls_server_config needs key_file"),
        ("tls_server_config: {key_file: a}", r":1: tls_server_config needs cert_file"),
        (
            "tls_server_config: {cert_file: a, key_file: b, client_auth_type: RequireAndVerifyClientCert}",
            r":1: tls_server_config needs client_ca_file",
        ),
        (
            "tls_server_config: {cert_file: a, key_file: b, min_version: TLS10}",
            r"must be one of TLS12, TLS13, not TLS10",
        ),
        ("tls_server_config: {cert_file: [a], key_file: b}", r":1: cert_file must be the name of a file, not a list"),
        ("tls_server_config: yes", r":1: expected lines of the form key: value, not yes"),
        ("tls_server_config: {cipher_suites: [a]}", r":1: there is no key cipher_suites; allowed are cert_file, "),
        ("http_server_config: {http2: true}", r":1: there is no key http_server_config; allowed are tls_server_config"),
        ("basic_auth_users: [a]", r":1: basic_auth_users must be lines of the form name: bcrypt hash, not a list"),
        ("basic_auth_users: {}", r":1: basic_auth_users must be lines of the form name: bcrypt hash, not a mapping"),
        ("basic_auth_users:\n  a: secret\n", r":2: each of basic_auth_users must be a bcrypt hash, as htpasswd -nB"),
        (f"basic_auth_users:\n  a: {HASH}x\n", r":2: each of basic_auth_users must be a bcrypt hash"),
        ("a: [", r":2: this is not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_is_allowed(load: Load, text: str, complaint: str) -> None:
    with pytest.raises(ProbeError, match=complaint) as caught:
        load(text)
    assert str(caught.value).isprintable()


VERSIONS = ("$2a", "$2b", "$2y")
COSTS = ("$04$", "$09$", "$10$", "$31$")


@pytest.mark.parametrize("start", [version + cost for version in VERSIONS for cost in COSTS])
def test_a_hash_that_the_library_takes_is_taken(load: Load, start: str) -> None:
    assert load(f"basic_auth_users: {{a: {start}{HASH[7:]}}}").users is not None


def test_every_hash_that_is_taken_can_be_checked(load: Load) -> None:
    """Of each way in which one can be wrong: what the library raises at, a start must not call right."""
    bcrypt = pytest.importorskip("bcrypt")
    salts = [HASH[7:28] + letter + HASH[29:] for letter in "./" + string.ascii_letters + string.digits]
    starts = [f"${version}${cost:02}$" for version in ("2", "2a", "2b", "2x", "2y") for cost in (0, 3, 4, 32, 99)]
    tried = [start + HASH[7:] for start in starts] + ["$2y$04$" + rest for rest in salts]
    taken = set()
    for hashed in tried:
        try:
            load(f"basic_auth_users: {{a: {hashed}}}")
        except ProbeError:
            continue
        taken.add(hashed)
        assert not bcrypt.checkpw(b"x", hashed.encode())
    assert len(taken) == 3 + 3  # $2a, $2b and $2y of cost 4; three more letters that a salt can end with


def test_a_password_in_place_of_a_hash_is_not_repeated(load: Load) -> None:
    with pytest.raises(ProbeError) as caught:
        load("basic_auth_users: {a: hunter2}")
    assert "hunter2" not in str(caught.value)


def test_a_certificate_is_looked_for_beside_the_file(load: Load, file: Path) -> None:
    with pytest.raises(
        ProbeError, match="the certificate and key cannot be read: no such file or directory; the daemon"
    ):
        load("tls_server_config: {cert_file: cert.pem, key_file: key.pem}")
    for name in ("cert.pem", "key.pem"):
        (file.parent / name).write_text("no certificate")
    with pytest.raises(ProbeError, match=f"{re.escape(str(file))}: the certificate and key cannot be used: "):
        load("tls_server_config: {cert_file: cert.pem, key_file: key.pem}")


def test_the_example_is_right_with_all_that_it_proposes(load: Load, file: Path) -> None:
    """But for the certificate, which it does not bring."""
    example = (Path(__file__).parents[3] / "deploy" / "web.yaml").read_text()
    proposed = re.sub(r"^( *)# (?=[ \w]+: ?\S*$)", r"\1", example, flags=re.MULTILINE).replace("$2y$10$…", HASH)
    assert {"  client_ca_file: ca.pem", "basic_auth_users:", f"  prometheus: {HASH}"} <= set(proposed.splitlines())
    for text in (example, proposed):
        with pytest.raises(ProbeError, match=r"the certificate and key cannot be read: no such file or directory; "):
            load(text)


def test_a_missing_file_is_one_sentence(file: Path) -> None:
    with pytest.raises(ProbeError, match=r"^cannot read the web configuration .*: no such file or directory$"):
        load_access(str(file))


def test_without_bcrypt_the_package_is_named(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcrypt", None)
    with pytest.raises(ProbeError, match=r"needs the Python package bcrypt \(on Debian and Ubuntu python3-bcrypt\)$"):
        load(f"basic_auth_users: {{a: {HASH}}}")


def test_bcrypt_is_not_imported_where_nobody_has_a_password(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcrypt", None)
    assert load("").users is None
