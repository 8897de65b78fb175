"""Our own RPCs that bring images in and out, and show how far they are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sandboxd.images import save
from sandboxd.images.load import Loaded
from sandboxd.images.pull import Pulls, credentials_of
from sandboxd.images.store import ImageStore
from sandboxd.images.uploads import Uploads
from sandboxd.jobs import Jobs
from sandboxd.model import Progress
from sandboxd.pb.host.v1 import host_pb2
from sandboxd.registry import reference

PROGRESS_SECONDS = 0.1  # between two looks at a pull's progress


class Transfer:
    """See host.proto for what each RPC promises."""

    def __init__(self, images: ImageStore, pulls: Pulls, uploads: Uploads, jobs: Jobs) -> None:
        self._images = images
        self._pulls = pulls
        self._uploads = uploads
        self._jobs = jobs

    async def LoadImage(
        self, request: AsyncIterator[host_pb2.LoadImageRequest], context: Any
    ) -> AsyncIterator[host_pb2.LoadImageResponse]:
        chunks = (message.chunk async for message in request)
        async with contextlib.aclosing(self._uploads.load(chunks)) as events:
            async for event in events:
                yield _load_response(event)

    async def PullImage(
        self, request: host_pb2.PullImageRequest, context: Any
    ) -> AsyncIterator[host_pb2.PullImageResponse]:
        latest = _Latest()
        credentials = credentials_of(request.auth)
        waiting = self._jobs.spawn(
            ("watched pull", id(latest)), lambda: self._pulls.pull(request.image, credentials, latest.note)
        )
        # Whichever way the call ends, also in the middle of sending.
        context.add_done_callback(lambda _: waiting.cancel())
        ended = False
        while not ended:
            await asyncio.wait((waiting,), timeout=PROGRESS_SECONDS)
            # Asked before the last is taken: a pull that ends while that is being sent may have more to tell.
            ended = waiting.done()
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
    """The newest progress of each layer since the last look: there is more of it than a client can read."""

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


def _load_response(event: Progress | Loaded) -> host_pb2.LoadImageResponse:
    if isinstance(event, Progress):
        progress = host_pb2.Progress(stage=event.stage, done_bytes=event.done, total_bytes=event.total)
        return host_pb2.LoadImageResponse(progress=progress)
    loaded = host_pb2.LoadedImage(
        names=event.names, image_id=event.image_id, digest=event.digest, size=event.size, remarks=event.remarks
    )
    return host_pb2.LoadImageResponse(loaded=loaded)
