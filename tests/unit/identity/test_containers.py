"""container_of() over what each runtime writes, in each cgroup version."""

from __future__ import annotations

import pytest

from llmio_probe.identity.containers import container_of, shows_v1_roots

A = "a1" * 32
B = "b2" * 32
UID = "0f5c2b1e-1b2c-4d3e-8f90-a1b2c3d4e5f6"
UID_ = UID.replace("-", "_")
HASH = "c3" * 16
ID_A, ID_B = A[:12], B[:12]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", (None, None), id="unreadable"),
        pytest.param("rubbish", (None, None), id="rubbish"),
        pytest.param("0::/user.slice/user-0.slice/session-1.scope", (None, None), id="no container"),
        pytest.param(f"0::/docker/{A}", (ID_A, None), id="docker v2 cgroupfs"),
        pytest.param(f"0::/system.slice/docker-{A}.scope", (ID_A, None), id="docker v2 systemd"),
        pytest.param(f"12:pids:/docker/{A}\n1:name=systemd:/docker/{A}\n", (ID_A, None), id="docker v1"),
        pytest.param(f"2:cpu,cpuacct:/\n1:name=systemd:/docker/{A}\n0::/\n", (ID_A, None), id="hybrid, roots left"),
        pytest.param(f"0::/docker/{A}/init.scope", (ID_A, None), id="a cgroup inside the container"),
        pytest.param(f"0::/system.slice/cri-containerd-{A}.scope", (ID_A, None), id="containerd"),
        pytest.param(f"0::/machine.slice/libpod-{A}.scope/container", (ID_A, None), id="podman systemd"),
        pytest.param(f"0::/libpod_parent/libpod-{A}", (ID_A, None), id="podman cgroupfs"),
        pytest.param(f"0::/machine.slice/libpod-conmon-{A}.scope", (None, None), id="podman's monitor is outside"),
        pytest.param(f"0::/kubepods/burstable/pod{UID}/{A}", (ID_A, UID), id="kubernetes cgroupfs burstable"),
        pytest.param(f"0::/kubepods/pod{UID}/{A}", (ID_A, UID), id="kubernetes cgroupfs guaranteed"),
        pytest.param(f"0::/kubepods/besteffort/pod{HASH}/{A}", (ID_A, HASH), id="a static pod"),
        pytest.param(
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/cri-containerd-{A}.scope",
            (ID_A, UID),
            id="kubernetes systemd containerd",
        ),
        pytest.param(
            f"0::/kubepods.slice/kubepods-pod{UID_}.slice/crio-{A}.scope", (ID_A, UID), id="kubernetes systemd cri-o"
        ),
        pytest.param(
            f"1:name=systemd:/system.slice/containerd.service/kubepods-besteffort-pod{UID_}.slice:cri-containerd:{A}",
            (ID_A, UID),
            id="containerd without systemd support",
        ),
        pytest.param(f"0::/kubepods/burstable/pod{UID}", (None, UID), id="a pod's own cgroup"),
        pytest.param(
            f"0::/system.slice/docker-{A}.scope/kubelet.slice/kubelet-kubepods.slice/"
            f"kubepods-burstable-pod{UID_}.slice/cri-containerd-{B}.scope",
            (ID_B, UID),
            id="kind: the innermost",
        ),
        pytest.param(f"0::/docker/{A}/kubelet/kubepods/pod{UID}/{B}", (ID_B, UID), id="kind, cgroupfs"),
        pytest.param(f"0::/docker/{A}/docker/{B}", (ID_B, None), id="docker in docker"),
        pytest.param(f"2:cpu:/docker/{A}\n1:pids:/docker/{A}/docker/{B}", (ID_B, None), id="the outer one elsewhere"),
        pytest.param(f"2:cpu:/docker/{A}\n1:pids:/docker/{B}", (None, None), id="contradictory lines"),
        pytest.param(f"0::/builds/{A}", (None, None), id="64 digits that no runtime wrote"),
        pytest.param(f"0::/docker/{A[:-1]}", (None, None), id="63 digits"),
        pytest.param(f"0::/docker/{A.upper()}", (None, None), id="capital digits"),
    ],
)
def test_container_and_pod_are_read_from(text: str, expected: tuple[str | None, str | None]) -> None:
    assert container_of(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("0::/", False),
        (f"4:memory:/\n1:name=systemd:/\n0::/docker/{A}\n", True),
        (f"4:memory:/\n1:name=systemd:/docker/{A}\n0::/\n", False),
        ("4:memory:/\n", True),
    ],
    ids=["unreadable", "v2 has no roots to fall back to", "v1 and v2", "not all of v1", "v1"],
)
def test_who_is_in_the_root_of_all_v1_hierarchies_may_be_about_to_exit(text: str, expected: bool) -> None:
    assert shows_v1_roots(text) is expected
