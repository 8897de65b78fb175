"""Headers mean what they mean to Go's reader, and cost no more than they weigh."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest

from sandboxd.errors import InvalidRequest
from sandboxd.oci import tar


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def record(key: str, value: str | bytes) -> bytes:
    text = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    body = b" " + key.encode() + b"=" + text + b"\n"
    length = len(body)
    while length != len(str(length)) + len(body):
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def extended(data: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("extended", kind, len(data)) + padded(data)


def pax(**values: str) -> bytes:
    return extended(b"".join(record(key.replace("__", "."), value) for key, value in values.items()))


def read(data: bytes) -> list[tarfile.TarInfo]:
    return list(tar.entries(io.BytesIO(data + bytes(1024))))


def one(data: bytes) -> tarfile.TarInfo:
    (entry,) = read(data)
    return entry


def test_pax_records_outrank_the_header() -> None:
    entry = one(
        pax(path="ä/name", uid="4000000000", gid="7", size="3", mtime="1.25", SCHILY__xattr__user__a="v")
        + header("short")
        + padded(b"abc")
    )
    assert (entry.name, entry.uid, entry.gid, entry.size, entry.mtime) == ("ä/name", 4000000000, 7, 3, 1.25)
    assert entry.pax_headers["SCHILY.xattr.user.a"] == "v"


def test_of_several_headers_of_one_kind_the_last_counts() -> None:
    """As for Go; another reader that took the first would unpack another name."""
    assert one(pax(path="first") + pax(path="last") + header("x")).name == "last"
    assert one(pax(path="first", uid="5") + pax(gid="6") + header("x")).name == "x"
    long = extended(b"a\0", tarfile.GNUTYPE_LONGNAME) + extended(b"b\0", tarfile.GNUTYPE_LONGNAME)
    assert one(long + pax(path="c") + header("x")).name == "b"


def test_an_empty_value_says_nothing() -> None:
    entry = one(pax(path="", uid="", size="", mtime="") + header("x", uid=7, mtime=9))
    assert (entry.name, entry.uid, entry.mtime) == ("x", 7, 9)


def test_a_global_header_changes_nothing() -> None:
    """containerd ignores it, so what it says of names and sizes is nobody's name and size."""
    first, second = read(
        extended(record("path", "evil") + record("size", "512"), tarfile.XGLTYPE) + header("a") + header("b")
    )
    assert (first.name, first.size, second.name) == ("a", 0, "b")


def test_global_headers_are_bounded_together() -> None:
    data = extended(record("comment", "x" * 500_000), tarfile.XGLTYPE)
    assert len(read(data * 2 + header("a"))) == 1
    with pytest.raises(InvalidRequest, match="global headers"):
        read((data + header("a")) * 3)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_thousands_of_extended_headers_are_read_one_after_the_other(kind: bytes) -> None:
    data = extended(record("comment", "x"), kind)
    assert len(read(data * 5000 + header("a"))) == 1


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (record("uid", "9" * 5000), "uid that is not a number"),
        (record("gid", "1e3"), "gid that is not a number"),
        (record("size", "9" * 5000), "size that is not a number"),
        (record("size", "9" * 19), "entry of 9"),
        (record("size", "-1"), "negative"),
        (record("mtime", "9" * 5000), "mtime that is not a time"),
        (record("mtime", "1e999999999"), "mtime that is not a time"),
        (record("atime", "nan"), "atime that is not a time"),
        (
            record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.realsize", "-1"),
            "neg",
        ),
        (record("GNU.sparse.map", "0,1") + record("GNU.sparse.size", "9" * 5000), "not a number"),
        (record("path", b"a\0b"), "NUL"),
        (record("linkpath", b"a\0b"), "NUL"),
        (b"9999999 a=b\n", "cannot be read"),
        (b"0 a=b\n", "cannot be read"),
        (b"-7 a=b\n", "cannot be read"),
        (b"5 =b\n", "cannot be read"),
        (b"6 a=bc", "cannot be read"),
        (b"9" * 5000 + b" a=b\n", "cannot be read"),
        (record("a", "b") + b"garbage", "cannot be read"),
    ],
)
def test_what_is_no_record_or_no_number_is_refused(records: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        read(extended(records) + header("a"))

    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a" * 256, "part of more than 255"),
        ("ä" * 128, "part of more than 255"),
        ("a/" * 2047 + "ab", "more than 4095"),
        ("ä/" * 1500, "more than 4095"),
    ],
)
@pytest.mark.parametrize("where", ["path", "GNU", "link"])
def test_a_name_that_the_kernel_cannot_create_is_refused(name: str, reason: str, where: str) -> None:
    long = extended(name.encode() + b"\0", tarfile.GNUTYPE_LONGNAME)
    data = {
        "path": pax(path=name) + header("x"),
        "GNU": long + header("x"),
        "link": pax(linkpath=name) + header("x", tarfile.LNKTYPE),
    }[where]
    with pytest.raises(InvalidRequest, match=reason):
        read(data)


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "d/" * 2047 + "a", ".wh." + "a" * 255, "d/.wh." + "a" * 253])
def test_a_name_that_the_kernel_can_create_is_accepted(name: str) -> None:
    """The name of a whiteout is not created: it says what is to be deleted."""
    assert one(pax(path=name) + header("x")).name == name


def test_a_symbolic_link_may_hold_any_text_that_the_kernel_stores() -> None:
    assert one(pax(linkpath="a" * 4095) + header("x", tarfile.SYMTYPE)).linkname == "a" * 4095
    with pytest.raises(InvalidRequest, match="target"):
        read(pax(linkpath="a" * 4096) + header("x", tarfile.SYMTYPE))


def sparse(*, more: int, size: int = 512, real: int = 1 << 40) -> bytes:
    block = bytearray(header("s", tarfile.GNUTYPE_SPARSE, size))
    block[482] = more > 0
    block[483:495] = b"\x80" + real.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    following = (bytes(504) + b"\1" + bytes(7)) * (more - 1) + bytes(512) * (more > 0)
    return bytes(block) + following + bytes(size)


@pytest.mark.parametrize("more", [0, 1, 3000])
def test_a_sparse_file_of_the_old_format_is_passed_over_whole(more: int) -> None:
    entry, after = read(sparse(more=more) + header("after"))
    assert (entry.issparse(), entry.size, after.name) == (True, 1 << 40, "after")


@pytest.mark.parametrize("version", [("1", "0"), ("0", "1"), ("", "")])
def test_a_sparse_file_of_pax_formats_is_passed_over_whole(version: tuple[str, str]) -> None:
    """Its map is not for us to read; it may be anything."""
    values = {"GNU__sparse__major": version[0], "GNU__sparse__minor": version[1], "GNU__sparse__map": "9" * 5000}
    entry, after = read(
        pax(**values, GNU__sparse__name="real", GNU__sparse__realsize="1000000")
        + header("x", size=1024)
        + b"9" * 1024
        + header("after")
    )
    assert (entry.name, entry.issparse(), entry.size, after.name) == ("real", True, 1000000, "after")


def test_an_unknown_sparse_format_is_none() -> None:
    """To Go it is an ordinary file under the header's name."""
    entry = one(pax(GNU__sparse__major="2", GNU__sparse__minor="0", GNU__sparse__name="other") + header("x"))
    assert (entry.name, entry.issparse()) == ("x", False)


def test_the_oldest_format_marks_directories_by_their_name() -> None:
    """By the name that counts in the end: only then it is known whether content follows."""
    assert one(header("d/", tarfile.AREGTYPE)).isdir()
    entry, after = read(pax(path="file") + header("d/", tarfile.AREGTYPE, 512) + bytes(512) + header("after"))
    assert (entry.isreg(), entry.name, after.name) == (True, "file", "after")
    assert one(pax(path="dir/") + header("f", tarfile.AREGTYPE)).isdir()


@pytest.mark.parametrize("rest", [b"", header("a")[:100], b"\xff" * 512, bytes(1024)])
def test_an_extended_header_without_an_entry_is_damage(rest: bytes) -> None:
    with pytest.raises(tarfile.ReadError):
        list(tar.entries(io.BytesIO(pax(path="x") + rest)))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_ordinary_tars_are_read_as_the_standard_library_does(format: int) -> None:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=format) as archive:
        for number, kind in enumerate((tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)):
            info = tarfile.TarInfo(f"some/{'long/' * 20}{number}")
            info.type, info.uid, info.mode, info.mtime = kind, 12345 + number, 0o4755, 1_600_000_000 + number
            info.linkname = f"target-{number}" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = 700 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(bytes(700)))
    output.seek(0)
    with tarfile.open(fileobj=output) as archive:
        expected = [(m.name, m.type, m.uid, m.mode, m.mtime, m.linkname, m.size, m.offset_data) for m in archive]
    found = [
        (m.name, m.type, m.uid, m.mode, m.mtime, m.linkname, m.size, m.offset_data)
        for m in tar.entries(io.BytesIO(output.getvalue()))
    ]
    assert found == expected


@pytest.mark.parametrize("kept", [0, 1, 100, 505, 506, 1018, 1530])
def test_what_comes_after_the_last_content_need_not_be_there(kept: int) -> None:
    """Go asks neither for its padding nor for the end's two blocks, and umoci writes neither."""
    entries = list(
        tar.entries(
            io.BytesIO(header("a", size=700) + padded(bytes(700)) + header("b", size=6) + b"second" + bytes(kept))
        )
    )
    assert [(entry.name, entry.size) for entry in entries] == [("a", 700), ("b", 6)]


def test_content_that_is_not_all_there_is_damage() -> None:
    with pytest.raises(tarfile.ReadError):
        list(tar.entries(io.BytesIO(header("a", size=600) + bytes(599))))
