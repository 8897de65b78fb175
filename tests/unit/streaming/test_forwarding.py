"""Port-forward over a real connection: SPDY, SPDY in a WebSocket, WebSocket channels."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Opcode
from websockets.typing import Subprotocol

from sandboxd.streaming.forwarding import Forwarding
from sandboxd.streaming.inbox import LIMIT_BYTES
from sandboxd.streaming.link import READ_BYTES, Limits
from tests.streaming.clients import forwarded, messages, until
from tests.streaming.spdy_client import FIN, Frames, SpdyClient, StreamState, data_frame
from tests.streaming.tunnel import TunnelClient
from tests.unit.streaming.conftest import Serve
from tests.unit.streaming.fakes import Pod

PROTOCOL = ["portforward.k8s.io"]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes, then the end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speaks first, reads to the end."""
    writer.write(b"hello from the pod")
    writer.write_eof()
    await reader.read()
    writer.close()


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads nothing until the other side is gone."""
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.Event().wait()


def session(server: Any) -> Forwarding:
    (only,) = server.sessions
    assert isinstance(only, Forwarding)
    return only


@pytest.mark.parametrize("protocols", [PROTOCOL, []])
async def test_spdy_forwards_data_and_both_ends_of_it(serve: Serve, protocols: list[str]) -> None:
    """The client's end reaches the pod, the pod's the client, and the error stream ends empty."""
    server = await serve()
    async with Pod(p80=echo) as pod:
        client = await SpdyClient.connect(server.url_for(pod.request()), protocols)
        error, data = await forwarded(client, 80)
        await client.send(data, b"ping", fin=True)
        assert await client.all_of(data) == b"ping"
        assert await client.all_of(error) == b""
        await client.close()


async def test_old_clients_without_request_ids_are_paired_by_stream_id(serve: Serve) -> None:
    """Error is opened first, data has the next id."""
    server = await serve()
    async with Pod(p80=greets) as pod:
        client = await SpdyClient.connect(server.url_for(pod.request()), PROTOCOL)
        _, data = await forwarded(client, 80, None)
        assert await client.all_of(data) == b"hello from the pod"
        await client.close()


async def test_many_connections_at_once_do_not_mix(serve: Serve) -> None:
    """Fifty at a time, over two ports, each with its own bytes."""
    server = await serve()
    async with Pod(p80=echo, p81=greets) as pod:
        client = await SpdyClient.connect(server.url_for(pod.request()), PROTOCOL)
        streams = [(await forwarded(client, 80 + number % 2, number))[1] for number in range(50)]
        for number, data in enumerate(streams):
            await client.send(data, f"connection {number}".encode(), fin=True)
        for number, data in enumerate(streams):
            expected = b"hello from the pod" if number % 2 else f"connection {number}".encode()
            assert await client.all_of(data) == expected
        await client.close()


async def test_megabytes_pass_in_both_directions(serve: Serve) -> None:
    """5 MiB through echo."""
    server = await serve()
    payload = bytes(range(256)) * (5 * 4096)
    async with Pod(p80=echo) as pod:
        client = await SpdyClient.connect(server.url_for(pod.request()), PROTOCOL)
        _, data = await forwarded(client, 80)
        for start in range(0, len(payload), 500_000):
            await client.send(data, payload[start : start + 500_000])
        await client.send(data, b"", fin=True)
        assert await client.all_of(data) == payload
        await client.close()


async def test_a_port_where_nothing_listens_fails_alone(serve: Serve) -> None:
    """Text on the error stream, the data stream reset, the session goes on."""
    server = await serve()
    async with Pod(p80=greets) as pod:
        client = await SpdyClient.connect(server.url_for(pod.request()), PROTOCOL)
        error, data = await forwarded(client, 81, 1)
        assert await client.all_of(error) == b"pod p1: port 81: nothing listens on port 81"
        await client.until(lambda: client.streams[data].reset == 5)
        _, data = await forwarded(client, 80, 2)
        assert await client.all_of(data) == b"hello from the pod"
        await client.close()


async def test_a_data_stream_given_up_ends_its_connection_and_its_error_stream(serve: Serve) -> None:
    """kubectl resets the data stream and then waits for the end of the error stream."""
    gone = asyncio.Event()

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await reader.read()
        gone.set()
        writer.close()

    server = await serve()
    async with Pod(p80=waits) as pod:
        client = await SpdyClient.connect(server.url_for(pod.request()), PROTOCOL)
        error, data = await forwarded(client, 80)
        await client.until(lambda: client.streams[data].data == b"x")
        client.reset(data)
        assert await client.all_of(error) == b""
        await gone.wait()
        assert session(server).inboxes == {}
        await client.close()


async def test_a_client_that_disappears_ends_all_connections(serve: Serve) -> None:
    """The pod sees the end of each."""
    ended = asyncio.Semaphore(0)

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.release()
        writer.close()

    server = await serve()
    async with Pod(p80=waits) as pod:
        client = await SpdyClient.connect(server.url_for(pod.request()), PROTOCOL)
        for number in range(3):
            await forwarded(client, 80, number)
        client.abort()
        for _ in range(3):
            await ended.acquire()
        await until(lambda: not server.sessions)
        await client.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"streamtype": "data", "port": "0"},
        {"streamtype": "data", "port": "65536"},
        {"streamtype": "error", "port": "x"},
        {"streamtype": "error"},
        {"streamtype": "stdin", "port": "80"},
        {},
    ],
)
async def test_streams_that_name_no_port_or_kind_are_refused(serve: Serve, headers: dict[str, str]) -> None:
    """Each alone; the session goes on."""
    server = await serve()
    client = await SpdyClient.connect(server.url_for(Pod().request()), PROTOCOL)
    stream = await client.open(headers)
    assert client.streams[stream].reset == 3
    await client.close()


async def test_a_pair_that_stays_incomplete_is_given_up(serve: Serve) -> None:
    """A lone error stream is told why, a lone data stream is reset, whatever it was sent."""
    server = await serve(limits=Limits(streams=0.05, linger=0.5))
    client = await SpdyClient.connect(server.url_for(Pod().request()), PROTOCOL)
    error = await client.open({"streamtype": "error", "port": "80", "requestid": "1"})
    data = await client.open({"streamtype": "data", "port": "80", "requestid": "2"})
    await client.send(data, bytes(2 * LIMIT_BYTES))
    assert b"did not open" in await client.all_of(error)
    await client.until(lambda: client.streams[data].reset == 5)
    assert session(server).inboxes == {}
    await client.close()


async def test_connections_are_bounded_over_all_clients_and_each_that_ends_makes_room(serve: Serve) -> None:
    """Whether it was served, incomplete or refused."""
    server = await serve(limits=Limits(forwarded=2, streams=0.05, linger=2.0, half_closed=0.05))
    async with Pod(p80=hangs) as pod:
        first, second = [await SpdyClient.connect(server.url_for(pod.request()), PROTOCOL) for _ in range(2)]
        await forwarded(first, 80)
        await first.open({"streamtype": "nonsense"})
        await second.open({"streamtype": "error", "port": "80", "requestid": "half"})
        await until(lambda: server._forwarded.streams == 2)
        await forwarded(second, 80)
        third, _ = await forwarded(second, 80)
        await until(lambda: second.streams[third].reset is not None)
        assert server._forwarded.streams == 4
        await first.close()
        await until(lambda: server._forwarded.streams == 2)
        await second.close()
        await until(lambda: not server._forwarded.streams)


async def test_a_connection_that_does_not_close_well_makes_room_for_itself_only(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(writer: asyncio.StreamWriter) -> None:
        raise ConnectionResetError

    server = await serve()
    async with Pod(p80=greets, p81=hangs) as pod:
        client = await SpdyClient.connect(server.url_for(pod.request()), PROTOCOL)
        await forwarded(client, 81)
        monkeypatch.setattr(asyncio.StreamWriter, "wait_closed", fails)
        error, data = await forwarded(client, 80)
        assert server._forwarded.streams == 4
        await client.send(data, b"", fin=True)
        assert await client.all_of(error) == b""
        await until(lambda: server._forwarded.streams < 4)
        assert server._forwarded.streams == 2
        monkeypatch.undo()
        await client.close()
    await until(lambda: not server._forwarded.streams)


async def test_a_client_that_leaves_a_pair_incomplete_makes_room_too(serve: Serve) -> None:
    server = await serve()
    client = await SpdyClient.connect(server.url_for(Pod().request()), PROTOCOL)
    await client.open({"streamtype": "error", "port": "80", "requestid": "half"})
    assert server._forwarded.streams == 1
    await client.close()
    await until(lambda: not server._forwarded.streams)


async def test_a_pod_that_does_not_read_stops_the_client_not_the_memory(serve: Serve) -> None:
    """The inbox stays within its bound; giving the stream up frees the others."""
    server = await serve()
    async with Pod(p80=hangs, p81=greets) as pod:
        client = await SpdyClient.connect(server.url_for(pod.request()), PROTOCOL)
        _, data = await forwarded(client, 80)

        async def upload() -> None:
            for _ in range(32):
                await client.send(data, bytes(1024 * 1024))

        sending = asyncio.create_task(upload())
        inbox = session(server).inboxes[data]
        await until(lambda: inbox.size >= LIMIT_BYTES)
        for _ in range(500):
            await asyncio.sleep(0)
        assert not sending.done()
        assert inbox.peak < LIMIT_BYTES + READ_BYTES
        sending.cancel()
        client.abort()
        await until(lambda: not server.sessions)
        await client.close()


async def test_websocket_channels_carry_a_connection_for_each_port(serve: Serve) -> None:
    """Two channels a port, each beginning with the port; the session ends with the last connection."""
    server = await serve()
    async with Pod(p80=greets, p81=greets) as pod:
        url = server.url_for(pod.request(80, 81, 82))
        said = await messages(await channels(url, "v4.channel.k8s.io"))
    prefix = {port: struct.pack("<H", port) for port in (80, 81, 82)}
    assert said[0] == prefix[80] + b"hello from the pod"
    assert said[1] == prefix[80]
    assert said[2] == prefix[81] + b"hello from the pod"
    assert said[3] == prefix[81]
    assert said[4] == prefix[82]
    assert said[5] == prefix[82] + b"pod p1: port 82: nothing listens on port 82"


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"])
async def test_websocket_channels_carry_data_to_the_pod(serve: Serve, protocol: str) -> None:
    """In binary and in base64."""

    async def shouts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readuntil(b"\n")).upper())
        writer.close()

    server = await serve()
    async with Pod(p80=shouts) as pod:
        ws = await channels(server.url_for(pod.request(80)), protocol)
        await ws.send("0aGVsbG8K" if "base64" in protocol else b"\0hello\n")
        assert (await messages(ws))[0] == b"\x50\x00HELLO\n"


async def test_websocket_channels_need_the_ports_of_the_request(serve: Serve) -> None:
    """Without any there is nothing to forward: the upgrade is refused."""
    server = await serve()
    with pytest.raises(Exception, match="400"):
        await channels(server.url_for(Pod().request()), "v4.channel.k8s.io")


async def channels(url: str, protocol: str) -> ClientConnection:
    return await connect(url.replace("http", "ws", 1), subprotocols=[Subprotocol(protocol)], compression=None)


@pytest.mark.parametrize("cut", [1, 7, 100_000])
async def test_spdy_tunnelled_through_a_websocket_forwards_data(serve: Serve, cut: int) -> None:
    """SPDY's bytes in messages of any size, in both directions."""
    server = await serve()
    frames = Frames()
    sent = frames.syn_stream(1, {"streamtype": "error", "port": "80", "requestid": "0"}, FIN)
    sent += frames.syn_stream(3, {"streamtype": "data", "port": "80", "requestid": "0"})
    sent += data_frame(3, b"ping") + data_frame(3, b"", FIN)
    states = {1: StreamState(), 3: StreamState()}
    async with Pod(p80=echo) as pod:
        client = await TunnelClient.connect(server.url_for(pod.request()))
        for start in range(0, len(sent), cut):
            client.send(sent[start : start + cut])
        while not (states[1].fin and states[3].fin):
            received = await client.receive()
            assert received
            for message in received:
                assert message.opcode is Opcode.BINARY
                for kind, stream, body, fin in frames.parse(bytes(message.data)):
                    if kind == "data":
                        states[stream].data += body
                    states[stream].fin |= fin
        assert (bytes(states[1].data), bytes(states[3].data)) == (b"", b"ping")
        client.close()


@pytest.mark.parametrize("hostile", [b"\x80\x02\x00\x01\x00\x00\x00\x00", "text"])
async def test_a_tunnel_that_breaks_the_protocol_is_ended(serve: Serve, hostile: bytes | str) -> None:
    """With close code 1002."""
    server = await serve()
    client = await TunnelClient.connect(server.url_for(Pod().request()))
    client.send(hostile.encode() if isinstance(hostile, str) else hostile, text=isinstance(hostile, str))
    while await client.receive():
        pass
    assert client.protocol.close_rcvd is not None
    assert client.protocol.close_rcvd.code == 1002
    client.close()
