"""Port-forward into real pods: over SPDY, tunnelled through a WebSocket, and over WebSocket channels."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from sandboxd import netns
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.pods import container_config, pod_config, refused, remove_pod, run_container, run_pod
from tests.streaming.clients import forwarded, messages, websocket
from tests.streaming.remote import Settled, dial, forward_url, forwarder, open_files, reached, resident_kb
from tests.streaming.spdy_client import SpdyClient
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]

PAYLOAD = random.Random(3).randbytes(4 << 20)
TUNNELLED = pytest.mark.parametrize("tunnelled", [False, True], ids=["spdy", "tunnelled"])
FAMILIES = pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["ipv4", "ipv6"]
)


@pytest.fixture
def host_pod(bed: Testbed) -> Iterator[str]:
    """A pod in the host's network, which is the bed's."""
    namespaces = cri.NamespaceOption(network=cri.NODE)
    options = cri.LinuxSandboxSecurityContext(namespace_options=namespaces)
    pod_id = run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(security_context=options)))
    yield pod_id
    remove_pod(bed, pod_id)


@asynccontextmanager
async def serving(
    path: str, handler: Handler, port: int, family: int = socket.AF_INET, address: str = "127.0.0.1"
) -> AsyncIterator[set[asyncio.Task[None]]]:
    """A server in a network namespace, on this address only; what serves its connections right now."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
            tasks.discard(task)

    sock = await netns.open_socket(path, family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    server = await asyncio.start_server(serve, sock=sock, backlog=256)
    try:
        yield tasks
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes, then the end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


def shouts(word: bytes) -> Handler:
    """Reads a line, says it with a word before it, and hangs up."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(word + await reader.readuntil(b"\n"))
        writer.close()
        await writer.wait_closed()

    return handler


async def exchange(client: SpdyClient, port: int, payload: bytes, request: int = 0) -> bytes:
    """Send all of it over a connection of its own, and its end; what came back."""
    error, data = await forwarded(client, port, request)
    for start in range(0, len(payload), 32768):
        await client.send(data, payload[start : start + 32768])
    await client.send(data, b"", fin=True)
    received = await client.all_of(data)
    assert await client.all_of(error) == b""
    return received


@FAMILIES
@TUNNELLED
async def test_a_listener_on_loopback_is_reached_whatever_its_family(
    bed: Testbed, pod: str, tunnelled: bool, family: int, address: str
) -> None:
    async with serving(bed.pod_netns(pod), echo, 8080, family, address):
        client = await forwarder(bed, pod, tunnelled=tunnelled)
        assert await exchange(client, 8080, b"hello") == b"hello"
        await client.close()


@FAMILIES
@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"])
async def test_websocket_channels_carry_a_connection_for_each_port(
    bed: Testbed, pod: str, protocol: str, family: int, address: str
) -> None:
    """A port where nobody listens says so on its own error channel, and the others go on."""
    path = bed.pod_netns(pod)
    async with serving(path, shouts(b"a "), 81, family, address), serving(path, shouts(b"b "), 82, family, address):
        url = forward_url(bed, pod, 81, 83, 82)
        ws = await websocket(url, protocol, sock=await dial(bed, url))
        text = "base64" in protocol
        await ws.send("0b25lCg==" if text else b"\0one\n")
        await ws.send("4dHdvCg==" if text else b"\4two\n")
        said = await messages(ws)
    ports = {port: struct.pack("<H", port) for port in (81, 82, 83)}
    assert (said[0], said[1]) == (ports[81] + b"a one\n", ports[81])
    assert (said[4], said[5]) == (ports[82] + b"b two\n", ports[82])
    assert said[2] == ports[83]
    assert said[3].startswith(ports[83]) and b"Connection refused" in said[3]


@TUNNELLED
async def test_many_connections_to_several_ports_at_once_do_not_mix(bed: Testbed, pod: str, tunnelled: bool) -> None:
    path = bed.pod_netns(pod)
    payloads = [random.Random(number).randbytes(50_000 + number) for number in range(90)]
    async with serving(path, echo, 81), serving(path, echo, 82), serving(path, echo, 83, socket.AF_INET6, "::1"):
        client = await forwarder(bed, pod, tunnelled=tunnelled)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(exchange(client, 81 + number % 3, payload, number))
                for number, payload in enumerate(payloads)
            ]
        assert [task.result() for task in tasks] == payloads
        await client.close()


@TUNNELLED
async def test_megabytes_pass_in_both_directions_unchanged(bed: Testbed, pod: str, tunnelled: bool) -> None:
    async with serving(bed.pod_netns(pod), echo, 8080):
        client = await forwarder(bed, pod, tunnelled=tunnelled)
        received = await exchange(client, 8080, PAYLOAD)
        assert hashlib.sha256(received).digest() == hashlib.sha256(PAYLOAD).digest()
        await client.close()


@TUNNELLED
async def test_a_port_where_nobody_listens_fails_alone(bed: Testbed, pod: str, tunnelled: bool) -> None:
    """The error stream says why; a connection that was open goes on, and new ones are made."""
    async with serving(bed.pod_netns(pod), echo, 8080):
        client = await forwarder(bed, pod, tunnelled=tunnelled)
        _, open_before = await forwarded(client, 8080, 0)
        await client.send(open_before, b"one")
        await client.until(lambda: client.streams[open_before].data == b"one")
        error, data = await forwarded(client, 9999, 1)
        words = await client.all_of(error)
        assert b"port 9999" in words and b"Connection refused" in words
        assert await client.all_of(data) == b""
        await client.send(open_before, b" two", fin=True)
        assert await client.all_of(open_before) == b"one two"
        assert await exchange(client, 8080, b"three", 2) == b"three"
        await client.close()


async def test_the_reason_is_that_of_the_port_where_ipv6_is_off(bed: Testbed) -> None:
    sysctls = {"net.ipv6.conf.all.disable_ipv6": "1"}
    pod_id = run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(sysctls=sysctls)))
    client = await forwarder(bed, pod_id)
    error, _ = await forwarded(client, 9999)
    assert b"Connection refused" in await client.all_of(error)
    await client.close()
    remove_pod(bed, pod_id)


@FAMILIES
async def test_a_pod_in_the_host_s_network_has_the_host_s_ports(
    bed: Testbed, host_pod: str, family: int, address: str
) -> None:
    async with serving(bed.netns, echo, 8080, family, address):
        client = await forwarder(bed, host_pod)
        assert await exchange(client, 8080, b"hello") == b"hello"
        await client.close()


async def test_the_host_s_own_ports_are_not_the_pod_s(bed: Testbed, pod: str) -> None:
    async with serving(bed.netns, echo, 8080):
        client = await forwarder(bed, pod)
        error, _ = await forwarded(client, 8080)
        assert b"Connection refused" in await client.all_of(error)
        await client.close()


async def test_nginx_answers(bed: Testbed, images: tuple[str, ...], pod: str) -> None:
    """One connection after the other over one session, as a browser behind `kubectl port-forward` makes them."""
    run_container(bed, pod, container_config("nginx", "nginx"))
    client = await forwarder(bed, pod)
    request = b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"
    answer = b""
    async with asyncio.timeout(30):
        while not answer:  # until it listens
            error, data = await forwarded(client, 80, len(client.streams))
            await client.send(data, request)
            answer = await client.all_of(data)
            assert bool(answer) != bool(await client.all_of(error))
    assert answer.startswith(b"HTTP/1.1 200 ")
    again = await exchange(client, 80, request, len(client.streams))
    assert again.partition(b"\r\n\r\n")[2] == answer.partition(b"\r\n\r\n")[2]
    await client.close()


@TUNNELLED
@pytest.mark.parametrize("politely", [True, False], ids=["goodbye", "reset"])
async def test_a_client_that_leaves_takes_its_connections_with_it(
    bed: Testbed, pod: str, tunnelled: bool, politely: bool
) -> None:
    """The servers in the pod see the end; nothing is left, not a file in the daemon either."""

    async def listens(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass

    async with serving(bed.pod_netns(pod), listens, 8080) as connections:
        warm = await forwarder(bed, pod, tunnelled=tunnelled)
        await exchange_nothing(warm)
        await warm.close()
        await reached(lambda: not connections, what="the connections end")
        before, files = observe(bed), open_files(bed)
        client = await forwarder(bed, pod, tunnelled=tunnelled)
        for number in range(10):
            _, data = await forwarded(client, 8080, number)
            await client.send(data, b"hello")
        await reached(lambda: len(connections) == 10, what="they are connected")
        if not politely:
            client.abort()
        await client.close()
        await reached(lambda: not connections, what="the connections end")
        await reached(lambda: open_files(bed) <= files, what="the daemon has let go of everything")
    assert_no_leaks(bed, before)


async def exchange_nothing(client: SpdyClient) -> None:
    """Open a connection, and end it."""
    _, data = await forwarded(client, 8080)
    await client.send(data, b"", fin=True)
    await client.all_of(data)


async def test_who_does_not_read_stops_the_other_not_the_memory(bed: Testbed, pod: str) -> None:
    """In both directions: 256 MiB want to pass, and wait."""
    total = 256 << 20
    piece = bytes(1 << 20)
    written = 0

    async def pours(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        for _ in range(total // len(piece)):
            writer.write(piece)
            await writer.drain()
            written += len(piece)
        writer.close()
        await writer.wait_closed()

    async def idles(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    path = bed.pod_netns(pod)
    async with serving(path, pours, 81), serving(path, idles, 82), serving(path, echo, 83):
        client = await forwarder(bed, pod)
        assert await exchange(client, 83, PAYLOAD) == PAYLOAD
        resident = resident_kb(bed.daemon_pid)
        _, downward = await forwarded(client, 81, 1)
        client.reading.clear()
        sender = await forwarder(bed, pod)
        _, upward = await forwarded(sender, 82, 2)
        sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < total:
                await sender.send(upward, piece)
                sent += len(piece)

        sending = asyncio.ensure_future(send())
        await reached(Settled(lambda: sent), what="no more is sent")
        await reached(Settled(lambda: written), what="no more is written")
        assert sent < total / 2 and written < total / 2
        grown = resident_kb(bed.daemon_pid) - resident
        assert grown < 16 << 10, f"{grown} kB"
        sending.cancel()
        sender.abort()
        await sender.close()
        client.reading.set()
        async with asyncio.timeout(60):
            await client.until(lambda: len(client.streams[downward].data) == total)
        await client.close()


async def test_a_pod_that_was_stopped_has_no_ports(bed: Testbed, pod: str) -> None:
    client = await forwarder(bed, pod)
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=60)
    error, _ = await forwarded(client, 80)
    assert b"no longer running" in await client.all_of(error)
    await client.close()
    with pytest.raises(grpc.RpcError) as failed:
        forward_url(bed, pod)
    assert refused(failed.value)[0] is grpc.StatusCode.FAILED_PRECONDITION


@TUNNELLED
@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
async def test_a_restart_of_the_daemon_ends_the_connections_and_new_ones_are_made(
    bed: Testbed, pod: str, tunnelled: bool, kill: bool
) -> None:
    async with serving(bed.pod_netns(pod), echo, 8080) as connections:
        before = observe(bed)
        client = await forwarder(bed, pod, tunnelled=tunnelled)
        _, data = await forwarded(client, 8080)
        await client.send(data, b"hello")
        await client.until(lambda: client.streams[data].data == b"hello")
        await asyncio.to_thread(bed.restart_daemon, kill=kill)
        async with asyncio.timeout(60):
            await client.until_ended()
        await client.close()
        await reached(lambda: not connections, what="the connections end")
        assert_no_leaks(bed, before)
        client = await forwarder(bed, pod, tunnelled=tunnelled)
        assert await exchange(client, 8080, b"again") == b"again"
        await client.close()
