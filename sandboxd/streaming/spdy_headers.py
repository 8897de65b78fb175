"""SPDY/3 header blocks: names and values, deflated with one context per direction and a fixed dictionary.

Source: "SPDY Protocol - Draft 3.1", section 2.6.10 (Name/Value Header Block).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from struct import Struct

MAX_INFLATED_BYTES = 64 * 1024  # of one block
MAX_PAIRS = 256

_LENGTH = Struct(">I")

_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age "
    "allow authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _dictionary() -> bytes:
    words = (word.replace("_", " ").encode() for word in _WORDS.split())
    return b"".join(_LENGTH.pack(len(word)) + word for word in words) + _TAIL.encode()


# Exactly the draft's: a stream deflated with it identifies it by its Adler-32, 0xe3c6a7c2.
DICTIONARY = _dictionary()


class BadHeaders(ValueError):
    """The block cannot be read. The inflater is out of sync from here on, so the connection must end."""


class HeaderReader:
    """Reads the blocks of one direction, in the order of the wire.

    It must get every block, even those of refused streams, because each one continues the same zlib stream.
    """

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(zdict=DICTIONARY)

    def read(self, block: bytes) -> dict[str, str]:
        """The block's headers; of several values for one name, the first. Raises BadHeaders."""
        try:
            # One byte more than allowed distinguishes "exactly the limit" from "cut off at the limit".
            plain = self._inflater.decompress(block, MAX_INFLATED_BYTES + 1)
        except zlib.error as exc:
            raise BadHeaders(f"headers do not inflate: {exc}") from exc
        if len(plain) > MAX_INFLATED_BYTES:
            raise BadHeaders(f"headers inflate to more than {MAX_INFLATED_BYTES} bytes")
        if self._inflater.eof:
            raise BadHeaders("the header compression was ended")
        return _pairs(plain)


class HeaderWriter:
    """Writes the blocks of one direction."""

    def __init__(self) -> None:
        self._deflater = zlib.compressobj(zdict=DICTIONARY)

    def write(self, headers: Mapping[str, str]) -> bytes:
        """One block. Names must be lower case."""
        parts = [_LENGTH.pack(len(headers))]
        for name, value in headers.items():
            for text in (name.encode("latin-1"), value.encode("latin-1")):
                parts += (_LENGTH.pack(len(text)), text)
        return self._deflater.compress(b"".join(parts)) + self._deflater.flush(zlib.Z_SYNC_FLUSH)


def _pairs(plain: bytes) -> dict[str, str]:
    position = 0

    def number() -> int:
        nonlocal position
        if position + 4 > len(plain):
            raise BadHeaders("headers end in the middle of a length")
        (value,) = _LENGTH.unpack_from(plain, position)
        position += 4
        return int(value)

    def text() -> str:
        nonlocal position
        length = number()
        if length > len(plain) - position:
            raise BadHeaders("a header is longer than its block")
        position += length
        return plain[position - length : position].decode("latin-1")

    count = number()
    if count > MAX_PAIRS:
        raise BadHeaders(f"{count} headers; at most {MAX_PAIRS} are read")
    headers: dict[str, str] = {}
    for _ in range(count):
        name, value = text(), text()
        if not name or name != name.lower():
            raise BadHeaders(f"{name[:60]!r} is not a header name")
        if name in headers:
            raise BadHeaders(f"header {name[:60]!r} comes twice")
        headers[name] = value.partition("\0")[0]
    if position != len(plain):
        raise BadHeaders("bytes follow the last header")
    return headers
