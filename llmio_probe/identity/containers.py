"""Which container and pod a process runs in, read from the text of its /proc/PID/cgroup.

Only parsing may go in here. Every runtime writes the container's 64-digit id into the path, and the kubelet the pod's
UID; what does not look exactly like that is None, since a wrong container is worse than none.
"""

from __future__ import annotations

import re

_SCOPE = re.compile(r"(?:docker|cri-containerd|crio|libpod)-([0-9a-f]{64})(?:\.scope)?$")
"""One path component: systemd's name for a container, and podman's in either style."""

_BARE = re.compile(r"([0-9a-f]{64})$")
"""The same without a prefix: only trusted right below a pod or one of these."""
_PARENTS = frozenset({"docker", "cri-containerd", "crio"})

_POD = re.compile(
    r"(?:kubepods-(?:burstable-|besteffort-)?)?pod"
    r"([0-9a-f]{8}([-_])[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$"
)
"""A UUID, with '_' for '-' in systemd's style, or the 32 digits that a static pod has instead."""

Container = tuple[str | None, str | None]


def container_of(cgroup_text: str) -> Container:
    """The container's 12-digit id and the pod's UID."""
    # Lines are hierarchy:controllers:path. With v1 and hybrid a runtime may have moved the process in some hierarchies
    # only, and an outer runtime in the others: the deepest path knows best; if equally deep ones differ, nobody does.
    paths = [line.split(":", 2)[2] for line in cgroup_text.splitlines() if line.count(":") >= 2]
    found = [(path.count("/"), _container_of_path(path)) for path in paths]
    known = [(depth, container) for depth, container in found if container != (None, None)]
    deepest = {container for depth, container in known if depth == max(depth for depth, _ in known)} if known else set()
    return deepest.pop() if len(deepest) == 1 else (None, None)


def shows_v1_roots(cgroup_text: str) -> bool:
    """It has lines of cgroup v1, and each names the root, as of any process that exits: only v2 keeps its place."""
    v1 = [line for line in cgroup_text.splitlines() if not line.startswith("0::")]
    return bool(v1) and all(line.endswith(":/") for line in v1)


def _container_of_path(path: str) -> Container:
    """The innermost one: with kind a pod's container lies inside a docker container."""
    container: str | None = None
    pod: str | None = None
    parent = ""
    # ':' too, since containerd without systemd support writes "….slice:cri-containerd:<id>".
    for component in re.split("[/:]", path):
        if match := _POD.match(component):
            container, pod = None, match[1].replace("_", "-")
        elif match := _SCOPE.match(component) or _BARE.match(component):
            below = parent in _PARENTS or _POD.match(parent)
            container = match[1][:12] if match.re is _SCOPE or below else container
        parent = component
    return container, pod
