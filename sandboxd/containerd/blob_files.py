"""A large blob written into the file of its ingest by us, where containerd's content store is on this machine.

Through gRPC each byte is copied several times on either side, which is a large part of what a pull costs. Here
containerd begins and ends the ingest as always: its name, its lease and its lock are containerd's. In between we
write the file, and hash it (containerd's `content/local`; the same in 1.6 and 2.x). Rules:

1. The file is one that containerd has just made. The ingest's directory is where containerd would have it, says
   whose it is, and has no data yet; otherwise everything goes through gRPC.
2. After whatever end, the ingest is one that was cut off: whoever opens it next has what was written, and containerd
   hashes that.
3. The blob gets its name when it is whole, verified and on the disk. A commit without data follows: containerd finds
   the blob in its store and records it, as it does with another namespace's. Where it does not (a collection removed
   what nobody had a record of yet, or namespaces share nothing), it hashes the ingest's file, which keeps its
   own name until then, and names that.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import stat
import struct
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path

import structlog

from sandboxd.containerd.client import Containerd, translate
from sandboxd.errors import Exhausted, InvalidRequest, NotReady, SandboxdError
from sandboxd.oci.image import Descriptor
from sandboxd.pb.containerd.services.introspection.v1 import introspection_pb2, introspection_pb2_grpc

log = structlog.get_logger(__name__)

CALL_SECONDS = 10.0
AHEAD_BYTES = 6 << 20  # of one blob, which may wait for the thread that writes them

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DATA = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_GET_FLAGS = 0x80086601  # FS_IOC_GETFLAGS (ioctl_iflags(2))
_VERITY = 0x00100000  # FS_VERITY_FL
_FULL = (errno.ENOSPC, errno.EDQUOT)


class BlobFile:
    """The file of an ingest that we write. `stop` in any case; `named` and `forget` are for the commit."""

    def __init__(self, store: Path, ingest: Path, descriptor: Descriptor, executor: Executor) -> None:
        """Raises OSError, ValueError when the ingest is not one that has just begun."""
        self._blobs = store / "blobs" / "sha256"
        self._ingest = ingest
        self._descriptor = descriptor
        self._executor = executor
        self._hash = hashlib.sha256()
        self._waiting: deque[bytes] = deque()
        self._given = self._put = 0  # bytes; each is changed on one side only
        self._work: Future[None] | None = None  # of a thread, on this file
        self._fd = os.open(ingest / "data", _DATA)
        info = os.fstat(self._fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size or info.st_nlink != 1:
            os.close(self._fd)
            raise ValueError(f"{ingest} has data")

    async def write(self, pieces: Sequence[bytes]) -> None:
        """Add bytes, which are written soon. Raises Exhausted, and NotReady for a failing disk."""
        self._waiting.extend(pieces)
        self._given += sum(len(piece) for piece in pieces)
        if self._work is not None and self._work.done():
            self._work.result()
            self._work = None
        if self._work is None:
            self._work = self._executor.submit(self._write_all)
        elif self._given - self._put > AHEAD_BYTES:
            await self.written()

    async def written(self) -> None:
        """Returns when everything so far is in the file. Raises as `write`."""
        while self._work is not None:
            # The thread goes on when the wait for it is cancelled.
            await asyncio.shield(asyncio.wrap_future(self._work))
            self._work = self._executor.submit(self._write_all) if self._waiting else None

    async def named(self) -> None:
        """Give the blob its name, whole and on the disk. Raises InvalidRequest when it has a wrong digest."""
        await self.written()
        self._work = self._executor.submit(self._name)
        await self.written()

    async def forget(self) -> None:
        """Remove the ingest's directory, after the commit. What is left of it containerd would collect."""
        await asyncio.wrap_future(self._executor.submit(self._remove))

    async def stop(self) -> None:
        """Write no more, and close the file; returns when no thread is at it any longer. Idempotent."""
        self._waiting.clear()
        if self._work is not None and not self._work.cancel():
            waiter = asyncio.wrap_future(self._work)
            waiter.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen
            await asyncio.wait((waiter,))
        self._work = None
        self.close()

    def close(self) -> None:
        """Close the file, when no thread is at it. Idempotent."""
        if self._fd != -1:
            os.close(self._fd)
            self._fd = -1

    # In threads.

    def _write_all(self) -> None:
        """Until nothing waits: a thread that had to wait for its turn then has more to do at once."""
        try:
            while self._waiting:
                try:
                    piece = self._waiting.popleft()
                except IndexError:
                    return  # cleared by `stop`
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._fd, view) :]
                self._hash.update(piece)
                self._put += len(piece)
        except OSError as exc:
            raise _failed(exc) from exc

    def _name(self) -> None:
        if (computed := f"sha256:{self._hash.hexdigest()}") != self._descriptor.digest:
            raise InvalidRequest(f"the blob has a wrong digest: expected {self._descriptor.digest}, got {computed}")
        try:
            os.fchmod(self._fd, stat.S_IMODE(os.fstat(self._fd).st_mode) & ~0o333)  # as containerd does
            os.fsync(self._fd)
            self._blobs.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                os.link(self._ingest / "data", self._blobs / self._descriptor.digest.removeprefix("sha256:"))
            directory = os.open(self._blobs, _DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as exc:
            raise _failed(exc) from exc

    def _remove(self) -> None:
        with suppress(OSError):
            for file in self._ingest.iterdir():
                file.unlink()
            self._ingest.rmdir()


async def begun(client: Containerd, ref: str, descriptor: Descriptor, executor: Executor) -> BlobFile | None:
    """The file of the ingest `ref` that was opened just now and is still held; None when it is not ours to write."""
    try:
        if not (root := await _root(client)):
            return None
    except SandboxdError as exc:
        log.info("containerd does not say where its content is", error=str(exc))
        return None
    opening = executor.submit(_begun, Path(root), f"{client.namespace}/1/{ref}", descriptor, executor)
    try:
        return await asyncio.shield(asyncio.wrap_future(opening))
    except asyncio.CancelledError:
        opening.add_done_callback(_not_wanted)
        raise


async def _root(client: Containerd) -> str:
    """Where containerd has its content, "" when that is not in files."""
    stub = introspection_pb2_grpc.IntrospectionStub(client.channel)
    request = introspection_pb2.PluginsRequest(filters=["type==io.containerd.content.v1"])
    with translate("asking containerd for its content store"):
        answer = await stub.Plugins(request, metadata=client.metadata, timeout=CALL_SECONDS)
    roots = [plugin.exports.get("root", "") if plugin.id == "content" else "" for plugin in answer.plugins]
    return roots[0] if len(roots) == 1 else ""


def _not_wanted(opening: Future[BlobFile | None]) -> None:
    if not opening.cancelled() and not opening.exception() and (file := opening.result()) is not None:
        file.close()


def _begun(store: Path, key: str, descriptor: Descriptor, executor: Executor) -> BlobFile | None:
    """`key` is what the store calls the ingest: it has the namespace, and a number, which is 1 for a new one."""
    ingest = store / "ingest" / hashlib.sha256(key.encode()).hexdigest()
    try:
        if (ingest / "ref").read_text(encoding="utf-8") != key or _seals(store / "blobs" / "sha256"):
            return None
        return BlobFile(store, ingest, descriptor, executor)
    except (OSError, ValueError) as exc:
        log.debug("an ingest of containerd cannot be written directly", path=str(ingest), error=str(exc))
        return None


def _seals(blobs: Path) -> bool:
    """Whether containerd has its blobs sealed by the file system (fs-verity, 2.x), which is left to it.

    Without any blob nobody knows.
    """
    with os.scandir(blobs) as entries:
        if (first := next(entries, None)) is None:
            return True
        fd = os.open(first.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags: int = struct.unpack_from("i", fcntl.ioctl(fd, _GET_FLAGS, bytes(8)))[0]
    except OSError:
        return False  # a file system without such flags
    finally:
        os.close(fd)
    return bool(flags & _VERITY)


def _failed(exc: OSError) -> SandboxdError:
    if exc.errno in _FULL:
        return Exhausted("no space is left on the disk of containerd's content; remove images with `sandboxctl rmi`")
    return NotReady(f"containerd's content store: {exc.strerror}")
