"""Every call to containerd of LoadImage and RemoveImage fails once: all of it is there afterwards, or nothing.

The calls are found by a run in which none fails. Here they are made to a real containerd, whose garbage collection
decides what is left.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxd.containerd.client import Containerd
from sandboxd.containerd.content import Content
from sandboxd.containerd.images import Images
from sandboxd.containerd.leases import Leases
from sandboxd.containerd.snapshots import Snapshots
from sandboxd.errors import SandboxdError, Unavailable
from sandboxd.images import load
from sandboxd.images.store import ImageStore
from tests.fakes.points import Point, Points
from tests.root.conftest import Private
from tests.root.holdings import NOTHING, Held, held, pack, save

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.images]

SERVICES: dict[str, type] = {"content": Content, "images": Images, "leases": Leases, "snapshots": Snapshots}


class Unexpected(RuntimeError):
    """An error that nobody has thought of."""


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Points:
    """A point for each call of containerd's services for images."""
    found = Points()
    for service, kind in SERVICES.items():
        for name, method in tuple(vars(kind).items()):
            if inspect.iscoroutinefunction(method) and not name.startswith("_"):
                monkeypatch.setattr(kind, name, pointed(found, f"{service}.{name}", method))
    return found


def pointed(points: Points, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def call(*arguments: Any, **options: Any) -> Any:
        async with points.at(name, Unavailable):
            return await method(*arguments, **options)

    return call


def ways(points: list[Point]) -> Iterator[tuple[Point, Exception, bool]]:
    """(call, error, whether the effect comes first)."""
    for point in points:
        yield point, Unavailable("fails once"), False
        yield point, Unexpected("fails once"), True


@pytest.fixture
async def store(client: Containerd) -> ImageStore:
    made = ImageStore(client, "overlayfs")
    await made.refresh()
    return made


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two images that share a layer."""
    base, other = pack({"etc/passwd": b"root:x:0:0::/:/bin/sh"}), pack({"data": b"x"})
    return save(tmp_path / "images.tar", ("one:1", [base]), ("two:1", [base, other]))


async def left(private: Private, store: ImageStore, points: Points) -> Held:
    """What is there when leases that could not be deleted have expired."""
    points.reset()
    for lease in await store.leases.ids():
        await store.leases.delete(lease, sync=True)
    await store.refresh()
    return await held(private, store)


async def removed(store: ImageStore) -> None:
    for record in store.list():
        await store.remove(record.id)


async def test_a_load_that_fails_brings_all_images_or_none(
    private: Private,
    store: ImageStore,
    archive: Path,
    points: Points,
    record_property: Callable[[str, object], None],
) -> None:
    points.reset()
    await load.load(store, archive)
    passed = list(points.passed)
    assert len(passed) >= 20, [str(point) for point in passed]
    whole = await left(private, store, points)
    assert len(whole.images) == 2
    for point, error, after in ways(passed):
        await removed(store)
        assert await left(private, store, points) == NOTHING
        points.reset()
        points.fail(point, error, after=after)
        try:
            await load.load(store, archive)
        except (SandboxdError, Unexpected):
            possible = [NOTHING, whole]
        else:
            possible = [whole]
        assert not points.unreached
        assert await left(private, store, points) in possible, f"{point} {error!r} {after}"
    record_property("covered", f"LoadImage: {len(passed)} calls to containerd fail in {2 * len(passed)} ways")


async def test_a_removal_that_fails_is_completed_by_the_next(
    private: Private,
    store: ImageStore,
    archive: Path,
    points: Points,
    record_property: Callable[[str, object], None],
) -> None:
    await load.load(store, archive)
    points.reset()
    await removed(store)
    passed = list(points.passed)
    assert len(passed) >= 4, [str(point) for point in passed]
    for point, error, after in ways(passed):
        await load.load(store, archive)
        points.reset()
        points.fail(point, error, after=after)
        try:
            await removed(store)
        except (SandboxdError, Unexpected):
            pass
        assert not points.unreached
        points.reset()
        await removed(store)
        assert await left(private, store, points) == NOTHING, f"{point} {error!r} {after}"
    record_property("covered", f"RemoveImage: {len(passed)} calls to containerd fail in {2 * len(passed)} ways")
