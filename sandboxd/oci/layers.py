"""Layers: tar streams, plain or compressed, each a set of changes to the file system below it.

A layer is untrusted. `scan` reads it once, before anything is unpacked, and computes its two digests. Every name
leads to a path below the root, through whatever links (`oci.links`), and what comes after the tar's end belongs to
its digests only. It refuses what no unpacker of the field takes:

1. entries of a type that is none in a layer (old GNU sparse files, the volumes and dumps of backups);
2. a whiteout that would delete `.` or `..`;
3. damage, and what exceeds a limit.
"""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol, cast

from sandboxd.errors import InvalidRequest, Unavailable
from sandboxd.foreign_json import shown
from sandboxd.oci.compression import (
    CHUNK_BYTES,
    DAMAGE,
    FOREIGN_BYTES,
    Allowance,
    compression_of,
    decompressed,
    foreign,
)
from sandboxd.oci.links import Links
from sandboxd.oci.tar import Forward, entries

# The limits of one layer. Real ones stay far below: of the largest known, some have a million entries and some have
# a hundred GB. No limit depends on the machine, so that an image is accepted everywhere or nowhere.
MAX_BYTES = 512 << 30  # compressed or not
MAX_ENTRIES = 2_000_000
MAX_NAME_BYTES = 512 << 20  # of all names and link targets together
# Directories on the way to entries, not counting those shared with the entry before. A name creates directories that
# have no entry of their own.
FREE_DIRECTORIES = 100_000
DIRECTORIES_PER_ENTRY = 8  # in addition
# Parts of all names together: containerd walks each path from the root, once for each part.
FREE_PARTS = 2_000_000
PARTS_PER_ENTRY = 128  # in addition
UNPACKED = Allowance(free=256 << 20, factor=1100, most=MAX_BYTES)  # gzip reaches a factor of 1,032

# Those that Go's unpackers know.
_TYPES = frozenset(
    (
        tarfile.REGTYPE,
        tarfile.AREGTYPE,
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.DIRTYPE,
        tarfile.FIFOTYPE,
    )
)
_NEVER = {
    tarfile.GNUTYPE_SPARSE: "a sparse file in GNU tar's old format (type 'S')",
    tarfile.CONTTYPE: "a contiguous file (type '7')",
    b"V": "the label of a volume (type 'V')",
    b"M": "the continuation of another volume's file (type 'M')",
    b"D": "the list of an incremental dump's directory (type 'D')",
}

Stopped = Callable[[], bool]  # whether to stop since nothing needs the result now; called for each entry and piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The result of scanning a layer. Sizes in bytes."""

    digest: str  # of the bytes as they are; "" where the caller verifies it
    size: int
    compression: str  # "", "gzip" or "zstd"
    diff_id: str  # digest of the uncompressed tar
    uncompressed: int
    entries: int


Read = Callable[[int], memoryview]  # the next bytes of the content, at most the given number; empty at its end


class Visitor(Protocol):
    """Receives the entries of a layer in order, each after it was checked."""

    def visit(self, entry: tarfile.TarInfo, path: str, target: str, read: Read) -> None:
        """Receive an entry at `path` below the root, "" for the root itself.

        `path` has the links resolved that the layer created before; whatever comes replaces a link in its place.
        `target` is that of a hard link, resolved likewise. Content that is not read is skipped.
        """

    def finish(self) -> None:
        """Every entry was visited, and the layer is valid."""


class _Measured(io.RawIOBase):
    """Passes a stream through, hashing and counting its bytes."""

    def __init__(self, inner: BinaryIO, what: str, stopped: Stopped, *, hashed: bool = True) -> None:
        self._inner = inner
        self._what = what
        self._stopped = stopped
        self._hash = hashlib.sha256() if hashed else None
        self.count = 0
        self.start = b""

    def read(self, size: int = -1) -> bytes:
        check_stopped(self._stopped, self._what)
        data = self._inner.read(size)
        if self._hash is not None:
            self._hash.update(data)
        if not self.count:
            self.start = bytes(data[:FOREIGN_BYTES])
        self.count += len(data)
        return data

    def readable(self) -> bool:
        return True

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}" if self._hash is not None else ""


class _Plain(_Measured):
    """The decompressed stream, held to `UNPACKED`."""

    def __init__(self, raw: _Measured, compression: str, what: str, stopped: Stopped) -> None:
        super().__init__(decompressed(cast(BinaryIO, raw), compression, what), what, stopped)
        self._raw = raw
        self._holes = 0

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self._check()
        return data

    def holes(self, size: int) -> None:
        """Count a sparse file: up to `size` bytes that are not in the stream."""
        self._holes += size
        self._check()

    def _check(self) -> None:
        if wrong := UNPACKED.exceeded(self.count + self._holes, self._raw.count):
            raise InvalidRequest(f"{self._what} is {wrong}")


def never() -> bool:
    """A `Stopped` for work that always runs to its end."""
    return False


def check_stopped(stopped: Stopped, what: str) -> None:
    """Raise Unavailable when `stopped` returns True."""
    if stopped():
        raise Unavailable(f"{what}: the examination was stopped")


def scan(
    file: BinaryIO,
    what: str = "layer",
    visitor: Visitor | None = None,
    *,
    digest: bool = True,
    stopped: Stopped = never,
) -> Scan:
    """Read a whole layer from its beginning; `file` must be seekable, `what` names it in errors.

    When this fails, discard what `visitor` made of the entries. With `digest` False only the uncompressed tar is
    hashed. Time is linear in the layer's size, and memory is bounded.

    Raises InvalidRequest for a layer that is damaged, escapes its root or exceeds a limit; Unavailable soon after
    `stopped` returns True.
    """
    check_stopped(stopped, what)
    compression = compression_of(file)
    raw = _Measured(file, what, stopped, hashed=digest)
    plain = _Plain(raw, compression, what, stopped)
    try:
        count = _check_entries(plain, what, visitor, stopped)
        while plain.read(CHUNK_BYTES):
            pass
        while raw.read(CHUNK_BYTES):
            pass
        if visitor is not None:
            visitor.finish()
    except (tarfile.TarError, *DAMAGE, OSError, ValueError) as exc:
        # An error of reading the file itself has an errno; it says nothing about the layer.
        if isinstance(exc, OSError) and exc.errno is not None:
            raise
        if isinstance(exc, tarfile.TarError) and (name := foreign(raw.start) or foreign(plain.start)):
            raise InvalidRequest(f"{what} is compressed with {name}; layers can be plain, gzip or zstd") from exc
        raise InvalidRequest(f"{what} is damaged: {exc}") from exc
    return Scan(
        digest=raw.digest,
        size=raw.count,
        compression=compression,
        diff_id=plain.digest,
        uncompressed=plain.count,
        entries=count,
    )


def _check_entries(stream: _Plain, what: str, visitor: Visitor | None, stopped: Stopped) -> int:
    """Read the tar to the end of its entries and refuse those that cannot be unpacked; return their number."""
    links, bounds = Links(what), _Bounds(what)
    forward = Forward(cast(BinaryIO, stream))
    for entry in entries(cast(BinaryIO, forward)):
        check_stopped(stopped, what)
        if entry.type not in _TYPES:
            raise InvalidRequest(_not_known(entry, what))
        if entry.issparse():
            stream.holes(entry.size)
        # The target first: the name may replace a link that the target leads through.
        target = links.target(entry.linkname) if entry.islnk() else ""
        path = links.place(entry.name, symlink=entry.linkname if entry.issym() else None)
        bounds.count(entry, path)
        if visitor is not None:
            visitor.visit(entry, path, target, _content(forward, entry))
    check_stopped(stopped, what)
    return bounds.entries


def _not_known(entry: tarfile.TarInfo, what: str) -> str:
    kind = _NEVER.get(entry.type, f"of type {entry.type!r}")
    return f"{what}: the entry {shown(entry.name)} is {kind}, which no image may have; build the layer without it"


class _Bounds:
    """Counts what a layer creates and what its unpacker must remember, against the limits."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._name_bytes = 0
        self._directories = 0
        self._parts = 0
        self._parent = ""
        self.entries = 0

    def count(self, entry: tarfile.TarInfo, path: str) -> None:
        """Count an entry. Raises InvalidRequest when a limit is exceeded."""
        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise InvalidRequest(f"{self._what} has more than {MAX_ENTRIES} entries")
        self._name_bytes += len(entry.name) + len(entry.linkname)
        if self._name_bytes > MAX_NAME_BYTES:
            raise InvalidRequest(f"{self._what} has names of more than {MAX_NAME_BYTES >> 20} MiB in total")
        self._parts += path.count("/") + 1
        if self._parts > FREE_PARTS + PARTS_PER_ENTRY * self.entries:
            raise InvalidRequest(f"{self._what} has names with too many parts for {self.entries} entries")
        parent = path if entry.isdir() else path.rpartition("/")[0]
        if parent != self._parent:
            self._directories += _more(self._parent, parent)
            self._parent = parent
            if self._directories > FREE_DIRECTORIES + DIRECTORIES_PER_ENTRY * self.entries:
                raise InvalidRequest(f"{self._what} has names with too many directories for {self.entries} entries")


def _more(before: str, path: str) -> int:
    """How many of the directories down to `path` are not also on the way to `before`."""
    parts = path.split("/")
    for number, (one, other) in enumerate(zip(before.split("/"), parts, strict=False)):
        if one != other:
            return len(parts) - number
    return max(0, len(parts) - before.count("/") - 1)


def _content(stream: Forward, entry: tarfile.TarInfo) -> Read:
    """A function that reads the content of the current entry."""
    left = entry.size if entry.isreg() and not entry.issparse() else 0

    def read(most: int) -> memoryview:
        nonlocal left
        data = stream.some(min(most, left))
        if left and not data:
            raise EOFError("it ends in the middle of an entry")
        left -= len(data)
        return data

    return read


def pause_layer(binary: bytes, name: str = "catatonit") -> bytes:
    """The only layer of the built-in pause image: `binary` at /NAME and the directories that mounts need.

    The same binary gives the same bytes. Raises InvalidRequest when it is not a static ELF program, because the
    image has no loader.
    """
    if not is_static_elf(binary):
        raise InvalidRequest(f"the pause program {name} must be a static ELF program, like Debian's catatonit")
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
