"""Under which name a file is seen, on the host and by a process that sees other mounts than the host does.

The kernel gives a file's path from its filesystem's root; mountinfo says which mount shows that part of the filesystem
and where. Its root field is made by the same walk over directory entries as the kernel side's path, so the two fit on
every filesystem: on btrfs both begin with the subvolume's name, whatever subvolume is mounted (tried on 6.18). Only
mountinfo, the links that name a process's namespace, and overlayfs layers may go in here.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

LOOK_AGAIN_SECONDS = 1.0
"""How old what was read may get. Mounts come and go, and mountinfo of a host with many containers is long."""
LOOK_AGAIN_ELSEWHERE_SECONDS = 0.1
"""The same of another namespace: it is short, and a container gets all its mounts within its first moments."""

_MINOR_BITS = 20
_ON_BLOCK_DEVICES = frozenset({"btrfs", "zfs", "bcachefs", "overlay"})
"""Filesystems with a made-up device number (major 0) whose data is on block devices nonetheless."""


@dataclass(frozen=True)
class Mount:
    id: int
    parent: int
    device: int
    """major << 20 | minor, of the filesystem: on btrfs not what stat says of its files."""
    root: str
    """The part of the filesystem that is shown: "/" is all of it."""
    point: str
    """Where, as seen from the root of the process whose mountinfo was read."""
    kind: str
    source: str
    options: str
    """The filesystem's own, still with the escapes of mountinfo: a comma that is there separates two of them."""

    @property
    def on_block_devices(self) -> bool:
        """Whether what is read and written there goes to block devices of this host."""
        return bool(self.device >> _MINOR_BITS) or self.kind in _ON_BLOCK_DEVICES or self.source.startswith("/dev/")

    def name_of(self, path: str) -> str | None:
        """What a path of the filesystem is called below this mount, if no other mount hides it."""
        rest = below(path, self.root)
        return None if rest is None else join(self.point, rest)

    def path_of(self, name: str) -> str | None:
        """The path in the filesystem of a name below this mount."""
        rest = below(name, self.point)
        return None if rest is None else join(self.root, rest)


class MountTable:
    """One reading of a mountinfo file."""

    def __init__(self, mounts: Sequence[Mount] = ()) -> None:
        self.mounts = mounts
        listed = {mount.id for mount in mounts}
        self._on: dict[tuple[int | None, str], Mount] = {}
        self._by_device: dict[int, list[Mount]] = {}
        for mount in mounts:
            # The topmost one's parent is not shown, nor is one that the process cannot reach; rootfs is its own.
            parent = mount.parent if mount.parent in listed and mount.parent != mount.id else None
            self._on[parent, mount.point] = mount
            self._by_device.setdefault(mount.device, []).append(mount)

    @classmethod
    def parse(cls, text: str) -> MountTable:
        # Not splitlines(): names may hold the other characters that it takes for the end of a line.
        return cls([mount for line in text.split("\n") if (mount := _parse_line(line)) is not None])

    def at(self, name: str) -> Mount | None:
        """The mount that a name leads to: walked like the kernel does, so that later mounts hide earlier ones."""
        here: Mount | None = None
        for prefix in _prefixes(name):
            while (mount := self._on.get((None if here is None else here.id, prefix))) is not None:
                here = mount
        return here

    def of_device(self, device: int) -> list[Mount]:
        """Those of one filesystem that are not hidden at their root, those that show most of it first."""
        mounts = [mount for mount in self._by_device.get(device, ()) if self.at(mount.point) is mount]
        return sorted(mounts, key=lambda mount: len(mount.root))

    def name_of(self, device: int, path: str, under: str = "/") -> str | None:
        """What a path of a filesystem is called here, at or below ``under``; None when no mount shows it.

        Of several names the shortest: on hosts it is the one that people use. The root alone decides badly: with the
        subvolume @ at / and all of a btrfs at /mnt/all, /etc/hosts is better known than /mnt/all/@/etc/hosts.
        """
        names = [(name, mount) for mount in self._by_device.get(device, ()) if (name := mount.name_of(path))]
        for name, mount in sorted(names, key=lambda pair: len(pair[0])):
            if below(name, under) is not None and self.at(name) is mount:
                return name
        return None


class _Namespace:
    """The mounts of one mount namespace below one root, as last read."""

    def __init__(self) -> None:
        self.table = MountTable()
        self.version = 0
        self._text: bytes | None = None
        self._read_at: float | None = None

    def look(self, mountinfo: str, now: float, age: float = LOOK_AGAIN_SECONDS) -> bool:
        """False when what is known is not older than ``age``, and so may be missing what has just changed."""
        if self._read_at is not None and now < self._read_at + age:
            return False
        try:
            with open(mountinfo, "rb", buffering=0) as file:
                text = file.readall()
        except OSError:
            return True  # its process is gone: what was there stays true of it
        self._read_at = now
        if text != self._text:
            self._text = text
            self.table = MountTable.parse(decode(text))
            self.version += 1
        return True


class View:
    """How the processes with one mount namespace and one root see files. It outlives them."""

    def __init__(self, host: _Namespace, own: _Namespace, root: str) -> None:
        """root: theirs, as those name it to whom the mounts of ``own`` were shown."""
        self.own = own
        self.is_current = True
        """Whether its mounts were read when it was asked for last; if not, they are to be asked for again."""
        self._host = host
        self._root = root
        self._layers: tuple[MountTable, _Layers] | None = None

    def name_of(self, device: int, path: str, host_name: str | None) -> str | None:
        """What these processes call a path of a filesystem, which the host knows as host_name; None when unknown.

        A file in an overlay's upper directory has the overlay's name: nothing else may touch it there. So has one in a
        lower directory where the overlay is all that these processes see: it is their container's image. Elsewhere it
        may well be used by itself, and an overlay's name is taken only when there is no other.
        """
        table = self.own.table
        upper, lower = self._in_overlays("upper", host_name), self._in_overlays("lower", host_name)
        top = table.at(self._root)
        name = (
            _only(upper)
            or (lower.get(top.device) if top is not None else None)
            or table.name_of(device, path, self._root)
            or _only(lower)
        )
        rest = below(name, self._root) if name is not None else None
        return None if rest is None else join("/", rest)

    def _in_overlays(self, which: str, host_name: str | None) -> dict[int, str]:
        """The names of a file in each overlay that has it in such a directory."""
        if host_name is None:
            return {}
        table = self.own.table
        if self._layers is None or self._layers[0] is not table:
            # On the host a lower directory says nothing, as each file has a name without it.
            self._layers = table, _Layers(table, self._host.table, lower=self.own is not self._host)
        return {
            device: name
            for device, path in self._layers[1].places(which, host_name)
            if (name := table.name_of(device, path, self._root)) is not None
        }


class Mounts:
    """The running host's mounts, those of our own namespace, and how other processes see them.

    host: the process whose mounts are the host's, if those are not ours (host_process).
    """

    def __init__(
        self, proc_root: str = "/proc", clock: Callable[[], float] = time.monotonic, *, host: str = "self"
    ) -> None:
        self._proc = proc_root
        self._host_process = host
        self._clock = clock
        self._host = _Namespace()
        self._our_link: str | None = None
        # By namespace and root. Who wants to know of a process keeps its view, so this needs no bound of its own.
        self._views: WeakValueDictionary[tuple[str, str], View] = WeakValueDictionary()

    @property
    def version(self) -> int:
        """Another number whenever the host's mounts have changed."""
        self._look()
        return self._host.version

    def table(self) -> MountTable:
        self._look()
        return self._host.table

    def host_path(self, device: int, path: str) -> str | None:
        """The host's name for a path in the filesystem that mountinfo calls ``device``; None when out of its reach."""
        return self.table().name_of(device, path)

    def view(self, tgid: int) -> View | None:
        """How a process sees files now; None when it is gone or not ours to look at.

        All processes of a container share one view and one reading of mountinfo. In a namespace that is not ours, a
        process in a subdirectory (chroot) is not shown the mount that this lies in: for files there it has no name.
        """
        try:
            namespace, root = _link(f"{self._proc}/{tgid}/ns/mnt"), _link(f"{self._proc}/{tgid}/root")
            self._our_link = self._our_link or _link(f"{self._proc}/{self._host_process}/ns/mnt")
        except OSError:
            return None
        ours = namespace == self._our_link
        view = self._views.get((namespace, root))
        if view is None:
            view = View(self._host, self._host, root) if ours else View(self._host, _Namespace(), "/")
            self._views[namespace, root] = view
        self._look()
        if not ours:
            mountinfo = f"{self._proc}/{tgid}/mountinfo"
            view.is_current = view.own.look(mountinfo, self._clock(), LOOK_AGAIN_ELSEWHERE_SECONDS)
        return view

    def _look(self) -> None:
        self._host.look(f"{self._proc}/{self._host_process}/mountinfo", self._clock())


def host_process(proc_root: str = "/proc") -> str:
    """Whose mounts are the host's, for a service, which systemd's sandbox shows others: PID 1's, where we may ask."""
    try:
        os.readlink(f"{proc_root}/1/ns/mnt")
        os.stat(f"{proc_root}/1/mountinfo")
    except OSError:
        return "self"
    return "1"


# Overlayfs


def _only(names: Mapping[int, str]) -> str | None:
    """Of two overlays that share a layer nobody can tell which."""
    return next(iter(names.values())) if len(names) == 1 else None


class _Layers:
    """The directories that the overlays of a mount table are made of, by their names on the host."""

    def __init__(self, table: MountTable, host: MountTable, *, lower: bool) -> None:
        self._folders: dict[str, dict[str, set[int]]] = {"upper": {}, "lower": {}}
        overlays = {mount.device: mount for mount in table.mounts if mount.kind == "overlay"}
        for device, mount in overlays.items():
            layers = overlay_layers(mount.options)
            points = [other.point for other in host.of_device(device)]
            for which in ("upper", "lower") if lower else ("upper",):
                for folder in _resolved(layers[which], [*layers["upper"], *layers["work"], *points]):
                    self._folders[which].setdefault(folder, set()).add(device)

    def places(self, which: str, host_name: str) -> Iterator[tuple[int, str]]:
        """Each overlay that shows the file, and the file's path in it."""
        folders = self._folders[which]
        if folders:
            for prefix in _prefixes(host_name):
                for device in folders.get(prefix, ()):
                    yield device, join("/", below(host_name, prefix) or "")


def overlay_layers(options: str) -> Mapping[str, list[str]]:
    r"""The "upper", "lower" and "work" directories from an overlay's options in mountinfo.

    In lowerdir= a colon separates two, in it and in the others a backslash makes the next character a plain one;
    lowerdir+= and datadir+= (6.5 and later) give one each, as it is. Two colons in a row begin those with data only.
    """
    layers: dict[str, list[str]] = {"upper": [], "lower": [], "work": []}
    for option in options.split(","):
        name, _, value = option.partition("=")
        value = _unescape(value)
        if name in ("lowerdir+", "datadir+"):
            layers["lower"].append(value)
        elif name == "lowerdir":
            layers["lower"] += [_plain(part) for part in re.findall(r"(?:\\.|[^:\\])+", value, re.DOTALL)]
        elif name in ("upperdir", "workdir"):
            layers[name.removesuffix("dir")].append(_plain(value))
    return layers


def _resolved(folders: Sequence[str], near: Sequence[str]) -> list[str]:
    """Without symbolic links; Docker's lower ones are short links, to fit more of them into a page.

    When even those do not fit, runtimes go to a directory above all of them and give names relative to that one. It is
    above what is known to be ``near``, and is believed when it has them all.
    """
    relative = [folder for folder in folders if not folder.startswith("/")]
    base = "/"
    if relative:
        absolute = [folder for folder in [*folders, *near] if folder.startswith("/")]
        bases = {prefix for folder in absolute for prefix in _prefixes(folder)}
        fitting = (b for b in sorted(bases, key=len, reverse=True) if _has_all(b, relative))
        base = next(fitting, "")
    known = [join(base, f"/{folder}") if base else None for folder in relative]
    known += [folder for folder in folders if folder.startswith("/")]
    return [decode(os.path.realpath(encode(folder))) for folder in known if folder is not None]


def _has_all(base: str, relative: Iterable[str]) -> bool:
    return all(os.path.isdir(encode(join(base, f"/{folder}"))) for folder in relative)


# Names


def decode(name: bytes) -> str:
    """Names are bytes, mostly UTF-8, whatever the locale says."""
    return name.decode("utf-8", "surrogateescape")


def encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def below(name: str, folder: str) -> str | None:
    """What is left of a name below a folder: empty, or with a slash in front. None when it is not below."""
    if folder == "/":
        return "" if name == "/" else name
    if name == folder:
        return ""
    return name[len(folder) :] if name.startswith(folder) and name[len(folder)] == "/" else None


def join(folder: str, rest: str) -> str:
    return (rest or "/") if folder == "/" else folder + rest


def _prefixes(name: str) -> Iterator[str]:
    """ "/", "/a", "/a/b" for /a/b."""
    yield "/"
    end = name.find("/", 1)
    while end > 0:
        yield name[:end]
        end = name.find("/", end + 1)
    if name != "/":
        yield name


def _parse_line(line: str) -> Mount | None:
    """proc(5): the optional fields in the middle end with a lone hyphen."""
    fields = line.split(" ")
    try:
        end = fields.index("-", 6)
        major, _, minor = fields[2].partition(":")
        device = int(major) << _MINOR_BITS | int(minor)
        kind, source, options = fields[end + 1 : end + 4]
        root, point = _unescape(fields[3]), _unescape(fields[4])
        return Mount(int(fields[0]), int(fields[1]), device, root, point, kind, _unescape(source), options)
    except ValueError:
        return None


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text) if "\\" in text else text


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _link(path: str) -> str:
    return decode(os.readlink(encode(path)))
