"""What we unpack ourselves is what containerd's diff service would have unpacked; what it may not be, we do not."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sandboxd.containerd import extract
from sandboxd.containerd.client import Containerd
from sandboxd.containerd.content import Content
from sandboxd.containerd.extract import Extraction, directory_of
from sandboxd.containerd.leases import Leases
from sandboxd.containerd.snapshots import Mount, Snapshots
from sandboxd.oci import image as oci
from sandboxd.oci import layers
from sandboxd.oci.image import Descriptor
from sandboxd.oci.recording import Entry, Recording, merged, replay

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.images]

MTIME = 1_700_000_000
CAPABILITY = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"  # cap_net_raw+ep

# Everything that can be seen of a tree. Run in a mount namespace of its own, where the layers are mounted.
WALK = """
import ctypes, hashlib, json, os, stat, sys
base, *directories = sys.argv[1:]
root = base
if len(directories) > 1:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"overlay", root.encode(), b"overlay", 1, f"lowerdir={':'.join(directories)}".encode()):
        sys.exit(os.strerror(ctypes.get_errno()))
else:
    root = directories[0]
seen, inodes = {}, {}
for directory, below, files in os.walk(root):
    for name in [".", *below, *files]:
        path = os.path.normpath(os.path.join(directory, name))
        shown = os.path.relpath(path, root)
        try:
            info = os.lstat(path)
        except FileNotFoundError:  # overlayfs lists the whiteouts of an opaque directory
            seen[shown] = ["whiteout", 0, 0, 0, 0, "", {}, ""]
            continue
        first = inodes.setdefault(info.st_ino, shown) if not os.path.isdir(path) or os.path.islink(path) else shown
        attributes = {a: os.getxattr(path, a, follow_symlinks=False).hex()
                      for a in os.listxattr(path, follow_symlinks=False)}
        what = os.readlink(path) if os.path.islink(path) else ""
        if os.path.isfile(path) and not os.path.islink(path):
            what = hashlib.sha256(open(path, "rb").read()).hexdigest()
        whiteout = stat.S_ISCHR(info.st_mode) and not info.st_rdev
        time = 0 if whiteout else info.st_mtime_ns
        seen[shown] = [oct(info.st_mode), info.st_uid, info.st_gid, time, info.st_rdev, first,
                       attributes, what]
json.dump(seen, sys.stdout)
"""


class Maker:
    """Builds a layer."""

    def __init__(self) -> None:
        self._output = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._output, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **changes: Any) -> Maker:
        entry = tarfile.TarInfo(name)
        entry.type, entry.size, entry.mtime = kind, len(data), MTIME
        entry.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
        for key, value in changes.items():
            setattr(entry, key, value)
        self._tar.addfile(entry, io.BytesIO(data))
        return self

    def directory(self, name: str, **changes: Any) -> Maker:
        return self.add(name, tarfile.DIRTYPE, **changes)

    def link(self, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Maker:
        return self.add(name, kind, linkname=target)

    def done(self) -> bytes:
        self._tar.close()
        return self._output.getvalue()


def xattr(name: str, value: bytes) -> dict[str, str]:
    return {f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")}


def base_layer() -> bytes:
    """The lowest layer: every kind of entry that is ours."""
    maker = Maker().directory("./", mode=0o711).directory("bin").directory("usr").directory("usr/lib")
    maker.link("lib", "usr/lib").add("lib/through-link", data=b"in usr/lib")
    maker.add("bin/sudo", data=b"x" * 5000, mode=0o4755)
    maker.add("bin/again", tarfile.LNKTYPE, linkname="bin/sudo", mode=0o4755)
    maker.add("bin/ping", data=b"ping", pax_headers=xattr("security.capability", CAPABILITY))
    maker.add("owned", data=b"y", uid=1000, gid=1001, mode=0o640).directory("tmp", mode=0o1777)
    maker.directory("shared", mode=0o2775, gid=50).add("shared/file", data=b"")
    maker.add("precise", data=b"z", pax_headers={"mtime": "1700000000.123456789"})
    maker.link("dangling", "/no/such/file").link("bin/sh", "busybox")
    maker.add("implicit/parents/file", data=b"no entries for the directories")
    maker.add("large", data=random.Random(1).randbytes(3_000_001))
    maker.directory("etc").add("etc/gone").add("etc/kept", data=b"1").directory("etc/emptied").add("etc/emptied/a")
    maker.add("attributed", data=b"a", pax_headers=xattr("user.note", b"\xff\x00binary"))
    return maker.done()


def upper_layer() -> bytes:
    """Deletions, replacements, and more of a directory."""
    maker = Maker().directory("etc", mode=0o700).add("etc/.wh.gone").add("etc/kept", data=b"2")
    maker.directory("etc/emptied").add("etc/emptied/.wh..wh..opq").add("etc/emptied/b", data=b"b")
    maker.add("owned", data=b"replaced").directory("usr").directory("usr/new", uid=7)
    return maker.done()


def third_layer() -> bytes:
    maker = Maker().directory("etc", mode=0o750).add("etc/kept", data=b"3").add(".wh.large").directory("usr")
    maker.directory("usr/new").add("usr/new/file", data=b"f")
    return maker.done()


def seen(directories: Sequence[str], place: Path) -> dict[str, Any]:
    """The tree that these directories make, the uppermost first."""
    place.mkdir(exist_ok=True)
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-I", "-c", WALK, str(place)]
    done = subprocess.run([*argv, *directories], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


def directory_in(mounts: Sequence[Mount], *, lowest: bool) -> str:
    directory = directory_of(mounts, lowest=lowest)
    assert directory
    return directory


async def unpacked_by_containerd(client: Containerd, contents: Sequence[bytes]) -> list[str]:
    """The directories of each layer, the lowest first."""
    await Leases(client).create("theirs", seconds=600)
    snapshots, content = Snapshots(client, "overlayfs", "theirs"), Content(client, "theirs")
    parent = ""
    directories: list[str] = []
    for data in contents:
        blob = Descriptor(media_type=oci.OCI_LAYER, digest=oci.digest(data), size=len(data))
        await content.write(blob, io.BytesIO(data))
        draft = await snapshots.begin(f"theirs-{len(directories)}", parent)
        directories.append(directory_in(draft.mounts, lowest=not parent))
        await snapshots.apply(blob, draft.mounts)
        await draft.commit()
        parent = f"theirs-{len(directories) - 1}"
    return directories


async def unpacked_by_us(client: Containerd, steps: Sequence[Callable[[Extraction], None]]) -> list[str]:
    await Leases(client).create("ours", seconds=600)
    snapshots = Snapshots(client, "overlayfs", "ours")
    parent = ""
    directories: list[str] = []
    for step in steps:
        draft = await snapshots.begin(f"ours-{len(directories)}", parent)
        directory = directory_in(draft.mounts, lowest=not parent)
        extraction = Extraction(directory, lowest=not parent)
        step(extraction)
        extraction.close()
        assert extraction.unfit == ""
        await draft.commit()
        directories.append(directory)
        parent = f"ours-{len(directories) - 1}"
    return directories


def scanned(data: bytes) -> Callable[[Extraction], None]:
    return lambda extraction: (layers.scan(io.BytesIO(data), "layer", extraction), None)[1]


def recorded(data: bytes) -> list[Entry]:
    recording = Recording(64 << 20)
    layers.scan(io.BytesIO(data), "layer", recording)
    assert recording.unfit == ""
    return recording.entries


def replayed(entries: Sequence[Entry]) -> Callable[[Extraction], None]:
    return lambda extraction: replay(entries, extraction)


def without_time_of(tree: dict[str, Any], *paths: str) -> dict[str, Any]:
    """The tree without the times of directories that no entry describes."""
    return {path: [*v[:3], 0, *v[4:]] if path in paths else v for path, v in tree.items()}


STACK = (base_layer(), upper_layer(), third_layer())
UNDESCRIBED = (".", "implicit", "implicit/parents")


@pytest.mark.parametrize("height", [1, 2, 3])
async def test_every_layer_is_as_containerd_would_have_unpacked_it(
    client: Containerd, tmp_path: Path, height: int
) -> None:
    """Modes, owners, times to the nanosecond, links, attributes, whiteouts: in each directory, and in the whole."""
    theirs = await unpacked_by_containerd(client, STACK[:height])
    ours = await unpacked_by_us(client, [scanned(data) for data in STACK[:height]])

    for mine, its in zip(ours, theirs, strict=True):
        assert without_time_of(seen([mine], tmp_path / "m"), *UNDESCRIBED) == without_time_of(
            seen([its], tmp_path / "m"), *UNDESCRIBED
        )
    whole = seen(ours[::-1], tmp_path / "m")
    assert without_time_of(whole, *UNDESCRIBED) == without_time_of(seen(theirs[::-1], tmp_path / "m"), *UNDESCRIBED)
    assert whole["bin/sudo"][0] == "0o104755"
    assert whole["bin/again"][5] == whole["bin/sudo"][5]


async def test_what_was_recorded_is_unpacked_the_same(client: Containerd, tmp_path: Path) -> None:
    theirs = await unpacked_by_containerd(client, STACK)
    ours = await unpacked_by_us(client, [replayed(recorded(data)) for data in STACK])

    assert without_time_of(seen(ours[::-1], tmp_path / "m"), *UNDESCRIBED) == without_time_of(
        seen(theirs[::-1], tmp_path / "m"), *UNDESCRIBED
    )


async def test_layers_that_share_a_snapshot_look_as_if_each_had_its_own(client: Containerd, tmp_path: Path) -> None:
    theirs = await unpacked_by_containerd(client, STACK)
    together = merged([recorded(data) for data in STACK[1:]], lowest=False)
    assert together is not None
    ours = await unpacked_by_us(client, [scanned(STACK[0]), replayed(together)])

    assert len(ours) < len(theirs)
    assert without_time_of(seen(ours[::-1], tmp_path / "m"), *UNDESCRIBED) == without_time_of(
        seen(theirs[::-1], tmp_path / "m"), *UNDESCRIBED
    )


def plain(maker: Maker) -> bytes:
    return maker.done()


@pytest.mark.parametrize(
    ("data", "lowest", "why"),
    [
        (plain(Maker().add("fifo", tarfile.FIFOTYPE)), True, "type"),
        (plain(Maker().add("null", tarfile.CHRTYPE, devmajor=1, devminor=3)), True, "type"),
        (plain(Maker().add("twice", data=b"1").add("twice", data=b"2")), True, "exists"),
        (plain(Maker().directory("a").add("a", data=b"a file now")), True, "exists"),
        (plain(Maker().add("a", data=b"a file").directory("a")), True, "Not a directory"),
        (plain(Maker().link("a", "b").directory("b").directory("a")), True, "Not a directory"),
        (plain(Maker().add("a", data=b"").add("a/b", data=b"")), True, "Not a directory"),
        (plain(Maker().link("x", "nowhere", tarfile.LNKTYPE)), True, "No such file"),
        (plain(Maker().link("x", "/", tarfile.LNKTYPE)), True, "root"),
        (plain(Maker().add("a", mode=0o4755).link("b", "a", tarfile.LNKTYPE)), True, "differ"),
        (plain(Maker().add(".wh.nothing")), True, "whiteout"),
        (plain(Maker().add(".wh..wh.plnk")), False, "aufs"),
        (plain(Maker().add("etc/without-parent", data=b"x")), False, "below"),
        (plain(Maker().add("x", data=b"", pax_headers=xattr("nobody.knows", b"1"))), True, "not supported"),
        (plain(Maker().add("x", data=b"", pax_headers={"mtime": "9" * 19})), True, "out of range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_ours_is_left_to_containerd(tmp_path: Path, data: bytes, lowest: bool, why: str) -> None:
    """The scan itself succeeds; nothing was written outside."""
    directory = tmp_path / "fs"
    directory.mkdir()
    extraction = Extraction(str(directory), lowest=lowest)
    try:
        layers.scan(io.BytesIO(data), "layer", extraction)
    finally:
        extraction.close()

    assert why in extraction.unfit
    assert os.listdir(tmp_path) == ["fs"]


def test_more_directories_than_can_be_remembered_are_left_to_containerd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their times are set last, and until then they are held in memory."""
    monkeypatch.setattr(extract, "MAX_REMEMBERED_BYTES", 1000)
    extraction = Extraction(str(tmp_path), lowest=True)
    maker = Maker()
    for number in range(10):
        maker.directory(f"directory-{number}")
    layers.scan(io.BytesIO(plain(maker)), "layer", extraction)
    extraction.close()

    assert "more directories" in extraction.unfit


def test_a_directory_that_is_not_there_is_left_to_containerd(tmp_path: Path) -> None:
    extraction = Extraction(str(tmp_path / "absent"), lowest=True)
    layers.scan(io.BytesIO(base_layer()), "layer", extraction)
    extraction.close()

    assert "No such file" in extraction.unfit


def test_no_link_is_followed_whatever_the_scan_let_through(tmp_path: Path) -> None:
    """Paths as a careless scan would tell them: each ends where the directory ends."""
    outside, directory = tmp_path / "outside", tmp_path / "fs"
    outside.mkdir()
    directory.mkdir()
    (directory / "link").symlink_to(outside)
    entry = tarfile.TarInfo("x")
    for path in ("link/x", "../outside/x", "link"):
        extraction = Extraction(str(directory), lowest=True)
        extraction.visit(entry, path, "", lambda most: memoryview(b""))
        extraction.close()
        assert extraction.unfit
        assert os.listdir(outside) == []


def test_a_full_disk_is_no_reason_to_ask_containerd(tmp_path: Path) -> None:
    """It is told as what it is. In a mount namespace of its own, on a disk of one MiB."""
    script = f"""
import io, sys
from sandboxd.containerd.extract import Extraction
from sandboxd.errors import Exhausted
from sandboxd.oci import layers
extraction = Extraction({str(tmp_path)!r}, lowest=True)
try:
    layers.scan(io.BytesIO(sys.stdin.buffer.read()), "layer", extraction)
except Exhausted as exc:
    print(exc)
"""
    mount = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} -c "$0"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, script]
    done = subprocess.run(argv, input=base_layer(), capture_output=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert b"no space" in done.stdout


@pytest.mark.parametrize(
    ("mounts", "lowest"),
    [
        ((), True),
        ((Mount(type="bind", source="/a", options=("ro",)),), True),
        ((Mount(type="bind", source="/a", options=("rw",)),), False),
        ((Mount(type="overlay", source="overlay", options=("upperdir=/a",)),), True),
        ((Mount(type="overlay", source="overlay", options=("upperdir=/a", "userxattr")),), False),
        ((Mount(type="overlay", source="overlay", options=("lowerdir=/a:/b",)),), False),
        ((Mount(type="fuse3.fuse-overlayfs", source="overlay", options=("upperdir=/a",)),), False),
        ((Mount(type="ext4", source="/dev/dm-1"),), True),
    ],
)
def test_only_a_directory_of_the_layers_own_will_do(mounts: tuple[Mount, ...], lowest: bool) -> None:
    """A whole copy of the layers below, another form of whiteouts, a device: those are containerd's."""
    assert directory_of(mounts, lowest=lowest) == ""
