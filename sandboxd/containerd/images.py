"""Image records: names that point at a manifest or an index in the content store, and keep it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf import field_mask_pb2

from sandboxd.containerd.client import Containerd, translate
from sandboxd.errors import AlreadyExists, NotFound
from sandboxd.oci.image import Descriptor
from sandboxd.pb.containerd.services.images.v1 import images_pb2, images_pb2_grpc
from sandboxd.pb.containerd.types import descriptor_pb2

CALL_SECONDS = 30.0
COLLECT_SECONDS = 120.0  # deleting synchronously waits for a whole garbage collection


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A name and what it points at. `created_at` in unix nanoseconds."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0


class Images:
    """containerd's image service."""

    def __init__(self, client: Containerd) -> None:
        self._meta = client.metadata
        self._stub = images_pb2_grpc.ImagesStub(client.channel)

    async def get(self, name: str) -> Image:
        """Look a name up; raises NotFound."""
        with translate(f"image {name}"):
            answer = await self._stub.Get(
                images_pb2.GetImageRequest(name=name), metadata=self._meta, timeout=CALL_SECONDS
            )
        return _image(answer.image)

    async def list(self) -> list[Image]:
        """Every name of this namespace."""
        with translate("listing images"):
            answer = await self._stub.List(images_pb2.ListImagesRequest(), metadata=self._meta, timeout=CALL_SECONDS)
        return [_image(image) for image in answer.images]

    async def put(self, image: Image) -> Image | None:
        """Create or update the name; return what it was before, None when new.

        containerd verifies that the target is in the content store: raises NotFound when it is not.
        """
        message = images_pb2.Image(
            name=image.name,
            labels=image.labels,
            target=descriptor_pb2.Descriptor(
                media_type=image.target.media_type,
                digest=image.target.digest,
                size=image.target.size,
                annotations=image.target.annotations,
            ),
        )
        try:
            with translate(f"image {image.name}"):
                await self._stub.Create(
                    images_pb2.CreateImageRequest(image=message), metadata=self._meta, timeout=CALL_SECONDS
                )
            return None
        except AlreadyExists:
            before = await self.get(image.name)
        with translate(f"image {image.name}"):
            await self._stub.Update(
                images_pb2.UpdateImageRequest(
                    image=message, update_mask=field_mask_pb2.FieldMask(paths=["target", "labels"])
                ),
                metadata=self._meta,
                timeout=CALL_SECONDS,
            )
        return before

    async def delete(self, name: str, *, sync: bool = False) -> None:
        """Remove a name; `sync` waits until everything that only it kept is gone. Idempotent."""
        try:
            with translate(f"image {name}"):
                await self._stub.Delete(
                    images_pb2.DeleteImageRequest(name=name, sync=sync),
                    metadata=self._meta,
                    timeout=COLLECT_SECONDS if sync else CALL_SECONDS,
                )
        except NotFound:
            pass


def _image(image: images_pb2.Image) -> Image:
    return Image(
        name=image.name,
        target=Descriptor(
            media_type=image.target.media_type,
            digest=image.target.digest,
            size=image.target.size,
            annotations=dict(image.target.annotations),
        ),
        labels=dict(image.labels),
        created_at=image.created_at.ToNanoseconds(),
    )
