"""The files of an image archive, one tar that is plain or compressed as a whole.

The archive is never extracted: its entries are indexed, and files are read in place. A compressed archive is
decompressed once, into an unnamed temporary file, because its files are read more than once and in any order.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from sandboxd.errors import Exhausted, InvalidRequest
from sandboxd.foreign_json import shown
from sandboxd.oci import compression, layers, tar
from sandboxd.oci.compression import Allowance
from sandboxd.oci.layers import Stopped

MAX_ENTRIES = 100_000
MAX_NAME_BYTES = 32 << 20  # of all entries and link targets together
MAX_DOCUMENT_BYTES = 64 << 20  # of all manifests, indexes and configs that are read
MAX_LINKS = 10  # followed from one entry to another
MAX_PASSED_OVER = 10  # words about entries that cannot be read
# How much disk space a compressed archive may take. Archives of real images become two to ten times as large.
SPOOLED = Allowance(free=64 << 20, factor=100, most=1 << 40)

Opener = Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of the archive, or a link to one: then `link` is the path of its target."""

    offset: int = 0
    size: int = 0
    link: str = ""


class Files:
    """The files of one archive. All calls block, and raise Unavailable soon after `stopped` returns True."""

    def __init__(self, path: Path, stopped: Stopped = layers.never) -> None:
        self._path = path
        self._stopped = stopped
        self._file: BinaryIO | None = None
        self._foreign = ""  # what the archive's beginning looks like
        self._entries: dict[str, Entry | None] = {}  # None is what is neither a file nor a link to one
        self._name_bytes = self._document_bytes = 0
        self.total = 0  # bytes of all files
        self.passed_over: list[str] = []  # entries that cannot be read, in words; one that is needed is an error

    def open(self) -> None:
        """Open the archive and index its entries.

        Raises InvalidRequest when it is damaged or exceeds a limit, Exhausted when it does not fit on the disk.
        """
        try:
            self._file = self._open()
            self._read_entries(self._file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the archive; nothing can be read from it afterwards."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __contains__(self, path: str) -> bool:
        return self._entries.get(path) is not None

    def _open(self) -> BinaryIO:
        with ExitStack() as stack:
            file = stack.enter_context(self._path.open("rb"))
            packed = compression.compression_of(file)
            if not packed:
                self._foreign = compression.foreign(file.read(compression.FOREIGN_BYTES))
                stack.pop_all()
                return file
            size = os.fstat(file.fileno()).st_size
            try:
                with compression.decompressed(file, packed, "the archive") as plain:
                    spooled = _spool(plain, self._path.parent, size, self._stopped)
            except compression.DAMAGE as exc:
                raise InvalidRequest(f"the archive is damaged: {exc}") from exc
            spooled.seek(0)
            self._foreign = compression.foreign(spooled.read(compression.FOREIGN_BYTES))
            return spooled

    def _read_entries(self, file: BinaryIO) -> None:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            for number, member in enumerate(tar.entries(file), start=1):
                layers.check_stopped(self._stopped, "the archive")
                if number > MAX_ENTRIES:
                    raise InvalidRequest(f"the archive has more than {MAX_ENTRIES} entries")
                self._name_bytes += len(member.name) + len(member.linkname)
                if self._name_bytes > MAX_NAME_BYTES:
                    raise InvalidRequest(f"the archive's names take more than {MAX_NAME_BYTES} bytes in total")
                self._add_entry(member, length)
        except (tarfile.TarError, EOFError, ValueError) as exc:
            if self._foreign and isinstance(exc, tarfile.TarError):
                raise InvalidRequest(
                    f"the archive is compressed with {self._foreign}, which is not read here; decompress it before"
                    " loading it, or compress it with gzip or zstd"
                ) from exc
            raise InvalidRequest(f"not an image archive: {exc}") from exc
        self.total = sum(entry.size for entry in self._entries.values() if entry is not None)

    def _add_entry(self, member: tarfile.TarInfo, length: int) -> None:
        path = inside(member.name, "", member.name)
        if member.isdir():
            return
        if member.issym() or member.islnk():
            base = posixpath.dirname(path) if member.issym() else ""
            self._entries[path] = Entry(link=inside(member.linkname, base, member.name))
        elif member.isreg() and not member.issparse():
            if member.offset_data + member.size > length:
                raise InvalidRequest(f"the archive is cut off in the middle of {shown(member.name)}")
            self._entries[path] = Entry(offset=member.offset_data, size=member.size)
        else:
            self._entries[path] = None
            if len(self.passed_over) < MAX_PASSED_OVER:
                self.passed_over.append(_odd(member.name))

    def find(self, path: str) -> Entry:
        """The file at `path`, following links within the archive. Raises InvalidRequest when there is none."""
        at = path
        for _ in range(MAX_LINKS):
            if at not in self._entries:
                break
            entry = self._entries[at]
            if entry is None:
                raise InvalidRequest(_odd(at))
            if not entry.link:
                return entry
            at = entry.link
        raise InvalidRequest(f"the archive lacks {shown(path)}")

    def opener(self, entry: Entry) -> Opener:
        """A function that opens the file for reading, any number of times."""

        def opened() -> BinaryIO:
            if self._file is None:
                raise ValueError("the archive is closed")
            section = _Section(self._file, entry.offset, entry.size)
            return cast(BinaryIO, io.BufferedReader(section, buffer_size=compression.CHUNK_BYTES))

        return opened

    def read(self, path: str, most: int) -> bytes:
        """The content of a document of at most `most` bytes. Raises InvalidRequest when it is larger."""
        entry = self.find(path)
        if entry.size > most:
            raise InvalidRequest(f"{shown(path)} in the archive is larger than {most} bytes")
        layers.check_stopped(self._stopped, "the archive")
        self._document_bytes += entry.size
        if self._document_bytes > MAX_DOCUMENT_BYTES:
            raise InvalidRequest(f"the archive has manifests and configs of more than {MAX_DOCUMENT_BYTES} bytes")
        with self.opener(entry)() as file:
            return file.read()


class _Section(io.RawIOBase):
    """Part of a file, as a file of its own. Uses positional reads, so that several can be open at once."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self._size - self._at))
        # fileno() fails once the file is closed; a number kept from before could by then be another file's.
        data = os.pread(self._file.fileno(), wanted, self._offset + self._at)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _spool(plain: BinaryIO, directory: Path, packed: int, stopped: Stopped) -> BinaryIO:
    """Decompress `plain`, which takes `packed` bytes compressed, into an unnamed file that closing deletes."""
    output = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - it is the result
    try:
        size = 0
        while data := plain.read(compression.CHUNK_BYTES):
            layers.check_stopped(stopped, "the archive")
            size += len(data)
            if wrong := SPOOLED.exceeded(size, packed):
                raise InvalidRequest(f"the archive is {wrong}; decompress it before loading it")
            output.write(data)
        output.flush()
    except BaseException as exc:
        output.close()
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Exhausted(f"no space left in {directory} to decompress the archive") from exc
        raise
    return cast(BinaryIO, output)


def _odd(name: str) -> str:
    return f"the archive's entry {shown(name)} is not a file, a directory or a link"


def inside(name: str, base: str, entry: str) -> str:
    """The path of `name` in the archive, relative to `base`. Raises InvalidRequest when it points outside."""
    path = posixpath.normpath(posixpath.join(base, name))
    if name.startswith("/") or path == ".." or path.startswith("../") or "\0" in name:
        raise InvalidRequest(f"the archive's entry {shown(entry)} points outside the archive")
    return path
