"""containerd's contents, snapshots, image names and leases in memory, below a real `ImageStore`.

What neither a name nor a lease leads to is collected where containerd waits for the collection: a label that is
missing shows. The snapshotter has no directories to write to, so every layer is unpacked by containerd.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import pytest

from sandboxd.containerd import client, ingest
from sandboxd.containerd.content import CHILD_LABEL, SNAPSHOT_LABEL, ContentInfo
from sandboxd.containerd.images import Image
from sandboxd.containerd.snapshots import Kind, Usage
from sandboxd.errors import AlreadyExists, InvalidRequest, NotFound, Unavailable
from sandboxd.images.store import ImageStore, Leased
from sandboxd.oci.image import Descriptor, Platform, chain_ids
from tests.fakes.points import Points

HOST = Platform(os="linux", architecture="amd64")
SNAPSHOTTER = "overlayfs"
PIECE = 1024  # bytes in which a blob is read


class Containerd:
    """What containerd has. `install` makes it take the place of ingests, which are not part of a store."""

    metadata = ()

    def __init__(self, points: Points) -> None:
        self.in_use: set[str] = set()
        self.strange: set[str] = set()  # leases and drafts that another daemon has marked as its own
        self.drafts: set[str] = set()  # snapshots that are not committed
        self.blobs: dict[str, bytes] = {}
        self.labels: dict[str, dict[str, str]] = {}
        self.snapshots: dict[str, str] = {}  # committed, with the one below
        self.names: dict[str, Image] = {}
        self.leases: dict[str, set[str]] = {}
        self.parts: dict[str, bytearray] = {}  # of blobs whose writer went away
        self.points = points
        self.channel = _Channel()
        self._numbers = itertools.count()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(ingest, "writing", self._writing)
        patch.setattr(ingest, "read", self._read)

    def store(self) -> ImageStore:
        """A store over this containerd."""
        return _Store(self)

    def add(self, data: bytes, labels: Mapping[str, str] | None = None, lease: str = "") -> str:
        """Have a blob; return its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        self.labels.setdefault(digest, {}).update(labels or {})
        self.keep(lease, digest)
        return digest

    def keep(self, lease: str, resource: str) -> None:
        if lease:
            self.leases[lease].add(resource)

    def lease(self) -> str:
        """A new lease."""
        name = f"lease-{next(self._numbers)}"
        self.leases[name] = set()
        return name

    def collect(self) -> None:
        """Remove what no name and no lease leads to."""
        found: set[str] = set()
        todo = [image.target.digest for image in self.names.values()]
        todo += [resource for resources in self.leases.values() for resource in resources]
        while todo:
            if (resource := todo.pop()) not in found:
                found.add(resource)
                todo += [value for key, value in self.labels.get(resource, {}).items() if key.startswith(_KEEPING)]
                todo += [self.snapshots[resource]] if self.snapshots.get(resource) else []
        for known in (self.blobs, self.labels, self.snapshots):
            for resource in set(known) - found:
                del cast(dict[str, Any], known)[resource]

    @asynccontextmanager
    async def _writing(
        self, of: object, lease: str, descriptor: Descriptor, *, ask: bool = True, executor: object = None
    ) -> AsyncIterator[Writer]:
        if ask and descriptor.digest in self.blobs:
            self.keep(lease, descriptor.digest)
            raise AlreadyExists(f"content {descriptor.digest}: already exists")
        writer = Writer(self, lease, descriptor, self.parts.pop(descriptor.digest, bytearray()) if ask else None)
        try:
            yield writer
        finally:
            if writer.data:
                self.parts[descriptor.digest] = writer.data

    async def _read(self, of: object, digest: str) -> AsyncIterator[bytes]:
        for start in range(0, len(data := self.blob(digest)), PIECE):
            yield data[start : start + PIECE]

    def blob(self, digest: str) -> bytes:
        if digest not in self.blobs:
            raise NotFound(f"content {digest}: not found")
        return self.blobs[digest]


_KEEPING = (CHILD_LABEL, SNAPSHOT_LABEL)


class Writer:
    """A blob on its way in."""

    def __init__(self, fakes: Containerd, lease: str, descriptor: Descriptor, data: bytearray | None) -> None:
        self.data = data or bytearray()
        self._fakes = fakes
        self._lease = lease
        self._descriptor = descriptor

    @property
    def offset(self) -> int:
        return len(self.data)

    async def write(self, data: bytes) -> None:
        async with self._fakes.points.at("ingest.write", Unavailable):
            self.data += data

    async def commit(self, labels: Mapping[str, str]) -> None:
        async with self._fakes.points.at("ingest.commit", Unavailable):
            _verify(self._descriptor, bytes(self.data))
            self._fakes.add(bytes(self.data), labels, self._lease)
            self.data = bytearray()

    async def abort(self) -> None:
        self.data = bytearray()

    async def restart(self) -> None:
        self.data = bytearray()


class _Content:
    def __init__(self, fakes: Containerd, lease: str = "") -> None:
        self._fakes = fakes
        self._lease = lease

    async def info(self, digest: str) -> ContentInfo:
        async with self._fakes.points.at("content.info", NotFound, Unavailable):
            size = len(self._fakes.blob(digest))
            return ContentInfo(digest=digest, size=size, labels=dict(self._fakes.labels[digest]))

    async def list(self, digests: Sequence[str] = ()) -> list[ContentInfo]:
        return [await self.info(digest) for digest in dict.fromkeys(digests) if digest in self._fakes.blobs]

    async def read(self, digest: str, most: int) -> bytes:
        async with self._fakes.points.at("content.read", NotFound, Unavailable):
            data = self._fakes.blob(digest)
            if len(data) > most:
                raise InvalidRequest(f"content {digest} has {len(data)} bytes, more than the {most} allowed")
            return data

    async def write(
        self,
        descriptor: Descriptor,
        file: BinaryIO,
        labels: Mapping[str, str] | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> bool:
        async with self._fakes.points.at("content.write", Unavailable):
            new = descriptor.digest not in self._fakes.blobs
            data = file.read() if new else self._fakes.blobs[descriptor.digest]
            _verify(descriptor, data)
            self._fakes.add(data, labels, self._lease)
            progress(len(data))
            return new

    async def set_labels(self, digest: str, labels: Mapping[str, str]) -> None:
        async with self._fakes.points.at("content.set_labels", NotFound, Unavailable):
            self._fakes.blob(digest)
            self._fakes.labels[digest].update(labels)


class _Snapshots:
    def __init__(self, fakes: Containerd, lease: str = "") -> None:
        self.snapshotter = SNAPSHOTTER
        self._fakes = fakes
        self._lease = lease

    async def root(self) -> str:
        return "/snapshots"

    async def list(self, names: Sequence[str] = ()) -> list[Any]:
        async with self._fakes.points.at("snapshots.list", Unavailable):
            wanted = names or tuple(self._fakes.snapshots)
            return [SimpleNamespace(name=n, kind=Kind.COMMITTED) for n in wanted if n in self._fakes.snapshots]

    async def idle_drafts(self) -> tuple[str, ...]:
        async with self._fakes.points.at("snapshots.idle_drafts", Unavailable):
            return tuple(sorted(self._fakes.drafts - self._fakes.in_use - self._fakes.strange))

    async def remove(self, key: str) -> None:
        async with self._fakes.points.at("snapshots.remove", Unavailable):
            self._fakes.drafts.discard(key)

    async def usage(self, key: str) -> Usage:
        return Usage(bytes=1, inodes=1)

    async def exists(self, key: str) -> bool:
        return key in self._fakes.snapshots

    async def begin(self, name: str, parent: str) -> _Draft:
        if name in self._fakes.snapshots:
            raise AlreadyExists(f"snapshot {name}: already exists")
        return _Draft()

    async def unpack_layer(self, layer: Descriptor, diff_id: str, name: str, parent: str) -> None:
        async with self._fakes.points.at("snapshots.unpack_layer", Unavailable):
            if name in self._fakes.snapshots:
                raise AlreadyExists(f"snapshot {name}: already exists")
            if parent and parent not in self._fakes.snapshots:
                raise NotFound(f"parent snapshot {parent} does not exist: not found")
            data = self._fakes.blob(layer.digest)
            data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            if (computed := f"sha256:{hashlib.sha256(data).hexdigest()}") != diff_id:
                raise InvalidRequest(f"the uncompressed layer has a wrong digest: {computed}")
            self._fakes.snapshots[name] = parent
            self._fakes.keep(self._lease, name)

    async def unpack(
        self,
        layers: Sequence[Descriptor],
        diff_ids: Sequence[str],
        progress: Callable[[int], None] = lambda count: None,
    ) -> str:
        parent = ""
        for layer, diff_id, name in zip(layers, diff_ids, chain_ids(diff_ids), strict=True):
            if name not in self._fakes.snapshots:
                await self.unpack_layer(layer, diff_id, name, parent)
            progress(layer.size)
            parent = name
        return parent


class _Draft:
    """Of a snapshotter without directories."""

    mounts = ()

    async def discard(self) -> None:
        """There is nothing."""


class _Names:
    def __init__(self, fakes: Containerd) -> None:
        self._fakes = fakes

    async def get(self, name: str) -> Image:
        async with self._fakes.points.at("names.get", NotFound, Unavailable):
            if name not in self._fakes.names:
                raise NotFound(f"image {name}: not found")
            return self._fakes.names[name]

    async def list(self) -> list[Image]:
        async with self._fakes.points.at("names.list", Unavailable):
            return list(self._fakes.names.values())

    async def put(self, image: Image) -> Image | None:
        async with self._fakes.points.at("names.put", Unavailable):
            self._fakes.blob(image.target.digest)
            before = self._fakes.names.get(image.name)
            self._fakes.names[image.name] = image
            return before

    async def delete(self, name: str, *, sync: bool = False) -> None:
        async with self._fakes.points.at("names.delete", Unavailable):
            self._fakes.names.pop(name, None)
            if sync:
                self._fakes.collect()


class _Leases:
    def __init__(self, fakes: Containerd) -> None:
        self._fakes = fakes

    async def add_snapshot(self, lease: str, snapshotter: str, name: str) -> None:
        self._add(lease, name)

    async def add_content(self, lease: str, digest: str) -> None:
        self._add(lease, digest)

    def _add(self, lease: str, resource: str) -> None:
        if lease not in self._fakes.leases:
            raise NotFound(f"lease {lease}: not found")
        self._fakes.keep(lease, resource)

    async def create(self, lease: str, *, seconds: float) -> None:
        async with self._fakes.points.at("leases.create", Unavailable):
            self._fakes.leases.setdefault(lease, set())

    async def delete(self, lease: str, *, sync: bool = False) -> None:
        async with self._fakes.points.at("leases.delete", Unavailable):
            self._fakes.leases.pop(lease, None)
            if sync:
                self._fakes.collect()

    async def collect(self) -> None:
        async with self._fakes.points.at("leases.collect", Unavailable):
            self._fakes.collect()

    async def idle(self) -> set[str]:
        async with self._fakes.points.at("leases.idle", Unavailable):
            return set(self._fakes.leases) - self._fakes.in_use - self._fakes.strange

    async def content(self, lease: str) -> set[str]:
        async with self._fakes.points.at("leases.content", Unavailable):
            if lease not in self._fakes.leases:
                raise NotFound(f"lease {lease}: not found")
            return self._fakes.leases[lease] & set(self._fakes.blobs)

    @contextmanager
    def using(self, lease: str) -> Iterator[None]:
        self._fakes.in_use.add(lease)
        try:
            yield
        finally:
            self._fakes.in_use.discard(lease)

    @asynccontextmanager
    async def held(self, purpose: str, *, seconds: float) -> AsyncIterator[str]:
        lease = self._fakes.lease()
        try:
            yield lease
        finally:
            del self._fakes.leases[lease]
            self._fakes.collect()


class _Channel:
    """One over which nothing is called."""

    def __getattr__(self, kind: str) -> Callable[..., None]:
        return lambda *_, **__: None


class _Store(ImageStore):
    def __init__(self, fakes: Containerd) -> None:
        super().__init__(cast("client.Containerd", fakes), SNAPSHOTTER, HOST)
        self._fakes = fakes
        parts: Any = self
        parts.content, parts.snapshots = _Content(fakes), _Snapshots(fakes)
        parts.images, parts.leases = _Names(fakes), _Leases(fakes)

    def under(self, lease: str) -> Leased:
        content, snapshots = _Content(self._fakes, lease), _Snapshots(self._fakes, lease)
        return cast(Leased, SimpleNamespace(content=content, snapshots=snapshots))


def _verify(descriptor: Descriptor, data: bytes) -> None:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if (digest, len(data)) != (descriptor.digest, descriptor.size):
        raise InvalidRequest(f"content {descriptor.digest}: unexpected commit digest {digest}")
