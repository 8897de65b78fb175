"""A lease counts as written under when the next attempt has something to go on from, and only then."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandboxd.containerd import ingest
from sandboxd.errors import Exhausted, NotReady, Unavailable, Unclassified
from sandboxd.images.fetch import Counters, Fetch, Hold, Shared, no_space
from sandboxd.images.store import ImageStore
from sandboxd.images.unpack import Memory
from sandboxd.jobs import Jobs
from sandboxd.model import unreported
from sandboxd.oci import image as oci
from sandboxd.oci.image import Descriptor, ImageConfig, Manifest
from sandboxd.registry.client import Repository

MESSAGE_BYTES = 16384  # that this test's writer collects before it passes them on
PIECE = 2048


def layer(size: int) -> bytes:
    output = io.BytesIO()
    entry = tarfile.TarInfo("file")
    entry.size = size
    with tarfile.open(fileobj=output, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(bytes(size)))
    return output.getvalue()


LAYERS = (layer(1), layer(2 * MESSAGE_BYTES))  # the first is less than a message


class Writer:
    """An ingest whose containerd takes everything."""

    def __init__(self, committed: asyncio.Event) -> None:
        self.committed = committed
        self.offset = 0
        self.collected = 0

    async def write(self, data: bytes) -> None:
        self.collected += len(data)
        if self.collected >= MESSAGE_BYTES:
            self.offset += self.collected
            self.collected = 0

    async def commit(self, labels: Any) -> None:
        """Small blobs go in one message: the offset never shows them."""
        self.committed.set()


class Registry:
    """Serves the layers, of the last one `last_bytes` before it falls silent; that comes after all others."""

    def __init__(self, last_bytes: int, others: asyncio.Event) -> None:
        self.last_bytes = last_bytes
        self.others = others

    async def blob(self, digest: str, size: int, at: int, take: Callable[[bytes], Awaitable[None]]) -> list[Any]:
        data = next(data for data in LAYERS if oci.digest(data) == digest)
        end = self.last_bytes if data is LAYERS[-1] else size
        for start in range(at, end, PIECE):
            await take(data[start : min(end, start + PIECE)])
        if end < size:
            await self.others.wait()
            raise Unavailable("the registry fell silent")
        return []


class Snapshots:
    """Of a containerd that has unpacked every layer, and lost the blobs: nothing is left to do but to fetch."""

    snapshotter = "overlayfs"

    async def list(self, names: Sequence[str]) -> list[Any]:
        return [SimpleNamespace(name=name) for name in names]


class Content:
    async def list(self, digests: Sequence[str]) -> list[Any]:
        return []


class Leases:
    async def add_snapshot(self, *arguments: str) -> None: ...


@pytest.fixture
def committed() -> asyncio.Event:
    """Whether a layer was."""
    return asyncio.Event()


@pytest.fixture
async def shared(monkeypatch: pytest.MonkeyPatch, committed: asyncio.Event) -> AsyncIterator[Shared]:
    @asynccontextmanager
    async def writing(*arguments: Any, **options: Any) -> AsyncIterator[Writer]:
        yield Writer(committed)

    monkeypatch.setattr(ingest, "writing", writing)
    leased = SimpleNamespace(content=Content(), snapshots=Snapshots())
    store = SimpleNamespace(client=None, leases=Leases(), under=lambda lease: leased)
    with ThreadPoolExecutor(2) as executor:
        yield Shared(
            store=cast(ImageStore, store),
            jobs=Jobs(),
            executor=executor,
            layers=asyncio.Semaphore(2),
            counters=Counters(),
            memory=Memory(),
        )


async def written(shared: Shared, layers: tuple[bytes, ...], last_bytes: int, others: asyncio.Event) -> bool:
    """Whether a pull that is cut off leaves something, when so much of its last layer came."""
    hold = Hold(lease="lease", written=False)
    descriptors = tuple(
        Descriptor(media_type=oci.OCI_LAYER, digest=oci.digest(data), size=len(data)) for data in layers
    )
    manifest = cast(Manifest, SimpleNamespace(layers=descriptors))
    config = cast(ImageConfig, SimpleNamespace(diff_ids=[layer.digest for layer in descriptors]))
    fetch = Fetch(shared, cast(Repository, Registry(last_bytes, others)), hold, 1, unreported)
    with pytest.raises(ExceptionGroup) as caught:
        await fetch.layers(manifest, config)
    assert caught.group_contains(Unavailable, match="fell silent")
    return hold.written


@pytest.mark.parametrize(
    ("last_bytes", "expected"), [(0, False), (PIECE, False), (MESSAGE_BYTES, True), (MESSAGE_BYTES + PIECE, True)]
)
async def test_a_part_of_a_layer_counts_once_containerd_has_it(
    shared: Shared, committed: asyncio.Event, last_bytes: int, expected: bool
) -> None:
    committed.set()
    assert await written(shared, LAYERS[1:], last_bytes, committed) is expected


async def test_a_whole_layer_counts_although_the_one_above_it_never_came(
    shared: Shared, committed: asyncio.Event
) -> None:
    assert await written(shared, LAYERS, 0, committed) is True


def test_a_full_disk_is_told_from_containerds_other_failures() -> None:
    with pytest.raises(Exhausted, match="storing: no space is left on the disk"), no_space("storing"):
        raise Unclassified("write /x: no space left on device")


@pytest.mark.parametrize("error", [Unclassified("broken"), NotReady("no space left on device")])
def test_other_failures_pass_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, no_space("storing"):
        raise error
    assert caught.value is error
