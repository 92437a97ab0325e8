"""Names of files over made-up mountinfo: on the host, in containers, behind overlays."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmio_probe.identity.mounts import Mounts, MountTable, host_process, overlay_layers
from tests.unit.identity.conftest import OURS, THEIRS, TOP, Proc, WriteTree

ROOT, DATA, BTRFS, OVERLAY = 254 << 20, 259 << 20 | 2, 40, 42


def table(*lines: str) -> MountTable:
    return MountTable.parse("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("line", "point"),
    [
        ("30 27 259:2 / /data rw - ext4 /dev/x rw", "/data"),
        ("30 27 259:2 / /data rw shared:1 - ext4 /dev/x rw", "/data"),
        ("30 27 259:2 / /data rw shared:1 master:2 propagate_from:3 unbindable - ext4 /dev/x rw", "/data"),
        (r"30 27 259:2 / /a\040b\011c\012d\134e rw - ext4 /dev/x rw", "/a b\tc\nd\\e"),
        (r"30 27 259:2 / /a\134040b rw - ext4 /dev/x rw", r"/a\040b"),
        ("30 27 259:2 / /a\x0b\x85\u2028b rw - ext4 /dev/x rw", "/a\x0b\x85\u2028b"),
        ("30 27 259:2 / /- rw - ext4 /dev/x rw", "/-"),
        ("30 27 259:2 / /data rw - ext4  rw", "/data"),
    ],
    ids=["plain", "shared", "every tag", "escapes", "an escaped backslash", "other line ends", "hyphen", "no source"],
)
def test_a_mount_is_read_from(line: str, point: str) -> None:
    assert table(TOP, line).name_of(DATA, "/f") == f"{point}/f"


def test_lines_that_make_no_sense_are_left_out() -> None:
    mounts = table("", "rubbish", "1 2 3 4 5 6 7 8 9", "30 27 x:y / /data rw - ext4 /dev/x rw", "1 1 1:1 / / rw -", TOP)
    assert [mount.id for mount in mounts.mounts] == [27]


def test_a_file_has_its_filesystems_mount_point_in_front() -> None:
    mounts = table(TOP, "30 27 259:2 / /data rw - ext4 /dev/x rw")
    assert mounts.name_of(ROOT, "/etc/hosts") == "/etc/hosts"
    assert mounts.name_of(DATA, "/t_12") == "/data/t_12"
    assert mounts.name_of(8 << 20, "/t_12") is None


def test_a_part_of_a_filesystem_shows_that_part_only() -> None:
    mounts = table(TOP, "30 27 259:2 /a/b /data rw - ext4 /dev/x rw", "31 27 259:2 /c /etc/c rw - ext4 /dev/x rw")
    assert mounts.name_of(DATA, "/a/b/f") == "/data/f"
    assert mounts.name_of(DATA, "/c") == "/etc/c", "a single file"
    assert mounts.name_of(DATA, "/a/bc/f") is None
    assert mounts.name_of(DATA, "/a") is None


def test_of_several_names_the_shortest_that_leads_there() -> None:
    mounts = table(
        "27 1 0:40 /@ / rw - btrfs /dev/x rw,subvolid=256,subvol=/@",
        "30 27 0:40 / /mnt/all rw - btrfs /dev/x rw,subvolid=5,subvol=/",
        "31 27 0:40 /@home /home rw - btrfs /dev/x rw,subvolid=257,subvol=/@home",
    )
    assert mounts.name_of(BTRFS, "/@/etc/hosts") == "/etc/hosts"
    assert mounts.name_of(BTRFS, "/@home/u/f") == "/home/u/f"
    assert mounts.name_of(BTRFS, "/@snapshot/f") == "/mnt/all/@snapshot/f"
    assert mounts.name_of(BTRFS, "/@/home/f") == "/mnt/all/@/home/f", "/home/f leads to another subvolume"


def test_a_later_mount_hides_the_earlier_one_on_the_same_point() -> None:
    mounts = table(TOP, "30 27 259:2 / /data rw - ext4 /dev/x rw", "31 30 0:25 / /data rw - tmpfs tmpfs rw")
    assert mounts.name_of(DATA, "/f") is None
    assert mounts.name_of(25, "/f") == "/data/f"


def test_a_mount_above_hides_all_that_lies_below() -> None:
    lines = [TOP, "30 27 259:2 / /mnt/data rw - ext4 /dev/x rw", "31 27 0:25 / /mnt rw - tmpfs tmpfs rw"]
    assert table(*lines).name_of(DATA, "/f") is None
    assert table(*lines).name_of(ROOT, "/mnt/f") is None
    assert table(*lines, "32 27 259:2 /d /other rw - ext4 /dev/x rw").name_of(DATA, "/d/f") == "/other/f"
    assert [mount.point for mount in table(*lines).of_device(DATA)] == []


def test_the_order_of_the_lines_does_not_matter_but_the_parents_do() -> None:
    mounts = table("31 30 0:25 / /data rw - tmpfs tmpfs rw", "30 27 259:2 / /data rw - ext4 /dev/x rw", TOP)
    assert mounts.name_of(25, "/f") == "/data/f"


def test_a_root_that_is_its_own_parent_is_the_top() -> None:
    assert table("1 1 0:2 / / rw - rootfs rootfs rw").name_of(2, "/f") == "/f"


# The running host


def test_mounts_that_come_and_go_are_noticed_within_a_second(proc: Proc) -> None:
    mounts = proc.mounts()
    assert mounts.host_path(DATA, "/f") is None
    before = mounts.version
    proc.host(TOP, "30 27 259:2 / /data rw - ext4 /dev/x rw")
    proc.now += 0.9
    assert mounts.host_path(DATA, "/f") is None
    proc.now += 0.1
    assert mounts.host_path(DATA, "/f") == "/data/f"
    assert mounts.version != before
    proc.host(TOP)
    proc.now += 1
    assert mounts.host_path(DATA, "/f") is None


def test_mounts_that_stayed_are_not_parsed_again(proc: Proc) -> None:
    mounts = proc.mounts()
    first = mounts.table()
    proc.now += 10
    assert mounts.table() is first


def test_without_mountinfo_nothing_is_known(tmp_path: Path) -> None:
    mounts = Mounts(str(tmp_path))
    assert mounts.host_path(ROOT, "/f") is None
    assert mounts.view(7) is None


def test_a_process_like_any_other_sees_what_the_host_sees(proc: Proc) -> None:
    proc.process(7, OURS)
    view = proc.mounts().view(7)
    assert view is not None
    assert view.name_of(ROOT, "/f", "/f") == "/f"


def test_a_container_sees_a_part_of_the_host_under_its_own_name(proc: Proc) -> None:
    proc.process(7, THEIRS, "44 75 0:42 / / rw - overlay o rw", "46 44 254:0 /srv/models /data rw - ext4 /dev/vda rw")
    view = proc.mounts().view(7)
    assert view is not None
    assert view.name_of(ROOT, "/srv/models/w", "/srv/models/w") == "/data/w"
    assert view.name_of(ROOT, "/etc/shadow", "/etc/shadow") is None


def test_a_mount_that_only_the_container_has_is_seen_by_it(proc: Proc) -> None:
    proc.process(7, THEIRS, "44 75 0:42 / / rw - overlay o rw", "46 44 259:2 / /data rw - ext4 /dev/x rw")
    mounts = proc.mounts()
    view = mounts.view(7)
    assert view is not None
    assert mounts.host_path(DATA, "/w") is None
    assert view.name_of(DATA, "/w", None) == "/data/w"


def test_a_process_with_another_root_names_files_from_there(proc: Proc) -> None:
    proc.host(TOP, "30 27 254:0 /models /srv/jail/m rw - ext4 /dev/vda rw")
    proc.process(7, OURS, root="/srv/jail")
    view = proc.mounts().view(7)
    assert view is not None
    assert view.name_of(ROOT, "/srv/jail/f", "/srv/jail/f") == "/f"
    assert view.name_of(ROOT, "/models/f", "/models/f") == "/m/f", "its own name, though the host has a shorter one"
    assert view.name_of(ROOT, "/etc/f", "/etc/f") is None
    assert view.name_of(ROOT, "/srv/jailbreak", "/srv/jailbreak") is None


def test_a_process_that_is_gone_sees_nothing(proc: Proc) -> None:
    assert proc.mounts().view(7) is None


def test_processes_of_a_container_share_one_reading(proc: Proc) -> None:
    proc.process(7, THEIRS, "44 75 259:2 / / rw - ext4 /dev/x rw")
    proc.process(8, THEIRS, "never read")
    mounts = proc.mounts()
    view = mounts.view(7)
    assert view is not None
    assert mounts.view(8) is view
    assert view.name_of(DATA, "/f", None) == "/f"


def test_a_view_outlives_its_processes(proc: Proc) -> None:
    proc.process(7, THEIRS, "44 75 259:2 / / rw - ext4 /dev/x rw")
    view = proc.mounts().view(7)
    proc.end(7)
    proc.now += 10
    assert view is not None
    assert view.name_of(DATA, "/f", None) == "/f"


def test_a_containers_new_mount_is_seen_with_its_next_process(proc: Proc) -> None:
    proc.process(7, THEIRS, "44 75 0:42 / / rw - overlay o rw")
    mounts = proc.mounts()
    view = mounts.view(7)
    proc.process(8, THEIRS, "44 75 0:42 / / rw - overlay o rw", "46 44 259:2 / /data rw - ext4 /dev/x rw")
    proc.now += 1
    assert mounts.view(8) is view
    assert view is not None
    assert view.name_of(DATA, "/f", None) == "/data/f"


# Overlayfs


@pytest.mark.parametrize(
    ("options", "upper", "lower"),
    [
        ("rw,lowerdir=/l/A:/l/B,upperdir=/u,workdir=/w,uuid=on", ["/u"], ["/l/A", "/l/B"]),
        ("ro,lowerdir=/a", [], ["/a"]),
        (r"rw,lowerdir=/o/lo\134:2:/o/lo\134\0543:/o/lo\134\1344,upperdir=/o/u\134\054p\134:p", ["/o/u,p:p"],
         ["/o/lo:2", "/o/lo,3", r"/o/lo\4"]),
        (r"ro,lowerdir+=/o/lo:2,lowerdir+=/o/lo\0543,datadir+=/o/sp\040ace,redirect_dir=on", [],
         ["/o/lo:2", "/o/lo,3", "/o/sp ace"]),
        ("ro,lowerdir=/a:/b::/data1::/data2", [], ["/a", "/b", "/data1", "/data2"]),
        ("rw", [], []),
    ],
    ids=["usual", "read-only", "escapes", "6.5", "data only", "none"],
)  # fmt: skip
def test_layers_are_read_from(options: str, upper: list[str], lower: list[str]) -> None:
    layers = overlay_layers(options)
    assert (layers["upper"], layers["lower"]) == (upper, lower)


def overlay(point: str, options: str, id: int = 44, parent: int = 27, device: int = OVERLAY) -> str:
    return f"{id} {parent} 0:{device} / {point} rw - overlay overlay rw,{options}"


USUAL = "lowerdir={o}/l/AAA:{o}/l/BBB,upperdir={o}/ID/diff,workdir={o}/ID/work"
DOCKER = "lowerdir=l/AAA:l/BBB,upperdir=ID/diff,workdir=ID/work"
CONTAINERD = "lowerdir=A/diff:B/diff,upperdir={o}/ID/diff,workdir={o}/ID/work"


@pytest.fixture
def layers(write_tree: WriteTree, tmp_path: Path) -> str:
    """Docker's overlay2 folder."""
    files = {f"overlay2/{folder}/x": "" for folder in ("A/diff", "B/diff", "ID/diff", "ID/work", "ID/merged")}
    write_tree({**files, "overlay2/l/AAA": "-> ../A/diff", "overlay2/l/BBB": "-> ../B/diff"})
    return str(tmp_path.resolve() / "overlay2")


@pytest.mark.parametrize("options", [USUAL, DOCKER, CONTAINERD], ids=["absolute", "all relative", "lower relative"])
def test_a_container_sees_its_image_and_what_it_changed(proc: Proc, layers: str, options: str) -> None:
    options = options.format(o=layers)
    proc.host(TOP, overlay(f"{layers}/ID/merged", options))
    proc.process(7, THEIRS, overlay("/", options, 60, 59))
    view = proc.mounts().view(7)
    assert view is not None
    for name in ("A/diff/model/w", "B/diff/model/w", "ID/diff/model/w"):
        path = f"{layers}/{name}"
        assert view.name_of(ROOT, path, path) == "/model/w"
    for path in (f"{layers}/C/diff/w", f"{layers}/A/different", "/w"):
        assert view.name_of(ROOT, path, path) is None


def test_layers_whose_folder_cannot_be_found_are_nobodys(proc: Proc, layers: str) -> None:
    proc.process(7, THEIRS, overlay("/", "lowerdir=l/AAA:l/GONE,upperdir=ID/diff", 60, 59))
    view = proc.mounts().view(7)
    assert view is not None
    path = f"{layers}/ID/diff/w"
    assert view.name_of(ROOT, path, path) is None


def test_a_mount_in_a_container_hides_what_its_image_has_there(proc: Proc, layers: str) -> None:
    options = USUAL.format(o=layers)
    proc.process(7, THEIRS, overlay("/", options, 60, 59), "61 60 259:2 / /data rw - ext4 /dev/x rw")
    view = proc.mounts().view(7)
    assert view is not None
    path = f"{layers}/A/diff/data/w"
    assert view.name_of(ROOT, path, path) is None


def test_a_file_of_the_image_has_the_images_name_where_all_of_the_host_is_shown_too(proc: Proc, layers: str) -> None:
    options = USUAL.format(o=layers)
    proc.process(
        7, THEIRS, overlay("/", options, 60, 59), "61 60 254:0 / /host rw - ext4 /dev/vda rw",
        overlay("/host/other", options.replace("/ID/", "/ID2/"), 62, 61, 43),
    )  # fmt: skip
    view = proc.mounts().view(7)
    assert view is not None
    assert view.name_of(ROOT, f"{layers}/A/diff/w", f"{layers}/A/diff/w") == "/w"
    assert view.name_of(ROOT, "/etc/hosts", "/etc/hosts") == "/host/etc/hosts"


def test_a_layer_that_two_overlays_share_tells_neither(proc: Proc, layers: str) -> None:
    options = USUAL.format(o=layers)
    lines = [overlay("/a", options, 61, 60, 43), overlay("/b", options.replace("/ID/", "/ID2/"), 62, 60, 44)]
    proc.process(7, THEIRS, "60 59 0:25 / / rw - tmpfs tmpfs rw", *lines)
    view = proc.mounts().view(7)
    assert view is not None
    shared, own = f"{layers}/A/diff/w", f"{layers}/ID/diff/w"
    assert view.name_of(ROOT, shared, shared) is None
    assert view.name_of(ROOT, own, own) == "/a/w"


def test_on_the_host_an_overlays_own_files_have_its_name_and_those_below_keep_theirs(proc: Proc, layers: str) -> None:
    proc.host(TOP, overlay("/merged", USUAL.format(o=layers)))
    proc.process(7, OURS)
    view = proc.mounts().view(7)
    assert view is not None
    upper, lower = f"{layers}/ID/diff/w", f"{layers}/A/diff/w"
    assert view.name_of(ROOT, upper, upper) == "/merged/w"
    assert view.name_of(ROOT, lower, lower) == lower


# A service, which may be shown other mounts than the host has


def test_a_service_takes_the_hosts_mounts_from_its_first_process(proc: Proc) -> None:
    """systemd gives it a namespace of its own, in which /data is something else."""
    proc.process(1, OURS, TOP, "30 27 259:2 / /data rw - ext4 /dev/x rw")
    proc.process("self", THEIRS, TOP, "30 27 259:2 / /run/private rw - ext4 /dev/x rw")
    proc.process(5, OURS, TOP, "30 27 259:2 / /data rw - ext4 /dev/x rw")
    root = str(proc.root / "proc")
    assert host_process(root) == "1"
    mounts = Mounts(root, lambda: proc.now, host=host_process(root))
    assert mounts.host_path(DATA, "/f") == "/data/f"
    view = mounts.view(5)
    assert view is not None
    assert view.name_of(DATA, "/f", "/data/f") == "/data/f"


def test_where_the_first_process_may_not_be_asked_they_are_ours(proc: Proc) -> None:
    assert host_process(str(proc.root / "proc")) == "self"
