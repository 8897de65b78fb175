"""The content store: immutable blobs named by their digest, and the labels that keep them.

containerd verifies each blob as it is written, but for those whose files we write (`blob_files`). Garbage collection
follows labels from an image to its manifest, config and layers, and from a config to the snapshot that its layers
were unpacked to; it removes what no label leads to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import grpc.aio
from google.protobuf import field_mask_pb2

from sandboxd.containerd import calls
from sandboxd.containerd.client import Containerd, noted, translate
from sandboxd.containerd.leases import metadata
from sandboxd.errors import AlreadyExists, InvalidRequest, NotFound, NotReady, SandboxdError, TimedOut, Unclassified
from sandboxd.oci.image import Descriptor
from sandboxd.pb.containerd.services.content.v1 import content_pb2, content_pb2_grpc

CALL_SECONDS = 30.0
WRITE_SECONDS = 120.0  # for one chunk, or for the commit, which waits for the disk
CHUNK_BYTES = 1 << 20  # per message

CHILD_LABEL = "containerd.io/gc.ref.content"
SNAPSHOT_LABEL = "containerd.io/gc.ref.snapshot"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentInfo:
    """A blob in the store. `size` in bytes."""

    digest: str
    size: int
    labels: Mapping[str, str]


def child_labels(config: Descriptor, layers: tuple[Descriptor, ...]) -> dict[str, str]:
    """The labels of a manifest that keep its config and layers."""
    return {f"{CHILD_LABEL}.config": config.digest} | {
        f"{CHILD_LABEL}.l.{number}": layer.digest for number, layer in enumerate(layers)
    }


def snapshot_label(snapshotter: str, chain_id: str) -> dict[str, str]:
    """The label of a config that keeps the snapshot of its layers."""
    return {f"{SNAPSHOT_LABEL}.{snapshotter}": chain_id}


class Content:
    """containerd's content service; written blobs belong to `lease` if there is one."""

    def __init__(self, client: Containerd, lease: str = "") -> None:
        self._meta = metadata(client, lease)
        self._lease = lease
        self._stub = content_pb2_grpc.ContentStub(client.channel)

    async def info(self, digest: str) -> ContentInfo:
        """Look a blob up; raises NotFound."""
        with translate(f"content {digest}"):
            answer = await self._stub.Info(
                content_pb2.InfoRequest(digest=digest), metadata=self._meta, timeout=CALL_SECONDS
            )
        return _info(answer.info)

    async def list(self, digests: Sequence[str] = ()) -> list[ContentInfo]:
        """Every blob of this namespace, or those of `digests` that exist."""
        blobs = []
        request = content_pb2.ListContentRequest(filters=[f"digest=={digest}" for digest in digests])
        with translate("listing content"):
            stream = self._stub.List(request, metadata=self._meta, timeout=CALL_SECONDS)
            async for answer in stream:
                blobs += [_info(info) for info in answer.info]
        return blobs

    async def read(self, digest: str, most: int) -> bytes:
        """A small blob; raises NotFound, and InvalidRequest when it is larger than `most` bytes."""
        data = bytearray()
        with translate(f"content {digest}"):
            size = (await self.info(digest)).size
            if size > most:
                raise InvalidRequest(f"content {digest} has {size} bytes, more than the {most} allowed")
            stream = self._stub.Read(
                content_pb2.ReadContentRequest(digest=digest), metadata=self._meta, timeout=CALL_SECONDS
            )
            async for answer in stream:
                data += answer.data
        return bytes(data)

    async def copy(self, digest: str, file: BinaryIO) -> None:
        """Write a blob of any size to `file`; raises NotFound, OSError."""
        with translate(f"content {digest}"):
            stream = self._stub.Read(content_pb2.ReadContentRequest(digest=digest), metadata=self._meta)
            try:
                async for answer in stream:
                    await asyncio.to_thread(file.write, answer.data)
            finally:
                stream.cancel()

    async def write(
        self,
        descriptor: Descriptor,
        file: BinaryIO,
        labels: Mapping[str, str] | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> bool:
        """Store a blob, verified by containerd; `progress` gets each chunk's size. False when it already exists.

        `labels` are set in both cases. Raises InvalidRequest when the bytes do not match the descriptor.
        """
        labels = dict(labels or {})
        ref = f"sandboxd-{self._lease}-{descriptor.digest}"
        try:
            with (
                translate(f"content {descriptor.digest}"),
                noted(calls.WRITE, descriptor.digest, descriptor.size),
            ):
                await self._send(ref, descriptor, file, labels, progress)
            return True
        except AlreadyExists:
            progress(descriptor.size)
            if labels:
                await self.set_labels(descriptor.digest, labels)
            return False
        except NotReady as exc:
            await self._abort(ref)
            # The precondition that containerd sees violated is the digest or the size.
            raise InvalidRequest(str(exc)) from exc
        except BaseException:
            await self._abort(ref)
            raise

    async def _send(
        self,
        ref: str,
        descriptor: Descriptor,
        file: BinaryIO,
        labels: dict[str, str],
        progress: Callable[[int], None],
    ) -> None:
        call: grpc.aio.StreamStreamCall[content_pb2.WriteContentRequest, content_pb2.WriteContentResponse]
        call = self._stub.Write(metadata=self._meta)
        offset = 0
        # Asking for the status first detects an existing blob before a byte is sent.
        request = content_pb2.WriteContentRequest(
            action=content_pb2.STAT, ref=ref, total=descriptor.size, expected=descriptor.digest
        )
        try:
            while True:
                # One message, one answer: containerd's pace is ours, and memory holds one chunk.
                async with asyncio.timeout(WRITE_SECONDS):
                    await call.write(request)
                    answer = await call.read()
                if not isinstance(answer, content_pb2.WriteContentResponse):
                    raise Unclassified(f"content {descriptor.digest}: containerd ended the transfer early")
                if request.action == content_pb2.COMMIT:
                    return
                data = await asyncio.to_thread(file.read, CHUNK_BYTES)
                progress(len(data))
                offset += len(request.data)
                request = content_pb2.WriteContentRequest(
                    action=content_pb2.WRITE if data else content_pb2.COMMIT,
                    ref=ref,
                    total=descriptor.size,
                    expected=descriptor.digest,
                    offset=offset,
                    data=data,
                    labels={} if data else labels,
                )
        except TimeoutError as exc:
            raise TimedOut(f"content {descriptor.digest}: containerd took no data for {WRITE_SECONDS:g} s") from exc
        finally:
            call.cancel()

    async def _abort(self, ref: str) -> None:
        """Drop an unfinished transfer; the end of the lease would do it too, but later."""
        try:
            with translate(f"transfer {ref}"):
                await self._stub.Abort(content_pb2.AbortRequest(ref=ref), metadata=self._meta, timeout=CALL_SECONDS)
        except SandboxdError:
            pass

    async def transfers(self) -> dict[str, int]:
        """Every unfinished transfer of this namespace by its reference, and when it began (unix nanoseconds)."""
        with translate("transfers"):
            answer = await self._stub.ListStatuses(
                content_pb2.ListStatusesRequest(), metadata=self._meta, timeout=CALL_SECONDS
            )
        return {status.ref: status.started_at.ToNanoseconds() for status in answer.statuses}

    async def give_up(self, ref: str) -> None:
        """Drop an unfinished transfer. Idempotent."""
        try:
            with translate(f"transfer {ref}"):
                await self._stub.Abort(content_pb2.AbortRequest(ref=ref), metadata=self._meta, timeout=CALL_SECONDS)
        except NotFound:
            pass

    async def set_labels(self, digest: str, labels: Mapping[str, str]) -> None:
        """Add or replace labels of a blob, leaving its others; raises NotFound."""
        with translate(f"labels of content {digest}"):
            await self._stub.Update(
                content_pb2.UpdateRequest(
                    info=content_pb2.Info(digest=digest, labels=labels),
                    update_mask=field_mask_pb2.FieldMask(paths=[f"labels.{name}" for name in sorted(labels)]),
                ),
                metadata=self._meta,
                timeout=CALL_SECONDS,
            )

    async def delete(self, digest: str) -> None:
        """Remove a blob. Idempotent."""
        try:
            with translate(f"content {digest}"):
                await self._stub.Delete(
                    content_pb2.DeleteContentRequest(digest=digest), metadata=self._meta, timeout=CALL_SECONDS
                )
        except NotFound:
            pass


def _info(info: content_pb2.Info) -> ContentInfo:
    return ContentInfo(digest=info.digest, size=info.size, labels=dict(info.labels))
