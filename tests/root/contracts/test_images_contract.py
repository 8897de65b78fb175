"""What operations rely on of images and root file systems: the same with containerd and with the fake of it."""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandboxd.containerd import rootfs
from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.images.store import ImageStore
from sandboxd.model import ImageRecord
from sandboxd.node import Images
from tests.fakes import images as fake
from tests.fakes.points import Points

FILE = "bin/busybox"  # what the image holds


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A store with one image."""

    images: Images
    image: ImageRecord


class Contract:
    """The rules."""

    async def test_an_image_is_found_by_name_and_by_id(self, bench: Bench) -> None:
        for text in ("busybox", "busybox:latest", bench.image.id, bench.image.id.removeprefix("sha256:")[:12]):
            assert bench.images.resolve(text) == bench.image
        for text in ("no-such-image", f"sha256:{'0' * 64}"):
            with pytest.raises(NotFound):
                bench.images.resolve(text)
        with pytest.raises(InvalidRequest):
            bench.images.resolve("not a name")

    async def test_a_root_file_system_is_made_once_and_shows_the_images_files(self, bench: Bench) -> None:
        mounts = await bench.images.prepare_rootfs("contract", bench.image)
        assert rootfs.read(mounts, FILE)
        assert rootfs.read(mounts, "no/such/file") is None
        assert tuple(await bench.images.prepare_rootfs("contract", bench.image)) == tuple(mounts)
        assert tuple(await bench.images.rootfs("contract")) == tuple(mounts)
        (mount,) = mounts
        assert mount.type == "overlay"
        (upper,) = (option.partition("=")[2] for option in mount.options if option.startswith("upperdir="))
        assert list(Path(upper).iterdir()) == []

    async def test_a_view_is_read_only_and_made_once(self, bench: Bench) -> None:
        mounts = await bench.images.view("contract", bench.image)
        assert rootfs.read(mounts, FILE)
        assert tuple(await bench.images.view("contract", bench.image)) == tuple(mounts)
        assert not any(option.startswith("upperdir=") for mount in mounts for option in mount.options)
        assert all(mount.type == "overlay" or "ro" in mount.options for mount in mounts)

    async def test_a_root_file_system_goes_once_and_removing_it_again_succeeds(self, bench: Bench) -> None:
        await bench.images.prepare_rootfs("contract", bench.image)
        for _ in range(2):
            await bench.images.remove_rootfs("contract")
        with pytest.raises(NotFound):
            await bench.images.rootfs("contract")
        with pytest.raises(NotFound):
            await bench.images.rootfs_usage("contract")

    async def test_a_root_file_system_is_measured(self, bench: Bench) -> None:
        await bench.images.prepare_rootfs("contract", bench.image)
        assert (await bench.images.rootfs_usage("contract")).inodes >= 1
        assert bench.images.fs_info().at > 0

    async def test_changes_are_written_as_an_archive_and_nothing_is_kept(self, bench: Bench, tmp_path: Path) -> None:
        await bench.images.prepare_rootfs("contract", bench.image)
        with (tmp_path / "changes").open("wb") as file:
            await bench.images.rootfs_changes("contract", file)
            with pytest.raises(NotFound):
                await bench.images.rootfs_changes("no-such-key", file)
        with tarfile.open(tmp_path / "changes") as archive:
            assert archive.getnames() == []
        for _ in range(2):
            await bench.images.forget_changes("contract")

    async def test_an_image_that_is_gone_makes_no_root_file_system(self, bench: Bench) -> None:
        await self.remove(bench)
        with pytest.raises(NotFound):
            bench.images.resolve("busybox")
        for make in (bench.images.prepare_rootfs, bench.images.view):
            with pytest.raises(NotFound):
                await make("contract", bench.image)
        with pytest.raises(NotFound):
            await bench.images.rootfs("contract")

    async def test_a_root_file_system_outlives_its_image(self, bench: Bench) -> None:
        mounts = await bench.images.prepare_rootfs("contract", bench.image)
        await self.remove(bench)
        await self.remove(bench)
        assert tuple(await bench.images.prepare_rootfs("contract", bench.image)) == tuple(mounts)
        assert rootfs.read(mounts, FILE)

    async def remove(self, bench: Bench) -> None:
        """Remove the image; operations do not, so that it is not in what they need."""
        assert isinstance(bench.images, ImageStore | fake.Images)
        await bench.images.remove("busybox")


class TestFake(Contract):
    """The fake of it."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        images = fake.Images(Points(), tmp_path / "images")
        return Bench(images=images, image=images.add(fake.record("busybox"), {FILE: "a program"}))


@pytest.mark.root
@pytest.mark.e2e
class TestContainerd(Contract):
    """The real thing."""

    @pytest.fixture
    async def bench(self, store: ImageStore) -> AsyncIterator[Bench]:
        yield Bench(images=store, image=store.resolve("busybox"))
        await store.remove_rootfs("contract")
