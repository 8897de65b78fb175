"""Whatever a layer holds, what we make of it is what containerd makes of it, entry by entry, or both refuse it."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from sandboxd.containerd.client import Containerd
from sandboxd.containerd.content import Content
from sandboxd.containerd.extract import Extraction, directories_below
from sandboxd.containerd.leases import Leases
from sandboxd.containerd.snapshots import Snapshots
from sandboxd.errors import InvalidRequest
from sandboxd.oci import image as oci
from sandboxd.oci import layers
from sandboxd.oci.image import Descriptor
from sandboxd.oci.recording import Recording, merged, replay
from tests.root.test_extract import CAPABILITY, Maker, directory_in, seen, xattr

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.images]

Tree = dict[str, Any]


class Stacks:
    """Unpacks stacks of layers in the ways there are."""

    def __init__(self, client: Containerd, place: Path) -> None:
        self._snapshots, self._content = Snapshots(client, "overlayfs", "trees"), Content(client, "trees")
        self._place = place
        self._count = 0
        self.unfit: list[str] = []

    async def by_containerd(self, contents: Sequence[bytes]) -> Tree | str:
        """The tree that containerd makes, or why it makes none."""
        return await self._tree([(data, None) for data in contents])

    async def by_us(self, contents: Sequence[bytes]) -> Tree | str:
        """The tree that a pull makes: what we do not write is containerd's."""
        try:
            for data in contents:
                layers.scan(io.BytesIO(data))
        except InvalidRequest as exc:
            return str(exc)
        return await self._tree([(data, recorded(data)) for data in contents])

    async def together(self, contents: Sequence[bytes], first: int) -> Tree | str | None:
        """The tree when the layers from `first` share a snapshot; None when they cannot."""
        records = [recorded(data) for data in contents[first:]]
        one = None if any(r.unfit for r in records) else merged([r.entries for r in records], lowest=first == 0)
        if one is None:
            return None
        shared = Recording(0, entries=one)
        try:
            return await self._tree([*((data, recorded(data)) for data in contents[:first]), (None, shared)])
        except _Unfit:
            return None

    async def _tree(self, stack: Sequence[tuple[bytes | None, Recording | None]]) -> Tree | str:
        parent = ""
        directories: list[str] = []
        for data, recording in stack:
            self._count += 1
            name = f"layer-{self._count}"
            draft = await self._snapshots.begin(name, parent)
            directory = directory_in(draft.mounts, lowest=not parent)
            written = False
            if recording is not None and not recording.unfit:
                below = directories_below(draft.mounts) if data is None else None
                extraction = Extraction(directory, lowest=not parent, below=below)
                replay(recording.entries, extraction)
                extraction.close()
                written = not extraction.unfit
                self.unfit.append(extraction.unfit)
            if not written:
                await draft.discard()
                if data is None:
                    raise _Unfit
                draft = await self._snapshots.begin(f"{name}-again", parent)
                directory, name = directory_in(draft.mounts, lowest=not parent), f"{name}-again"
                blob = Descriptor(media_type=f"{oci.OCI_LAYER}+gzip", digest=oci.digest(data), size=len(data))
                await self._content.write(blob, io.BytesIO(data))
                try:
                    await self._snapshots.apply(blob, draft.mounts)
                except InvalidRequest as exc:
                    await draft.discard()
                    return str(exc)
            await draft.commit()
            directories.append(directory)
            parent = name
        return seen(directories[::-1], self._place)


class _Unfit(Exception):
    pass


def recorded(data: bytes) -> Recording:
    recording = Recording(64 << 20)
    layers.scan(io.BytesIO(data), "layer", recording)
    return recording


@pytest.fixture
async def stacks(client: Containerd, tmp_path: Path) -> Stacks:
    await Leases(client).create("trees", seconds=600)
    return Stacks(client, tmp_path / "mounted")


def settled(tree: Tree | str | None, *unsettled: str) -> Tree | str | None:
    """The tree without the times of directories that are as late as the unpacking itself."""
    if not isinstance(tree, dict):
        return tree
    return {
        path: [*v[:3], 0 if v[3] > 1_750_000_000 * 10**9 or path in unsettled else v[3], *v[4:]]
        for path, v in tree.items()
    }


async def check(stacks: Stacks, *contents: bytes) -> Tree:
    theirs, ours = await stacks.by_containerd(contents), await stacks.by_us(contents)
    if isinstance(theirs, str) or isinstance(ours, str):
        assert isinstance(theirs, str) and isinstance(ours, str), (theirs, ours)
        for said in (theirs, ours):
            assert "containerd" not in said.replace("by containerd", "") and "/var/" not in said, said
        return {}
    assert settled(ours) == settled(theirs)
    for first in range(len(contents) - 1):
        shared = await stacks.together(contents, first)
        assert shared is None or settled(shared) == settled(theirs)
    return theirs


def base() -> bytes:
    maker = Maker().directory("etc").add("etc/passwd", data=b"root").directory("usr").directory("usr/lib")
    maker.add("usr/lib/a", data=b"a").link("lib", "usr/lib").directory("var").link("var/run", "/run")
    return maker.done()


OVERLAY = {
    "opaque": b"y",
    "redirect": b"/etc",
    "metacopy": b"",
    "whiteout": b"",
    "origin": b"\0\xfb",
    "impure": b"y",
    "nlink": b"U+1",
}


@pytest.mark.parametrize("name", OVERLAY)
@pytest.mark.parametrize("key", ["SCHILY.xattr.trusted.overlay.", "LIBARCHIVE.xattr.trusted.overlay."])
async def test_an_archive_cannot_set_what_only_the_file_system_may(stacks: Stacks, key: str, name: str) -> None:
    """overlayfs would hide, move or replace what lies below."""
    value = {f"{key}{name}": OVERLAY[name].decode("utf-8", "surrogateescape")}
    upper = Maker().directory("etc", pax_headers=value).add("x", data=b"x", pax_headers=value)
    tree = await check(stacks, base(), upper.done())
    assert "etc/passwd" in tree
    assert not any("trusted" in attribute for entry in tree.values() for attribute in entry[6])
    assert not any(stacks.unfit)


ONE = {
    "dropped class beside others": Maker().add(
        "x", data=b"1", pax_headers={**xattr("trusted.note", b"1"), **xattr("security.capability", CAPABILITY)}
    ),
    "other overlay attributes": Maker().directory("etc", pax_headers=xattr("user.overlay.opaque", b"y")),
    "acl": Maker().directory("d", pax_headers=xattr("system.posix_acl_access", bytes.fromhex(
        "0200000001000700ffffffff04000500ffffffff20000500ffffffff"))),
    "unsupported attribute": Maker().add("x", data=b"1", pax_headers=xattr("nobody.knows", b"1")),
    "attribute on a link": Maker().add("l", tarfile.SYMTYPE, linkname="x", pax_headers=xattr("trusted.a", b"1")),
    "whiteout device": Maker().directory("etc").add("etc/passwd", tarfile.CHRTYPE),
    "device": Maker().add("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
    "fifo": Maker().add("fifo", tarfile.FIFOTYPE),
    "through an absolute link": Maker().directory("run").link("r", "/run").add("r/x", data=b"x"),
    "through a dangling link": Maker().link("r", "/not/yet").add("r/x", data=b"x"),
    "through a climbing link": Maker().link("r", "../../run").add("r/x", data=b"x").directory("r/d"),
    "through links to links": Maker().link("a", "/b/c").link("b", "../d").directory("d").add("a/x", data=b"x"),
    "link target climbs back": Maker().directory("d/e").link("l", "d/e").link("m", "l/../z").add("m/x", data=b"1"),
    "in a circle": Maker().link("a", "b").link("b", "a").add("a/x", data=b"x"),
    "below a lower link": Maker().add("var/run/x", data=b"x"),
    "below a lower relative link": Maker().add("lib/x", data=b"x"),
    "directory over a lower link": Maker().directory("lib").add("lib/x", data=b"x"),
    "whiteout through a link": Maker().directory("etc").link("e", "/etc").add("e/.wh.passwd"),
    "hard link through a link": Maker().directory("d").add("d/a", data=b"1").link("e", "/d").link(
        "x", "e/a", tarfile.LNKTYPE),
    "hard link to a link": Maker().link("l", "/etc/passwd").link("x", "l", tarfile.LNKTYPE),
    "hard link to above": Maker().add("a", data=b"1").link("x", "../../a", tarfile.LNKTYPE),
    "hard link to nothing": Maker().add("a").link("x", "nothing", tarfile.LNKTYPE),
    "hard link to a lower file": Maker().directory("etc").link("etc/x", "etc/passwd", tarfile.LNKTYPE),
    "hard link to a directory": Maker().directory("d").link("x", "d", tarfile.LNKTYPE),
    "names that climb": Maker().add("../x", data=b"1").add("a/../../y", data=b"2").add("/z/../../w", data=b"3"),
    "odd names": Maker().add("./a//b/./c", data=b"1").add("/abs", data=b"2").directory("t/").directory("..")
    .add("n\udcff", data=b"3").add("new\nline", data=b"4"),
    "long names": Maker().add("n" * 255 + "/" + "m" * 255, data=b"1").add("/".join(["d" * 200] * 15), data=b"2"),
    "a file for a parent": Maker().add("a", data=b"1").add("a/b", data=b"2"),
    "twice": Maker().add("a", data=b"1").add("a", data=b"2"),
    "directory then file": Maker().directory("d").add("d/x").add("d", data=b"1"),
    "file then directory": Maker().add("d", data=b"1").directory("d").add("d/x"),
    "link then directory": Maker().directory("t").link("d", "t").directory("d").add("d/x"),
    "whiteout then file": Maker().directory("etc").add("etc/.wh.passwd").add("etc/passwd", data=b"new"),
    "whiteout then directory": Maker().add(".wh.etc").directory("etc").add("etc/new", data=b"new"),
    "file then whiteout": Maker().directory("etc").add("etc/passwd", data=b"new").add("etc/.wh.passwd"),
    "opaque last": Maker().directory("etc").add("etc/new", data=b"1").add("etc/.wh..wh..opq"),
    "opaque first": Maker().directory("etc").add("etc/.wh..wh..opq").add("etc/new", data=b"1"),
    "opaque root": Maker().add(".wh..wh..opq").add("new", data=b"1"),
    "opaque without the directory": Maker().add("etc/.wh..wh..opq").add("etc/new", data=b"1"),
    "whiteout of nothing": Maker().add(".wh.nothing").directory("etc").add("etc/.wh.nothing"),
    "whiteout in an opaque directory": Maker().directory("etc").add("etc/.wh.passwd").add("etc/.wh..wh..opq"),
    "aufs": Maker().add(".wh..wh.plnk").add(".wh..wh.aufs").add("x", data=b"1"),
    "child before its directory": Maker().add("n/x", data=b"1").directory("n", mode=0o700, uid=5),
    "old times": Maker().add("o", mtime=-1000).add("p", pax_headers={"mtime": "-1.5"}).directory("q", mtime=-1),
    "late times": Maker().add("o", pax_headers={"mtime": "99999999999"}).add("p", pax_headers={"mtime": "0.9"}),
    "setuid": Maker().add("s", data=b"1", mode=0o6755, uid=3, gid=4).directory("t", mode=0o3777),
    "owners beyond": Maker().add("s", data=b"1", uid=4_000_000_000, gid=4_294_967_294),
    "contiguous": Maker().add("s", tarfile.CONTTYPE, data=b"1"),
    "volume label": Maker().add("s", b"V").add("after"),
    "solaris": Maker().add("s", tarfile.SOLARIS_XHDTYPE),
    "sparse": Maker().add("s", data=b"1" * 512, pax_headers={
        "GNU.sparse.map": "1024,512", "GNU.sparse.numblocks": "1", "GNU.sparse.size": "4096"}),
    "global header": Maker().add("pax_global_header", tarfile.XGLTYPE).add("a", data=b"1"),
    "empty link": Maker().add("l", tarfile.SYMTYPE, linkname=""),
    "attribute too large for some": Maker().add("x", data=b"1", pax_headers=xattr("user.a", b"1" * 60_000)),
    "empty attribute name": Maker().add("x", data=b"1", pax_headers=xattr("", b"1")),
    "nothing": Maker(),
}  # fmt: skip
MADE = {name: maker.done() for name, maker in ONE.items()}


@pytest.mark.parametrize("name", MADE)
async def test_a_tree_does_not_depend_on_who_unpacks_it(stacks: Stacks, name: str) -> None:
    """As the lowest layer, and above another one."""
    await check(stacks, MADE[name])
    await check(stacks, base(), MADE[name])


async def test_a_file_that_came_and_went_in_layers_that_share_a_snapshot_is_not_listed(stacks: Stacks) -> None:
    """overlayfs lists a whiteout in a directory that a single layer has."""
    came = Maker().directory("new").add("new/gone", data=b"1").add("new/kept", data=b"1").done()
    went = Maker().directory("new").add("new/.wh.gone").done()
    assert "new/gone" not in await check(stacks, base(), came, went)


async def test_many_small_layers_share_a_snapshot_where_nobody_can_tell(stacks: Stacks) -> None:
    changed = Maker().directory("etc", mode=0o700).add("etc/.wh.passwd").add("etc/new", data=b"1").done()
    again = Maker().directory("etc", mode=0o750).add("etc/new", data=b"2").add(".wh.usr").done()
    theirs = await check(stacks, base(), changed, again)
    assert settled(await stacks.together((base(), changed, again), 1)) == settled(theirs)


def gnu(name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, at: int = 0, more: bytes = b"") -> bytes:
    """A header in GNU's format, with `more` at `at`."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = kind, size, 1_700_000_000
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[at : at + len(more)] = more
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)
PLAIN = base()
SKIP = struct.pack("<II", 0x184D2A50, 4) + b"\0\1\2\3"
TABLE = struct.pack("<II", 0x184D2A5E, 17) + bytes(17)
STREAMS = {
    "one block of zeros": gnu("a") + bytes(512),
    "no end": gnu("a"),
    "no padding": gnu("a", size=3) + b"abc",
    "padded to records": PLAIN + bytes(10240),
    "garbage behind the end": PLAIN + b"garbage" * 1000,
    "another archive behind": PLAIN + gnu("b") + END,
    "an entry after one block": gnu("a") + bytes(512) + gnu("b") + END,
    "cut off in a header": gnu("a") + gnu("b")[:100],
    "bad header": gnu("a") + b"\xff" * 512 + END,
    "times where a prefix would be": gnu("a", at=345, more=b"14371234567\0" * 2) + END,
    "a prefix where times would be": gnu("a", at=345, more=b"some/prefix/that/is/no/time") + END,
    "pax global before": gnu("g", tarfile.XGLTYPE) + gnu("a") + END,
    "old sparse": gnu("s", tarfile.GNUTYPE_SPARSE, at=483, more=b"00000010000\0") + END,
    "zero bytes": b"",
    "zeros only": END,
    "gzip": gzip.compress(PLAIN),
    "gzip members": gzip.compress(PLAIN[:700]) + gzip.compress(b"") + gzip.compress(PLAIN[700:]),
    "gzip of nothing": gzip.compress(b""),
    "zstd": zstd.compress(PLAIN),
    "zstd frames": zstd.compress(PLAIN[:700]) + zstd.compress(PLAIN[700:]),
    "zstd skippable first": SKIP + zstd.compress(PLAIN) + TABLE,
    "zstd skippable only": SKIP,
    "zstd skippable last": zstd.compress(PLAIN) + TABLE,
    "zstd skippable between": zstd.compress(PLAIN[:700]) + SKIP + zstd.compress(PLAIN[700:]),
    "xz": b"\xfd7zXZ\0" + bytes(2000),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_means_the_same_to_both(stacks: Stacks, name: str) -> None:
    await check(stacks, STREAMS[name])


async def test_zeros_after_a_gzip_stream_are_no_part_of_it(stacks: Stacks) -> None:
    """Whether containerd takes them depends on the machine: on whether it finds unpigz, which does, or uses Go's."""
    ours, plain = await stacks.by_us([gzip.compress(PLAIN) + bytes(100)]), await stacks.by_us([gzip.compress(PLAIN)])
    assert isinstance(ours, dict) and settled(ours) == settled(plain)


NAMES = ("a", "b", "c")


def random_layer(choose: random.Random) -> bytes:
    """A small layer of a few names, mostly with directories first, as builders write them."""
    maker = Maker()

    def path(depth: int) -> str:
        return "/".join(choose.choice(NAMES) for _ in range(choose.randint(1, depth)))

    if choose.random() < 0.7:
        for name in choose.sample(NAMES, choose.randint(0, 3)):
            maker.directory(name, mode=choose.choice((0o755, 0o700)))
    for _ in range(choose.randint(1, 4)):
        name, content = path(3), str(choose.randint(0, 9)).encode()
        folder, _, last = name.rpartition("/")
        match choose.randint(0, 9):
            case 0 | 1 | 2:
                maker.add(name, data=content, mode=choose.choice((0o644, 0o4755)), uid=choose.randint(0, 2))
            case 3 | 4:
                attributes = xattr(choose.choice(("user.a", "trusted.overlay.opaque")), b"y")
                maker.directory(name, pax_headers=attributes if choose.random() < 0.5 else {})
            case 5:
                maker.link(name, choose.choice(("/", "../", "")) + path(2))
            case 6:
                maker.link(name, path(2), tarfile.LNKTYPE)
            case 7 | 8:
                maker.add(f"{folder}/.wh.{last}" if folder else f".wh.{last}")
            case 9:
                maker.add(f"{name}/.wh..wh..opq")
    return maker.done()


@pytest.mark.parametrize("seed", range(12))
async def test_a_stack_of_small_layers_is_the_same_whichever_way(stacks: Stacks, seed: int) -> None:
    """Each layer by containerd, each by us, and several in one snapshot."""
    choose = random.Random(seed)
    for _ in range(12):
        stack = [random_layer(choose) for _ in range(choose.randint(2, 4))]
        await check(stacks, *stack)
