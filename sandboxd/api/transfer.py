"""Our own RPCs that bring images in and out, and show how far they are."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sandboxd import private
from sandboxd.errors import Exhausted, InvalidRequest, NotReady
from sandboxd.images import load, save
from sandboxd.images.load import Loaded
from sandboxd.images.pull import Pulls, credentials_of
from sandboxd.images.store import ImageStore
from sandboxd.model import Progress
from sandboxd.node import Node
from sandboxd.pb.host.v1 import host_pb2
from sandboxd.registry import reference

MOST_ARCHIVE_BYTES = 64 << 30
LOADS_AT_ONCE = 2  # archives that are read and stored; those which come meanwhile wait
PROGRESS_SECONDS = 0.1  # between two looks at a pull's progress


class Transfer:
    """See host.proto for what each RPC promises."""

    def __init__(self, node: Node, images: ImageStore, pulls: Pulls) -> None:
        self._node = node
        self._images = images
        self._pulls = pulls
        self._swept = False
        self._loading = asyncio.Semaphore(LOADS_AT_ONCE)

    async def LoadImage(
        self, request: AsyncIterator[host_pb2.LoadImageRequest], context: Any
    ) -> AsyncIterator[host_pb2.LoadImageResponse]:
        handle, name = tempfile.mkstemp(dir=self._uploads(), prefix="archive-")
        archive = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                await _spool(request, file)
            updates: asyncio.Queue[Progress | None] = asyncio.Queue()
            # The job owns the archive from here on: a client that goes away does not stop the import.
            job = self._node.jobs.spawn(("LoadImage", name), lambda: self._import(archive, updates))
            while (update := await updates.get()) is not None:
                progress = host_pb2.Progress(stage=update.stage, done_bytes=update.done, total_bytes=update.total)
                yield host_pb2.LoadImageResponse(progress=progress)
            for loaded in await asyncio.shield(job):
                yield host_pb2.LoadImageResponse(
                    loaded=host_pb2.LoadedImage(
                        names=loaded.names, image_id=loaded.image_id, digest=loaded.digest, size=loaded.size
                    )
                )
        except BaseException:
            if ("LoadImage", name) not in self._node.jobs.in_flight():
                archive.unlink(missing_ok=True)
            raise

    def _uploads(self) -> Path:
        """Where archives are until they are read; at first what an earlier daemon left there goes."""
        uploads = Path(self._node.places.uploads)
        private.make(str(uploads), private.CLOSED)
        if not self._swept:
            self._swept = True
            for left in uploads.glob("archive-*"):
                left.unlink(missing_ok=True)
        return uploads

    async def _import(self, archive: Path, updates: asyncio.Queue[Any]) -> list[Loaded]:
        try:
            async with self._loading:
                return await load.load(self._images, archive, updates.put_nowait)
        finally:
            archive.unlink(missing_ok=True)
            updates.put_nowait(None)

    async def PullImage(
        self, request: host_pb2.PullImageRequest, context: Any
    ) -> AsyncIterator[host_pb2.PullImageResponse]:
        latest = _Latest()
        credentials = credentials_of(request.auth)
        waiting = self._node.jobs.spawn(
            ("watched pull", id(latest)), lambda: self._pulls.pull(request.image, credentials, latest.note)
        )
        # Whichever way the call ends, also in the middle of sending.
        context.add_done_callback(lambda _: waiting.cancel())
        while not waiting.done():
            await asyncio.wait((waiting,), timeout=PROGRESS_SECONDS)
            for progress in latest.take():
                yield host_pb2.PullImageResponse(layer=progress)
        record = waiting.result()
        image = host_pb2.PulledImage(
            name=reference.normalize(request.image), image_id=record.id, digest=record.digest, size=record.size
        )
        yield host_pb2.PullImageResponse(image=image)

    async def SaveImage(
        self, request: host_pb2.SaveImageRequest, context: Any
    ) -> AsyncIterator[host_pb2.SaveImageResponse]:
        async with save.saving(self._images, request.images) as archive:
            total = archive.size
            async with contextlib.aclosing(archive.chunks()) as chunks:
                async for chunk in chunks:
                    yield host_pb2.SaveImageResponse(chunk=chunk, total_bytes=total)
                    total = 0


class _Latest:
    """What is new about each layer since it was last asked: a client takes less than a registry gives."""

    def __init__(self) -> None:
        self._new: dict[str, Progress] = {}

    def note(self, progress: Progress) -> None:
        self._new[progress.digest] = progress

    def take(self) -> list[host_pb2.LayerProgress]:
        new, self._new = self._new, {}
        return [
            host_pb2.LayerProgress(digest=one.digest, stage=one.stage, done_bytes=one.done, total_bytes=one.total)
            for one in new.values()
        ]


async def _spool(chunks: AsyncIterator[host_pb2.LoadImageRequest], file: Any) -> None:
    size = 0
    async for message in chunks:
        size += len(message.chunk)
        if size > MOST_ARCHIVE_BYTES:
            raise InvalidRequest(f"the archive is larger than {MOST_ARCHIVE_BYTES} bytes")
        try:
            file.write(message.chunk)
        except OSError as exc:
            kind = Exhausted if exc.errno in (errno.ENOSPC, errno.EDQUOT) else NotReady
            raise kind(f"the archive cannot be stored: {exc.strerror}") from exc
    if not size:
        raise InvalidRequest("the archive is empty")
