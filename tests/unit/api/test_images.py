"""ImageService's answers from the store's copy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandboxd.api.images import Images
from sandboxd.errors import NotFound
from sandboxd.images.pull import Pulls
from sandboxd.images.store import ImageStore
from sandboxd.jobs import Jobs
from sandboxd.model import FsInfo
from sandboxd.pb.cri.v1 import api_pb2 as cri

RECORD = SimpleNamespace(
    id="sha256:id", repo_tags=("web:latest",), repo_digests=(), size=7, uid=0, username="", pinned=False,
    chain_id="sha256:chain", config={"User": "0"},
)  # fmt: skip


class Store:
    """One image."""

    def list(self, wanted: str) -> list[Any]:
        return [RECORD] if wanted in ("", "web") else []

    def resolve(self, name: str) -> Any:
        if name != "web":
            raise NotFound(f"image {name} does not exist")
        return RECORD

    def fs_info(self) -> FsInfo:
        return FsInfo(directory="/var/lib/x", bytes=5, inodes=2, at=3)


@pytest.fixture
def images() -> Images:
    return Images(cast(ImageStore, Store()), cast(Pulls, None), Jobs())


def wanted(name: str) -> Any:
    return cri.ImageFilter(image=cri.ImageSpec(image=name))


async def parts(call: AsyncIterator[Any]) -> list[Any]:
    return [part async for part in call]


async def test_a_list_and_its_stream_have_the_same_images(images: Images) -> None:
    listed = await images.ListImages(cri.ListImagesRequest(filter=wanted("web")), None)
    (streamed,) = await parts(images.StreamImages(cri.StreamImagesRequest(filter=wanted("web")), None))

    assert [image.id for image in listed.images] == [image.id for image in streamed.images] == ["sha256:id"]


async def test_nothing_is_an_empty_list_and_a_stream_without_messages(images: Images) -> None:
    assert not (await images.ListImages(cri.ListImagesRequest(filter=wanted("db")), None)).images
    assert await parts(images.StreamImages(cri.StreamImagesRequest(filter=wanted("db")), None)) == []


async def test_an_absent_image_is_an_empty_answer_not_an_error(images: Images) -> None:
    answer = await images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image="db"), verbose=True), None)

    assert not answer.HasField("image") and not answer.info


async def test_only_a_verbose_status_has_the_configuration(images: Images) -> None:
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image="web"))
    assert not (await images.ImageStatus(request, None)).info

    request.verbose = True
    assert '"sha256:chain"' in (await images.ImageStatus(request, None)).info["info"]


async def test_the_file_system_is_the_stores(images: Images) -> None:
    (usage,) = (await images.ImageFsInfo(cri.ImageFsInfoRequest(), None)).image_filesystems

    assert (usage.fs_id.mountpoint, usage.used_bytes.value, usage.inodes_used.value, usage.timestamp) == (
        "/var/lib/x", 5, 2, 3,
    )  # fmt: skip
