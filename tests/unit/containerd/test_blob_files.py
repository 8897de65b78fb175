"""A large blob is written into its ingest's file, and containerd is never given less than it can go on from."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import empty_pb2

from sandboxd.containerd import blob_files
from sandboxd.containerd.blob_files import BlobFile
from sandboxd.containerd.client import MESSAGE_BYTES, Containerd
from sandboxd.containerd.ingest import MESSAGE_BYTES as PIECES_BYTES
from sandboxd.containerd.ingest import TRANSFER_PREFIX, writing
from sandboxd.errors import Exhausted, InvalidRequest, NotReady, SandboxdError
from sandboxd.oci.image import Descriptor
from sandboxd.pb.containerd.services.content.v1 import content_pb2
from sandboxd.pb.containerd.services.introspection.v1 import introspection_pb2

PIECE = 300_000
DATA = (bytes(range(251)) * (3 * PIECES_BYTES // 251 + 1))[: 3 * PIECES_BYTES + 17]


def hex_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def described(data: bytes) -> Descriptor:
    return Descriptor(media_type="x", digest=f"sha256:{hex_of(data)}", size=len(data))


@dataclass
class Store:
    """containerd's content store as it is on the disk; tests/root/test_blob_files.py holds the real one to this."""

    root: Path
    id: str = "content"
    number: int = 1  # of an ingest
    shared: bool = True  # a blob that is in the store is recorded without its bytes
    before_commit: Callable[[Store], None] = lambda store: None
    recorded: dict[str, dict[str, str]] = field(default_factory=dict)  # labels by digest
    held: set[str] = field(default_factory=set)
    messages: list[tuple[Any, int, int]] = field(default_factory=list)  # (action, offset, bytes)
    aborted: int = 0
    hashed: int = 0  # ingests that containerd read again from the beginning

    def __post_init__(self) -> None:
        (self.root / "ingest").mkdir(parents=True)
        (self.root / "blobs" / "sha256").mkdir(parents=True)
        (self.root / "blobs" / "sha256" / hex_of(b"any")).write_bytes(b"any")

    def blob(self, digest: str) -> Path:
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def ingest(self, ref: str) -> Path:
        return self.root / "ingest" / hex_of(f"test/{self.number}/{ref}".encode())

    def open(self, ref: str) -> int:
        ingest = self.ingest(ref)
        if ingest.is_dir():
            self.hashed += bool((ingest / "data").stat().st_size)
        else:
            ingest.mkdir()
            (ingest / "ref").write_text(f"test/{self.number}/{ref}")
            (ingest / "data").write_bytes(b"")
        return (ingest / "data").stat().st_size

    async def write(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        first, offset = True, 0
        async for request in requests:
            self.messages.append((request.action, request.offset, len(request.data)))
            if first:
                if request.action == content_pb2.COMMIT:
                    self.before_commit(self)
                if request.expected in self.recorded:
                    await context.abort(grpc.StatusCode.ALREADY_EXISTS, "there")
                taken = self.shared and self.blob(request.expected).exists()
                if not taken and request.ref in self.held:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "locked")
                offset = request.total if taken else self.open(request.ref)
                self.held.add(request.ref)
                first = False
            if request.action != content_pb2.STAT:
                assert request.offset == offset
                with (self.ingest(request.ref) / "data").open("ab") as file:
                    file.write(request.data)
                offset += len(request.data)
            if request.action == content_pb2.COMMIT:
                if not self.blob(request.expected).exists():
                    data = (self.ingest(request.ref) / "data").read_bytes()
                    if f"sha256:{hex_of(data)}" != request.expected:
                        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "unexpected commit digest")
                    (self.ingest(request.ref) / "data").rename(self.blob(request.expected))
                self.recorded[request.expected] = dict(request.labels)
            yield content_pb2.WriteContentResponse(action=request.action, offset=offset)
        self.held.discard(request.ref)

    async def abort(self, request: Any, context: Any) -> Any:
        self.aborted += 1
        for file in self.ingest(request.ref).iterdir():
            file.unlink()
        self.ingest(request.ref).rmdir()
        return empty_pb2.Empty()

    async def plugins(self, request: Any, context: Any) -> Any:
        assert list(request.filters) == ["type==io.containerd.content.v1"]
        plugin = introspection_pb2.Plugin(type="io.containerd.content.v1", id=self.id)
        plugin.exports["root"] = str(self.root)
        return introspection_pb2.PluginsResponse(plugins=[plugin])

    def server(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=(("grpc.max_receive_message_length", MESSAGE_BYTES),))
        write = grpc.stream_stream_rpc_method_handler(
            self.write,
            request_deserializer=content_pb2.WriteContentRequest.FromString,
            response_serializer=content_pb2.WriteContentResponse.SerializeToString,
        )
        abort = grpc.unary_unary_rpc_method_handler(
            self.abort,
            request_deserializer=content_pb2.AbortRequest.FromString,
            response_serializer=empty_pb2.Empty.SerializeToString,
        )
        plugins = grpc.unary_unary_rpc_method_handler(
            self.plugins,
            request_deserializer=introspection_pb2.PluginsRequest.FromString,
            response_serializer=introspection_pb2.PluginsResponse.SerializeToString,
        )
        of_content, of_plugins = "containerd.services.content.v1.Content", "containerd.services.introspection.v1."
        handlers: dict[str, Any] = {of_content: {"Write": write, "Abort": abort}}
        handlers[f"{of_plugins}Introspection"] = {"Plugins": plugins}
        for service, methods in handlers.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        return server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(root=tmp_path / "store")


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=2) as made:
        yield made


@asynccontextmanager
async def serving(store: Store, tmp_path: Path) -> AsyncIterator[Containerd]:
    server = store.server()
    socket = str(tmp_path / "c.sock")
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    client = Containerd(socket, "test")
    try:
        yield client
    finally:
        await client.close()
        await server.stop(None)


Pull = Callable[..., Any]


@pytest.fixture
async def pull(store: Store, tmp_path: Path, executor: ThreadPoolExecutor) -> AsyncIterator[Pull]:
    """Writes a blob as a pull does; `cut` ends it there as a client does that goes away."""
    async with serving(store, tmp_path) as client:

        async def write(data: bytes = DATA, *, expected: bytes = b"", cut: int = 0) -> None:
            async with writing(client, "lease", described(expected or data), executor=executor) as writer:
                for at in range(writer.offset, cut or len(data), PIECE):
                    await writer.write(data[at : at + PIECE])
                if cut:
                    raise asyncio.CancelledError
                await writer.commit({"kind": "test"})

        yield write


def through_grpc(store: Store) -> int:
    return sum(count for _, _, count in store.messages)


async def test_a_large_blob_is_recorded_without_a_byte_of_it_going_through_grpc(store: Store, pull: Pull) -> None:
    await pull()

    digest = described(DATA).digest
    assert store.recorded == {digest: {"kind": "test"}}
    assert store.blob(digest).read_bytes() == DATA
    assert store.messages == [(content_pb2.STAT, 0, 0), (content_pb2.COMMIT, len(DATA), 0)]
    assert store.hashed == 0
    assert store.blob(digest).stat().st_mode & 0o777 & 0o333 == 0, "read-only, as containerd has them"


async def test_nothing_of_the_ingest_is_left(store: Store, pull: Pull) -> None:
    await pull()

    assert list((store.root / "ingest").iterdir()) == []
    assert store.blob(described(DATA).digest).stat().st_nlink == 1


async def test_a_wrong_blob_gets_no_name(store: Store, pull: Pull) -> None:
    with pytest.raises(InvalidRequest, match="wrong digest: expected sha256:"):
        await pull(expected=DATA[:-1] + b"x")

    assert [path.name for path in (store.root / "blobs" / "sha256").iterdir()] == [hex_of(b"any")]
    assert store.recorded == {}


async def test_a_blob_that_ended_early_gets_no_name(store: Store, pull: Pull) -> None:
    with pytest.raises(InvalidRequest, match=f"{len(DATA) - 1} of {len(DATA)} bytes"):
        await pull(DATA[:-1], expected=DATA)

    assert store.recorded == {}


async def test_what_a_client_that_goes_away_leaves_is_gone_on_from(store: Store, pull: Pull) -> None:
    with pytest.raises(asyncio.CancelledError):
        await pull(cut=PIECES_BYTES + 2 * PIECE)
    left = (store.ingest(f"{TRANSFER_PREFIX}{described(DATA).digest}") / "data").stat().st_size
    assert left >= PIECES_BYTES + 2 * PIECE
    store.messages.clear()

    await pull()

    assert store.blob(described(DATA).digest).read_bytes() == DATA
    assert through_grpc(store) == len(DATA) - left, "containerd goes on, having hashed what was there"


async def test_a_blob_that_was_collected_before_its_record_is_named_by_containerd(store: Store, pull: Pull) -> None:
    digest = described(DATA).digest
    store.before_commit = lambda of: of.blob(digest).unlink()

    await pull()

    assert store.blob(digest).read_bytes() == DATA
    assert (store.recorded, store.hashed, through_grpc(store)) == ({digest: {"kind": "test"}}, 1, 0)


async def test_namespaces_that_share_nothing_have_containerd_hash_the_file(store: Store, pull: Pull) -> None:
    store.shared = False

    await pull()

    assert store.hashed == 1
    assert store.blob(described(DATA).digest).read_bytes() == DATA


async def test_an_ingest_whose_blob_somebody_else_has_recorded_is_given_up(store: Store, pull: Pull) -> None:
    """It is still ours, unlike one that became a blob, and containerd is to know that it is gone."""
    digest = described(DATA).digest
    store.before_commit = lambda of: of.recorded.update({digest: {"whose": "another's"}})

    await pull()

    assert store.recorded == {digest: {"whose": "another's"}}
    assert (store.aborted, list((store.root / "ingest").iterdir())) == (1, [])


async def test_a_blob_that_somebody_else_has_named_is_as_good(store: Store, pull: Pull) -> None:
    name, place = BlobFile.named, store.blob(described(DATA).digest)

    async def late(self: BlobFile) -> None:
        place.write_bytes(DATA)
        await name(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlobFile, "named", late)
        await pull()

    assert list(store.recorded) == [described(DATA).digest]


def _foreign(store: Store) -> None:
    store.id = "proxied"


def _numbered(store: Store) -> None:
    store.number = 2


def _empty(store: Store) -> None:
    store.blob(f"sha256:{hex_of(b'any')}").unlink()


@pytest.mark.parametrize("change", [_foreign, _numbered, _empty])
async def test_a_store_that_is_not_as_expected_gets_every_byte_through_grpc(
    store: Store, pull: Pull, change: Callable[[Store], None]
) -> None:
    change(store)

    await pull()

    assert through_grpc(store) == len(DATA)
    assert store.blob(described(DATA).digest).read_bytes() == DATA


async def test_blobs_that_the_file_system_seals_are_left_to_containerd(
    store: Store, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", lambda fd, request, data: b"\0\0\x10\0" + bytes(4))

    await pull()

    assert through_grpc(store) == len(DATA)


async def test_a_small_blob_goes_through_grpc(store: Store, pull: Pull) -> None:
    await pull(b"small")

    assert through_grpc(store) == 5


async def test_a_client_that_cannot_ask_for_the_place_writes_through_grpc(
    store: Store, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(client: Containerd) -> str:
        raise NotReady("no")

    monkeypatch.setattr(blob_files, "_root", refuse)

    await pull()

    assert through_grpc(store) == len(DATA)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, Exhausted), (errno.EDQUOT, Exhausted), (errno.EIO, NotReady)]
)
@pytest.mark.parametrize("call", ["write", "fsync"])
async def test_a_disk_that_fails_is_told_as_what_it_is_and_nothing_is_named(
    store: Store,
    pull: Pull,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    kind: type[SandboxdError],
) -> None:
    def fail(*args: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)

    with pytest.raises(kind):
        await pull()

    assert not store.blob(described(DATA).digest).exists()
    assert store.recorded == {}


@pytest.mark.parametrize("call", ["write", "fsync"])
async def test_a_file_is_closed_only_when_no_thread_uses_it(
    store: Store, pull: Pull, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Its number may be another file's by then."""
    at_it, goes_on, ends = asyncio.Event(), threading.Event(), asyncio.Event()
    loop, real, close = asyncio.get_running_loop(), getattr(os, call), os.close
    used: list[int] = []

    def held(fd: int, *data: Any) -> Any:
        if not used:
            used.append(fd)
            loop.call_soon_threadsafe(at_it.set)
            assert goes_on.wait(30)
            used.append(-1)
        return real(fd, *data)

    def closed(fd: int) -> None:
        assert used[:1] != [fd] or used[1:] == [-1]
        close(fd)

    monkeypatch.setattr(os, call, held)
    monkeypatch.setattr(os, "close", closed)
    work = asyncio.ensure_future(pull())
    work.add_done_callback(lambda _: ends.set())
    await at_it.wait()
    work.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not ends.is_set()

    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert store.recorded == {}


async def test_a_file_that_is_opened_too_late_is_closed(
    store: Store, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_it, goes_on, closed = asyncio.Event(), threading.Event(), asyncio.Event()
    loop, begun, close = asyncio.get_running_loop(), blob_files._begun, BlobFile.close

    def held(*args: Any) -> BlobFile | None:
        loop.call_soon_threadsafe(at_it.set)
        assert goes_on.wait(30)
        return begun(*args)

    def noted(self: BlobFile) -> None:
        close(self)
        loop.call_soon_threadsafe(closed.set)

    monkeypatch.setattr(blob_files, "_begun", held)
    monkeypatch.setattr(BlobFile, "close", noted)
    work = asyncio.ensure_future(pull())
    await at_it.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work

    goes_on.set()
    async with asyncio.timeout(30):
        await closed.wait()


async def test_what_waits_for_the_thread_is_bounded(
    store: Store, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_it, goes_on = asyncio.Event(), threading.Event()
    loop, write, real = asyncio.get_running_loop(), BlobFile.write, os.write
    given: list[int] = []

    def held(fd: int, data: Any) -> int:
        loop.call_soon_threadsafe(at_it.set)
        assert goes_on.wait(30)
        return real(fd, data)

    async def noted(self: BlobFile, pieces: Sequence[bytes]) -> None:
        given.append(sum(len(piece) for piece in pieces))
        await write(self, pieces)

    monkeypatch.setattr(os, "write", held)
    monkeypatch.setattr(BlobFile, "write", noted)
    monkeypatch.setattr(blob_files, "AHEAD_BYTES", PIECES_BYTES)
    work = asyncio.ensure_future(pull())
    await at_it.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert PIECES_BYTES < sum(given) < len(DATA) - PIECES_BYTES // 2

    goes_on.set()
    await work
    assert store.blob(described(DATA).digest).read_bytes() == DATA
