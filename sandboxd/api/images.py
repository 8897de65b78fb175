"""CRI's RPCs about images: all of ImageService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sandboxd.api import views
from sandboxd.api.lists import batches
from sandboxd.errors import NotFound
from sandboxd.images import leftovers
from sandboxd.images.pull import Pulls, credentials_of
from sandboxd.images.store import ImageStore
from sandboxd.jobs import Jobs
from sandboxd.pb.cri.v1 import api_pb2 as cri


class Images:
    """See the CRI API for what each RPC promises."""

    def __init__(self, images: ImageStore, pulls: Pulls, jobs: Jobs) -> None:
        self._images = images
        self._pulls = pulls
        self._jobs = jobs

    async def ListImages(self, request: cri.ListImagesRequest, context: Any) -> cri.ListImagesResponse:
        return cri.ListImagesResponse(images=self._list(request.filter))

    async def StreamImages(
        self, request: cri.StreamImagesRequest, context: Any
    ) -> AsyncIterator[cri.StreamImagesResponse]:
        for batch in batches(self._list(request.filter)):
            yield cri.StreamImagesResponse(images=batch)

    def _list(self, wanted: cri.ImageFilter) -> list[cri.Image]:
        return [views.image(record) for record in self._images.list(wanted.image.image)]

    async def ImageStatus(self, request: cri.ImageStatusRequest, context: Any) -> cri.ImageStatusResponse:
        try:
            record = self._images.resolve(request.image.image)
        except NotFound:
            return cri.ImageStatusResponse()  # CRI: an absent image is an empty answer, not an error
        answer = cri.ImageStatusResponse(image=views.image(record))
        if request.verbose:
            answer.info.update(views.info(chainID=record.chain_id, imageSpec={"config": record.config}))
        return answer

    async def PullImage(self, request: cri.PullImageRequest, context: Any) -> cri.PullImageResponse:
        record = await self._pulls.pull(request.image.image, credentials_of(request.auth))
        return cri.PullImageResponse(image_ref=record.id)

    async def RemoveImage(self, request: cri.RemoveImageRequest, context: Any) -> cri.RemoveImageResponse:
        await leftovers.remove_image(self._images, self._jobs, request.image.image)
        return cri.RemoveImageResponse()

    async def ImageFsInfo(self, request: cri.ImageFsInfoRequest, context: Any) -> cri.ImageFsInfoResponse:
        usage = self._images.fs_info()
        return cri.ImageFsInfoResponse(
            image_filesystems=[
                cri.FilesystemUsage(
                    timestamp=usage.at,
                    fs_id=cri.FilesystemIdentifier(mountpoint=usage.directory),
                    used_bytes=cri.UInt64Value(value=usage.bytes),
                    inodes_used=cri.UInt64Value(value=usage.inodes),
                )
            ]
        )
