"""Every RPC ends with a status that says what happened, over a real gRPC connection."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog

from sandboxd import errors, spans
from sandboxd.api.edge import CODES, MESSAGE_BYTES, Edge, code_of
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.cri.v1 import api_pb2_grpc as cri_grpc
from sandboxd.pb.host.v1 import host_pb2, host_pb2_grpc
from sandboxd.steps import RpcRecord

SECONDS = 10  # after which a call without an answer is a failed test


class Runtime(cri_grpc.RuntimeServiceServicer):
    """Version does what the test says; everything else is not implemented."""

    def __init__(self) -> None:
        self.behaviour: Callable[[], Any] = lambda: None
        self.ended = asyncio.Event()

    async def Version(self, request: cri.VersionRequest, context: Any) -> cri.VersionResponse:
        try:
            result = self.behaviour()
            if result is not None:
                await result
            return cri.VersionResponse(version="v1")
        finally:
            self.ended.set()


class HostApi(host_pb2_grpc.HostServicer):
    """ReadLogs sends one message and then does what the test says; everything else is not implemented."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def ReadLogs(self, request: Any, context: Any) -> AsyncIterator[host_pb2.ReadLogsResponse]:
        try:
            yield host_pb2.ReadLogsResponse()
            result = self._runtime.behaviour()
            if result is not None:
                await result
            yield host_pb2.ReadLogsResponse()
        finally:
            self._runtime.ended.set()


class Ended:
    """The calls that have ended, as the edge tells of them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.records: list[RpcRecord] = []
        self.spans: list[spans.Span | None] = []
        self.counted = asyncio.Event()

    def __call__(self, record: RpcRecord) -> None:
        self.calls.append((record.method, record.code))
        self.records.append(record)
        self.spans.append(spans.current())
        self.counted.set()


class Server:
    """A server behind the edge, and a client of it."""

    def __init__(
        self, runtime: Runtime, reason: list[str], channel: grpc.aio.Channel, ended: Ended, edge: Edge
    ) -> None:
        self.runtime = runtime
        self.edge = edge
        self.records, self.spans = ended.records, ended.spans
        self.reason = reason
        self.ended = ended.calls
        self.counted = ended.counted
        self.cri = cri_grpc.RuntimeServiceStub(channel)
        self.host = host_pb2_grpc.HostStub(channel)

    async def single(self) -> cri.VersionResponse:
        answer: cri.VersionResponse = await self.cri.Version(cri.VersionRequest(), timeout=SECONDS)
        return answer

    async def streaming(self) -> int:
        """How many messages came."""
        return len([message async for message in self.host.ReadLogs(host_pb2.ReadLogsRequest(), timeout=SECONDS)])

    async def refusal(self, how: str) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(self, how)()
        return caught.value


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    runtime, reason = Runtime(), [""]  # type: ignore[abstract]  # what is missing is what is tested
    ended = Ended()
    edge = Edge(lambda: reason[0], ended)
    made = grpc.aio.server(interceptors=(edge,))
    cri_grpc.add_RuntimeServiceServicer_to_server(runtime, made)
    host_pb2_grpc.add_HostServicer_to_server(HostApi(runtime), made)  # type: ignore[abstract]
    made.add_insecure_port(f"unix:{tmp_path}/s")
    await made.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        yield Server(runtime, reason, channel, ended, edge)
    await made.stop(None)


def failing(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


BOTH = pytest.mark.parametrize("how", ["single", "streaming"])

_PLUGIN = errors.PluginFailed(plugin="bridge", command="ADD", code=11, msg="busy")


async def test_an_answer_passes(server: Server) -> None:
    assert (await server.single()).version == "v1"
    assert await server.streaming() == 2


@BOTH
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest("why"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.Unsupported("why"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.NotFound("why"), grpc.StatusCode.NOT_FOUND),
        (errors.AlreadyExists("why"), grpc.StatusCode.ALREADY_EXISTS),
        (errors.NotReady("why"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.Exhausted("why"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.TimedOut("why"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.Unavailable("why"), grpc.StatusCode.UNAVAILABLE),
        (errors.CleanupIncomplete("why"), grpc.StatusCode.FAILED_PRECONDITION),
        (_PLUGIN, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.Unclassified("why"), grpc.StatusCode.INTERNAL),
        (errors.SandboxdError("why"), grpc.StatusCode.INTERNAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_each_of_our_errors_has_its_code_and_keeps_its_words(
    server: Server, how: str, error: errors.SandboxdError, code: grpc.StatusCode
) -> None:
    server.runtime.behaviour = failing(error)

    refused = await server.refusal(how)

    assert (refused.code(), refused.details()) == (code, str(error))


@BOTH
async def test_each_call_is_counted_once_with_its_method_and_code(server: Server, how: str) -> None:
    method = {"single": "runtime.v1.RuntimeService/Version", "streaming": "sandboxd.host.v1.Host/ReadLogs"}[how]

    await getattr(server, how)()
    server.runtime.behaviour = failing(errors.NotFound("why"))
    await server.refusal(how)
    with structlog.testing.capture_logs():
        server.runtime.behaviour = failing(RuntimeError("surprise"))
        await server.refusal(how)
    server.reason[0] = "not yet"
    await server.refusal(how)

    assert server.ended == [(method, code) for code in ("OK", "NOT_FOUND", "INTERNAL", "UNAVAILABLE")]


def test_no_error_class_was_forgotten() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}

    assert set(CODES) == kinds


def test_a_class_without_a_code_of_its_own_has_that_of_what_it_is() -> None:
    class Special(errors.NotFound):
        pass

    assert code_of(Special()) is grpc.StatusCode.NOT_FOUND


@BOTH
@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), grpc.StatusCode.RESOURCE_EXHAUSTED, "sandboxd had not enough memory for this request"),
        (
            RecursionError("maximum recursion depth exceeded"),
            grpc.StatusCode.INTERNAL,
            "nested more deeply than sandboxd can follow",
        ),
        (RuntimeError("can't start new thread"), grpc.StatusCode.RESOURCE_EXHAUSTED, "can't start new thread"),
        (OSError(errno.EMFILE, "Too many open files"), grpc.StatusCode.RESOURCE_EXHAUSTED, "LimitNOFILE"),
        (RuntimeError("anything else"), grpc.StatusCode.INTERNAL, "internal error"),
        (OSError(errno.EIO, "Input/output error"), grpc.StatusCode.INTERNAL, "internal error"),
    ],
)
async def test_a_lack_of_memory_of_stack_or_of_what_a_limit_allows_is_called_that(
    server: Server, how: str, error: Exception, code: grpc.StatusCode, words: str
) -> None:
    server.runtime.behaviour = failing(error)
    with structlog.testing.capture_logs() as logged:
        refused = await server.refusal(how)
    assert refused.code() is code
    assert words in str(refused.details())
    assert [entry["event"] for entry in logged if entry["log_level"] == "error"] == ["request failed unexpectedly"]


@BOTH
@pytest.mark.parametrize(
    ("error", "level"),
    [
        (errors.NotFound("no such pod"), "info"),
        (errors.AlreadyExists("another has the name"), "info"),
        (errors.NotReady("no network"), "warning"),
        (errors.Unavailable("containerd does not answer"), "warning"),
        (errors.InvalidRequest("a field"), "warning"),
        (errors.Exhausted("the disk is full"), "warning"),
    ],
)
async def test_a_refusal_that_an_operator_should_see_is_a_warning(
    server: Server, how: str, error: errors.SandboxdError, level: str
) -> None:
    server.runtime.behaviour = failing(error)

    with structlog.testing.capture_logs() as logged:
        await server.refusal(how)

    assert [entry["log_level"] for entry in logged if entry["event"] == "request refused"] == [level]


@BOTH
async def test_an_error_that_nobody_expected_is_internal_and_logged_with_its_traceback(
    server: Server, how: str
) -> None:
    error = RuntimeError("surprise")
    server.runtime.behaviour = failing(error)

    with structlog.testing.capture_logs() as logged:
        refused = await server.refusal(how)

    assert refused.code() is grpc.StatusCode.INTERNAL
    assert refused.details() == "internal error, see sandboxd's log: surprise"
    assert [entry["exc_info"] for entry in logged if entry["log_level"] == "error"] == [error]


@BOTH
async def test_a_job_that_was_cut_off_answers_unavailable_rather_than_nothing(server: Server, how: str) -> None:
    async def cut_off() -> None:
        job = asyncio.create_task(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(job.cancel)
        await job

    server.runtime.behaviour = cut_off

    refused = await server.refusal(how)

    assert (refused.code(), refused.details()) == (grpc.StatusCode.UNAVAILABLE, "sandboxd is shutting down")


@BOTH
async def test_a_client_that_leaves_cancels_the_handler_and_nothing_is_logged_as_an_error(
    server: Server, how: str
) -> None:
    waiting = asyncio.Event()

    async def wait() -> None:
        waiting.set()
        await asyncio.Event().wait()

    server.runtime.behaviour = wait
    with structlog.testing.capture_logs() as logged:
        # The call itself: cancelling a task that reads a stream does not always reach the call in grpc.aio.
        call: Any = (
            server.cri.Version(cri.VersionRequest())
            if how == "single"
            else server.host.ReadLogs(host_pb2.ReadLogsRequest())
        )
        await waiting.wait()
        call.cancel()
        async with asyncio.timeout(SECONDS):
            await server.runtime.ended.wait()
            await server.counted.wait()

    assert [code for _, code in server.ended] == ["CANCELLED"]
    assert [entry for entry in logged if entry["log_level"] in ("warning", "error")] == []
    server.runtime.behaviour = lambda: None
    assert (await server.single()).version == "v1"


async def test_a_method_that_is_not_implemented_says_so(server: Server) -> None:
    request: Any
    for method, request in (
        (server.cri.Status, cri.StatusRequest()),
        (server.host.Explain, host_pb2.ExplainRequest()),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(request, timeout=SECONDS)

        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "is not implemented yet" in str(caught.value.details())


async def test_a_stream_that_is_not_implemented_says_so(server: Server) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in server.cri.GetContainerEvents(cri.GetEventsRequest(), timeout=SECONDS):
            pass

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_method_that_nobody_knows_is_unimplemented(server: Server, tmp_path: Path) -> None:
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            unknown: Any = channel.unary_unary("/runtime.v1.RuntimeService/Nonsense")
            await unknown(b"", timeout=SECONDS)

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@BOTH
async def test_until_it_serves_the_gate_answers_with_the_reason(server: Server, how: str) -> None:
    server.reason[0] = "sandboxd is recovering"

    refused = await server.refusal(how)

    assert (refused.code(), refused.details()) == (grpc.StatusCode.UNAVAILABLE, "sandboxd is recovering")
    assert not server.runtime.ended.is_set()
    server.reason[0] = ""
    assert (await server.single()).version == "v1"


@BOTH
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("größer\nzwei Zeilen ✓", "größer\nzwei Zeilen ✓"),
        ("a file named \udcff", "a file named \\udcff"),
        ("x" * MESSAGE_BYTES, "x" * MESSAGE_BYTES),
    ],
    ids=["text", "not UTF-8", "as long as allowed"],
)
async def test_every_message_arrives_readable(server: Server, how: str, message: str, expected: str) -> None:
    server.runtime.behaviour = failing(errors.NotReady(message))

    refused = await server.refusal(how)

    assert (refused.code(), refused.details()) == (grpc.StatusCode.FAILED_PRECONDITION, expected)


@BOTH
@pytest.mark.parametrize("letter", ["x", "ü", "\n", "✓", "𝄞"])
@pytest.mark.parametrize("error", [errors.NotReady, RuntimeError])
async def test_a_message_of_any_length_keeps_its_code_and_its_beginning(
    server: Server, how: str, letter: str, error: type[Exception]
) -> None:
    server.runtime.behaviour = failing(error(f"begins{letter * 20_000}"))

    with structlog.testing.capture_logs():
        refused = await server.refusal(how)

    expected = grpc.StatusCode.INTERNAL if error is RuntimeError else grpc.StatusCode.FAILED_PRECONDITION
    assert refused.code() is expected
    assert f"begins{letter * 50}" in str(refused.details())
    assert str(refused.details()).endswith("… (cut off, sandboxd's log has the rest)")


async def test_a_method_has_only_so_many_streams_open_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is ended for a newcomer, who is told, and served once one has ended; other methods are not concerned."""
    monkeypatch.setattr("sandboxd.api.edge.MOST_STREAMS", 2)
    release = asyncio.Event()
    server.runtime.behaviour = release.wait
    held = [server.host.ReadLogs(host_pb2.ReadLogsRequest(), timeout=60) for _ in range(2)]
    for call in held:
        await call.read()

    refused = await server.refusal("streaming")
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 calls of ReadLogs are open" in str(refused.details())
    server.runtime.behaviour = lambda: None
    assert (await server.single()).version == "v1"

    server.runtime.ended.clear()
    held[0].cancel()
    await asyncio.wait_for(server.runtime.ended.wait(), SECONDS)
    assert await server.streaming() == 2
    release.set()
    await held[1].read()
    assert await held[1].read() is grpc.aio.EOF


@BOTH
async def test_a_write_that_finds_no_room_is_called_that_and_not_a_bug(server: Server, how: str) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        server.runtime.behaviour = failing(OSError(number, os.strerror(number), "/run/x"))
        with structlog.testing.capture_logs() as logged:
            refused = await server.refusal(how)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "/run/x" in str(refused.details())
        assert not [entry for entry in logged if entry["log_level"] == "error"]


@BOTH
async def test_a_call_is_in_flight_until_it_ends_and_its_time_is_told(server: Server, how: str) -> None:
    name = "ReadLogs" if how == "streaming" else "Version"
    seen: list[int] = []
    server.runtime.behaviour = lambda: seen.extend(
        count for method, count in server.edge.in_flight.items() if method.endswith(f"/{name}")
    )
    await getattr(server, how)()

    assert seen == [1]
    assert set(server.edge.in_flight.values()) == {0}
    (record,) = server.records
    assert record.started_at > 0
    assert record.duration > 0


@BOTH
async def test_a_call_is_a_span_below_the_clients(server: Server, how: str) -> None:
    client = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    inside: list[spans.Span | None] = []
    server.runtime.behaviour = lambda: inside.append(spans.current())
    spans.turn_on(1.0)
    try:
        if how == "single":
            await server.cri.Version(cri.VersionRequest(), timeout=SECONDS, metadata=(("traceparent", client),))
        else:
            call = server.host.ReadLogs(
                host_pb2.ReadLogsRequest(), timeout=SECONDS, metadata=(("traceparent", client),)
            )
            assert len([message async for message in call]) == 2
        await server.single()
    finally:
        spans.turn_off()

    first, second = server.spans
    assert first is not None and second is not None
    assert (first.trace_id, first.parent_id, first.is_remote_parent) == (client[3:35], client[36:52], True)
    assert second.parent_id == "", "the next call is its own"
    assert second.trace_id != first.trace_id
    assert inside == [first, second]
