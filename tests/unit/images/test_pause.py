"""The pause image is here before the first pod asks for it, and again when it was removed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
import structlog

from sandboxd import jobs as jobs_module
from sandboxd.config import Runtime
from sandboxd.errors import NotReady, Unavailable
from sandboxd.images import load
from sandboxd.images.load import PAUSE_NAME
from sandboxd.images.pause import PauseImage
from sandboxd.images.pull import Pulls
from sandboxd.images.store import ImageStore
from sandboxd.jobs import Jobs
from sandboxd.model import ImageRecord
from tests.fakes.containerd import Containerd
from tests.unit.images.parts import archive, image, layer
from tests.unit.images.test_load import PROGRAM

NAME = "registry.test/pause:1"


class Registry:
    """Stands for the pulls: what is pulled comes from an archive, once `open` is set."""

    def __init__(self, store: ImageStore, directory: Path) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.pulled: list[str] = []
        self._store = store
        self._archive = directory / "pause.tar"
        self._archive.write_bytes(archive((NAME, image(layer("pause")))))

    async def pull(self, text: str) -> ImageRecord:
        self.pulled.append(text)
        await self.open.wait()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        await load.load(self._store, self._archive)
        return self._store.resolve(text)


@pytest.fixture
def registry(store: ImageStore, tmp_path: Path) -> Registry:
    return Registry(store, tmp_path)


@pytest.fixture
async def jobs(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Jobs]:
    monkeypatch.setattr(jobs_module, "RESTART_SECONDS", 0.0)
    made = Jobs()
    with structlog.testing.capture_logs():
        yield made
        await made.drain(5)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "catatonit"
    path.write_bytes(PROGRAM)
    return path


@pytest.fixture
def builtin(store: ImageStore, registry: Registry, jobs: Jobs, program: Path) -> PauseImage:
    return PauseImage(store, cast(Pulls, registry), jobs, Runtime(pause_binary=str(program)))


@pytest.fixture
def configured(store: ImageStore, registry: Registry, jobs: Jobs) -> PauseImage:
    return PauseImage(store, cast(Pulls, registry), jobs, Runtime(pause_image=NAME))


async def arrived(subject: PauseImage) -> ImageRecord:
    """The image, once it has been fetched."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await subject.get()
            except Unavailable:
                await asyncio.sleep(0)


async def test_the_builtin_image_is_here_when_it_has_been_prepared(builtin: PauseImage, registry: Registry) -> None:
    await builtin.prepare()
    record = await builtin.get()

    assert record.repo_tags == (PAUSE_NAME,) and record.pinned
    assert registry.pulled == []


@pytest.mark.parametrize("spoilt", [False, True], ids=["removed", "not a program"])
async def test_without_its_program_the_builtin_image_is_the_one_that_was_made_before(
    builtin: PauseImage, store: ImageStore, registry: Registry, jobs: Jobs, program: Path, spoilt: bool
) -> None:
    await builtin.prepare()
    if spoilt:
        program.write_bytes(b"#!/bin/sh")
    else:
        program.unlink()
    restarted = PauseImage(store, cast(Pulls, registry), jobs, Runtime(pause_binary=str(program)))

    await restarted.prepare()

    assert await restarted.get() == await builtin.get()


async def test_a_builtin_image_that_cannot_be_made_fails_the_start(builtin: PauseImage, program: Path) -> None:
    program.unlink()

    with pytest.raises(NotReady, match="install catatonit"):
        await builtin.prepare()


async def test_a_configured_image_that_is_here_needs_no_registry(
    configured: PauseImage, registry: Registry, store: ImageStore, containerd: Containerd
) -> None:
    await registry.pull(NAME)
    registry.pulled.clear()
    containerd.snapshots.clear()  # as another tool on this containerd brings images
    await configured.prepare()

    record = await configured.get()
    assert record.pinned and record.chain_id in containerd.snapshots
    assert registry.pulled == []


async def test_one_that_has_to_be_fetched_does_not_hold_up_the_start_and_pods_are_told(
    configured: PauseImage, registry: Registry
) -> None:
    registry.open.clear()
    await configured.prepare()
    with pytest.raises(Unavailable, match=f"the pause image {NAME} is not here yet; it is being fetched"):
        await configured.get()
    registry.open.set()

    record = await arrived(configured)
    assert record.pinned and record.repo_tags == (NAME,)
    assert registry.pulled == [NAME]


async def test_a_fetch_that_fails_is_tried_again(configured: PauseImage, registry: Registry) -> None:
    registry.error = Unavailable("the registry is away")
    await configured.prepare()

    assert (await arrived(configured)).repo_tags == (NAME,)
    assert registry.pulled == [NAME, NAME]


async def test_an_image_that_was_removed_is_brought_again_once_for_all_who_ask(
    configured: PauseImage, registry: Registry, store: ImageStore
) -> None:
    await configured.prepare()
    record = await arrived(configured)
    await store.remove(NAME)
    registry.pulled.clear()

    assert [*await asyncio.gather(configured.get(), configured.get())] == [record, record]
    assert registry.pulled == [NAME]
    assert store.resolve(NAME).pinned


async def test_the_builtin_image_that_was_removed_is_made_again(builtin: PauseImage, store: ImageStore) -> None:
    await builtin.prepare()
    record = await builtin.get()
    await store.remove(PAUSE_NAME)

    assert await builtin.get() == record
    assert store.resolve(PAUSE_NAME) == record


async def test_who_asks_for_an_image_that_cannot_be_brought_again_is_told_why_and_the_next_one_tries(
    configured: PauseImage, registry: Registry, store: ImageStore
) -> None:
    await configured.prepare()
    record = await arrived(configured)
    await store.remove(NAME)
    registry.error = Unavailable("the registry is away")
    with pytest.raises(Unavailable, match="the registry is away"):
        await configured.get()

    assert await configured.get() == record
