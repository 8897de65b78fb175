"""What is packed is unpacked, however it was packed, at a cost that is linear in what goes in and comes out."""

from __future__ import annotations

import gzip
import io
from typing import Any

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest
from sandboxd.oci import compression
from sandboxd.oci.compression import Allowance


def unpacked(data: bytes, kind: str, size: int = compression.CHUNK_BYTES) -> bytes:
    stream = compression.decompressed(io.BytesIO(data), kind, "layer")
    pieces = []
    while piece := stream.read(size):
        assert len(piece) <= size
        pieces.append(piece)
    return b"".join(pieces)


PACKERS: dict[str, Any] = {"gzip": gzip.compress, "zstd": zstd.compress}


@pytest.mark.parametrize("kind", PACKERS)
@settings(deadline=None)
@given(
    members=st.lists(st.tuples(st.binary(max_size=3000), st.integers(1, 200)), max_size=6),
    size=st.integers(1, 70_000),
)
def test_members_come_out_as_they_went_in(kind: str, members: list[tuple[bytes, int]], size: int) -> None:
    packed = b"".join(PACKERS[kind](data * times) for data, times in members)
    assert unpacked(packed, kind, size) == b"".join(data * times for data, times in members)


@pytest.mark.parametrize("kind", PACKERS)
def test_a_large_member_comes_out_as_it_went_in(kind: str) -> None:
    data = b"".join(number.to_bytes(4, "little") for number in range(1_000_000))
    assert unpacked(PACKERS[kind](data), kind) == data


class Counted:
    """A decompressor that counts the bytes it was given."""

    given = 0

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def decompress(self, data: bytes, most: int = -1) -> bytes:
        Counted.given += len(data)
        return bytes(self._inner.decompress(data, most))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.mark.parametrize(("kind", "make"), [("gzip", "_gunzip"), ("zstd", "_unzstd")])
@pytest.mark.parametrize("content", [b"", b"x" * 3000])
def test_however_many_members_there_are_each_byte_is_given_a_few_times(
    monkeypatch: pytest.MonkeyPatch, kind: str, make: str, content: bytes
) -> None:
    """What is left after a member's end belongs to the next, and is given again."""
    inner = getattr(compression, make)
    monkeypatch.setattr(compression, make, lambda: Counted(inner()))
    packed = PACKERS[kind](content) * 3000
    Counted.given = 0
    assert unpacked(packed, kind) == content * 3000
    assert Counted.given < 30 * len(packed)


def test_zeros_between_members_cost_nothing_but_themselves() -> None:
    packed = gzip.compress(b"a") + bytes(3_000_000) + gzip.compress(b"b") + bytes(100)
    assert unpacked(packed, "gzip") == b"ab"


@pytest.mark.parametrize("kind", PACKERS)
def test_members_are_counted(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(compression, "MAX_MEMBERS", 10)
    assert unpacked(PACKERS[kind](b"x") * 10, kind) == b"x" * 10
    with pytest.raises(InvalidRequest, match="more than 10 pieces"):
        unpacked(PACKERS[kind](b"x") * 11, kind)


@pytest.mark.parametrize("kind", PACKERS)
def test_what_is_cut_off_is_damage(kind: str) -> None:
    with pytest.raises(compression.DAMAGE):
        unpacked(PACKERS[kind](b"hello" * 100)[:-3], kind)


@pytest.mark.parametrize(("log", "accepted"), [(23, True), (27, True), (28, False), (31, False)])
def test_the_memory_that_zstd_asks_for_is_bounded(log: int, accepted: bool) -> None:
    """A frame says how far back it refers, and its reader holds so much."""
    frame = b"\x28\xb5\x2f\xfd" + bytes([0, (log - 10) << 3]) + b"\x01\x00\x00"  # one empty last block
    if accepted:
        assert unpacked(frame, "zstd") == b""
    else:
        with pytest.raises(compression.DAMAGE):
            unpacked(frame, "zstd")


def test_an_allowance_is_in_words() -> None:
    allowance = Allowance(free=1 << 20, factor=10, most=1 << 30)
    assert allowance.exceeded((1 << 20) + 1000, 100) == ""
    assert "10 times" in allowance.exceeded((1 << 20) + 1001, 100)
    assert "1 GiB" in allowance.exceeded((1 << 30) + 1, 1 << 40)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"BZh91AY", "bzip2"),
        (b"\xfd7zXZ\0\0", "xz"),
        (b"\x5d\0\0\x80\0", "lzma"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"LZIP\1", "lzip"),
        (b"\x1f\x9d\x90", "compress"),
        (b"PK\x03\x04", "zip"),
        (b"ustar", ""),
        (b"", ""),
    ],
)
def test_a_format_that_is_not_read_has_a_name(start: bytes, name: str) -> None:
    assert compression.foreign(start) == name
    assert compression.compression_of(io.BytesIO(start)) == ""


@pytest.mark.parametrize("first", range(0x50, 0x60))
def test_a_frame_to_be_skipped_is_zstd(first: int) -> None:
    """There are sixteen (RFC 8878, 3.1.2)."""
    assert compression.compression_of(io.BytesIO(bytes([first]) + b"\x2a\x4d\x18" + bytes(8))) == "zstd"
    assert compression.compression_of(io.BytesIO(bytes([first - 16]) + b"\x2a\x4d\x18" + bytes(8))) == ""
