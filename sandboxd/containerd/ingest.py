"""Writing a blob as it arrives, and resuming where an earlier writer stopped.

containerd keeps what was written under the ingest's name (here derived from the digest) until it is committed,
aborted, or the lease that it belongs to ends. One writer at a time holds an ingest. The bytes of a large blob go into
its file where we can reach that (`blob_files`), and through gRPC otherwise.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import grpc
import grpc.aio

from sandboxd.containerd import blob_files, calls
from sandboxd.containerd.blob_files import BlobFile
from sandboxd.containerd.client import Containerd, noted, translate
from sandboxd.containerd.leases import metadata
from sandboxd.errors import (
    AlreadyExists,
    InvalidRequest,
    NotReady,
    SandboxdError,
    TimedOut,
    Unavailable,
    Unclassified,
)
from sandboxd.oci.image import Descriptor
from sandboxd.pb.containerd.services.content.v1 import content_pb2, content_pb2_grpc

TRANSFER_PREFIX = "sandboxd-pull-"  # of the name of a transfer; the digest follows

CALL_SECONDS = 30.0
WRITE_SECONDS = 120.0  # for one message, or for the commit, which waits for the disk
FLUSH_SECONDS = 5.0
LOCKED_SECONDS = 10.0  # for containerd to notice that a writer has gone
MESSAGE_BYTES = 2 << 20  # of data that make a message; smaller pieces are collected
MAX_UNANSWERED = 3  # messages


_Request = tuple[content_pb2.WriteContentRequest, Sequence[bytes]]  # the data is not in the message itself


class _ReasonLost(SandboxdError):
    """The call has ended, and gRPC does not know why."""


class Ingest:
    """A blob being written. `offset` is how many bytes containerd has, those of earlier writers included."""

    def __init__(
        self, client: Containerd, lease: str, descriptor: Descriptor, executor: Executor | None = None
    ) -> None:
        """With an `executor`, whose threads then write, a large blob need not go through gRPC."""
        self._client = client
        self._executor = executor if descriptor.size > MESSAGE_BYTES else None
        self._file: BlobFile | None = None
        self._meta = metadata(client, lease)
        self._channel = client.channel
        # A call for one message looks the same on the wire as one for many, and costs gRPC far less.
        kinds: tuple[Any, ...] = (client.channel.stream_stream, client.channel.unary_stream)
        self._begin, self._write_once = (
            kind(
                "/containerd.services.content.v1.Content/Write",
                request_serializer=_serialized,
                response_deserializer=content_pb2.WriteContentResponse.FromString,
            )
            for kind in kinds
        )
        self._descriptor = descriptor
        self._ref = f"{TRANSFER_PREFIX}{descriptor.digest}"
        self._what = f"content {descriptor.digest}"
        self._call: Any = None
        self._requests = _Requests()
        self._asked = False  # whether containerd was asked what it already has
        self._sent: deque[tuple[int, list[bytes]]] = deque()  # (offset, data) of messages without an answer
        self._pieces: list[bytes] = []
        self._collected = 0
        self.offset = 0

    async def open(self) -> None:
        """Begin or resume. Raises AlreadyExists when the blob exists; it then belongs to the lease."""
        deadline = asyncio.get_running_loop().time() + LOCKED_SECONDS
        delay = 0.01
        while True:
            try:
                self._send(content_pb2.STAT)
                self.offset = await self._answer()
                self._asked = True
                break
            except Unavailable as exc:
                self.close()
                # The previous writer is gone, but containerd has not noticed yet, and sends no event when it does.
                if "locked" not in str(exc) or asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(delay)
            delay = min(1.0, delay * 2)
        if self.offset > self._descriptor.size:
            await self.restart()
        elif self._executor is not None and not self.offset and self._file is None:
            self._file = await blob_files.begun(self._client, self._ref, self._descriptor, self._executor)
        if self._file is None and self._descriptor.size > MESSAGE_BYTES:
            self._client.widen(MESSAGE_BYTES)

    async def write(self, data: bytes) -> None:
        """Add bytes; they are sent once there are enough for a message."""
        self._pieces.append(data)
        self._collected += len(data)
        if self._collected >= MESSAGE_BYTES:
            await self._pass_on()

    async def commit(self, labels: Mapping[str, str]) -> None:
        """Store the blob. Raises InvalidRequest when the bytes do not match the digest."""
        # The last message is sent alone: the answer to it is the one that counts.
        while self._sent:
            await self._settle()
        if self._file is not None:
            await self._commit_file(self._file, labels)
            return
        pieces = self._take()
        try:
            with noted(calls.WRITE, self._descriptor.digest, self._descriptor.size):
                try:
                    await self._finish(pieces, labels)
                except Unavailable:
                    if self._asked:
                        raise
                    # Perhaps because of a previous writer, for which `open` waits.
                    await self.restart()
                    await self._finish(pieces, labels)
        except AlreadyExists:
            pass  # another writer was faster
        except NotReady as exc:
            # The precondition that containerd sees violated is the digest or the size.
            raise InvalidRequest(str(exc)) from exc

    async def flush(self) -> None:
        """Have containerd keep everything so far for a later writer; failures are ignored."""
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                if self._asked and self._call is not None and self._pieces:
                    await self._pass_on()
                if self._file is not None:
                    await self._file.written()
                while self._sent:
                    await self._settle()
        except (SandboxdError, TimeoutError):
            pass

    async def _finish(self, pieces: list[bytes], labels: Mapping[str, str]) -> None:
        if self._call is None:
            request = self._request(content_pb2.COMMIT, labels)
            self._call = self._write_once((request, pieces), metadata=self._meta)
        else:
            self._send(content_pb2.COMMIT, pieces, labels)
            self._requests.end()
        await self._answer()
        await self._ended()

    async def _ended(self) -> None:
        """Wait for the end of a call; one that ends by itself saves the work of cancelling it."""
        with self._translated():
            async with asyncio.timeout(WRITE_SECONDS):
                while await self._call.read() is not grpc.aio.EOF:
                    pass  # containerd gives its last answer twice
        self._call = None

    async def _commit_file(self, file: BlobFile, labels: Mapping[str, str]) -> None:
        """Have containerd record the blob that is in its store by now; no data goes with it."""
        await self._pass_on()
        if self.offset != self._descriptor.size:
            raise InvalidRequest(f"{self._what}: {self.offset} of {self._descriptor.size} bytes")
        with noted(calls.WRITE, self._descriptor.digest, self._descriptor.size):
            await file.named()
            # The ingest is no longer held once its call has ended.
            self._requests.end()
            await self._ended()
            try:
                await self._finish([], labels)
            except AlreadyExists:  # another writer was faster, and the ingest is still ours
                await self.abort()
                return
        await file.forget()

    async def _pass_on(self) -> None:
        """Send what was collected, while containerd hashes what was sent before."""
        if self._file is not None:
            count, pieces = self._collected, self._take()
            await self._file.write(pieces)
            self.offset += count
            return
        while len(self._sent) >= MAX_UNANSWERED:
            await self._settle()
        count, pieces = self._collected, self._take()
        self._sent.append((self.offset, pieces))
        self._send(content_pb2.WRITE, pieces)
        self.offset += count

    async def _settle(self) -> None:
        """Wait for the answer to the oldest message that has none."""
        try:
            await self._answer()
        except _ReasonLost:
            await self._resend()
        else:
            self._sent.popleft()

    async def _resend(self) -> None:
        """Send the unanswered messages again, one at a time, to learn what is wrong with them.

        When containerd ends a call that we are sending on, gRPC reports that sending failed and drops the reason.
        """
        sent = [*self._sent]
        self.close()
        await self.open()
        for start, pieces in sent:
            rest = b"".join(pieces)[max(0, self.offset - start) :]
            if rest:
                try:
                    self._send(content_pb2.WRITE, [rest])
                    self.offset = await self._answer()
                except _ReasonLost as exc:
                    self.close()
                    self._take()
                    raise Unavailable(str(exc)) from exc

    def _take(self) -> list[bytes]:
        pieces, self._pieces = self._pieces, []
        self._collected = 0
        return pieces

    async def restart(self) -> None:
        """Drop what was written and start over."""
        await self.abort()
        await self.open()

    async def abort(self) -> None:
        """Drop what was written. Idempotent."""
        await self.stop()
        self._take()
        self.offset = 0
        try:
            with translate(f"transfer of {self._what}"):
                await content_pb2_grpc.ContentStub(self._channel).Abort(
                    content_pb2.AbortRequest(ref=self._ref), metadata=self._meta, timeout=CALL_SECONDS
                )
        except SandboxdError:
            pass  # the end of the lease does it too

    async def stop(self) -> None:
        """The same as `close`; no thread writes any longer when it returns."""
        try:
            if self._file is not None:
                await self._file.stop()  # while containerd lets nobody else write
        finally:
            self._file = None
            self.close()

    def close(self) -> None:
        """Release the ingest; what was written stays for the next writer."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._sent.clear()

    def _send(self, action: Any, data: Sequence[bytes] = (), labels: Mapping[str, str] | None = None) -> None:
        if self._call is None:
            # The call sends in a task of its own, while the caller gets the next bytes.
            self._requests = _Requests()
            self._call = self._begin(self._requests, metadata=self._meta)
        self._requests.put((self._request(action, labels), data))

    def _request(self, action: Any, labels: Mapping[str, str] | None) -> content_pb2.WriteContentRequest:
        return content_pb2.WriteContentRequest(
            action=action,
            ref=self._ref,
            total=self._descriptor.size,
            expected=self._descriptor.digest,
            offset=self.offset,
            labels=labels,
        )

    async def _answer(self) -> int:
        """Wait for containerd's answer to the oldest message that has none; returns the offset that it reports."""
        with self._translated():
            async with asyncio.timeout(WRITE_SECONDS):
                answer = await self._call.read()
        if not isinstance(answer, content_pb2.WriteContentResponse):
            raise Unclassified(f"{self._what}: containerd ended the transfer early")
        return int(answer.offset)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with translate(self._what):
            try:
                yield
            except TimeoutError as exc:
                raise TimedOut(f"{self._what}: containerd took no data for {WRITE_SECONDS:g} s") from exc
            except grpc.aio.AioRpcError as exc:
                if exc.code() is grpc.StatusCode.INTERNAL:
                    raise _ReasonLost(f"{self._what}: {exc.details()}") from exc
                raise


class _Requests:
    """The messages of a call, as they come. (An asynchronous generator would be closed while it waits.)"""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[_Request | None] = asyncio.Queue()

    def put(self, request: _Request) -> None:
        self._queue.put_nowait(request)

    def end(self) -> None:
        self._queue.put_nowait(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Request:
        if (request := await self._queue.get()) is None:
            raise StopAsyncIteration
        return request


def _serialized(message: _Request) -> bytes:
    """The request with its data appended; inside the message it would be copied three times instead of once."""
    request, pieces = message
    length = sum(len(piece) for piece in pieces)
    if not length:
        return request.SerializeToString()
    field = bytearray([content_pb2.WriteContentRequest.DATA_FIELD_NUMBER << 3 | 2])
    while length >= 0x80:
        field.append(length & 0x7F | 0x80)
        length >>= 7
    field.append(length)
    return b"".join((request.SerializeToString(), field, *pieces))


@asynccontextmanager
async def writing(
    client: Containerd, lease: str, descriptor: Descriptor, *, ask: bool = True, executor: Executor | None = None
) -> AsyncIterator[Ingest]:
    """An ingest for the duration of the block; what is not committed stays for the next writer.

    Raises AlreadyExists when the blob exists. Without `ask` it is assumed to be absent and written from the start,
    which saves a small one half of its messages. `executor`: see `Ingest`.
    """
    ingest = Ingest(client, lease, descriptor, executor)
    try:
        if ask:
            await ingest.open()
        yield ingest
    except (Unavailable, TimedOut, asyncio.CancelledError):
        await ingest.flush()
        raise
    finally:
        await ingest.stop()


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
