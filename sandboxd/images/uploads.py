"""Archives that clients send: stored on disk first, then imported by a job that goes on when the client leaves."""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from io import FileIO
from pathlib import Path

import structlog

from sandboxd import private
from sandboxd.errors import Exhausted, InvalidRequest, NotReady
from sandboxd.images import load
from sandboxd.images.load import Loaded
from sandboxd.images.store import ImageStore
from sandboxd.jobs import Jobs
from sandboxd.model import Progress

log = structlog.get_logger(__name__)

PREFIX = "archive-"
MAX_ARCHIVE_BYTES = 64 << 30
LOADS_AT_ONCE = 2  # archives that are read and imported; others wait


class Uploads:
    """Imports archives into `store`, by way of `directory`."""

    def __init__(self, store: ImageStore, jobs: Jobs, directory: str) -> None:
        self._store = store
        self._jobs = jobs
        self._directory = Path(directory)
        self._loading = asyncio.Semaphore(LOADS_AT_ONCE)

    async def load(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[Progress | Loaded, None]:
        """Import the images of an archive whose bytes `chunks` gives in order: progress, then each image.

        Once all of the archive is here, the import ends whether or not anyone waits for it. Raises InvalidRequest for
        an archive that is empty or too large, Exhausted or NotReady when it cannot be stored, and what `load.load`
        raises; the archive is removed in any case.
        """
        private.make(str(self._directory), private.CLOSED)
        handle, name = tempfile.mkstemp(dir=self._directory, prefix=PREFIX)
        archive, key = Path(name), ("LoadImage", name)
        try:
            with open(handle, "wb", buffering=0) as file:
                await spool(chunks, file)
            updates: asyncio.Queue[Progress | None] = asyncio.Queue()
            # The job owns the archive from here on.
            job = self._jobs.spawn(key, lambda: self._import(archive, updates))
            while (update := await updates.get()) is not None:
                yield update
            for loaded in await asyncio.shield(job):
                yield loaded
        except BaseException:
            if key not in self._jobs.in_flight():
                archive.unlink(missing_ok=True)
            raise

    async def _import(self, archive: Path, updates: asyncio.Queue[Progress | None]) -> list[Loaded]:
        try:
            async with self._loading:
                return await load.load(self._store, archive, updates.put_nowait)
        finally:
            archive.unlink(missing_ok=True)
            updates.put_nowait(None)


def left(directory: str) -> list[Path]:
    """The archives that an earlier daemon left; to be asked before this one takes any."""
    try:
        return sorted(path for path in Path(directory).iterdir() if path.name.startswith(PREFIX))
    except FileNotFoundError:
        return []


async def remove(archives: Sequence[Path]) -> None:
    """Remove archives that were left; for large ones the disk takes a while. What cannot be removed is logged."""
    for archive in archives:
        try:
            await asyncio.to_thread(archive.unlink, missing_ok=True)
        except OSError as exc:
            log.warning("an archive that was left could not be removed", path=str(archive), error=str(exc))
        else:
            log.info("an archive of a LoadImage that was cut off was removed", path=str(archive))


async def spool(chunks: AsyncIterator[bytes], file: FileIO) -> None:
    """Write all chunks to `file`. Raises InvalidRequest, Exhausted or NotReady; see `Uploads.load`."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > MAX_ARCHIVE_BYTES:
            raise InvalidRequest(f"the archive is larger than {MAX_ARCHIVE_BYTES} bytes")
        try:
            _write_all(file, chunk)
        except OSError as exc:
            kind = Exhausted if exc.errno in (errno.ENOSPC, errno.EDQUOT) else NotReady
            raise kind(f"the archive cannot be stored: {exc.strerror}") from exc
    if not size:
        raise InvalidRequest("the archive is empty")


def _write_all(file: FileIO, data: bytes) -> None:
    # A file without a buffer may take less than it is given; one with a buffer would fail only when it is closed.
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
