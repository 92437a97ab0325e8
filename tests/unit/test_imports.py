"""Starting costs what the running mode needs and no more: each library is imported only where it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("numpy", "psutil", "prometheus_client", "yaml", "http.server", "jsonschema", "llmio_probe.kernel")

EXAMPLE = Path(__file__).parents[2] / "deploy" / "llmio-probe.yaml"
RUN_CLI = "from llmio_probe.cli import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass"


def imported(code: str) -> set[str]:
    """Which of HEAVY an interpreter of its own has imported after this code."""
    script = f"{code}\nimport sys\nprint(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["daemon", "--help"], ["doctor", "--help"], ["demo", "--help"], ["--pid", "0"]]
)
def test_what_only_talks_to_its_user_imports_nothing(words: list[str]) -> None:
    assert imported(RUN_CLI.format(words=words)) == set()


def test_roles_needs_only_its_rules() -> None:
    assert imported(RUN_CLI.format(words=["roles", "/models/a.safetensors"])) == {"yaml"}


def test_roles_with_the_daemons_configuration_needs_no_more() -> None:
    words = ["roles", "--config", str(EXAMPLE), "/models/a.safetensors"]
    assert imported(RUN_CLI.format(words=words)) == {"yaml"}


@pytest.mark.parametrize("module", ["session", "demo"])
def test_a_session_serves_nothing(module: str) -> None:
    assert imported(f"import llmio_probe.{module}") == {"numpy", "psutil", "yaml", "llmio_probe.kernel"}


def test_doctor_looks_at_no_process_and_reads_no_rule() -> None:
    assert imported("import llmio_probe.doctor") == {"numpy", "llmio_probe.kernel"}


def test_the_daemon_checks_no_schema() -> None:
    assert imported("import llmio_probe.daemon") == set(HEAVY) - {"jsonschema"}
