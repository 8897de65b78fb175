"""Snapshots: layered file systems, and unpacking image layers into them.

A committed snapshot is read-only and named by the chain id of its layers; a container gets an active one on top,
under its own id. containerd describes a snapshot by its mounts; nothing is mounted here.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc
import structlog

from sandboxd.containerd import half_made, refusals
from sandboxd.containerd.client import Containerd, translate
from sandboxd.containerd.leases import metadata
from sandboxd.errors import AlreadyExists, InvalidRequest, NotFound, SandboxdError, Unclassified
from sandboxd.jobs import in_pieces
from sandboxd.oci.image import DOCKER_LAYER, OCI_LAYER, Descriptor, chain_ids
from sandboxd.pb.containerd.services.diff.v1 import diff_pb2, diff_pb2_grpc
from sandboxd.pb.containerd.services.introspection.v1 import introspection_pb2, introspection_pb2_grpc
from sandboxd.pb.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from sandboxd.pb.containerd.types import descriptor_pb2, mount_pb2

log = structlog.get_logger(__name__)

T = TypeVar("T")

CALL_SECONDS = 30.0
UNPACK_SECONDS = 1800.0  # of one layer; large ones on slow disks take minutes

# An active snapshot with this label is kept whether or not a container record refers to it yet, and so are the
# snapshots below it; the code that prepared it removes it.
ROOT_LABEL = "containerd.io/gc.root"
# On an active snapshot, names the committed one that it is to become: containerd refuses if that one exists.
TARGET_LABEL = "containerd.io/snapshot.ref"

# Snapshots that are in progress: one that is to become a layer's, and the view that changes are told from.
DRAFT_PREFIX = "sandboxd-unpack-"
DIFF_PREFIX = "sandboxd-diff-"

# containerd 1.6 knows zstd by the OCI's name only.
_READ_AS = {f"{DOCKER_LAYER}.zstd": f"{OCI_LAYER}+zstd"}


class Kind(enum.Enum):
    """What a snapshot can be used for."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


_KINDS = {
    snapshots_pb2.VIEW: Kind.VIEW,
    snapshots_pb2.ACTIVE: Kind.ACTIVE,
    snapshots_pb2.COMMITTED: Kind.COMMITTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """How to mount (part of) a snapshot, in mount(8)'s terms. `target` is relative to the root, mostly ""."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot. `parent` is "" for the lowest; times are unix nanoseconds."""

    name: str
    parent: str
    kind: Kind
    created_at: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The space that a snapshot itself takes, without those below it."""

    bytes: int
    inodes: int


class Snapshots:
    """containerd's snapshot and diff services with one snapshotter; what is created belongs to `lease`."""

    def __init__(self, client: Containerd, snapshotter: str, lease: str = "") -> None:
        self.snapshotter = snapshotter
        self._client = client
        self._meta = metadata(client, lease)
        self._stub = snapshots_pb2_grpc.SnapshotsStub(client.channel)
        self._diff = diff_pb2_grpc.DiffStub(client.channel)
        self._introspection = introspection_pb2_grpc.IntrospectionStub(client.channel)

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        """Create a writable snapshot on top of `parent`; raises AlreadyExists, or NotFound without the parent."""
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=self.snapshotter, key=key, parent=parent, labels=labels
        )
        answer = await self._made(key, lambda: self._stub.Prepare(request, metadata=self._meta, timeout=CALL_SECONDS))
        return _mounts(answer.mounts)

    async def view(self, key: str, parent: str, labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        """Create a read-only snapshot of `parent`; raises AlreadyExists, or NotFound without the parent."""
        request = snapshots_pb2.ViewSnapshotRequest(
            snapshotter=self.snapshotter, key=key, parent=parent, labels=labels
        )
        answer = await self._made(key, lambda: self._stub.View(request, metadata=self._meta, timeout=CALL_SECONDS))
        return _mounts(answer.mounts)

    async def _made(self, key: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask for a new snapshot; again, once what a containerd that died has left in its place is removed."""
        try:
            with translate(f"snapshot {key}"):
                return await ask()
        except Unclassified as exc:
            if not half_made.left_in(str(exc)):
                raise
        # One at a time, and not before it is in the way of this one too: removed by another, its number is in use.
        async with self._client.tidying:
            try:
                with translate(f"snapshot {key}"):
                    return await ask()
            except Unclassified as exc:
                directory = half_made.left_in(str(exc))
                if not directory:
                    raise
                log.warning("containerd has left a snapshot that it had not finished, it is removed", path=directory)
            await in_pieces(half_made.remove(directory))
        with translate(f"snapshot {key}"):
            return await ask()

    async def mounts(self, key: str) -> tuple[Mount, ...]:
        """How to mount an active snapshot or a view; raises NotFound."""
        with translate(f"snapshot {key}"):
            answer = await self._stub.Mounts(
                snapshots_pb2.MountsRequest(snapshotter=self.snapshotter, key=key),
                metadata=self._meta,
                timeout=CALL_SECONDS,
            )
        return _mounts(answer.mounts)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        """Turn the active snapshot `key` into the committed one `name`; raises AlreadyExists, NotFound."""
        with translate(f"snapshot {name}"):
            await self._stub.Commit(
                snapshots_pb2.CommitSnapshotRequest(snapshotter=self.snapshotter, name=name, key=key, labels=labels),
                metadata=self._meta,
                timeout=UNPACK_SECONDS,
            )

    async def remove(self, key: str) -> None:
        """Remove a snapshot. Idempotent. Raises NotReady when another snapshot is on top of it."""
        try:
            with translate(f"snapshot {key}"):
                await self._stub.Remove(
                    snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key),
                    metadata=self._meta,
                    timeout=CALL_SECONDS,
                )
        except NotFound:
            pass

    async def stat(self, key: str) -> Snapshot:
        """Look a snapshot up; raises NotFound."""
        with translate(f"snapshot {key}"):
            answer = await self._stub.Stat(
                snapshots_pb2.StatSnapshotRequest(snapshotter=self.snapshotter, key=key),
                metadata=self._meta,
                timeout=CALL_SECONDS,
            )
        return _snapshot(answer.info)

    async def exists(self, key: str) -> bool:
        """Whether there is such a snapshot."""
        try:
            await self.stat(key)
        except NotFound:
            return False
        return True

    async def list(self, names: Sequence[str] = ()) -> list[Snapshot]:
        """Every snapshot of this namespace and snapshotter, or those of `names` that exist."""
        snapshots = []
        with translate("listing snapshots"):
            stream = self._stub.List(
                snapshots_pb2.ListSnapshotsRequest(
                    snapshotter=self.snapshotter, filters=[f"name=={name}" for name in names]
                ),
                metadata=self._meta,
                timeout=CALL_SECONDS,
            )
            async for answer in stream:
                snapshots += [_snapshot(info) for info in answer.info]
        return snapshots

    async def usage(self, key: str) -> Usage:
        """The space of the snapshot on disk; for an active one containerd walks its files. Raises NotFound."""
        with translate(f"usage of snapshot {key}"):
            answer = await self._stub.Usage(
                snapshots_pb2.UsageRequest(snapshotter=self.snapshotter, key=key),
                metadata=self._meta,
                timeout=CALL_SECONDS,
            )
        return Usage(bytes=answer.size, inodes=answer.inodes)

    async def root(self) -> str:
        """The directory where the snapshotter keeps its files, "" when it does not report one."""
        with translate("asking containerd for its snapshotters"):
            answer = await self._introspection.Plugins(
                introspection_pb2.PluginsRequest(
                    filters=[f"type==io.containerd.snapshotter.v1,id=={self.snapshotter}"]
                ),
                metadata=self._meta,
                timeout=CALL_SECONDS,
            )
        return next((plugin.exports.get("root", "") for plugin in answer.plugins), "")

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount]) -> str:
        """Unpack a layer of the content store onto `mounts`; return the digest of the unpacked data (its diff id).

        Raises InvalidRequest when the layer is to blame for a failure.
        """
        media_type = _READ_AS.get(layer.media_type, layer.media_type)
        request = diff_pb2.ApplyRequest(
            diff=descriptor_pb2.Descriptor(media_type=media_type, digest=layer.digest, size=layer.size),
            mounts=[_message(mount) for mount in mounts],
        )
        try:
            with translate(f"unpacking layer {layer.digest}"):
                answer = await self._diff.Apply(request, metadata=self._meta, timeout=UNPACK_SECONDS)
        except (Unclassified, InvalidRequest) as exc:
            directories = [mount.source for mount in mounts if mount.type != "overlay"]
            for option in (option for mount in mounts for option in mount.options):
                name, _, value = option.partition("=")
                directories += value.split(":") if name in ("upperdir", "lowerdir") else ()
            said = exc.__cause__
            message = (said.details() or "") if isinstance(said, grpc.aio.AioRpcError) else str(exc)
            if fault := refusals.blamed(message, directories):
                raise InvalidRequest(f"layer {layer.digest} cannot be unpacked: {fault}") from exc
            raise
        return answer.applied.digest

    async def diff(self, key: str, media_type: str) -> str:
        """Pack what an active snapshot changed of its parent into a blob; return the blob's digest.

        The blob belongs to the lease: without one it could be collected at any moment. Raises NotFound.
        """
        parent = (await self.stat(key)).parent
        view = f"{DIFF_PREFIX}{secrets.token_hex(6)}-{key}"
        self._client.in_use.add(view)
        try:
            left = await self.view(view, parent, self._client.owned) if parent else ()
            with translate(f"packing snapshot {key}"):
                answer = await self._diff.Diff(
                    diff_pb2.DiffRequest(
                        left=[_message(mount) for mount in left],
                        right=[_message(mount) for mount in await self.mounts(key)],
                        media_type=media_type,
                        ref=view,
                    ),
                    metadata=self._meta,
                    timeout=UNPACK_SECONDS,
                )
        finally:
            self._client.in_use.discard(view)
            await self.remove(view)
        return answer.diff.digest

    async def unpack(
        self,
        layers: Sequence[Descriptor],
        diff_ids: Sequence[str],
        progress: Callable[[int], None] = lambda count: None,
    ) -> str:
        """Unpack the layers, the lowest first, and return the chain id of the stack ("" without layers).

        Existing layers are skipped; several callers may unpack the same ones at once. `progress` gets each layer's
        compressed size. Raises InvalidRequest when a layer does not match its diff id.
        """
        parent = ""
        chain = chain_ids(diff_ids)
        for number, (layer, diff_id, name) in enumerate(zip(layers, diff_ids, chain, strict=True), start=1):
            if not await self.exists(name):
                try:
                    await self.unpack_layer(layer, diff_id, name, parent)
                except AlreadyExists:
                    pass  # another request was faster, with the same result
                except InvalidRequest as exc:
                    raise InvalidRequest(f"layer {number} of {len(layers)}: {exc}") from exc
            progress(layer.size)
            parent = name
        return parent

    async def unpack_layer(self, layer: Descriptor, diff_id: str, name: str, parent: str) -> None:
        """Unpack one layer on top of the committed snapshot `parent` ("" for the lowest) into `name`.

        Raises AlreadyExists when there is one of that name, InvalidRequest when the layer does not match its diff id
        or cannot be unpacked.
        """
        draft = await self.begin(name, parent)
        try:
            computed = await self.apply(layer, draft.mounts)
            if computed != diff_id:
                raise InvalidRequest(
                    f"the uncompressed layer {layer.digest} has a wrong digest: expected {diff_id}, "
                    f"computed {computed}"
                )
            await draft.commit()
        finally:
            await draft.discard()

    async def begin(self, name: str, parent: str) -> Draft:
        """An empty writable snapshot on top of the committed `parent` ("" for none) that is to become `name`.

        Raises AlreadyExists when there is one of that name, NotFound without the parent.
        """
        key = f"{DRAFT_PREFIX}{secrets.token_hex(6)}-{name}"
        self._client.in_use.add(key)
        try:
            mounts = await self.prepare(key, parent, {**self._client.owned, TARGET_LABEL: name})
        except BaseException:
            self._client.in_use.discard(key)
            raise
        return Draft(self, name, key, mounts, self._client.in_use)

    async def idle_drafts(self) -> tuple[str, ...]:
        """The keys of what can be ours, was to be packed or to become a layer, and that no work here needs."""
        return tuple(
            snapshot.name
            for snapshot in await self.list()
            if snapshot.kind is not Kind.COMMITTED
            and snapshot.name.startswith((DRAFT_PREFIX, DIFF_PREFIX))
            and snapshot.name not in self._client.in_use
            and self._client.owns(snapshot.labels)
        )


class Draft:
    """A layer's snapshot before it is committed: `commit` it, and `discard` it in any case."""

    def __init__(
        self, snapshots: Snapshots, name: str, key: str, mounts: tuple[Mount, ...], in_use: set[str]
    ) -> None:
        self.mounts = mounts
        self._snapshots = snapshots
        self._name = name
        self._key = key
        self._in_use = in_use

    async def commit(self) -> None:
        """Make it the committed snapshot. Raises AlreadyExists when another request was faster."""
        await self._snapshots.commit(self._name, self._key)
        self._in_use.discard(self._key)
        self._key = ""

    async def discard(self) -> None:
        """Remove it unless it was committed."""
        if self._key:
            try:
                await self._snapshots.remove(self._key)
            except SandboxdError:
                pass  # `images.leftovers` removes it; the earlier failure is the error to report
            finally:
                self._in_use.discard(self._key)


def _message(mount: Mount) -> mount_pb2.Mount:
    return mount_pb2.Mount(type=mount.type, source=mount.source, target=mount.target, options=mount.options)


def _mounts(mounts: Sequence[mount_pb2.Mount]) -> tuple[Mount, ...]:
    return tuple(Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in mounts)


def _snapshot(info: snapshots_pb2.Info) -> Snapshot:
    return Snapshot(
        name=info.name,
        parent=info.parent,
        kind=_KINDS.get(info.kind, Kind.COMMITTED),
        created_at=info.created_at.ToNanoseconds(),
        labels=dict(info.labels),
    )
