"""Reading untrusted tar headers within bounds.

The standard library's reader recurses for each extended header, applies global headers to all later entries, and
lets an earlier header override a later one. containerd's reader (Go's archive/tar) does none of that, and an
archive that two readers understand differently can hide files from one of them. So this module combines headers as
Go does:

1. Of several extended headers of one kind before an entry, the last one counts; GNU long names override pax `path`.
2. What a global header says is ignored, and so are the extended headers before it; their total size is limited. The
   next entry has `after_global`, since containerd treats what the header itself is called as an entry's name.
3. A malformed number is an error, not zero; an empty value counts as absent.
4. A name that the kernel cannot create (PATH_MAX, NAME_MAX) is refused, because it could not be unpacked.
5. Two blocks of zeros are the end, or the end of the file is, even within the padding of the last entry, which umoci
   leaves out; what follows the two is nobody's.
6. The prefix of a name is where the format has one; GNU's has times there.

Each header takes time linear in its size. The memory for one entry is limited to `MAX_HEADER_BYTES` for each kind.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Self, cast

from sandboxd.errors import InvalidRequest
from sandboxd.foreign_json import shown
from sandboxd.oci.compression import CHUNK_BYTES

BLOCK_BYTES = 512
MAX_HEADER_BYTES = 1 << 20  # of an extended header, which is read into memory; also Go's limit
MAX_GLOBAL_BYTES = 1 << 20  # of all global headers; git's has 52
MAX_PATH_BYTES = 4095  # PATH_MAX without the NUL at its end
MAX_PART_BYTES = 255  # NAME_MAX
WHITEOUT = ".wh."

_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX = (tarfile.XHDTYPE,)
_EXTENDED = (*_LONG_NAMES, *_PAX, tarfile.XGLTYPE)
_NUMBER = re.compile(r"[+-]?[0-9]{1,19}")
_TIME = re.compile(r"[+-]?[0-9]{1,19}(?:\.[0-9]*)?")
_NAMES = ("path", "linkpath", "uname", "gname", "GNU.sparse.name")
_TIMES = ("mtime", "atime", "ctime")
_MAX_SIZE = 1 << 63  # bytes; no file is this large, and no seek goes this far


class BoundedTarInfo(tarfile.TarInfo):
    """An entry with its extended headers applied.

    Of a sparse file only the sizes are kept, not the map.
    """

    after_global = False  # whether a global header came before it

    @classmethod
    def next_of(cls, stream: _Stream) -> Self | None:
        """The next entry, None at the end. Raises InvalidRequest for one that exceeds a limit or is not known to
        anybody who unpacks layers, tarfile.ReadError for a damaged one.
        """
        file = stream.file
        start = file.tell()
        pax: dict[str, str] = {}
        name = link = ""
        extended = after_global = False
        while True:
            block = file.read(BLOCK_BYTES)
            if not extended and _is_end(block, file):
                return None
            info = cls._parsed(block, extended)
            check_size(info)
            if info.type not in _EXTENDED:
                break
            extended = info.type != tarfile.XGLTYPE
            if info.size > MAX_HEADER_BYTES:
                raise InvalidRequest(
                    f"the tar has an extended header of {info.size} bytes, more than {MAX_HEADER_BYTES}"
                )
            data = file.read(info.size + -info.size % BLOCK_BYTES)[: info.size]
            if len(data) < info.size:
                raise tarfile.ReadError("it ends in the middle of an extended header")
            if info.type == tarfile.XGLTYPE:
                stream.count_global(info.size)
                _records(data)
                after_global, pax, name, link = True, {}, "", ""
            elif info.type in _PAX:
                pax = _records(data)
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                name = _text(data.partition(b"\0")[0])
            elif info.type == tarfile.GNUTYPE_LONGLINK:
                link = _text(data.partition(b"\0")[0])
        info.offset, info.after_global = start, after_global
        packed = info._apply(pax, name, link)
        renamed = name or pax.get("path")
        if renamed and block[156:157] == tarfile.AREGTYPE:  # the oldest format marks directories by their names
            info.type = tarfile.DIRTYPE if renamed.endswith("/") else tarfile.AREGTYPE
        if info.type == tarfile.GNUTYPE_SPARSE:
            info._skip_map(file, block)
        check_size(info)
        if info.isdir():
            info.name = info.name.rstrip("/")
        _check_name(info.name)
        if info.islnk():
            _check_name(info.linkname)
        elif info.issym() and _bytes(info.linkname) > MAX_PATH_BYTES:
            raise InvalidRequest(f"the link {shown(info.name)} has a target of more than {MAX_PATH_BYTES} bytes")
        info.offset_data = file.tell()
        has_data = info.isreg() or info.type not in cast(Any, tarfile).SUPPORTED_TYPES
        stream.content_end = info.offset_data + (packed if has_data else 0)
        return info

    @classmethod
    def _parsed(cls, block: bytes, extended: bool) -> Self:
        """The header in `block`; `extended` headers came before it."""
        try:
            info = cls.frombuf(block, "utf-8", "surrogateescape")
        except cast(type[Exception], cast(Any, tarfile).HeaderError) as exc:
            before = "no entry follows an extended header: " if extended else ""
            raise tarfile.ReadError(f"{before}{exc}") from None
        # The standard library takes those bytes for a prefix whatever the format is.
        taken, prefix = _text(block[345:500].partition(b"\0")[0]), _prefix(block)
        if taken != prefix and info.name.startswith(f"{taken}/"):
            name = info.name.removeprefix(f"{taken}/")
            info.name = f"{prefix}/{name}" if prefix else name
        return info

    def _apply(self, pax: dict[str, str], name: str, link: str) -> int:
        """Apply the extended headers; return how many bytes of content follow."""
        self.pax_headers = pax
        if pax:
            for key in _TIMES:
                if (text := pax.get(key)) and not _TIME.fullmatch(text):
                    raise InvalidRequest(f"the tar has a {key} that is not a time, {shown(text)}")
            self.name = pax.get("path") or self.name
            self.linkname = pax.get("linkpath") or self.linkname
            self.uname, self.gname = pax.get("uname") or self.uname, pax.get("gname") or self.gname
            self.uid, self.gid = _number(pax, "uid", self.uid), _number(pax, "gid", self.gid)
            self.size = _number(pax, "size", self.size)
            self.mtime = float(pax.get("mtime") or self.mtime)
            check_size(self)
        packed = self.size
        if pax and _is_sparse(pax):
            self.name = pax.get("GNU.sparse.name") or self.name
            size = "GNU.sparse.size" if pax.get("GNU.sparse.size") else "GNU.sparse.realsize"
            self.size = _number(pax, size, self.size)
            cast(Any, self).sparse = []
        self.name, self.linkname = name or self.name, link or self.linkname
        return packed

    def _skip_map(self, file: BinaryIO, block: bytes) -> None:
        """Skip the continuation of a map in GNU's old format, and set the real size of the file."""
        self.size = int(cast(Any, tarfile).nti(block[483:495]))
        cast(Any, self).sparse = []
        more = block[482]
        while more:
            block = file.read(BLOCK_BYTES)
            if len(block) < BLOCK_BYTES:
                raise tarfile.ReadError("it ends in the middle of a sparse file's map")
            more = block[504]


class _Stream:
    """Where the reader of a tar is."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.content_end = file.tell()  # of the current entry; zeros up to a whole block follow, or the end
        self._global_bytes = 0

    def count_global(self, count: int) -> None:
        """Count the bytes of a global header. Raises InvalidRequest when there are too many."""
        self._global_bytes += count
        if self._global_bytes > MAX_GLOBAL_BYTES:
            raise InvalidRequest(f"the tar has more than {MAX_GLOBAL_BYTES} bytes of global headers")


def _prefix(block: bytes) -> str:
    """What comes before the name in a header; GNU's and the oldest format have none."""
    if block[257:263] == b"ustar\0":
        width = 131 if block[508:512] == b"tar\0" else 155  # star has times behind it
        return _text(block[345 : 345 + width].partition(b"\0")[0])
    if block[257:265] == b"ustar  \0" and not (_is_time(block[345:357]) and _is_time(block[357:369])):
        # Go's own writer once made such headers, so its reader takes them for what they were meant to be.
        prefix = _text(block[345:500].partition(b"\0")[0])
        return prefix if prefix.isascii() else ""
    return ""


def _is_time(data: bytes) -> bool:
    try:
        return data[0] == 0 or cast(Any, tarfile).nti(data) is not None
    except cast(type[Exception], cast(Any, tarfile).HeaderError):
        return False


def _is_end(block: bytes, file: BinaryIO) -> bool:
    """Whether `block`, which was just read, ends the tar."""
    if not block:
        return True
    if block.count(0) != BLOCK_BYTES:
        return False
    after = file.read(BLOCK_BYTES)
    if after.count(0) == len(after) and len(after) in (0, BLOCK_BYTES):
        return True
    raise tarfile.ReadError("an entry follows a block of zeros")


class Forward:
    """A stream with the parts of a file's interface that tarfile needs, without the copies of its mode "r|"."""

    def __init__(self, inner: BinaryIO) -> None:
        self._inner = inner
        self._chunk = memoryview(b"")
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        """Skip forward to `position`, or to the end of the stream."""
        if position < self._position:
            raise tarfile.StreamError("a stream cannot be read backwards")
        while self._position < position and self.some(position - self._position):
            pass

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, or fewer at the end."""
        parts = []
        while size > 0 and (part := self.some(size)):
            parts.append(part)
            size -= len(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def some(self, most: int) -> memoryview:
        """The next bytes that are available, at most `most`; empty at the end."""
        if most and not self._chunk:
            self._chunk = memoryview(self._inner.read(CHUNK_BYTES))
        data, self._chunk = self._chunk[:most], self._chunk[most:]
        self._position += len(data)
        return data


def entries(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The entries of the tar in `file`; none are kept. Raises as `BoundedTarInfo.next_of` does.

    After the last one, `file` is just behind the tar's end; what it holds there is not read.
    """
    stream = _Stream(file)
    while True:
        if stream.content_end > file.tell():
            # The last byte is read, since a seek tells nothing of the end of a file.
            file.seek(stream.content_end - 1)
            if not file.read(1):
                raise tarfile.ReadError("it ends in the middle of an entry")
        file.read(-stream.content_end % BLOCK_BYTES)
        entry = BoundedTarInfo.next_of(stream)
        if entry is None:
            return
        yield entry


def check_size(entry: tarfile.TarInfo) -> None:
    """Refuse impossible sizes (CVE-2025-8194: after a negative size the reader would find the same entry again)."""
    if entry.size < 0:
        raise InvalidRequest(f"the tar has an entry of negative size, {shown(entry.name)}")
    if entry.size >= _MAX_SIZE:
        raise InvalidRequest(f"the tar has an entry of {entry.size} bytes, {shown(entry.name)}")


def _records(data: bytes) -> dict[str, str]:
    """The records of a pax header, "LENGTH KEY=VALUE\\n" each (POSIX.1-2024, pax, "Extended Header")."""
    records = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 8)
        digits = data[at:space] if space > at else b""
        end = at + int(digits) if digits.isdigit() else 0
        equals = data.find(b"=", space + 1, end)
        if equals <= space + 1 or end > len(data) or data[end - 1] != ord("\n"):
            raise InvalidRequest("the tar has a pax header that cannot be read")
        records[_text(data[space + 1 : equals])] = _text(data[equals + 1 : end - 1])
        at = end
    if any("\0" in records.get(key, "") for key in _NAMES) or any("\0" in key for key in records):
        raise InvalidRequest("the tar has a name with a NUL character")
    return records


def _is_sparse(pax: dict[str, str]) -> bool:
    """Whether pax records mark an entry as a sparse file; Go ignores versions that it does not know."""
    version = (pax.get("GNU.sparse.major", ""), pax.get("GNU.sparse.minor", ""))
    if version == ("", ""):
        return bool(pax.get("GNU.sparse.map") or "GNU.sparse.offset" in pax)
    return version in (("0", "0"), ("0", "1"), ("1", "0"))


def _number(pax: dict[str, str], key: str, otherwise: int) -> int:
    text = pax.get(key)
    if not text:
        return otherwise
    if not _NUMBER.fullmatch(text):
        raise InvalidRequest(f"the tar has a {key} that is not a number, {shown(text)}")
    return int(text)


def _check_name(name: str) -> None:
    if len(name) <= MAX_PART_BYTES // 4:
        return  # short enough even if every character takes four bytes
    if _bytes(name) > MAX_PATH_BYTES:
        raise InvalidRequest(f"the name {shown(name)} has more than {MAX_PATH_BYTES} bytes")
    for part in name.split("/"):
        # A whiteout's prefix is not part of the name that is created or deleted.
        if len(part) > MAX_PART_BYTES // 4 and _bytes(part.removeprefix(WHITEOUT)) > MAX_PART_BYTES:
            raise InvalidRequest(f"the name {shown(name)} has a part of more than {MAX_PART_BYTES} bytes")


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
