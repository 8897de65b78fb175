"""Leases: while one is held, containerd's garbage collection keeps what was created under it.

Content and snapshots that nothing refers to yet (half an image) could be collected at any moment. What is created in
a call that carries the lease's id belongs to the lease. A lease expires, so that one whose owner died frees what
it held (https://github.com/containerd/containerd/blob/main/docs/garbage-collection.md).
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import structlog

from sandboxd.containerd.client import Containerd, translate
from sandboxd.errors import NotFound, SandboxdError
from sandboxd.pb.containerd.services.leases.v1 import leases_pb2, leases_pb2_grpc

log = structlog.get_logger(__name__)

CALL_SECONDS = 30.0
COLLECT_SECONDS = 120.0  # deleting synchronously waits for a whole garbage collection

EXPIRE_LABEL = "containerd.io/gc.expire"
HEADER = "containerd-lease"

Metadata = tuple[tuple[str, str], ...]


def metadata(client: Containerd, lease: str) -> Metadata:
    """The headers of a call under `lease`, "" for none."""
    return (*client.metadata, (HEADER, lease)) if lease else client.metadata


class Leases:
    """containerd's lease service."""

    def __init__(self, client: Containerd) -> None:
        self._client = client
        self._meta = client.metadata
        self._stub = leases_pb2_grpc.LeasesStub(client.channel)

    async def create(self, lease: str, *, seconds: float) -> None:
        """Create a lease that expires after `seconds`; raises AlreadyExists when the id is taken."""
        expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
        with translate(f"lease {lease}"):
            await self._stub.Create(
                leases_pb2.CreateRequest(
                    id=lease,
                    labels={**self._client.owned, EXPIRE_LABEL: expires.strftime("%Y-%m-%dT%H:%M:%SZ")},
                ),
                metadata=self._meta,
                timeout=CALL_SECONDS,
            )

    async def add_snapshot(self, lease: str, snapshotter: str, name: str) -> None:
        """Keep a snapshot, and those below it, while the lease lasts. Raises NotFound without the lease."""
        await self._add(lease, leases_pb2.Resource(id=name, type=f"snapshots/{snapshotter}"))

    async def add_content(self, lease: str, digest: str) -> None:
        """Keep a blob, and what its labels lead to, while the lease lasts. Raises NotFound without the lease."""
        await self._add(lease, leases_pb2.Resource(id=digest, type="content"))

    async def _add(self, lease: str, resource: leases_pb2.Resource) -> None:
        with translate(f"lease {lease}"):
            await self._stub.AddResource(
                leases_pb2.AddResourceRequest(id=lease, resource=resource), metadata=self._meta, timeout=CALL_SECONDS
            )

    async def delete(self, lease: str, *, sync: bool = False) -> None:
        """End a lease; `sync` waits until everything that only it held is gone. Idempotent."""
        try:
            with translate(f"lease {lease}"):
                await self._stub.Delete(
                    leases_pb2.DeleteRequest(id=lease, sync=sync),
                    metadata=self._meta,
                    timeout=COLLECT_SECONDS if sync else CALL_SECONDS,
                )
        except NotFound:
            pass

    async def ids(self) -> set[str]:
        """Every lease of this namespace."""
        return {lease.id for lease in await self._list()}

    async def idle(self) -> set[str]:
        """The leases that can be ours and that no work under way here needs; their names tell what they were for."""
        ours = {lease.id for lease in await self._list() if self._client.owns(lease.labels)}
        return ours - self._client.in_use

    async def _list(self) -> Sequence[leases_pb2.Lease]:
        with translate("listing leases"):
            answer = await self._stub.List(leases_pb2.ListRequest(), metadata=self._meta, timeout=CALL_SECONDS)
        return answer.leases

    async def content(self, lease: str) -> set[str]:
        """The digests of the blobs that belong to a lease; raises NotFound."""
        with translate(f"lease {lease}"):
            answer = await self._stub.ListResources(
                leases_pb2.ListResourcesRequest(id=lease), metadata=self._meta, timeout=CALL_SECONDS
            )
        return {resource.id for resource in answer.resources if resource.type == "content"}

    async def collect(self) -> None:
        """Have containerd remove what neither a name nor a lease leads to any more, and wait until it is gone."""
        lease = f"sandboxd-collect-{secrets.token_hex(8)}"
        with self.using(lease):
            await self.create(lease, seconds=COLLECT_SECONDS)
            await self.delete(lease, sync=True)

    @contextmanager
    def using(self, lease: str) -> Iterator[None]:
        """While the block lasts, the lease is not one that an earlier daemon left."""
        self._client.in_use.add(lease)
        try:
            yield
        finally:
            self._client.in_use.discard(lease)

    @asynccontextmanager
    async def held(self, purpose: str, *, seconds: float) -> AsyncIterator[str]:
        """Hold a lease for the duration of the block, at most `seconds`; yields its id.

        When the block fails, what was created under the lease is collected before the error is raised. If containerd
        is not available then, `images.leftovers` does it later, or the expiry of the lease.
        """
        lease = f"sandboxd-{purpose}-{secrets.token_hex(8)}"
        with self.using(lease):
            await self.create(lease, seconds=seconds)
            try:
                yield lease
            except BaseException:
                await self._delete_quietly(lease, sync=True)
                raise
            await self._delete_quietly(lease, sync=False)

    async def _delete_quietly(self, lease: str, *, sync: bool) -> None:
        try:
            await self.delete(lease, sync=sync)
        except SandboxdError as exc:
            log.warning("a lease could not be deleted, this is tried again later", lease=lease, error=str(exc))
