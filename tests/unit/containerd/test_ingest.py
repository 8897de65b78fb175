"""A blob is written as it arrives, over a real socket; what containerd says when it refuses is what is told."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import empty_pb2

from sandboxd.containerd import ingest
from sandboxd.containerd.client import MESSAGE_BYTES, Containerd
from sandboxd.containerd.ingest import MAX_UNANSWERED, writing
from sandboxd.errors import AlreadyExists, InvalidRequest, SandboxdError, Unavailable
from sandboxd.oci.image import Descriptor
from sandboxd.pb.containerd.services.content.v1 import content_pb2

PIECE = 300_000
DATA = (bytes(range(251)) * (7 * ingest.MESSAGE_BYTES // 251 + 1))[: 7 * ingest.MESSAGE_BYTES]
Refusal = tuple[grpc.StatusCode, str]


@dataclass
class Store:
    """One ingest of containerd's content store. `refuse` is asked before each message."""

    data: bytearray = field(default_factory=bytearray)
    stored: dict[str, bytes] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[Any, int, int]] = field(default_factory=list)  # (action, offset, bytes)
    calls: int = 0
    aborted: int = 0
    refuse: Callable[[Store, Any], Refusal | None] = lambda store, request: None

    async def write(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.calls += 1
        async for request in requests:
            self.seen.append((request.action, request.offset, len(request.data)))
            if request.expected in self.stored:
                await context.abort(grpc.StatusCode.ALREADY_EXISTS, "there")
            if (refusal := self.refuse(self, request)) is not None:
                await context.abort(*refusal)
            if request.action != content_pb2.STAT:
                if request.offset == 0:
                    self.data.clear()
                assert request.offset == len(self.data)
                self.data += request.data
            if request.action == content_pb2.COMMIT:
                if f"sha256:{hashlib.sha256(self.data).hexdigest()}" != request.expected:
                    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "unexpected commit digest")
                self.stored[request.expected] = bytes(self.data)
                self.labels = dict(request.labels)
                # As containerd does: this answer comes twice.
                yield content_pb2.WriteContentResponse(action=request.action, offset=len(self.data))
            yield content_pb2.WriteContentResponse(action=request.action, offset=len(self.data))

    async def abort(self, request: Any, context: Any) -> Any:
        self.aborted += 1
        self.data.clear()
        return empty_pb2.Empty()


@asynccontextmanager
async def serving(store: Store, tmp_path: Path) -> AsyncIterator[Containerd]:
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", MESSAGE_BYTES),))
    methods: dict[str, Any] = {
        "Write": grpc.stream_stream_rpc_method_handler(
            store.write,
            request_deserializer=content_pb2.WriteContentRequest.FromString,
            response_serializer=content_pb2.WriteContentResponse.SerializeToString,
        ),
        "Abort": grpc.unary_unary_rpc_method_handler(
            store.abort,
            request_deserializer=content_pb2.AbortRequest.FromString,
            response_serializer=empty_pb2.Empty.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("containerd.services.content.v1.Content", methods),)
    )
    socket = str(tmp_path / "c.sock")
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    client = Containerd(socket, "test")
    try:
        yield client
    finally:
        await client.close()
        await server.stop(None)


def described(data: bytes) -> Descriptor:
    return Descriptor(media_type="x", digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))


async def write(client: Containerd, data: bytes = DATA, *, ask: bool = True, expected: bytes = b"") -> None:
    async with writing(client, "lease", described(expected or data), ask=ask) as writer:
        start = writer.offset
        for at in range(start, len(data), PIECE):
            await writer.write(data[at : at + PIECE])
        await writer.commit({"kind": "test"})


async def test_everything_arrives_in_order_and_in_large_messages(tmp_path: Path) -> None:
    store = Store()
    async with serving(store, tmp_path) as client:
        await write(client)

    assert list(store.stored.values()) == [DATA]
    assert store.labels == {"kind": "test"}
    sizes = [size for _, _, size in store.seen[1:-1]]
    assert min(sizes) >= ingest.MESSAGE_BYTES
    assert store.calls == 1


async def test_a_small_blob_that_is_taken_for_absent_is_one_message(tmp_path: Path) -> None:
    store = Store(data=bytearray(b"something older"))
    async with serving(store, tmp_path) as client:
        await write(client, b"small", ask=False)

    assert store.seen == [(content_pb2.COMMIT, 0, 5)]
    assert list(store.stored.values()) == [b"small"]


async def test_an_empty_blob_is_stored(tmp_path: Path) -> None:
    store = Store()
    async with serving(store, tmp_path) as client:
        await write(client, b"")

    assert list(store.stored.values()) == [b""]


async def test_what_is_there_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    store = Store(stored={described(data).digest: data for data in (DATA, b"small")})
    async with serving(store, tmp_path) as client:
        with pytest.raises(AlreadyExists):
            await write(client)
        await write(client, b"small", ask=False)  # somebody else brought the same: as good

    assert store.seen[0] == (content_pb2.STAT, 0, 0)


async def test_a_writer_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    store = Store()
    async with serving(store, tmp_path) as client:
        with pytest.raises(Unavailable, match="the network"):
            async with writing(client, "lease", described(DATA)) as writer:
                for at in range(0, 5 * PIECE, PIECE):
                    await writer.write(DATA[at : at + PIECE])
                raise Unavailable("the network broke")
        assert bytes(store.data) == DATA[: 5 * PIECE], "all of it was passed on"
        await write(client)

    assert list(store.stored.values()) == [DATA]
    assert sum(size for _, _, size in store.seen) == len(DATA)


async def test_wrong_bytes_are_refused(tmp_path: Path) -> None:
    for ask in (True, False):
        async with serving(Store(), tmp_path) as client:
            with pytest.raises(InvalidRequest, match="digest"):
                await write(client, b"wrong", ask=ask, expected=b"right")


@pytest.mark.parametrize("at", [0, 1, 3, 5])
async def test_the_reason_for_a_refusal_is_told_however_many_messages_are_under_way(tmp_path: Path, at: int) -> None:
    """Above all the one by which a full disk is known."""

    def full(store: Store, request: Any) -> Refusal | None:
        written = sum(size > 0 for _, _, size in store.seen)
        if request.action == content_pb2.WRITE and written > at:
            return grpc.StatusCode.UNKNOWN, "write: no space left on device"
        return None

    store = Store(refuse=full)
    async with serving(store, tmp_path) as client:
        with pytest.raises(SandboxdError, match="no space left on device"):
            await write(client)

    assert store.stored == {}
    assert MAX_UNANSWERED > 1


async def test_a_call_that_ends_for_no_known_reason_is_taken_up(tmp_path: Path) -> None:
    """What had no answer is sent again, from where containerd is."""

    def once(store: Store, request: Any) -> Refusal | None:
        if request.action == content_pb2.WRITE and store.calls == 1 and len(store.data) > 3 * ingest.MESSAGE_BYTES:
            return grpc.StatusCode.INTERNAL, 'Failed "execute_batch"'
        return None

    store = Store(refuse=once)
    async with serving(store, tmp_path) as client:
        await write(client)

    assert list(store.stored.values()) == [DATA]
    assert store.calls == 2


async def test_a_call_that_never_says_why_it_ends_is_not_taken_up_for_ever(tmp_path: Path) -> None:
    def always(store: Store, request: Any) -> Refusal | None:
        return (grpc.StatusCode.INTERNAL, "bad") if request.action == content_pb2.WRITE else None

    store = Store(refuse=always)
    async with serving(store, tmp_path) as client:
        with pytest.raises(Unavailable, match="bad"):
            await write(client)

    assert store.calls == 2


async def test_a_writer_that_is_not_quite_gone_is_waited_for(tmp_path: Path) -> None:
    def locked(store: Store, request: Any) -> Refusal | None:
        return (grpc.StatusCode.UNAVAILABLE, "ref is locked") if store.calls < 3 else None

    for ask in (True, False):
        store = Store(refuse=locked)
        async with serving(store, tmp_path) as client:
            await write(client, b"small", ask=ask)
        assert list(store.stored.values()) == [b"small"]
