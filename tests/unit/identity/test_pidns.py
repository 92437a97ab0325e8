"""require_host_pids() over made-up links."""

from __future__ import annotations

import pytest

from llmio_probe.errors import ProbeError
from llmio_probe.identity.pidns import require_host_pids
from tests.unit.identity.conftest import WriteTree


def test_the_host_namespace_is_accepted(write_tree: WriteTree) -> None:
    require_host_pids(str(write_tree({"self/ns/pid": "-> pid:[4026531836]"})))


def test_a_containers_namespace_is_refused_with_what_helps(write_tree: WriteTree) -> None:
    root = write_tree({"self/ns/pid": "-> pid:[4026532500]"})
    with pytest.raises(ProbeError, match=r"4026532500.*--pid=host.*hostPID: true"):
        require_host_pids(str(root))


def test_a_link_that_cannot_be_read_is_named(write_tree: WriteTree) -> None:
    with pytest.raises(ProbeError, match=r"/self/ns/pid: No such file"):
        require_host_pids(str(write_tree({})))
