"""Exec and attach at the daemon of a bed, alike over every transport and protocol; and connections for port-forward.

The streaming server listens on the bed's loopback, so the connections are made over sockets from in there.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from sandboxd import netns
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.streaming.remotecommand import CHANNELS
from tests.processes import until
from tests.streaming import clients
from tests.streaming.spdy_client import SpdyClient
from tests.streaming.tunnel import TunnelClient
from tests.testbed import Testbed

SECONDS = 60.0  # for anything that must come; only a broken daemon takes so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """One way for an exec or attach client to speak."""

    websocket: bool
    protocol: str
    version: int

    def __str__(self) -> str:
        return f"{'websocket' if self.websocket else 'spdy'}-{self.protocol}"

    @property
    def ends_stdin(self) -> bool:
        """Whether the client can end stdin and stay."""
        return not self.websocket or self.version >= 5

    @property
    def resizes(self) -> bool:
        """Whether it has a stream for the terminal's size."""
        return self.websocket or self.version >= 3


def _spdy(protocol: str, version: int) -> Transport:
    return Transport(websocket=False, protocol=protocol, version=version)


def _websocket(protocol: str, version: int) -> Transport:
    return Transport(websocket=True, protocol=protocol, version=version)


SPDY_V4 = _spdy("v4.channel.k8s.io", 4)
WEBSOCKET_V5 = _websocket("v5.channel.k8s.io", 5)
NEWEST = (SPDY_V4, WEBSOCKET_V5)
TRANSPORTS = (
    SPDY_V4,
    _spdy("v3.channel.k8s.io", 3),
    _spdy("v2.channel.k8s.io", 2),
    _spdy("channel.k8s.io", 1),
    WEBSOCKET_V5,
    _websocket("v4.channel.k8s.io", 4),
    _websocket("v4.base64.channel.k8s.io", 4),
    _websocket("channel.k8s.io", 1),
    _websocket("base64.channel.k8s.io", 1),
)


class Remote(Protocol):
    """An exec or attach, from the client's side. `reading` may be cleared to leave what comes where it is."""

    reading: asyncio.Event

    async def send(self, data: bytes) -> None:
        """Write to stdin, at the speed of the server."""
        ...

    async def end_stdin(self) -> None: ...

    async def resize(self, width: int, height: int) -> None: ...

    def said(self, name: str) -> bytes:
        """What has come on a stream so far."""
        ...

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something comes that makes it true. Fails when the server ends the connection first."""
        ...

    async def ended(self) -> bytes:
        """Wait for the end of the session; what the error stream said."""
        ...

    async def vanish(self) -> None:
        """Disappear at once: the kernel sends a reset."""
        ...

    async def close(self) -> None:
        """Leave in good order."""
        ...


class SpdyRemote:
    """Over SPDY."""

    def __init__(self, client: SpdyClient) -> None:
        self.client = client
        self.reading = client.reading
        self._ids: dict[str, int] = {}

    async def open(self, names: Sequence[str]) -> None:
        self._ids = await clients.opened(self.client, *names)
        assert all(self.client.streams[i].reset is None for i in self._ids.values())

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), 32768):
            await self.client.send(self._ids["stdin"], data[start : start + 32768])

    async def end_stdin(self) -> None:
        await self.client.send(self._ids["stdin"], b"", fin=True)

    async def resize(self, width: int, height: int) -> None:
        await self.client.send(self._ids["resize"], json.dumps({"Width": width, "Height": height}).encode())

    def said(self, name: str) -> bytes:
        return bytes(self.client.streams[self._ids[name]].data)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            await self.client.until(condition)

    async def ended(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            words = await self.client.all_of(self._ids["error"])
            assert all(self.client.streams[i].fin for name, i in self._ids.items() if name != "error")
            await self.client.until(lambda: self.client.goaway)
            await self.client.close()
            return words

    async def vanish(self) -> None:
        self.client.abort()
        await self.client.close()

    async def close(self) -> None:
        await self.client.close()


class WebSocketRemote:
    """Over WebSocket, binary or base64."""

    def __init__(self, connection: ClientConnection, transport: Transport) -> None:
        self._connection = connection
        self._base64 = "base64" in transport.protocol
        self._said = {channel: bytearray() for channel in CHANNELS}
        self._numbers = {name: channel for channel, name in CHANNELS.items()}
        self._changed = asyncio.Condition()
        self._over = False
        self.reading = asyncio.Event()
        self.reading.set()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while True:
                await self.reading.wait()
                message = await self._connection.recv()
                async with self._changed:
                    if isinstance(message, str):
                        self._said[int(message[0])] += base64.b64decode(message[1:])
                    else:
                        self._said[message[0]] += message[1:]
                    self._changed.notify_all()
        except ConnectionClosed:
            async with self._changed:
                self._over = True
                self._changed.notify_all()

    async def _message(self, channel: int, data: bytes) -> None:
        if self._base64:
            await self._connection.send(f"{channel}{base64.b64encode(data).decode()}")
        else:
            await self._connection.send(bytes((channel,)) + data)

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), 32768):
            await self._message(0, data[start : start + 32768])

    async def end_stdin(self) -> None:
        await self._message(255, b"\0")

    async def resize(self, width: int, height: int) -> None:
        await self._message(4, json.dumps({"Width": width, "Height": height}).encode())

    def said(self, name: str) -> bytes:
        return bytes(self._said[self._numbers[name]])

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: condition() or self._over)
        assert condition(), "the server ended the connection first"

    async def ended(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            await self._task
            await self._connection.wait_closed()
        return self.said("error")

    async def vanish(self) -> None:
        self.reading.set()
        transport = self._connection.transport
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        await self._task

    async def close(self) -> None:
        self.reading.set()
        await self._connection.close()
        await self._task


async def dial(bed: Testbed, url: str) -> socket.socket:
    """A connection from inside the bed to the server of a URL."""
    parts = urlsplit(url)
    sock = await netns.open_socket(bed.netns, socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
    return sock


async def connect(
    bed: Testbed, url: str, transport: Transport, *names: str, tls: ssl.SSLContext | None = None
) -> Remote:
    """Come with a URL and open the streams of these names, and the one for errors."""
    sock = await dial(bed, url)
    if transport.websocket:
        options: dict[str, Any] = {"ssl": tls, "server_hostname": urlsplit(url).hostname} if tls else {}
        connection = await clients.websocket(url, transport.protocol, sock=sock, **options)
        assert connection.subprotocol == transport.protocol
        return WebSocketRemote(connection, transport)
    client = await SpdyClient.connect(url, [transport.protocol], tls=tls, sock=sock)
    assert client.status == 101, (client.status, client.body)
    assert client.response["x-stream-protocol-version"] == transport.protocol
    remote = SpdyRemote(client)
    await remote.open(("error", *names))
    return remote


def _streams(stdin: bool, tty: bool, transport: Transport) -> tuple[str, ...]:
    wanted = {"stdin": stdin, "stdout": True, "stderr": not tty, "resize": tty and transport.resizes}
    return tuple(name for name, is_wanted in wanted.items() if is_wanted)


def exec_url(
    bed: Testbed, container_id: str, *cmd: str, stdin: bool = False, tty: bool = False, stderr: bool | None = None
) -> str:
    """Exec; the URL. With stdout, and without a terminal with stderr."""
    request = cri.ExecRequest(
        container_id=container_id,
        cmd=cmd,
        stdin=stdin,
        stdout=True,
        stderr=not tty if stderr is None else stderr,
        tty=tty,
    )
    return str(bed.runtime.Exec(request, timeout=60).url)


async def execute(
    bed: Testbed, container_id: str, *cmd: str, transport: Transport, stdin: bool = False, tty: bool = False
) -> Remote:
    """Exec, and come with the URL."""
    url = exec_url(bed, container_id, *cmd, stdin=stdin, tty=tty)
    return await connect(bed, url, transport, *_streams(stdin, tty, transport))


async def attach(
    bed: Testbed, container_id: str, *, transport: Transport, stdin: bool = False, tty: bool = False
) -> Remote:
    """Attach, and come with the URL."""
    request = cri.AttachRequest(container_id=container_id, stdin=stdin, stdout=True, stderr=not tty, tty=tty)
    url = bed.runtime.Attach(request, timeout=60).url
    return await connect(bed, url, transport, *_streams(stdin, tty, transport))


def forward_url(bed: Testbed, pod_id: str, *ports: int) -> str:
    """PortForward; the URL. Only WebSocket channels need the ports."""
    return str(bed.runtime.PortForward(cri.PortForwardRequest(pod_sandbox_id=pod_id, port=ports), timeout=60).url)


async def forwarder(bed: Testbed, pod_id: str, *, tunnelled: bool = False) -> SpdyClient:
    """PortForward over SPDY; a connection is a `clients.forwarded`."""
    url = forward_url(bed, pod_id)
    sock = await dial(bed, url)
    if tunnelled:
        return SpdyClient.tunnelled(await TunnelClient.connect(url, sock=sock))
    client = await SpdyClient.connect(url, ["portforward.k8s.io"], sock=sock)
    assert client.status == 101, (client.status, client.body)
    return client


def exit_code(transport: Transport, words: bytes) -> int:
    """The exit code that the error stream told, as the version of the protocol tells it."""
    if transport.version < 4:
        if not words:
            return 0
        said = re.fullmatch(rb"command terminated with exit code (\d+)", words)
        assert said, words
        return int(said[1])
    status = json.loads(words)
    if status["status"] == "Success":
        return 0
    assert status["reason"] == "NonZeroExitCode", status
    (cause,) = status["details"]["causes"]
    assert cause["reason"] == "ExitCode"
    return int(cause["message"])


def failure(transport: Transport, words: bytes) -> str:
    """Why there was no process, or why nobody knows how it ended."""
    if transport.version < 4:
        return words.decode()
    status = json.loads(words)
    assert (status["status"], status["reason"]) == ("Failure", "InternalError"), status
    return str(status["message"])


def open_files(bed: Testbed) -> int:
    """How many files the daemon has open."""
    return len(os.listdir(f"/proc/{bed.daemon_pid}/fd"))


def resident_kb(pid: int) -> int:
    """The memory that a process has, in kB (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


async def reached(check: Callable[[], object], *, what: str, within: float = SECONDS) -> None:
    """Wait for a state of the bed while the clients go on."""
    await asyncio.to_thread(until, check, within=within, what=what)


class Settled:
    """True once a number has not changed for so many looks."""

    def __init__(self, number: Callable[[], int], looks: int = 25) -> None:
        self._number, self._looks = number, looks
        self._last, self._same = -1, 0

    def __call__(self) -> bool:
        now = self._number()
        self._same = self._same + 1 if now == self._last and now > 0 else 0
        self._last = now
        return self._same >= self._looks
