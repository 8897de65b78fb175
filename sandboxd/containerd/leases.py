"""Leases: while one is held, containerd's garbage collection keeps what was created under it.

Content and snapshots that nothing refers to yet (half an image) could be collected at any moment. What is created in
a call that carries the lease's id belongs to the lease. A lease expires, so that one whose owner died frees what
it held (https://github.com/containerd/containerd/blob/main/docs/garbage-collection.md).
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
        self._meta = client.metadata
        self._stub = leases_pb2_grpc.LeasesStub(client.channel)

    async def create(self, lease: str, *, seconds: float) -> None:
        """Create a lease that expires after `seconds`; raises AlreadyExists when the id is taken."""
        expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
        with translate(f"lease {lease}"):
            await self._stub.Create(
                leases_pb2.CreateRequest(id=lease, labels={EXPIRE_LABEL: expires.strftime("%Y-%m-%dT%H:%M:%SZ")}),
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
        with translate("listing leases"):
            answer = await self._stub.List(leases_pb2.ListRequest(), metadata=self._meta, timeout=CALL_SECONDS)
        return {lease.id for lease in answer.leases}

    @asynccontextmanager
    async def held(self, purpose: str, *, seconds: float) -> AsyncIterator[str]:
        """Hold a lease for the duration of the block, at most `seconds`; yields its id.

        When the block fails, what was created under the lease is collected before the error is raised. If containerd
        is not available then, the expiry of the lease does it later.
        """
        lease = f"sandboxd-{purpose}-{secrets.token_hex(8)}"
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
            log.warning("a lease could not be deleted, it will expire", lease=lease, error=str(exc))
