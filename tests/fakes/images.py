"""Images and root file systems in memory and a directory, as `sandboxd.images.store` shows them.

A root file system is an overlay over the image's directory, described and not mounted, as with the real one: its
layers are directories that can be read and written.

Held to the real thing by `tests/root/contracts/test_images.py`.
"""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sandboxd.containerd.snapshots import Mount, Usage
from sandboxd.errors import NotFound, Unavailable
from sandboxd.images.store import find, user_of
from sandboxd.model import FsInfo, ImageRecord
from tests.fakes.points import Points


def record(name: str, config: Mapping[str, Any] | None = None, *, digit: str = "a") -> ImageRecord:
    """An image of this name whose digests are made of `digit`."""
    config = config or {"Cmd": ["/bin/app"]}
    username, uid = user_of(config)
    repository = f"docker.io/library/{name}"
    digest = f"sha256:{digit * 64}"
    return ImageRecord(
        id=digest,
        names=(f"{repository}:latest", f"{repository}@{digest}"),
        repo_tags=(f"{repository}:latest",),
        repo_digests=(f"{repository}@{digest}",),
        size=1,
        username=username,
        uid=uid,
        pinned=False,
        chain_id=f"sha256:{digit * 63}0",
        config=config,
        digest=digest,
        records=(f"{repository}:latest",),
    )


class Images:
    """Images are added with `add`; their files are in `directory`."""

    def __init__(self, points: Points, directory: Path) -> None:
        self.records: list[ImageRecord] = []
        self.snapshots: dict[str, tuple[Mount, ...]] = {}
        self.packed: set[str] = set()  # root file systems whose changes somebody packs, or was cut off packing
        self._points = points
        self._directory = directory

    def add(self, image: ImageRecord, files: Mapping[str, str] | None = None) -> ImageRecord:
        """Bring an image with these files in it."""
        self.records.append(image)
        for path, text in (files or {}).items():
            file = self._layer(image) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self._layer(image).mkdir(parents=True, exist_ok=True)
        return image

    def left(self) -> list[str]:
        """Everything that is there and is not an image."""
        return [*(f"snapshot {key}" for key in self.snapshots), *(f"packed changes of {key}" for key in self.packed)]

    def resolve(self, reference: str) -> ImageRecord:
        return find(self.records, reference)

    def fs_info(self) -> FsInfo:
        return FsInfo(directory=str(self._directory), bytes=0, inodes=0, at=time.time_ns())

    async def remove(self, text: str) -> None:
        async with self._points.at("images.remove", Unavailable):
            try:
                self.records.remove(self.resolve(text))
            except NotFound:
                pass

    async def prepare_rootfs(self, key: str, image: ImageRecord) -> Sequence[Mount]:
        async with self._points.at("images.prepare_rootfs", NotFound, Unavailable):
            return self._snapshot(key, image, writable=True)

    async def view(self, key: str, image: ImageRecord) -> Sequence[Mount]:
        async with self._points.at("images.view", NotFound, Unavailable):
            return self._snapshot(key, image, writable=False)

    async def rootfs(self, key: str) -> Sequence[Mount]:
        async with self._points.at("images.rootfs", NotFound, Unavailable):
            return self._mounts(key)

    async def remove_rootfs(self, key: str) -> None:
        async with self._points.at("images.remove_rootfs", Unavailable):
            self.snapshots.pop(key, None)

    async def rootfs_usage(self, key: str) -> Usage:
        async with self._points.at("images.rootfs_usage", NotFound, Unavailable):
            self._mounts(key)
            return Usage(bytes=4096, inodes=1)

    async def rootfs_changes(self, key: str, file: BinaryIO) -> None:
        async with self._points.at("images.rootfs_changes", NotFound, Unavailable):
            self._mounts(key)
            self.packed.add(key)
            try:
                layer = io.BytesIO()
                with tarfile.open(fileobj=layer, mode="w"):
                    pass
                file.write(layer.getvalue())
            finally:
                self.packed.discard(key)

    async def forget_changes(self, key: str) -> None:
        async with self._points.at("images.forget_changes", Unavailable):
            self.packed.discard(key)

    def _layer(self, image: ImageRecord) -> Path:
        return self._directory / "layers" / image.id.removeprefix("sha256:")[:12]

    def _mounts(self, key: str) -> tuple[Mount, ...]:
        if key not in self.snapshots:
            raise NotFound(f"snapshot {key}: snapshot {key} does not exist: not found")
        return self.snapshots[key]

    def _snapshot(self, key: str, image: ImageRecord, *, writable: bool) -> tuple[Mount, ...]:
        if key in self.snapshots:
            return self.snapshots[key]
        if image not in self.records:
            raise NotFound(f"image {image.id} was removed; load or pull it again")
        layer = str(self._layer(image))
        if not writable:
            mounts = (Mount(type="bind", source=layer, options=("ro", "rbind")),)
        else:
            upper, work = (self._directory / "snapshots" / key / name for name in ("fs", "work"))
            upper.mkdir(parents=True, exist_ok=True)
            work.mkdir(exist_ok=True)
            options = (f"workdir={work}", f"upperdir={upper}", f"lowerdir={layer}")
            mounts = (Mount(type="overlay", source="overlay", options=options),)
        self.snapshots[key] = mounts
        return mounts
