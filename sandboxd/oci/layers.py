"""Layers: tar streams, plain or compressed, each a set of changes to the file system below it.

A layer comes from a stranger. `scan` reads it once, before anything is unpacked, and tells its two digests; it
refuses what would reach out of the root if the one who unpacks were careless:

1. a name, or the target of a hard link, that climbs above the root with `..`;
2. a name that passes through a symbolic link of the same layer whose target is absolute or climbs. Such links are
   normal (`/var/run -> /run`); writing *through* one is how an archive writes to the host's /etc;
3. a whiteout that would delete `.` or `..`.

An absolute name counts from the root, as every unpacker treats it.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, cast

try:
    from compression import zstd  # type: ignore[import-not-found, unused-ignore]
except ModuleNotFoundError:  # before Python 3.14
    from backports import zstd

from isal import igzip_lib

from sandboxd.errors import InvalidRequest

MOST_HEADER_BYTES = 1 << 20  # of a name or an extended header, which is read into memory
CHUNK = 1 << 20

_GzipError: type[Exception] = igzip_lib.error  # type: ignore[assignment]  # the stub says: an instance
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_WHITEOUT = ".wh."
_MOST_LINKS = 40  # followed on one path, as the kernel's own limit
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a layer turned out to be. Sizes in bytes."""

    digest: str  # of the bytes as they are, "" where somebody else verifies it
    size: int
    compression: str  # "", "gzip" or "zstd"
    diff_id: str  # digest of the uncompressed tar
    uncompressed: int
    entries: int


Read = Callable[[int], memoryview]  # the content's next bytes, at most so many; none at its end


class Visitor(Protocol):
    """Sees the entries of a layer one after the other, each after it was checked."""

    def visit(self, entry: tarfile.TarInfo, path: str, target: str, read: Read) -> None:
        """An entry that goes to `path` below the root, "" for the root itself.

        Links that the layer made before are followed already; a directory in a link's place replaces it. `target` is
        that of a hard link, followed likewise. What is not read of the content is skipped.
        """

    def finish(self) -> None:
        """Every entry was visited and nothing is wrong with the layer."""


class BoundedTarInfo(tarfile.TarInfo):
    """Reads headers, but not such as would fill the memory or lead the reader backwards (CVE-2025-8194)."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> BoundedTarInfo:
        info = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        if info.type in _EXTENDED and info.size > MOST_HEADER_BYTES:
            raise InvalidRequest(f"the tar has an extended header of {info.size} bytes, which nothing needs")
        check_size(info)
        return info


def check_size(entry: tarfile.TarInfo) -> None:
    """Refuse a negative size; extended headers can give one after the header itself was read."""
    if entry.size < 0:
        raise InvalidRequest(f"the tar has an entry of negative size, {entry.name!r}")


class _Measured(io.RawIOBase):
    """Passes a stream on, hashing and counting what goes by."""

    def __init__(self, inner: BinaryIO, *, hashed: bool = True) -> None:
        self._inner = inner
        self._hash = hashlib.sha256() if hashed else None
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        if self._hash is not None:
            self._hash.update(data)
        self.count += len(data)
        return data

    def readable(self) -> bool:
        return True

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}" if self._hash is not None else ""


class _Gunzip(io.RawIOBase):
    """gzip's members, decompressed in large pieces: GzipFile reads a few KiB at a time and holds up other threads.

    ISA-L takes about half of zlib's time for what images are made of.
    """

    def __init__(self, inner: BinaryIO) -> None:
        self._inner = inner
        self._member: igzip_lib.IgzipDecompressor | None = None
        self._left = b""  # what follows the member that has ended

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while True:
            data = b""
            if self._member is None or self._member.needs_input:
                data = self._left or self._inner.read(CHUNK // 4)
                self._left = b""
                if not data:
                    if self._member is not None:
                        raise EOFError("it ends in the middle of its compressed data")
                    return b""
            if self._member is None:
                if not (data := bytes(data).lstrip(b"\0")):  # padding between members is allowed
                    continue
                self._member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            plain = self._member.decompress(data, size)
            if self._member.eof:
                self._left, self._member = self._member.unused_data, None
            if plain:
                return plain


class _Forward:
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


def scan(file: BinaryIO, what: str = "layer", visitor: Visitor | None = None, *, digest: bool = True) -> Scan:
    """Read a whole layer from its beginning; `file` is seekable, `what` names it in errors.

    Whatever `visitor` made of the entries counts for nothing when this fails. Without `digest` the bytes as they are
    are not hashed.

    Raises InvalidRequest for a damaged layer or one that escapes its root, Unsupported for a compression that this
    Python cannot read.
    """
    compression = compression_of(file)
    raw = _Measured(file, hashed=digest)
    plain = _Measured(decompressed(cast(BinaryIO, raw), compression, what))
    try:
        entries = _check_entries(plain, what, visitor)
        while plain.read(CHUNK):
            pass
        while raw.read(CHUNK):
            pass
        if visitor is not None:
            visitor.finish()
    except (tarfile.TarError, _GzipError, zstd.ZstdError, EOFError, OSError, ValueError) as exc:
        # Reading the file itself can fail too; then errno is set and it is not the layer's fault.
        if isinstance(exc, OSError) and exc.errno is not None:
            raise
        raise InvalidRequest(f"{what} is damaged: {exc}") from exc
    return Scan(
        digest=raw.digest,
        size=raw.count,
        compression=compression,
        diff_id=plain.digest,
        uncompressed=plain.count,
        entries=entries,
    )


def compression_of(file: BinaryIO) -> str:
    """How a stream is compressed, told by its first bytes; the position is its beginning afterwards."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == _GZIP:
        return "gzip"
    return "zstd" if magic == _ZSTD else ""


def decompressed(file: BinaryIO, compression: str, what: str) -> BinaryIO:
    """The stream without its compression ("gzip", "zstd" or "")."""
    if compression == "gzip":
        return cast(BinaryIO, _Gunzip(file))
    if compression == "zstd":
        return cast(BinaryIO, zstd.ZstdFile(file))
    return file


def _check_entries(stream: _Measured, what: str, visitor: Visitor | None) -> int:
    """Read the tar to the end of its entries and refuse what escapes; return how many there are."""
    # A directory's entry at a link's place: one unpacker keeps the link, another replaces it. Both must be safe.
    keeping: dict[str, str] = {}
    replacing: dict[str, str] = {}
    count = 0
    try:
        forward = _Forward(cast(BinaryIO, stream))
        with tarfile.TarFile(fileobj=cast(BinaryIO, forward), tarinfo=BoundedTarInfo) as tar:
            while (entry := tar.next()) is not None:
                count += 1
                check_size(entry)
                # The list of members is kept for random access, which a stream does not have.
                cast(Any, tar).members = []
                target = ""
                for links in (keeping, replacing):
                    path = _inside(entry.name, links, what)
                    if entry.islnk():
                        target = _inside(entry.linkname, links, what)
                    if entry.issym():
                        links[path] = entry.linkname
                    elif links is replacing or not entry.isdir():
                        links.pop(path, None)
                if visitor is not None:
                    visitor.visit(entry, path, target, _content(forward, entry))
            _only_zeros_follow(forward, what)
    except tarfile.ReadError:
        if stream.count == 0:
            return 0  # no bytes at all is a tar without entries, to Go's reader too
        raise
    return count


def _content(stream: _Forward, entry: tarfile.TarInfo) -> Read:
    """How to read the content of the entry that the stream is at."""
    left = entry.size if entry.isreg() and not entry.issparse() else 0

    def read(most: int) -> memoryview:
        nonlocal left
        data = stream.some(min(most, left))
        if left and not data:
            raise EOFError("it ends in the middle of an entry")
        left -= len(data)
        return data

    return read


def _only_zeros_follow(stream: _Forward, what: str) -> None:
    """Refuse bytes after the end: tarfile takes a header it cannot read for the end, another reader may not."""
    while data := stream.read(CHUNK):
        if data.count(0) != len(data):
            raise InvalidRequest(f"{what} is damaged: an entry cannot be read, or data follows the end of the tar")


def _inside(name: str, links: dict[str, str], what: str) -> str:
    """The path that `name` leads to, relative to the root. Raises InvalidRequest when it leaves the root."""
    todo = [part for part in reversed(name.split("/")) if part not in ("", ".")]
    base = posixpath.basename(name.rstrip("/"))
    if base.startswith(_WHITEOUT) and base[len(_WHITEOUT) :] in ("", ".", ".."):
        raise InvalidRequest(f"{what}: the entry {name!r} would delete a directory that it does not name")
    done: list[str] = []
    followed = 0
    while todo:
        part = todo.pop()
        if part == "..":
            if not done:
                raise InvalidRequest(f"{what}: the entry {name!r} climbs out of the root file system")
            done.pop()
            continue
        done.append(part)
        # The last part is replaced, not followed.
        target = links.get("/".join(done)) if todo and links else None
        if target is None:
            continue
        followed += 1
        if target.startswith("/") or followed > _MOST_LINKS:
            raise InvalidRequest(
                f"{what}: the entry {name!r} passes through the link"
                f" {'/'.join(done)!r} -> {target!r}, which leads out"
            )
        done.pop()
        todo += [step for step in reversed(target.split("/")) if step not in ("", ".")]
    return "/".join(done)


def pause_layer(binary: bytes, name: str = "catatonit") -> bytes:
    """The one layer of the built-in pause image: `binary` at /NAME and the directories that mounts go on.

    The same binary gives the same bytes. Raises InvalidRequest when it is not a static ELF program, because there
    is no loader in the image.
    """
    if not is_static_elf(binary):
        raise InvalidRequest(f"the pause program {name} must be a static ELF program; on Debian, catatonit's is one")
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for directory, mode in (("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777)):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(binary), 0o755
        tar.addfile(entry, io.BytesIO(binary))
    return output.getvalue()


def is_static_elf(binary: bytes) -> bool:
    """Whether `binary` is an ELF program that names no loader (elf(5): no PT_INTERP segment)."""
    if binary[:4] != b"\x7fELF" or len(binary) < 64 or binary[4] not in (1, 2) or binary[5] not in (1, 2):
        return False
    order = "<" if binary[5] == 1 else ">"
    wide = binary[4] == 2
    read: Callable[[str, int], int] = lambda code, at: int(struct.unpack_from(order + code, binary, at)[0])  # noqa: E731
    table = read("Q", 32) if wide else read("I", 28)
    entry_size, entries = read("H", 54 if wide else 42), read("H", 56 if wide else 44)
    if entries == 0 or table + entry_size * entries > len(binary):
        return False
    return all(read("I", table + number * entry_size) != 3 for number in range(entries))
