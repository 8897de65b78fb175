"""Reading tar headers within bounds, whatever a stranger wrote into them.

The standard library's reader calls itself for each extended header, keeps what global ones say for ever, and lets one
that comes first overrule one that comes later. containerd's reader (Go's archive/tar) does none of that, and what two
readers understand differently is where things hide. So headers are put together here, as Go does:

1. Of extended headers of one kind before an entry the last one counts; GNU's long names outrank pax' `path`.
2. A global header is passed over, as containerd does, and all of them are bounded.
3. A number that is none is an error, not zero; an empty value says nothing.
4. A name that the kernel cannot create (PATH_MAX, NAME_MAX) is refused: nobody could unpack it.

Each takes time linear in its size, and memory for one entry is bounded by `MOST_HEADER_BYTES` of each kind.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Self, cast

from sandboxd.errors import InvalidRequest
from sandboxd.foreign_json import shown
from sandboxd.oci.compression import CHUNK

BLOCK = 512
MOST_HEADER_BYTES = 1 << 20  # of an extended header, which is read into memory; Go's bound too
MOST_GLOBAL_BYTES = 1 << 20  # of all global headers; what git writes into one has 52
MOST_PATH_BYTES = 4095  # PATH_MAX without the NUL at its end
MOST_PART_BYTES = 255  # NAME_MAX
WHITEOUT = ".wh."

_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_LONG_NAMES, *_PAX, tarfile.XGLTYPE)
_NUMBER = re.compile(r"[+-]?[0-9]{1,19}")
_TIME = re.compile(r"[+-]?[0-9]{1,19}(?:\.[0-9]*)?")
_TIMES = ("mtime", "atime", "ctime")
_MOST = 1 << 63  # no file is so large, and no seek goes so far


class BoundedTarInfo(tarfile.TarInfo):
    """An entry with its extended headers applied; `tarfile.TarFile` takes it as its `tarinfo`.

    Of a sparse file only the sizes are kept: the map is for whoever unpacks it.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next entry. Raises InvalidRequest for what is out of bounds, tarfile's errors for what is damaged."""
        file = cast(BinaryIO, archive.fileobj)
        start = file.tell()
        pax: dict[str, str] = {}
        name = link = ""
        extended = False
        while True:
            block = file.read(BLOCK)
            try:
                info = cls.frombuf(block, archive.encoding, archive.errors)
            except cast(type[Exception], cast(Any, tarfile).HeaderError) as exc:
                # Only at the place of a whole entry such a thing can be the end.
                raise tarfile.ReadError(f"no entry follows an extended header: {exc}") if extended else exc from None
            check_size(info)
            if info.type not in _EXTENDED:
                break
            extended = True
            if info.size > MOST_HEADER_BYTES:
                raise InvalidRequest(f"the tar has an extended header of {info.size} bytes, which nothing needs")
            data = file.read(info.size + -info.size % BLOCK)[: info.size]
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
        elif info.issym() and _bytes(info.linkname) > MOST_PATH_BYTES:
            raise InvalidRequest(f"the link {shown(info.name)} has a target of more than {MOST_PATH_BYTES} bytes")
        info.offset_data = file.tell()
        has_data = info.isreg() or info.type not in cast(Any, tarfile).SUPPORTED_TYPES
        cast(Any, archive).offset = info.offset_data + (packed + -packed % BLOCK if has_data else 0)
        return info

    def _apply(self, pax: dict[str, str], name: str, link: str) -> int:
        """Take over what extended headers say; returns how many bytes of content follow."""
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
        """Pass over the continuation of a map of GNU's old format, and learn how large the file really is."""
        self.size = int(cast(Any, tarfile).nti(block[483:495]))
        cast(Any, self).sparse = []
        more = block[482]
        while more:
            block = file.read(BLOCK)
            if len(block) < BLOCK:
                raise tarfile.ReadError("it ends in the middle of a map of a sparse file")
            more = block[504]


class _Archive(tarfile.TarFile):
    """Knows how many bytes of global headers there were."""

    global_bytes = 0


def _count_global(archive: tarfile.TarFile, count: int) -> None:
    if isinstance(archive, _Archive):
        archive.global_bytes += count
        if archive.global_bytes > MOST_GLOBAL_BYTES:
            raise InvalidRequest(f"the tar has more than {MOST_GLOBAL_BYTES} bytes of global headers")


class Forward:
    """A stream with as much of a file's face as tarfile needs, without the copies of its own (mode "r|")."""

    def __init__(self, inner: BinaryIO) -> None:
        self._inner = inner
        self._chunk = memoryview(b"")
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        """Go forward, to the end of the stream at most."""
        if position < self._position:
            raise tarfile.StreamError("a stream cannot be read backwards")
        while self._position < position and self.some(position - self._position):
            pass

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes unless the end comes."""
        parts = []
        while size > 0 and (part := self.some(size)):
            parts.append(part)
            size -= len(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def some(self, most: int) -> memoryview:
        """Some of the next bytes, at most `most`; none at the end."""
        if most and not self._chunk:
            self._chunk = memoryview(self._inner.read(CHUNK))
        data, self._chunk = self._chunk[:most], self._chunk[most:]
        self._position += len(data)
        return data


def entries(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The entries of the tar that `file` is at, none of them kept; raises as `BoundedTarInfo.fromtarfile`."""
    with _Archive(fileobj=file, tarinfo=BoundedTarInfo) as archive:
        while (entry := archive.next()) is not None:
            # The list of members is kept for random access, and each with its headers.
            cast(Any, archive).members = []
            yield entry


def check_size(entry: tarfile.TarInfo) -> None:
    """Refuse sizes that no file has (CVE-2025-8194 was a negative one: its successor would be itself)."""
    if entry.size < 0:
        raise InvalidRequest(f"the tar has an entry of negative size, {shown(entry.name)}")
    if entry.size >= _MOST:
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
    """Whether pax records make a sparse file of an entry; versions that Go does not know are nothing to it."""
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
    if len(name) <= MOST_PART_BYTES // 4:
        return  # whatever its characters are
    if _bytes(name) > MOST_PATH_BYTES:
        raise InvalidRequest(f"the name {shown(name)} has more than {MOST_PATH_BYTES} bytes")
    for part in name.split("/"):
        # A whiteout does not get the name that it has.
        if len(part) > MOST_PART_BYTES // 4 and _bytes(part.removeprefix(WHITEOUT)) > MOST_PART_BYTES:
            raise InvalidRequest(f"the name {shown(name)} has a part of more than {MOST_PART_BYTES} bytes")


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
