"""Decompression of what strangers packed: gzip and zstd, in time and memory linear in what goes in and comes out.

gzip unpacks to at most 1,032 times its size. zstd knows no such bound (four bytes can stand for 128 KiB), so it is
held to one: see `Allowance`.
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

CHUNK = 1 << 20
MOST_MEMBERS = 4_000_000  # of gzip, or frames of zstd; some builders make one for each file
WINDOW_LOG = 27  # of zstd: 128 MiB of memory, what its own tools read without being told to

_GzipError: type[Exception] = igzip_lib.error  # type: ignore[assignment]  # the stub says: an instance
DAMAGE = (_GzipError, zstd.ZstdError, EOFError)  # what reading a damaged stream raises

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_PIECE = CHUNK // 4  # bytes given to a decompressor at a time
_FIRST_PIECE = 256  # the same at a member's beginning: what follows its end is read again


class Allowance:
    """How large something may become, in bytes: `free`, then `factor` times what it was packed in; `most` at most."""

    def __init__(self, free: int, factor: int, most: int) -> None:
        self.free, self.factor, self.most = free, factor, most

    def exceeded(self, size: int, packed: int) -> str:
        """What is wrong with `size` bytes out of `packed`, "" when nothing is."""
        if size > self.most:
            return f"more than {self.most >> 30} GiB when it is unpacked"
        if size > self.free + self.factor * packed:
            return f"more than {self.free >> 20} MiB and {self.factor} times its own size when it is unpacked"
        return ""


def compression_of(file: BinaryIO) -> str:
    """How a stream is compressed, told by its first bytes; the position is its beginning afterwards."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == _GZIP:
        return "gzip"
    return "zstd" if magic == _ZSTD else ""


def decompressed(file: BinaryIO, compression: str, what: str) -> BinaryIO:
    """The stream without its compression ("gzip", "zstd" or ""); reading it raises one of `DAMAGE`."""
    if compression == "gzip":
        return cast(BinaryIO, _Members(file, _gunzip, what, padded=True))
    if compression == "zstd":
        return cast(BinaryIO, _Members(file, _unzstd, what, padded=False))
    return file


class _Decompressor(Protocol):
    """What the modules of the standard library agree on."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _gunzip() -> _Decompressor:
    # ISA-L takes about half of zlib's time for what images are made of.
    return cast(_Decompressor, igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP))


def _unzstd() -> _Decompressor:
    options: dict[Any, int] = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
    return cast(_Decompressor, zstd.ZstdDecompressor(options=options))


class _Members(io.RawIOBase):
    """Members (or frames) one after the other, decompressed in large pieces: GzipFile reads a few KiB at a time.

    A member is given little at first and more the longer it lasts. So what turns out to belong to the next one is
    never much more than the member itself, however many there are.
    """

    def __init__(self, inner: BinaryIO, make: Callable[[], _Decompressor], what: str, *, padded: bool) -> None:
        """`padded`: there may be zeros between and after members."""
        self._inner = inner
        self._make = make
        self._what = what
        self._padded = padded
        self._member: _Decompressor | None = None
        self._count = 0
        self._buffer: bytes | memoryview = b""
        self._at = 0
        self._piece = _FIRST_PIECE

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
                self._member, self._piece = None, _FIRST_PIECE
            if plain:
                return plain

    def _take(self) -> bytes:
        """Some of the compressed bytes; none at the end."""
        if self._at == len(self._buffer):
            self._buffer, self._at = self._inner.read(_PIECE), 0
        data = bytes(self._buffer[self._at : self._at + self._piece])
        self._at += len(data)
        self._piece = min(_PIECE, 2 * self._piece)
        return data

    def _begin(self) -> _Decompressor:
        self._count += 1
        if self._count > MOST_MEMBERS:
            raise InvalidRequest(f"{self._what} is compressed in more than {MOST_MEMBERS} pieces")
        return self._make()
