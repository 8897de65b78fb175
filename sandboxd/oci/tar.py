"""Reading untrusted tar headers within bounds.

The standard library's reader recurses for each extended header, applies global headers to all later entries, and
lets an earlier header override a later one. containerd's reader (Go's archive/tar) does none of that, and an
archive that two readers understand differently can hide files from one of them. So this module combines headers as
Go does:

1. Of several extended headers of one kind before an entry, the last one counts; GNU long names override pax `path`.
2. Global headers are ignored, as in containerd, and their total size is limited.
3. A malformed number is an error, not zero; an empty value counts as absent.
4. A name that the kernel cannot create (PATH_MAX, NAME_MAX) is refused, because it could not be unpacked.

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
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_LONG_NAMES, *_PAX, tarfile.XGLTYPE)
_NUMBER = re.compile(r"[+-]?[0-9]{1,19}")
_TIME = re.compile(r"[+-]?[0-9]{1,19}(?:\.[0-9]*)?")
_TIMES = ("mtime", "atime", "ctime")
_MAX_SIZE = 1 << 63  # bytes; no file is this large, and no seek goes this far


class BoundedTarInfo(tarfile.TarInfo):
    """An entry with its extended headers applied, for the `tarinfo` of `tarfile.TarFile`.

    Of a sparse file only the sizes are kept, not the map.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next entry. Raises InvalidRequest for one that exceeds a limit, tarfile's errors for a damaged one."""
        file = cast(BinaryIO, archive.fileobj)
        start = file.tell()
        pax: dict[str, str] = {}
        name = link = ""
        extended = False
        while True:
            block = file.read(BLOCK_BYTES)
            try:
                info = cls.frombuf(block, archive.encoding, archive.errors)
            except cast(type[Exception], cast(Any, tarfile).HeaderError) as exc:
                # Only where a new entry would start can this be the end of the archive.
                raise tarfile.ReadError(f"no entry follows an extended header: {exc}") if extended else exc from None
            check_size(info)
            if info.type not in _EXTENDED:
                break
            extended = True
            if info.size > MAX_HEADER_BYTES:
                raise InvalidRequest(
                    f"the tar has an extended header of {info.size} bytes, more than {MAX_HEADER_BYTES}"
                )
            data = file.read(info.size + -info.size % BLOCK_BYTES)[: info.size]
            if len(data) < info.size:
                raise tarfile.ReadError("it ends in the middle of an extended header")
            if info.type == tarfile.XGLTYPE:
                _count_global(archive, info.size)
            elif info.type in _PAX:
                pax = _records(data)
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                name = _text(data.partition(b"\0")[0])
            elif info.type == tarfile.GNUTYPE_LONGLINK:
                link = _text(data.partition(b"\0")[0])
        info.offset = start
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
        cast(Any, archive).offset = info.offset_data + (packed + -packed % BLOCK_BYTES if has_data else 0)
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


class _Archive(tarfile.TarFile):
    """Counts the bytes of global headers."""

    global_bytes = 0


def _count_global(archive: tarfile.TarFile, count: int) -> None:
    if isinstance(archive, _Archive):
        archive.global_bytes += count
        if archive.global_bytes > MAX_GLOBAL_BYTES:
            raise InvalidRequest(f"the tar has more than {MAX_GLOBAL_BYTES} bytes of global headers")


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
    """The entries of the tar in `file`; none are kept. Raises as `BoundedTarInfo.fromtarfile` does."""
    with _Archive(fileobj=file, tarinfo=BoundedTarInfo) as archive:
        while (entry := archive.next()) is not None:
            # tarfile would keep every entry with its headers for random access.
            cast(Any, archive).members = []
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
    for key in ("path", "linkpath", "GNU.sparse.name"):
        if "\0" in records.get(key, ""):
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
