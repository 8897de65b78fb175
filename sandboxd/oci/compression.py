"""Decompression of untrusted gzip and zstd streams, in time and memory linear in input and output.

gzip expands to at most 1,032 times its size. zstd has no such bound (four bytes can stand for 128 KiB), so one is
imposed: see `Allowance`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, cast

try:
    from compression import zstd  # type: ignore[import-not-found, unused-ignore]
except ModuleNotFoundError:  # before Python 3.14
    from backports import zstd

from isal import igzip_lib

from sandboxd.errors import InvalidRequest

CHUNK_BYTES = 1 << 20
MAX_MEMBERS = 4_000_000  # of gzip, or frames of zstd; some builders write one for each file
WINDOW_LOG = 27  # of zstd: 128 MiB of memory, the default limit of its own tools

_GzipError: type[Exception] = igzip_lib.error  # type: ignore[assignment]  # the stub says: an instance
DAMAGE = (_GzipError, zstd.ZstdError, EOFError)  # the errors that reading a damaged stream raises

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte from 0x50 to 0x5f (RFC 8878, 3.1.2)
_FOREIGN = (
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x5d\0\0", "lzma"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"LZIP", "lzip"),
    (b"\x89LZO\0", "lzop"),
    (b"\xff\x06\0\0sNaPpY", "snappy"),
    (b"\x1f\x9d", "compress"),
    (b"\x1f\xa0", "compress"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
    (b"hsqs", "squashfs"),
)
FOREIGN_BYTES = 16  # of the beginning of a stream, for `foreign`
_PIECE_BYTES = CHUNK_BYTES // 4  # given to a decompressor at a time
_FIRST_PIECE_BYTES = 256  # the same at the start of a member; input past the member's end is read again


class Allowance:
    """How large data may become, in bytes: `free` plus `factor` times its compressed size, and never over `most`."""

    def __init__(self, free: int, factor: int, most: int) -> None:
        self.free, self.factor, self.most = free, factor, most

    def exceeded(self, size: int, packed: int) -> str:
        """Which limit `size` bytes from `packed` compressed ones exceed, for a message; "" for none."""
        if size > self.most:
            return f"more than {self.most >> 30} GiB when unpacked"
        if size > self.free + self.factor * packed:
            return f"more than {self.free >> 20} MiB and {self.factor} times its own size when unpacked"
        return ""


def compression_of(file: BinaryIO) -> str:
    """The stream's compression by its first bytes: "gzip", "zstd" or "". Leaves the position at the beginning."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == _GZIP:
        return "gzip"
    # A frame to be skipped may come first: pzstd's has the size of the next one, others have a table.
    return "zstd" if magic == _ZSTD or (magic[1:] == _SKIPPABLE and magic[0] & 0xF0 == 0x50) else ""


def foreign(start: bytes) -> str:
    """The name of a format that is not read here, by the first bytes of a stream; "" if it is not known."""
    return next((name for magic, name in _FOREIGN if start.startswith(magic)), "")


def decompressed(file: BinaryIO, compression: str, what: str) -> BinaryIO:
    """The decompressed stream, for `compression` "gzip", "zstd" or "". Reading it may raise one of `DAMAGE`."""
    if compression == "gzip":
        return cast(BinaryIO, _Members(file, _gunzip, what, padded=True))
    if compression == "zstd":
        return cast(BinaryIO, _Members(file, _unzstd, what, padded=False))
    return file


class _Decompressor(Protocol):
    """The interface of the standard library's decompressors."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _gunzip() -> _Decompressor:
    # ISA-L takes about half of zlib's time for the content of images.
    return cast(_Decompressor, igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP))


def _unzstd() -> _Decompressor:
    options: dict[Any, int] = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
    return cast(_Decompressor, zstd.ZstdDecompressor(options=options))


class _Members(io.RawIOBase):
    """Consecutive members (or frames), decompressed in large pieces; GzipFile reads a few KiB at a time.

    A member is given small pieces at first and larger ones as it goes on. So the input that turns out to belong to
    the next member, and is read again, is never much larger than the member itself.
    """

    def __init__(self, inner: BinaryIO, make: Callable[[], _Decompressor], what: str, *, padded: bool) -> None:
        """`padded` allows zeros between and after members."""
        self._inner = inner
        self._make = make
        self._what = what
        self._padded = padded
        self._member: _Decompressor | None = None
        self._count = 0
        self._buffer: bytes | memoryview = b""
        self._at = 0
        self._piece = _FIRST_PIECE_BYTES

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while True:
            data = b""
            if (self._member is None or self._member.needs_input) and not (data := self._take()):
                if self._member is not None:
                    raise EOFError("it ends in the middle of its compressed data")
                return b""
            if self._member is None:
                if self._padded and not (data := data.lstrip(b"\0")):
                    continue
                self._member = self._begin()
            plain = self._member.decompress(data, size)
            if self._member.eof:
                self._at -= len(self._member.unused_data)
                self._member, self._piece = None, _FIRST_PIECE_BYTES
            if plain:
                return plain

    def _take(self) -> bytes:
        """The next piece of compressed bytes; empty at the end."""
        if self._at == len(self._buffer):
            self._buffer, self._at = self._inner.read(_PIECE_BYTES), 0
        data = bytes(self._buffer[self._at : self._at + self._piece])
        self._at += len(data)
        self._piece = min(_PIECE_BYTES, 2 * self._piece)
        return data

    def _begin(self) -> _Decompressor:
        self._count += 1
        if self._count > MAX_MEMBERS:
            raise InvalidRequest(f"{self._what} is compressed in more than {MAX_MEMBERS} pieces")
        return self._make()
