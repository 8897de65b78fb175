"""Layers are measured exactly, and refused when they reach out of the root."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest, Unavailable
from sandboxd.oci import compression, layers
from sandboxd.oci import tar as tar_headers
from sandboxd.oci.compression import Allowance

Entry = tuple[str, bytes, str, bytes]  # name, type, link target, content


def file(name: str, content: bytes = b"x") -> Entry:
    return (name, tarfile.REGTYPE, "", content)


def symlink(name: str, target: str) -> Entry:
    return (name, tarfile.SYMTYPE, target, b"")


def hardlink(name: str, target: str) -> Entry:
    return (name, tarfile.LNKTYPE, target, b"")


def directory(name: str) -> Entry:
    return (name, tarfile.DIRTYPE, "", b"")


def tar(entries: Iterable[Entry]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, target, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(content)
            archive.addfile(info, io.BytesIO(content))
    return output.getvalue()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_plain_layer_is_its_own_diff() -> None:
    """Without compression both digests are the same."""
    data = tar([directory("etc"), file("etc/passwd")])
    scan = layers.scan(io.BytesIO(data))
    assert (scan.digest, scan.size, scan.compression) == (sha256(data), len(data), "")
    assert (scan.diff_id, scan.uncompressed, scan.entries) == (sha256(data), len(data), 2)


def test_a_gzip_layer_has_two_digests() -> None:
    """One of the bytes that travel, one of the tar inside; several gzip members are one stream."""
    plain = tar([file("a", b"1" * 5000)])
    data = gzip.compress(plain[:700], mtime=0) + gzip.compress(plain[700:], mtime=0)
    scan = layers.scan(io.BytesIO(data))
    assert (scan.digest, scan.size, scan.compression) == (sha256(data), len(data), "gzip")
    assert (scan.diff_id, scan.uncompressed) == (sha256(plain), len(plain))


def test_a_layer_without_entries_is_fine() -> None:
    """Builders make them: two zero blocks, or nothing at all."""
    assert layers.scan(io.BytesIO(tar([]))).entries == 0
    assert layers.scan(io.BytesIO(gzip.compress(b""))).entries == 0


@pytest.mark.parametrize(
    "entries",
    [
        [file("/etc/passwd")],
        [file("./etc/passwd")],
        [file("a/../b")],
        [file("..data")],
        [symlink("etc/mtab", "/proc/mounts")],
        [symlink("a", "../../../etc")],
        [symlink("lib", "usr/lib"), file("lib/libc.so")],
        [symlink("usr/sbin", "../bin"), file("usr/sbin/x")],
        [file("a"), hardlink("b", "a")],
        [file("a"), hardlink("b", "/a")],
        [symlink("a", "/etc"), symlink("a", "/run")],
        [symlink("a", "/etc"), hardlink("b", "a")],
        [symlink("a", "/etc"), file("a"), file("ab/c")],
        [file("dir/.wh.gone"), file("dir/.wh..wh..opq")],
        [file("n" * 255 + "/" + "m" * 200)],
    ],
)
def test_ordinary_layers_are_accepted(entries: list[Entry]) -> None:
    """Links may point anywhere; names may be written oddly."""
    assert layers.scan(io.BytesIO(tar(entries))).entries == len(entries)


class Seen:
    """A visitor that keeps the paths."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def visit(self, entry: tarfile.TarInfo, path: str, target: str, read: layers.Read) -> None:
        self.paths.append(f"{path} = {target}" if target else path)

    def finish(self) -> None:
        """Nothing is left to do."""


@pytest.mark.parametrize(
    ("entries", "last"),
    [
        ([file("../x")], "x"),
        ([file("a/../../x")], "x"),
        ([file("/../x")], "x"),
        ([hardlink("x", "../../etc/shadow")], "x = etc/shadow"),
        ([directory("..")], ""),
        ([symlink("a", "/etc"), file("a/passwd")], "etc/passwd"),
        ([symlink("a", "/etc"), directory("a/x")], "etc/x"),
        ([symlink("a", "../../etc"), file("a/passwd")], "etc/passwd"),
        ([symlink("d/a", "../.."), file("d/a/passwd")], "passwd"),
        ([symlink("a", "b"), symlink("b", "/etc"), file("a/passwd")], "etc/passwd"),
        ([symlink("a", "/etc"), hardlink("x", "a/shadow")], "x = etc/shadow"),
        ([symlink("var/run", "/run"), file("var/run/.wh.pid")], "run/.wh.pid"),
        ([symlink("b", "a/a"), directory("b"), file("b/../../c")], "c"),
    ],
)
def test_what_leads_out_of_the_root_is_found_inside(entries: list[Entry], last: str) -> None:
    """By name, by hard link, or through a symbolic link: as every unpacker has it, and nothing is refused."""
    seen = Seen()
    layers.scan(io.BytesIO(tar(entries)), visitor=seen)
    assert seen.paths[-1] == last


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([symlink("a", "a"), file("a/x")], "too many symbolic links"),
        ([file("d/.wh..")], "delete"),
        ([file("d/.wh...")], "delete"),
        ([file("d/.wh.")], "delete"),
    ],
)
def test_what_no_unpacker_takes_is_refused(entries: list[Entry], reason: str) -> None:
    """What leads nowhere, and what would delete a parent."""
    with pytest.raises(InvalidRequest, match=reason):
        layers.scan(io.BytesIO(tar(entries)))


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE, tarfile.SOLARIS_XHDTYPE, b"V", b"M", b"D", b"?"]
)
def test_an_entry_of_a_type_that_no_unpacker_knows_is_named(kind: bytes) -> None:
    """containerd fails on it with the directories of the machine in its message; here it is seen before."""
    info = tarfile.TarInfo("dir/entry")
    info.type = kind[:1]
    with pytest.raises(InvalidRequest, match=r"layer 7: the entry 'dir/entry' is .*type.*no image may have"):
        layers.scan(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)), "layer 7")


@pytest.mark.parametrize(
    "rest",
    [b"", bytes(512), bytes(1024), bytes(10240), bytes(1024) + b"garbage", bytes(1024) + tar([file("hidden")])],
)
def test_what_follows_the_end_of_the_tar_belongs_to_its_digest_only(rest: bytes) -> None:
    """Go's reader stops at two blocks of zeros, or where the stream ends."""
    data = tar([file("a")])[:1024] + rest
    scan = layers.scan(io.BytesIO(data))
    assert (scan.entries, scan.diff_id, scan.size) == (1, sha256(data), len(data))


def test_an_entry_behind_a_single_block_of_zeros_is_damage() -> None:
    """Some readers go on there, others do not."""
    with pytest.raises(InvalidRequest, match="damaged"):
        layers.scan(io.BytesIO(tar([file("a")])[:1024] + bytes(512) + tar([file("b")])))


SKIPPED = b"\x5e\x2a\x4d\x18\x05\0\0\0table"


@pytest.mark.parametrize("where", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 1, 1)])
def test_frames_of_zstd_that_are_to_be_skipped_are_skipped(where: tuple[int, int, int]) -> None:
    """Those of pzstd come first, the table of the seekable format comes last (RFC 8878, 3.1.2)."""
    plain = tar([file("a", b"1" * 5000)])
    first, between, last = (SKIPPED * count for count in where)
    data = first + zstd.compress(plain[:700]) + between + zstd.compress(plain[700:]) + last
    scan = layers.scan(io.BytesIO(data))
    assert (scan.compression, scan.diff_id, scan.digest) == ("zstd", sha256(plain), sha256(data))


PACKERS: dict[str, Callable[[bytes], bytes]] = {"bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("again", [bytes, gzip.compress], ids=["plain", "within-gzip"])
@pytest.mark.parametrize("name", PACKERS)
def test_a_compression_that_is_not_read_is_named(name: str, again: Callable[[bytes], bytes]) -> None:
    packed = again(PACKERS[name](tar([file("a", b"1" * 5000)])))
    with pytest.raises(InvalidRequest, match=f"layer is compressed with {name}; layers can be plain, gzip or zstd"):
        layers.scan(io.BytesIO(packed))


def test_a_name_may_begin_like_another_format() -> None:
    assert layers.scan(io.BytesIO(tar([file("BZh9"), file("PK")]))).entries == 2


def test_a_damaged_layer_is_refused() -> None:
    """Cut off, not a tar, or garbage in the compression."""
    whole = gzip.compress(tar([file("a", b"1" * 50_000)]), compresslevel=0)
    for data in (
        whole[:-20],
        whole[:3000],
        b"hello" * 1000,
        whole + b"garbage",
        tar([file("a", b"1" * 5000)])[:2000],
    ):
        with pytest.raises(InvalidRequest, match="damaged"):
            layers.scan(io.BytesIO(data))


def test_a_gzip_checksum_that_does_not_fit_is_damage() -> None:
    """Of the content, or of its length; each is four bytes at the end."""
    whole = gzip.compress(tar([file("a", b"1" * 50_000)]))
    for place in (-8, -4):
        data = bytearray(whole)
        data[place] ^= 1
        with pytest.raises(InvalidRequest, match="damaged"):
            layers.scan(io.BytesIO(data))


@given(
    st.lists(st.tuples(st.binary(max_size=3000), st.integers(1, 40), st.integers(0, 9)), max_size=4),
    st.integers(1, 5000),
    st.integers(0, 40),
)
def test_gzip_comes_out_as_it_went_in(members: list[tuple[bytes, int, int]], size: int, padding: int) -> None:
    """However it was packed, in how many members, and in whatever pieces it is read."""
    plain = b"".join(data * times for data, times, _ in members)
    packed = b"".join(gzip.compress(data * times, level) for data, times, level in members)
    stream = compression.decompressed(io.BytesIO(packed + bytes(padding)), "gzip", "layer")
    found = b""
    while piece := stream.read(size):
        assert len(piece) <= size
        found += piece
    assert found == plain


@given(st.binary(min_size=1, max_size=2000), st.integers(0, 1 << 30), st.integers(1, 255))
def test_a_damaged_gzip_layer_is_never_read_as_another_one(content: bytes, place: int, change: int) -> None:
    """One byte is another: that is told, unless it is one of those that say nothing of the content."""
    plain = tar([file("a", content)])
    data = bytearray(gzip.compress(plain))
    data[place % len(data)] ^= change
    try:
        found = layers.scan(io.BytesIO(data))
    except InvalidRequest:
        return
    assert found.diff_id in (sha256(plain), sha256(bytes(data)))


@given(st.binary(min_size=1, max_size=2000), st.integers(0, 1 << 30), st.integers(1, 255))
def test_a_damaged_zstd_layer_is_refused_in_words(content: bytes, place: int, change: int) -> None:
    """It has no checksum as a rule; what can still be read has another diff id."""
    plain = tar([file("a", content)])
    data = bytearray(zstd.compress(plain))
    data[place % len(data)] ^= change
    try:
        assert layers.scan(io.BytesIO(data)).entries <= 1
    except InvalidRequest as exc:
        assert "damaged" in str(exc)


def test_entries_cannot_hide_behind_a_header_that_python_cannot_read() -> None:
    """tarfile takes a bad header for the end; another reader might go on and find `../x`."""
    first, hidden = tar([file("a")])[:1024], tar([file("../x")])
    broken = b"a" + b"\xff" * 511
    with pytest.raises(InvalidRequest, match="damaged"):
        layers.scan(io.BytesIO(first + broken + hidden))


def test_a_header_that_would_fill_the_memory_is_refused() -> None:
    """An extended header is read whole, so its size is bounded."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, tar_headers.MAX_HEADER_BYTES + 1
    with pytest.raises(InvalidRequest, match="extended header"):
        layers.scan(io.BytesIO(info.tobuf() + bytes(4096)))


def test_an_entry_of_negative_size_is_refused() -> None:
    """Its successor would be itself."""
    info = tarfile.TarInfo("a")
    info.size = -512
    with pytest.raises(InvalidRequest, match="negative"):
        layers.scan(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)))
    info = tarfile.TarInfo("b")
    info.pax_headers = {"size": "-1024"}
    with pytest.raises(InvalidRequest, match="negative"):
        layers.scan(io.BytesIO(info.tobuf(tarfile.PAX_FORMAT) + bytes(4096)))


def test_what_one_layer_may_be_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries, names, their parts, directories that they lead through, and bytes: the first that is too many."""
    flat = tar([file(f"file-{number}") for number in range(20)])
    deep = tar([file(f"{number}/" + "d/" * 20 + "f") for number in range(20)])
    zeros = gzip.compress(tar([file("a", bytes(1 << 20))]))
    for limit, value, data, reason in (
        ("MAX_ENTRIES", 19, flat, "more than 19 entries"),
        ("MAX_NAME_BYTES", 100, flat, "names of more than"),
        ("FREE_DIRECTORIES", 100, deep, "too many directories"),
        ("PARTS_PER_ENTRY", -100_001, deep, "too many parts"),
        ("UNPACKED", Allowance(free=0, factor=1, most=len(flat) - 1), flat, "when unpacked"),
        ("UNPACKED", Allowance(free=0, factor=10, most=1 << 40), zeros, "10 times"),
    ):
        layers.scan(io.BytesIO(data))
        with monkeypatch.context() as patched, pytest.raises(InvalidRequest, match=reason):
            patched.setattr(layers, limit, value)
            layers.scan(io.BytesIO(data))


def test_directories_that_come_in_order_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in what tar, docker and others write: deep trees are nothing special."""
    monkeypatch.setattr(layers, "FREE_DIRECTORIES", 50)
    monkeypatch.setattr(layers, "DIRECTORIES_PER_ENTRY", 0)
    top = "a/" * 40
    entries = [file(f"{top}{number}") for number in range(50)] + [file("a/x"), directory("a/b"), file("a/b/c")]
    assert layers.scan(io.BytesIO(tar(entries))).entries == 53


def test_a_sparse_file_counts_with_its_holes() -> None:
    """Whoever unpacks it may fill them."""
    info = tarfile.TarInfo("s")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 39)}
    with pytest.raises(InvalidRequest, match="when unpacked"):
        layers.scan(io.BytesIO(info.tobuf(tarfile.PAX_FORMAT) + bytes(4096)))


@pytest.mark.parametrize("asked", [0, 1, 5, 20])
def test_a_scan_stops_soon_after_it_is_told(asked: int) -> None:
    """It asks at each entry and each piece."""
    questions = 0

    def stopped() -> bool:
        nonlocal questions
        questions += 1
        return questions > asked

    with pytest.raises(Unavailable, match="stopped"):
        layers.scan(io.BytesIO(tar([file(str(number)) for number in range(40)])), stopped=stopped)
    assert questions == asked + 1


def test_zstd_is_read() -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    found = layers.scan(io.BytesIO(zstd.compress(tar.getvalue())))
    assert (found.compression, found.diff_id) == ("zstd", f"sha256:{hashlib.sha256(tar.getvalue()).hexdigest()}")


def test_damaged_zstd_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="damaged"):
        layers.scan(io.BytesIO(b"\x28\xb5\x2f\xfd" + bytes(100)))


NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", ".wh.a"]), min_size=1, max_size=4).map("/".join)


@example([symlink("a", "a"), hardlink("a", "a/a")])
@given(
    st.lists(
        st.builds(file, NAMES)
        | st.builds(symlink, NAMES, NAMES)
        | st.builds(hardlink, NAMES, NAMES)
        | st.builds(directory, NAMES),
        max_size=6,
    )
)
def test_whatever_the_names_and_links_are_a_path_is_below_the_root_and_through_no_link(entries: list[Entry]) -> None:
    """So that a careless unpacker, which follows links as the kernel does, stays inside too."""
    seen = Seen()
    try:
        layers.scan(io.BytesIO(tar(entries)), visitor=seen)
    except InvalidRequest:
        return
    links: set[str] = set()
    for (_, kind, _, _), shown in zip(entries, seen.paths, strict=True):
        path, _, target = shown.partition(" = ")
        for one in (path, target):
            parts = one.split("/")
            assert not {"", ".", ".."} & set(parts if one else ())
            assert not any("/".join(parts[:count]) in links for count in range(1, len(parts)))
        links.discard(path)
        if kind == tarfile.SYMTYPE and path:
            links.add(path)


def test_the_pause_layer_is_deterministic_and_scans_clean() -> None:
    """The same program gives the same bytes, so the image has the same id everywhere."""
    binary = elf(interpreter=False)
    data = layers.pause_layer(binary)
    assert data == layers.pause_layer(binary)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        modes = {member.name: (member.mode, member.mtime, member.uid) for member in archive}
        program = archive.extractfile("catatonit")
        assert program is not None and program.read() == binary
    assert modes["catatonit"] == (0o755, 0, 0)
    assert modes["tmp"] == (0o1777, 0, 0)
    assert {"dev", "proc", "sys", "etc"} <= set(modes)
    assert layers.scan(io.BytesIO(data)).entries == len(modes)


@pytest.mark.parametrize("binary", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF" + b"\xff" * 100])
def test_a_pause_program_that_is_no_elf_is_refused(binary: bytes) -> None:
    """There is neither a shell nor a loader in the image."""
    with pytest.raises(InvalidRequest, match="static ELF"):
        layers.pause_layer(binary)


def test_a_pause_program_that_needs_a_loader_is_refused() -> None:
    """PT_INTERP is what makes a program dynamic; this Python has one or the machine's shell does."""
    with pytest.raises(InvalidRequest, match="static ELF"):
        layers.pause_layer(elf(interpreter=True))
    assert not layers.is_static_elf(Path("/bin/sh").read_bytes())


def elf(*, interpreter: bool) -> bytes:
    """The smallest thing that looks like a 64-bit little-endian ELF program with one segment."""
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    header[32:40] = (64).to_bytes(8, "little")
    header[54:56], header[56:58] = (56).to_bytes(2, "little"), (1).to_bytes(2, "little")
    segment = bytearray(56)
    segment[0] = 3 if interpreter else 1
    return bytes(header + segment)
