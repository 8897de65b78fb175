"""Writing a blob as it arrives, and going on later where a writer stopped.

containerd keeps what was written under the ingest's name (here derived from the digest) until it is committed,
aborted, or the lease that it belongs to ends. One writer at a time holds an ingest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from sandboxd.containerd.client import Containerd, translate
from sandboxd.containerd.leases import metadata
from sandboxd.errors import AlreadyExists, InvalidRequest, NotReady, SandboxdError, TimedOut, Unavailable
from sandboxd.oci.image import Descriptor
from sandboxd.pb.containerd.services.content.v1 import content_pb2, content_pb2_grpc

CALL_SECONDS = 30.0
WRITE_SECONDS = 120.0  # for one message, or for the commit, which waits for the disk
LOCKED_SECONDS = 10.0  # that a writer who went away may need to be noticed
MESSAGE_BYTES = 1 << 20  # of data that make a message; smaller pieces are collected


class Ingest:
    """A blob being written. `offset` is how many bytes containerd has, those of earlier writers included."""

    def __init__(self, client: Containerd, lease: str, descriptor: Descriptor) -> None:
        self._meta = metadata(client, lease)
        self._stub = content_pb2_grpc.ContentStub(client.channel)
        self._descriptor = descriptor
        self._ref = f"sandboxd-pull-{descriptor.digest}"
        self._what = f"content {descriptor.digest}"
        self._call: Any = None
        self._unanswered = False
        self._pieces: list[bytes] = []
        self._collected = 0
        self.offset = 0

    async def open(self) -> None:
        """Begin, or go on. Raises AlreadyExists when the blob is there; it belongs to the lease then."""
        deadline = asyncio.get_running_loop().time() + LOCKED_SECONDS
        delay = 0.01
        while True:
            self._call = self._stub.Write(metadata=self._meta)
            try:
                await self._send(content_pb2.STAT)
                self.offset = await self._answer()
                break
            except Unavailable as exc:
                self.close()
                # The writer before us is gone, but containerd has not seen that yet; it tells nobody when it does.
                if "locked" not in str(exc) or asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(delay)
            delay = min(1.0, delay * 2)
        if self.offset > self._descriptor.size:
            await self.restart()

    async def write(self, data: bytes) -> None:
        """Add bytes; they are on their way when enough of them make a message.

        One message is under way while the caller gets the next bytes, not more: when containerd ends a call that we
        are sending on, gRPC reports that sending failed and drops the reason.
        """
        self._pieces.append(data)
        self._collected += len(data)
        if self._collected >= MESSAGE_BYTES:
            if self._unanswered:
                await self._answer()
            collected = self._take()
            await self._send(content_pb2.WRITE, collected)
            self.offset += len(collected)

    async def commit(self, labels: Mapping[str, str]) -> None:
        """Store the blob. Raises InvalidRequest when the bytes are not those of the digest."""
        if self._unanswered:
            await self._answer()
        try:
            await self._send(content_pb2.COMMIT, self._take(), labels)
            await self._answer()
        except AlreadyExists:
            pass  # somebody else brought the same
        except NotReady as exc:
            # The precondition that containerd sees violated is the digest or the size.
            raise InvalidRequest(str(exc)) from exc

    def _take(self) -> bytes:
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._collected = 0
        return data

    async def restart(self) -> None:
        """Drop what is there and begin anew."""
        self.close()
        await self.abort()
        await self.open()

    async def abort(self) -> None:
        """Drop what was written; gone is done."""
        self.close()
        try:
            with translate(f"transfer of {self._what}"):
                await self._stub.Abort(
                    content_pb2.AbortRequest(ref=self._ref), metadata=self._meta, timeout=CALL_SECONDS
                )
        except SandboxdError:
            pass  # the end of the lease does it too

    def close(self) -> None:
        """Let go; what was written stays for the next writer."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._unanswered = False
        self._take()

    async def _send(self, action: Any, data: bytes = b"", labels: Mapping[str, str] | None = None) -> None:
        request = content_pb2.WriteContentRequest(
            action=action,
            ref=self._ref,
            total=self._descriptor.size,
            expected=self._descriptor.digest,
            offset=self.offset,
            data=data,
            labels=labels,
        )
        with translate(self._what):
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    await self._call.write(request)
            except TimeoutError as exc:
                raise TimedOut(f"{self._what}: containerd took no data for {WRITE_SECONDS:g} s") from exc
            except asyncio.InvalidStateError as exc:
                await self._call.read()  # the call has ended: reading raises the reason
                raise SandboxdError(f"{self._what}: containerd ended the transfer early") from exc
        self._unanswered = True

    async def _answer(self) -> int:
        """Wait for containerd's answer to the message before; returns the offset that it tells."""
        self._unanswered = False
        with translate(self._what):
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    answer = await self._call.read()
            except TimeoutError as exc:
                raise TimedOut(f"{self._what}: containerd took no data for {WRITE_SECONDS:g} s") from exc
        if not isinstance(answer, content_pb2.WriteContentResponse):
            raise SandboxdError(f"{self._what}: containerd ended the transfer early")
        return int(answer.offset)


@asynccontextmanager
async def writing(client: Containerd, lease: str, descriptor: Descriptor) -> AsyncIterator[Ingest]:
    """An open ingest for the time of the block; what is not committed stays for the next writer.

    Raises AlreadyExists when the blob is there.
    """
    ingest = Ingest(client, lease, descriptor)
    try:
        await ingest.open()
        yield ingest
    finally:
        ingest.close()


async def read(client: Containerd, digest: str) -> AsyncIterator[bytes]:
    """A blob's bytes, as containerd sends them; raises NotFound."""
    call: grpc.aio.UnaryStreamCall[content_pb2.ReadContentRequest, content_pb2.ReadContentResponse]
    call = content_pb2_grpc.ContentStub(client.channel).Read(
        content_pb2.ReadContentRequest(digest=digest), metadata=client.metadata
    )
    try:
        with translate(f"content {digest}"):
            while True:
                async with asyncio.timeout(WRITE_SECONDS):
                    answer = await call.read()
                if not isinstance(answer, content_pb2.ReadContentResponse):
                    return
                yield answer.data
    except TimeoutError as exc:
        raise TimedOut(f"content {digest}: containerd sent no data for {WRITE_SECONDS:g} s") from exc
    finally:
        call.cancel()
