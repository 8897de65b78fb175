"""The channel to containerd, over a real socket: the namespace goes along, errors come back as ours."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import empty_pb2

from sandboxd import errors, spans, steps
from sandboxd.containerd.client import OWNER_LABEL, Containerd, Version, noted, translate
from sandboxd.containerd.leases import Leases
from sandboxd.pb.containerd.services.leases.v1 import leases_pb2
from sandboxd.pb.containerd.services.version.v1 import version_pb2, version_pb2_grpc


class VersionService(version_pb2_grpc.VersionServicer):
    """Answers with the version, or with the next of the errors that it was given."""

    def __init__(self) -> None:
        self.failures: list[grpc.StatusCode] = []
        self.calls = 0
        self.headers: list[tuple[tuple[str, Any], ...]] = []
        self.stopped: asyncio.Event | None = None

    async def Version(self, request: empty_pb2.Empty, context: Any) -> version_pb2.VersionResponse:
        self.calls += 1
        self.headers.append(tuple(context.invocation_metadata()))
        if self.stopped is not None:
            await self.stopped.wait()
        if self.failures:
            await context.abort(self.failures.pop(0), "its own words")
        return version_pb2.VersionResponse(version="1.2.3", revision="abc")


@pytest.fixture
def service() -> VersionService:
    return VersionService()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Containerd]:
    made = Containerd(str(tmp_path / "c.sock"), "test")
    yield made
    await made.close()


async def start(service: VersionService, socket_path: str) -> grpc.aio.Server:
    server = grpc.aio.server()
    version_pb2_grpc.add_VersionServicer_to_server(service, server)
    server.add_insecure_port(f"unix:{socket_path}")
    await server.start()
    return server


@pytest.fixture
async def serving(service: VersionService, client: Containerd) -> AsyncIterator[VersionService]:
    server = await start(service, client.socket)
    yield service
    await server.stop(None)


async def test_a_call_is_told_in_which_span_it_is_made(client: Containerd, serving: VersionService) -> None:
    stub = version_pb2_grpc.VersionStub(client.channel)
    spans.turn_on(1.0)
    try:
        span = spans.begin()
        with spans.within(span):
            await stub.Version(empty_pb2.Empty(), metadata=client.metadata)
        await stub.Version(empty_pb2.Empty(), metadata=client.metadata)
    finally:
        spans.turn_off()

    assert span is not None
    assert dict(serving.headers[0]).items() >= {("containerd-namespace", "test"), *span.headers}
    assert "traceparent" not in dict(serving.headers[1])


async def test_the_version_is_what_containerd_says(client: Containerd, serving: VersionService) -> None:
    assert await client.version() == Version(version="1.2.3", revision="abc")
    assert client.trouble() == ""


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, errors.AlreadyExists),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.NotReady),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Exhausted),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.TimedOut),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unsupported),
        (grpc.StatusCode.UNKNOWN, errors.Unclassified),
        (grpc.StatusCode.INTERNAL, errors.Unclassified),
        (grpc.StatusCode.ABORTED, errors.Unclassified),
    ],
)
async def test_each_of_containerds_errors_becomes_ours_with_its_words_and_its_cause(
    client: Containerd, serving: VersionService, code: grpc.StatusCode, kind: type[errors.SandboxdError]
) -> None:
    serving.failures = [code]

    with pytest.raises(errors.SandboxdError, match="its own words") as caught:
        await client.version()

    assert type(caught.value) is kind
    assert client.socket in str(caught.value)
    assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)


SETTINGS_FRAME, HEADERS_FRAME, RST_STREAM_FRAME = 4, 1, 3
CANCEL = 8


def frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame without flags (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + stream.to_bytes(4, "big") + payload


async def reset_every_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What grpc-go does with a call whose deadline has passed: no status, RST_STREAM with CANCEL."""
    try:
        writer.write(frame(SETTINGS_FRAME, 0))
        await reader.readexactly(len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == HEADERS_FRAME:
                writer.write(frame(RST_STREAM_FRAME, int.from_bytes(head[5:], "big"), CANCEL.to_bytes(4, "big")))
    except asyncio.IncompleteReadError:
        pass
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_deadline_that_containerd_notices_first_is_a_timeout(client: Containerd) -> None:
    connections: list[asyncio.Task[None]] = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.create_task(reset_every_stream(reader, writer)))

    server = await asyncio.start_unix_server(connected, client.socket)
    async with server:
        with pytest.raises(errors.TimedOut, match="RST_STREAM"):
            await client.version()
        await client.close()
        await asyncio.gather(*connections)


def test_an_error_without_words_says_its_code() -> None:
    with pytest.raises(errors.NotFound, match=r"^task x: NOT_FOUND$"), translate("task x"):
        raise grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata())


@pytest.mark.parametrize("error", [ValueError("x"), asyncio.CancelledError(), errors.NotReady("x")])
def test_what_is_not_containerds_error_passes_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, translate("task x"):
        raise error

    assert caught.value is error


async def test_the_namespace_is_the_one_that_was_asked_for(client: Containerd) -> None:
    assert client.metadata == (("containerd-namespace", "test"),)


async def test_nobody_on_the_socket_is_unavailable_and_known_as_trouble(client: Containerd) -> None:
    assert client.trouble() == ""

    with pytest.raises(errors.Unavailable, match="containerd does not answer"):
        await client.version()

    assert client.trouble() == f"containerd at {client.socket} does not answer"
    client.absence = "containerd was not found"
    assert client.trouble() == f"containerd at {client.socket} does not answer: containerd was not found"


async def test_somebody_who_accepts_but_never_speaks_is_an_error_in_time(client: Containerd) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(client.socket)
        silent.listen()
        with pytest.raises((errors.Unavailable, errors.TimedOut)):
            await client.version(timeout=0.3)


@pytest.mark.parametrize("limit", [30, None])
async def test_waiting_ends_when_containerd_comes_up(
    client: Containerd, service: VersionService, limit: float | None
) -> None:
    waiting = asyncio.create_task(client.wait_until_serving(limit))
    with pytest.raises(errors.Unavailable):
        await client.version()
    server = await start(service, client.socket)

    assert (await waiting).version == "1.2.3"
    await server.stop(None)


async def test_a_socket_that_answers_before_the_service_is_ready_is_asked_again(
    client: Containerd, serving: VersionService
) -> None:
    serving.failures = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED]

    assert (await client.wait_until_serving(30)).version == "1.2.3"
    assert serving.calls == 3


async def test_waiting_has_a_limit_and_says_where(client: Containerd) -> None:
    with pytest.raises(errors.Unavailable, match=r"did not answer within 0\.05 s") as caught:
        await client.wait_until_serving(0.05)

    assert client.socket in str(caught.value)


async def test_an_error_that_waiting_cannot_cure_ends_it(client: Containerd, serving: VersionService) -> None:
    serving.failures = [grpc.StatusCode.UNIMPLEMENTED]

    with pytest.raises(errors.Unsupported):
        await client.wait_until_serving(30)


async def test_a_restarted_containerd_is_found_again(client: Containerd, service: VersionService) -> None:
    first = await start(service, client.socket)
    await client.version()
    await first.stop(None)
    with pytest.raises(errors.Unavailable):
        await client.version()
    second = await start(service, client.socket)

    assert (await client.wait_until_serving(30)).version == "1.2.3"
    assert client.trouble() == ""
    await second.stop(None)


# One that is stopped keeps its connection


async def test_one_that_stops_answering_is_noticed_and_calls_fail_at_once_until_it_does_again(
    client: Containerd, serving: VersionService
) -> None:
    guarded = version_pb2_grpc.VersionStub(client.channel)
    assert await client.look(30) is False
    assert (await guarded.Version(empty_pb2.Empty())).version == "1.2.3"
    serving.stopped = asyncio.Event()
    under_way = asyncio.ensure_future(guarded.Version(empty_pb2.Empty()))

    assert await client.look(0.05) is False
    assert client.trouble() == f"containerd at {client.socket} is connected and has stopped answering"
    calls = serving.calls
    with pytest.raises(errors.Unavailable, match="has stopped answering"):
        await guarded.Version(empty_pb2.Empty())
    assert serving.calls == calls, "nothing was sent"

    serving.stopped.set()
    assert (await under_way).version == "1.2.3", "what was under way is not given up"
    assert await client.look(30) is True
    assert client.trouble() == ""
    assert (await guarded.Version(empty_pb2.Empty())).version == "1.2.3"
    assert await client.look(30) is False


async def test_one_that_is_gone_is_not_one_that_has_stopped(client: Containerd, service: VersionService) -> None:
    server = await start(service, client.socket)
    service.stopped = asyncio.Event()
    await client.look(0.05)
    await server.stop(None)

    assert await client.look(30) is False
    assert client.trouble() == f"containerd at {client.socket} does not answer"


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_calls_of_every_kind_are_held_back(client: Containerd, serving: VersionService, kind: str) -> None:
    serving.stopped = asyncio.Event()
    await client.look(0.05)
    with pytest.raises(errors.Unavailable, match="has stopped answering"):
        getattr(client.channel, kind)("/a/B")(b"")
    serving.stopped.set()


async def test_the_connection_is_widened_and_nothing_else_is_touched(
    serving: VersionService, client: Containerd, tmp_path: Path
) -> None:
    await client.version()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(tmp_path / "other.sock"))
        listener.listen()
        other.connect(str(tmp_path / "other.sock"))
        before = other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        descriptors = sorted(os.listdir("/proc/self/fd"))

        client.widen(1 << 20)

        assert max(send_buffers(client.socket)) > before
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before
        assert sorted(os.listdir("/proc/self/fd")) == descriptors
    assert (await client.version()).version == "1.2.3"


def send_buffers(peer: str) -> list[int]:
    """Of our sockets that are connected to `peer`."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        if os.path.exists(path := f"/proc/self/fd/{name}") and stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(fileno=os.dup(int(name))) as one, suppress(OSError):
                if one.family == socket.AF_UNIX and one.getpeername() == peer:
                    found.append(one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
    return found


def test_a_channel_that_is_closed_is_a_containerd_that_cannot_be_had() -> None:
    with pytest.raises(errors.Unavailable, match=r"^task x: Channel is closed"), translate("task x"):
        raise grpc.aio.UsageError("Channel is closed.")


@pytest.mark.parametrize(
    ("labels", "ours"),
    [({OWNER_LABEL: "me"}, True), ({OWNER_LABEL: "another"}, False), ({}, True), ({"a": "b"}, True)],
)
async def test_what_bears_another_mark_is_not_ours(tmp_path: Path, labels: dict[str, str], ours: bool) -> None:
    """What bears none can be what an earlier version left."""
    client = Containerd(str(tmp_path / "c.sock"), "test", "me")
    assert client.owned == {OWNER_LABEL: "me"}
    assert client.owns(labels) is ours
    await client.close()


async def lease_asked(ids: list[str], request: bytes, context: Any) -> bytes:
    """Answer any call about leases; the second lease is refused."""
    ids.append(leases_pb2.CreateRequest.FromString(request).id)
    if ids.count("second"):
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "its own words")
    return b""


async def test_calls_that_change_something_are_noted_on_the_step_and_others_are_not(client: Containerd) -> None:
    server, ids = grpc.aio.server(), list[str]()
    handler: Any = grpc.unary_unary_rpc_method_handler(partial(lease_asked, ids))
    methods = {"Create": handler, "List": handler}
    served = grpc.method_handlers_generic_handler("containerd.services.leases.v1.Leases", methods)
    server.add_generic_rpc_handlers([served])
    server.add_insecure_port(f"unix:{client.socket}")
    await server.start()
    leases = Leases(client)
    with steps.step("x") as step:
        await leases.create("first", seconds=1)
        await leases.ids()
        with pytest.raises(errors.AlreadyExists):
            await leases.create("second", seconds=1)
    await server.stop(None)

    assert [(act.what, act.about, act.outcome) for act in step.acts] == [
        ("Leases.Create", "first", ""),
        ("Leases.Create", "second", "ALREADY_EXISTS"),
    ]
    assert all(act.started_at and act.duration for act in step.acts)


@pytest.mark.parametrize(
    ("cause", "outcome"),
    [(errors.Unavailable("x"), "UNAVAILABLE"), (errors.Unclassified("x"), "UNKNOWN"), (RuntimeError(), "UNKNOWN")],
)
def test_a_stream_that_fails_is_noted_by_the_kind_of_its_error(cause: Exception, outcome: str) -> None:
    with steps.step("x") as step, pytest.raises(type(cause)), noted("Content.Write", "sha256:1", 5):
        raise cause
    assert [(act.outcome, act.size) for act in step.acts] == [(outcome, 5)]
