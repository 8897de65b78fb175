"""Exec and attach over a real connection, with each protocol that clients speak."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterable
from typing import Any

import pytest

from sandboxd.errors import NotReady
from sandboxd.streaming.inbox import LIMIT_BYTES
from sandboxd.streaming.link import READ_BYTES, Limits
from sandboxd.streaming.remotecommand import Streams, TerminalSize
from sandboxd.streaming.sessions import AttachRequest, ExecRequest
from sandboxd.streaming.stdio import Stdio
from tests.streaming.clients import SPDY, messages, opened, until, websocket
from tests.streaming.spdy_client import SpdyClient, control
from tests.unit.streaming.conftest import Serve
from tests.unit.streaming.fakes import Container, FakeProcess, cat, says, sleeps


def session(server: Any) -> Stdio:
    (only,) = server.sessions
    assert isinstance(only, Stdio)
    return only


@pytest.mark.parametrize("protocol", SPDY)
async def test_spdy_exec_gives_both_outputs_and_the_end_of_every_stream(serve: Serve, protocol: str) -> None:
    """Standard output and error come apart, and each stream is finished."""
    server = await serve()
    container = Container(says(b"out", b"err"))
    client = await SpdyClient.connect(server.url_for(container.exec(stdout=True, stderr=True)), [protocol])
    assert (client.status, client.response["x-stream-protocol-version"]) == (101, protocol)
    ids = await opened(client, "error", "stdout", "stderr")
    assert await client.all_of(ids["stdout"]) == b"out"
    assert await client.all_of(ids["stderr"]) == b"err"
    status = await client.all_of(ids["error"])
    assert status == (b'{"metadata":{},"status":"Success"}' if protocol.startswith("v4") else b"")
    await client.until(lambda: client.goaway)
    await client.close()
    await container.processes[0].closed.wait()
    assert container.processes[0].closes == 1


@pytest.mark.parametrize("protocol", SPDY)
async def test_spdy_reports_the_exit_code_as_its_version_does(serve: Serve, protocol: str) -> None:
    """v4 has a status object with the code, earlier ones a text."""
    server = await serve()
    container = Container(says(code=42))
    client = await SpdyClient.connect(server.url_for(container.exec(stdout=True)), [protocol])
    ids = await opened(client, "error", "stdout")
    said = await client.all_of(ids["error"])
    if protocol.startswith("v4"):
        status = json.loads(said)
        assert (status["status"], status["reason"]) == ("Failure", "NonZeroExitCode")
        assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "42"}]
    else:
        assert said == b"command terminated with exit code 42"
    await client.close()


async def test_a_client_that_offers_no_protocol_is_served_v1(serve: Serve) -> None:
    """Old clients send no version header, and get none back."""
    server = await serve()
    client = await SpdyClient.connect(server.url_for(Container(says(b"x", code=1)).exec(stdout=True)))
    assert "x-stream-protocol-version" not in client.response
    ids = await opened(client, "error", "stdout")
    assert await client.all_of(ids["error"]) == b"command terminated with exit code 1"
    await client.close()


async def test_the_client_s_first_usable_protocol_is_chosen(serve: Serve) -> None:
    """Order is the client's; what we do not speak is passed over."""
    server = await serve()
    url = server.url_for(Container(cat).exec(stdin=True))
    client = await SpdyClient.connect(url, ["v5.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"])
    assert client.response["x-stream-protocol-version"] == "v3.channel.k8s.io"
    await client.close()


async def test_no_common_protocol_is_forbidden_and_says_what_is_served(serve: Serve) -> None:
    """403, with the protocols that would have done."""
    server = await serve()
    client = await SpdyClient.connect(server.url_for(Container(cat).exec(stdin=True)), ["v9.channel.k8s.io"])
    assert client.status == 403
    assert client.response["x-accepted-stream-protocol-versions"] in SPDY
    assert b"v4.channel.k8s.io" in client.body
    await client.close()


@pytest.mark.parametrize("protocol", ["v2.channel.k8s.io", "v4.channel.k8s.io"])
async def test_the_end_of_stdin_reaches_the_process(serve: Serve, protocol: str) -> None:
    """`echo hi | kubectl exec -i -- cat` ends by itself."""
    server = await serve()
    client = await SpdyClient.connect(server.url_for(Container(cat).exec(stdin=True, stdout=True)), [protocol])
    ids = await opened(client, "error", "stdin", "stdout")
    await client.send(ids["stdin"], b"hello ")
    await client.send(ids["stdin"], b"world", fin=True)
    assert await client.all_of(ids["stdout"]) == b"hello world"
    await client.all_of(ids["stdin"])
    await client.close()


async def test_what_follows_the_upgrade_request_at_once_is_not_lost(serve: Serve) -> None:
    """Frames in the same segment as the request are read."""
    server = await serve()
    url = server.url_for(Container(says(b"x")).exec(stdout=True))
    client = await SpdyClient.connect(url, ["v4.channel.k8s.io"], extra=control(6, 0, b"\0\0\0\7"))
    await client.until(lambda: client.pings == [7])
    await client.close()


async def test_a_terminal_has_one_output_and_takes_its_newest_size(serve: Serve) -> None:
    """With tty, stderr is not waited for; sizes sent early are not lost."""

    async def main(process: FakeProcess) -> int:
        size = await process.sizes.get()
        await process.out.put(f"{size.width}x{size.height}".encode())
        while size != TerminalSize(width=100, height=30):
            size = await process.sizes.get()
        await process.out.put(b" 100x30")
        return 0

    server = await serve()
    client = await SpdyClient.connect(server.url_for(Container(main).exec(stdin=True, stdout=True, tty=True)), SPDY)
    ids = await opened(client, "error", "stdin", "resize")
    await client.send(ids["resize"], b'{"Width":80,"Height":24}\n')
    ids |= await opened(client, "stdout")
    await client.until(lambda: client.streams[ids["stdout"]].data == b"80x24")
    await client.send(ids["resize"], b'{"Width":90,"Hei')
    await client.send(ids["resize"], b'ght":25}{"Width":0,"Height":0}{"Width":100,"Height":30}')
    assert await client.all_of(ids["stdout"]) == b"80x24 100x30"
    await client.close()


async def test_streams_nobody_asked_for_are_refused(serve: Serve) -> None:
    """An unknown type, a second stdout and a stdin that the request has not are reset."""
    server = await serve()
    client = await SpdyClient.connect(server.url_for(Container(cat).exec(stdout=True)), SPDY)
    ids = [await client.open({"streamtype": kind}) for kind in ("stdout", "stdout", "stdin", "other", "")]
    assert [client.streams[stream].reset for stream in ids] == [None, 3, 3, 3, 3]
    await client.close()


async def test_a_client_that_does_not_open_its_streams_is_told_and_ended(serve: Serve) -> None:
    """Nothing is started for it."""
    server = await serve(limits=Limits(streams=0.05, linger=0.05))
    container = Container(cat)
    client = await SpdyClient.connect(server.url_for(container.exec(stdin=True, stdout=True)), SPDY)
    ids = await opened(client, "error", "stdin")
    status = json.loads(await client.all_of(ids["error"]))
    assert status["reason"] == "InternalError"
    assert "stdout" in status["message"]
    await client.until_ended()
    assert container.processes == []
    await client.close()


async def test_an_exec_that_cannot_start_says_why(serve: Serve) -> None:
    """The sentence of the error is the status message."""

    async def refuse() -> Any:
        raise NotReady("container c1 is not running; start it first")

    server = await serve()
    request = ExecRequest(
        subject="container c1", streams=Streams(stdout=True), admit=Container(cat).admit, open=refuse
    )
    client = await SpdyClient.connect(server.url_for(request), SPDY)
    ids = await opened(client, "error", "stdout")
    status = json.loads(await client.all_of(ids["error"]))
    assert status["message"] == "container c1 is not running; start it first"
    await client.close()


async def test_megabytes_pass_in_both_directions_unchanged(serve: Serve) -> None:
    """5 MiB through cat, in frames of many sizes, one of them larger than every buffer."""
    server = await serve()
    client = await SpdyClient.connect(server.url_for(Container(cat).exec(stdin=True, stdout=True)), SPDY)
    ids = await opened(client, "error", "stdin", "stdout")
    sizes = [1, 100, 4096, 65536, 65537, 3 * 1024 * 1024, 2 * 1024 * 1024]
    pieces = [bytes((index + at) % 251 for at in range(256)) * (size // 256 + 1) for index, size in enumerate(sizes)]
    for piece in pieces:
        await client.send(ids["stdin"], piece)
    await client.send(ids["stdin"], b"", fin=True)
    assert await client.all_of(ids["stdout"]) == b"".join(pieces)
    await client.close()


async def test_a_process_that_does_not_read_stops_the_client_not_the_memory(serve: Serve) -> None:
    """The inbox stays within its bound, the client's writes stall, and all arrives once the process reads."""
    go = asyncio.Event()
    total = 32 * 1024 * 1024  # more than the kernel holds on its own

    async def main(process: FakeProcess) -> int:
        await go.wait()
        size = 0
        while (data := await process.stdin.get()) is not None:
            size += len(data)
        await process.out.put(str(size).encode())
        return 0

    server = await serve()
    client = await SpdyClient.connect(server.url_for(Container(main).exec(stdin=True, stdout=True)), SPDY)
    ids = await opened(client, "error", "stdin", "stdout")

    async def upload() -> None:
        for _ in range(total // 1024 // 1024):
            await client.send(ids["stdin"], bytes(1024 * 1024))
        await client.send(ids["stdin"], b"", fin=True)

    async with asyncio.TaskGroup() as group:
        sending = group.create_task(upload())
        inbox = session(server).stdin
        await until(lambda: inbox.size >= LIMIT_BYTES)
        for _ in range(500):
            await asyncio.sleep(0)
        assert not sending.done()
        assert LIMIT_BYTES <= inbox.size <= inbox.peak < LIMIT_BYTES + READ_BYTES
        go.set()
        assert await client.all_of(ids["stdout"]) == str(total).encode()
    assert inbox.peak < LIMIT_BYTES + READ_BYTES
    await client.close()


async def test_a_client_that_does_not_read_stops_the_process_not_the_memory(serve: Serve) -> None:
    """A process that writes a lot stands still while the client does not read, and then nothing is missing."""
    total = 32 * 1024 * 1024
    written = 0

    async def main(process: FakeProcess) -> int:
        nonlocal written
        while written < total:
            await process.out.put(bytes(READ_BYTES))
            written += READ_BYTES
        return 0

    server = await serve()
    client = await SpdyClient.connect(server.url_for(Container(main).exec(stdout=True)), SPDY)
    ids = await opened(client, "error", "stdout")
    client.reading.clear()
    link = session(server).link
    await until(lambda: link.unsent >= READ_BYTES)
    for _ in range(500):
        await asyncio.sleep(0)
        assert link.unsent < 3 * READ_BYTES
    assert written < total
    client.reading.set()
    assert len(await client.all_of(ids["stdout"])) == total
    await client.close()


@pytest.mark.parametrize("abort", [False, True])
async def test_a_client_that_disappears_ends_its_process(serve: Serve, abort: bool) -> None:
    """Closed or reset, the session is closed once."""
    server = await serve()
    container = Container(sleeps)
    client = await SpdyClient.connect(server.url_for(container.exec(stdin=True, stdout=True)), SPDY)
    await opened(client, "error", "stdin", "stdout")
    await until(lambda: container.processes)
    if abort:
        client.abort()
    else:
        client.writer.close()
    await container.processes[0].closed.wait()
    await until(lambda: not server.sessions)
    assert container.processes[0].closes == 1
    await client.close()


async def test_a_client_that_disappears_behind_a_full_inbox_is_noticed(serve: Serve) -> None:
    """Its hanging up is seen although its data is not read any more."""
    server = await serve(limits=Limits(linger=0.05))
    container = Container(sleeps)
    client = await SpdyClient.connect(server.url_for(container.exec(stdin=True, stdout=True)), SPDY)
    ids = await opened(client, "error", "stdin", "stdout")
    await until(lambda: container.processes)
    await client.send(ids["stdin"], bytes(LIMIT_BYTES + 4 * READ_BYTES))
    await until(lambda: session(server).stdin.size >= LIMIT_BYTES)
    client.abort()
    await container.processes[0].closed.wait()
    await client.close()


async def test_a_client_that_leaves_while_the_process_starts_leaves_none_behind(serve: Serve) -> None:
    """The start is not interrupted; its process is closed as soon as it is there."""
    server = await serve()
    container = Container(sleeps)
    container.may_open.clear()
    client = await SpdyClient.connect(server.url_for(container.exec(stdout=True)), SPDY)
    await opened(client, "error", "stdout")
    await container.opening.wait()
    client.abort()
    await until(lambda: not server.sessions)
    container.may_open.set()
    await until(lambda: container.processes)
    await container.processes[0].closed.wait()
    assert container.processes[0].closes == 1
    await client.close()


async def test_a_child_that_keeps_the_output_open_does_not_keep_the_client(serve: Serve) -> None:
    """After the exit, silence ends the output."""

    async def main(process: FakeProcess) -> int:
        process.holds_output = True
        await process.out.put(b"said")
        return 0

    server = await serve(limits=Limits(silence=0.05, linger=0.5))
    client = await SpdyClient.connect(server.url_for(Container(main).exec(stdout=True)), SPDY)
    ids = await opened(client, "error", "stdout")
    assert await client.all_of(ids["stdout"]) == b"said"
    assert json.loads(await client.all_of(ids["error"]))["status"] == "Success"
    await client.close()


async def test_a_process_that_closed_its_input_may_go_on_writing(serve: Serve) -> None:
    """`head -1` of a long input: what is sent on is dropped, the output arrives."""

    async def main(process: FakeProcess) -> int:
        process.reads_no_stdin = True
        await go.wait()
        await process.out.put(b"done")
        return 0

    go = asyncio.Event()
    server = await serve()
    client = await SpdyClient.connect(server.url_for(Container(main).exec(stdin=True, stdout=True)), SPDY)
    ids = await opened(client, "error", "stdin", "stdout")
    await client.send(ids["stdin"], bytes(4 * LIMIT_BYTES), fin=True)
    go.set()
    assert await client.all_of(ids["stdout"]) == b"done"
    await client.close()


async def test_an_idle_connection_is_ended_with_the_reason(serve: Serve) -> None:
    """The process is ended and the client told."""
    server = await serve(limits=Limits(idle=0.05, linger=0.5))
    container = Container(sleeps)
    client = await SpdyClient.connect(server.url_for(container.exec(stdout=True)), SPDY)
    ids = await opened(client, "error", "stdout")
    assert "nothing was sent" in json.loads(await client.all_of(ids["error"]))["message"]
    await container.processes[0].closed.wait()
    await client.close()


async def test_shutdown_ends_sessions_and_says_so(serve: Serve) -> None:
    """The process is ended, the client reads why, and close waits for both."""
    server = await serve()
    container = Container(sleeps)
    client = await SpdyClient.connect(server.url_for(container.exec(stdout=True)), SPDY)
    ids = await opened(client, "error", "stdout")
    await until(lambda: container.processes)
    await server.close()
    assert not server.sessions
    assert "shutting down" in json.loads(await client.all_of(ids["error"]))["message"]
    await container.processes[0].closed.wait()
    await client.close()


async def test_shutdown_lets_a_session_end_within_the_grace(serve: Serve) -> None:
    """What ends by itself in time ends well."""
    server = await serve()
    container = Container(cat)
    client = await SpdyClient.connect(server.url_for(container.exec(stdin=True, stdout=True)), SPDY)
    ids = await opened(client, "error", "stdin", "stdout")
    async with asyncio.TaskGroup() as group:
        group.create_task(server.close(30))
        await client.send(ids["stdin"], b"last", fin=True)
        assert await client.all_of(ids["stdout"]) == b"last"
        assert json.loads(await client.all_of(ids["error"]))["status"] == "Success"
        await client.close()


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x80\x02\x00\x01\x00\x00\x00\x00",
        b"\x80\x03\x00\x01\x01\xff\xff\xff",
        b"\x80\x03\x00\x01\x00\x00\x00\x0a\0\0\0\1\0\0",
        b"\x80\x03",
    ],
)
async def test_hostile_bytes_end_the_connection_and_only_that(serve: Serve, hostile: bytes) -> None:
    """The process is ended; the next client is served."""
    server = await serve()
    container = Container(says(b"fine"))
    for attack in (hostile, b""):
        client = await SpdyClient.connect(server.url_for(container.exec(stdout=True)), SPDY)
        if attack:
            client.writer.write(attack)
            client.writer.write_eof()
            await client.until_ended()
        else:
            ids = await opened(client, "error", "stdout")
            assert await client.all_of(ids["stdout"]) == b"fine"
        await client.close()


async def test_attach_ends_with_success_when_the_container_ends(serve: Serve) -> None:
    """The container's exit code is none of attach's business."""

    async def main(process: FakeProcess) -> Any:
        await process.out.put(b"log")

    server = await serve()
    container = Container(main)
    url = server.url_for(container.attach(stdout=True, stderr=True))
    assert "/attach/" in url
    client = await SpdyClient.connect(url, SPDY)
    ids = await opened(client, "error", "stdout", "stderr")
    assert await client.all_of(ids["stdout"]) == b"log"
    assert json.loads(await client.all_of(ids["error"]))["status"] == "Success"
    await client.close()


@pytest.mark.parametrize(
    ("protocol", "json_status"),
    [
        ("v5.channel.k8s.io", True),
        ("v4.channel.k8s.io", True),
        ("v4.base64.channel.k8s.io", True),
        ("channel.k8s.io", False),
        ("base64.channel.k8s.io", False),
        ("", False),
    ],
)
async def test_websocket_exec_gives_outputs_and_exit_code(serve: Serve, protocol: str, json_status: bool) -> None:
    """Channel 1 is stdout, 2 stderr, 3 the outcome; base64 is text."""
    server = await serve()
    container = Container(says(b"out\xff", b"err", code=3))
    ws = await websocket(server.url_for(container.exec(stdout=True, stderr=True)), *([protocol] if protocol else []))
    assert (ws.subprotocol or "") == protocol
    said = await messages(ws)
    assert (said[1], said[2]) == (b"out\xff", b"err")
    if json_status:
        assert json.loads(said[3])["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    else:
        assert said[3] == b"command terminated with exit code 3"
    assert ws.close_code == 1000
    await container.processes[0].closed.wait()


async def test_websocket_v5_can_end_stdin(serve: Serve) -> None:
    """The close message of channel 0 is the end of input."""
    server = await serve()
    ws = await websocket(server.url_for(Container(cat).exec(stdin=True, stdout=True)), "v5.channel.k8s.io")
    await ws.send(b"\0hello")
    await ws.send(b"\xff\x00")
    said = await messages(ws)
    assert said[1] == b"hello"
    assert json.loads(said[3])["status"] == "Success"


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io"])
async def test_websocket_input_and_resize_reach_a_terminal(serve: Serve, protocol: str) -> None:
    """Channel 0 is stdin, 4 the size, in fragments too; a client of the binary protocols may send text."""

    async def main(process: FakeProcess) -> int:
        size = await process.sizes.get()
        line = b""
        while not line.endswith(b"\n"):
            line += await process.stdin.get() or b""
        await process.out.put(line + f"{size.width}".encode())
        return 0

    server = await serve()
    ws = await websocket(server.url_for(Container(main).exec(stdin=True, stdout=True, tty=True)), protocol)

    def encoded(channel: int, data: bytes) -> Iterable[Any]:
        if "base64" in protocol:
            text = str(channel) + base64.b64encode(data).decode()
            return [text[:4], text[4:]]
        return [bytes([channel]) + data[:3], data[3:]]

    await ws.send(encoded(4, b'{"Width":80,"Height":24}'))
    await ws.send(encoded(0, b"hel"))
    await ws.send(encoded(0, b"lo world\n") if "base64" in protocol else "\0lo world\n")
    said = await messages(ws)
    assert said[1] == b"hello world\n80"


async def test_websocket_starts_with_an_empty_message_on_its_first_output(serve: Serve) -> None:
    """That is how clients learn that the session is there."""
    server = await serve()
    ws = await websocket(server.url_for(Container(sleeps).exec(stdin=True, stderr=True)), "v4.channel.k8s.io")
    assert await ws.recv() == b"\x02"
    await ws.close()


async def test_websocket_megabytes_pass_in_both_directions(serve: Serve) -> None:
    """5 MiB through cat, in one message."""
    server = await serve()
    ws = await websocket(server.url_for(Container(cat).exec(stdin=True, stdout=True)), "v5.channel.k8s.io")
    payload = bytes(range(256)) * (5 * 4096)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(messages(ws))
        await ws.send(b"\0" + payload)
        await ws.send(b"\xff\x00")
    assert reading.result()[1] == payload


@pytest.mark.parametrize("politely", [True, False])
async def test_a_websocket_client_that_leaves_ends_its_process(serve: Serve, politely: bool) -> None:
    """With a close frame or without."""
    server = await serve()
    container = Container(sleeps)
    ws = await websocket(server.url_for(container.exec(stdin=True, stdout=True)), "v5.channel.k8s.io")
    await until(lambda: container.processes)
    if politely:
        await ws.close()
    else:
        ws.transport.abort()
    await container.processes[0].closed.wait()
    assert container.processes[0].closes == 1


async def test_what_a_client_sent_before_it_left_is_read_to_its_end(serve: Serve) -> None:
    """A client that speaks no v5 ends its input by leaving, as one does that copies a file with `tar x`."""
    received: list[bytes] = []
    ended = asyncio.Event()

    async def main(process: FakeProcess) -> int:
        while (data := await process.stdin.get()) is not None:
            received.append(data)
            await process.out.put(data)  # which nobody reads any more
        ended.set()
        return 0

    server = await serve()
    container = Container(main)
    ws = await websocket(server.url_for(container.exec(stdin=True, stdout=True)), "v4.channel.k8s.io")
    payload = bytes(range(256)) * 4096
    for start in range(0, len(payload), READ_BYTES):
        await ws.send(b"\0" + payload[start : start + READ_BYTES])
    await ws.close()
    await ended.wait()
    assert b"".join(received) == payload
    await container.processes[0].closed.wait()


@pytest.mark.parametrize("reads", [True, False])
async def test_the_end_of_an_attached_client_is_the_end_of_its_input(serve: Serve, reads: bool) -> None:
    """Also when the container does not take what was sent: with stdin_once it must see the end some day."""
    told: list[bytes | None] = []

    async def main(process: FakeProcess) -> int:
        while reads:
            told.append(await process.stdin.get())
        return await sleeps(process)

    class Told(FakeProcess):
        async def close_stdin(self) -> None:
            if reads:
                await self.stdin.put(None)
            else:
                told.append(None)

    process = Told(main)

    async def attached() -> Any:
        return process

    server = await serve(limits=Limits(linger=0.1))
    request = AttachRequest(subject="container c1", streams=Streams(stdin=True, stdout=True), open=attached)
    ws = await websocket(server.url_for(request), "v4.channel.k8s.io")
    for word in (b"one", b"two", b"three", b"four"):
        await ws.send(b"\0" + word)
    await ws.close()
    await process.closed.wait()
    assert told[-1] is None
    assert b"".join(data for data in told if data) == (b"onetwothreefour" if reads else b"")


async def test_a_client_that_takes_nothing_any_more_is_cut_off(serve: Serve) -> None:
    """What was written for it would otherwise be kept for as long as it likes."""
    total = 32 << 20
    server = await serve(limits=Limits(linger=0.05, idle=0.2))
    client = await SpdyClient.connect(server.url_for(Container(says(bytes(total))).exec(stdout=True)), SPDY)
    await opened(client, "error", "stdout")
    client.reading.clear()
    await until(lambda: not server.sessions)
    await server.close()
    client.reading.set()
    await client.until_ended()
    assert sum(len(stream.data) for stream in client.streams.values()) < total
    assert not client.goaway
    await client.close()


@pytest.mark.parametrize(
    ("protocol", "hostile"),
    [("v5.channel.k8s.io", b"\xff\x00\x01"), ("v4.base64.channel.k8s.io", "1!!!"), ("base64.channel.k8s.io", "\n")],
)
async def test_a_websocket_message_that_breaks_the_protocol_ends_the_connection(
    serve: Serve, protocol: str, hostile: str | bytes
) -> None:
    """With close code 1002, and the process is ended."""
    server = await serve()
    container = Container(sleeps)
    ws = await websocket(server.url_for(container.exec(stdin=True, stdout=True)), protocol)
    await until(lambda: container.processes)
    await ws.send(hostile)
    await messages(ws)
    assert ws.close_code == 1002
    await container.processes[0].closed.wait()


async def test_a_client_that_leaves_while_it_waits_for_a_place_has_started_nothing(serve: Serve) -> None:
    container = Container(cat)
    container.may_admit.clear()
    server = await serve()
    client = await SpdyClient.connect(server.url_for(container.exec(stdout=True)), SPDY)
    await opened(client, "error", "stdout")
    await asyncio.wait_for(container.waiting.wait(), 30)
    assert not container.opening.is_set()

    await client.close()
    await until(lambda: not server.sessions)
    container.may_admit.set()
    await asyncio.sleep(0)
    assert not container.opening.is_set()
