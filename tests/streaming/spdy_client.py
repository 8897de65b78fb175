"""A SPDY/3.1 client for tests, written from the draft and sharing no frame code with the server."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sandboxd.streaming.spdy_headers import DICTIONARY
from tests.streaming.tunnel import TunnelClient

FIN = 1
CONTROL = 0x80000000


def control(kind: int, flags: int, body: bytes, *, version: int = 3) -> bytes:
    """One control frame."""
    return struct.pack(">HHI", 0x8000 | version, kind, flags << 24 | len(body)) + body


def data_frame(stream: int, data: bytes, flags: int = 0) -> bytes:
    """One data frame."""
    return struct.pack(">II", stream, flags << 24 | len(data)) + data


def plain_headers(headers: Mapping[str, str]) -> bytes:
    """A header block before compression."""
    out = struct.pack(">I", len(headers))
    for name, value in headers.items():
        out += struct.pack(">I", len(name)) + name.encode() + struct.pack(">I", len(value)) + value.encode()
    return out


class Frames:
    """The client's half of the framing: frames to write, frames that were read."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._buffer = b""

    def block(self, headers: Mapping[str, str]) -> bytes:
        return self._deflate.compress(plain_headers(headers)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def syn_stream(self, stream: int, headers: Mapping[str, str], flags: int = 0) -> bytes:
        return control(1, flags, struct.pack(">IIH", stream, 0, 0) + self.block(headers))

    def parse(self, data: bytes) -> list[tuple[str, int, bytes, bool]]:
        """(kind, stream, payload, fin) of every frame that is complete now."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= 8:
            first, second = struct.unpack(">II", self._buffer[:8])
            length = second & 0xFFFFFF
            if len(self._buffer) < 8 + length:
                break
            body, self._buffer = self._buffer[8 : 8 + length], self._buffer[8 + length :]
            fin = bool(second >> 24 & FIN)
            if not first & CONTROL:
                frames.append(("data", first, body, fin))
                continue
            kind = first & 0xFFFF
            assert first >> 16 == 0x8003
            if kind == 2:
                self._inflate.decompress(body[4:])
            name = {2: "reply", 3: "reset", 6: "ping", 7: "goaway"}[kind]
            frames.append((name, struct.unpack(">I", body[:4])[0], body[4:], fin))
        return frames


@dataclass
class StreamState:
    """What the server said on one stream."""

    data: bytearray = field(default_factory=bytearray)
    replied: bool = False
    fin: bool = False
    reset: int | None = None


class SpdyClient:
    """A connection over which streams are opened; reading goes on in the background while `reading` is set."""

    def __init__(
        self, reader: asyncio.StreamReader | TunnelClient, writer: asyncio.StreamWriter | TunnelClient
    ) -> None:
        self.reader, self.writer = reader, writer
        self.frames = Frames()
        self.streams: dict[int, StreamState] = {}
        self.pings: list[int] = []
        self.goaway = False
        self.ended = False
        self.status = 0
        self.response: dict[str, str] = {}
        self.body = b""
        self.reading = asyncio.Event()
        self.reading.set()
        self._next = 1
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        url: str,
        protocols: Sequence[str] = (),
        *,
        tls: ssl.SSLContext | None = None,
        method: str = "POST",
        extra: bytes = b"",
        upgrade: str = "SPDY/3.1",
        sock: socket.socket | None = None,
    ) -> SpdyClient:
        """Ask for the upgrade; `status` tells the answer. `extra` follows the request at once.

        The connection is made over `sock` if it is given, which is connected.
        """
        parts = urlsplit(url)
        if sock is None:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls)
        else:
            name = parts.hostname if tls else None
            reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name)
        client = cls(reader, writer)
        lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: Upgrade"]
        lines += [f"Upgrade: {upgrade}", "Content-Length: 0"]
        lines += [f"X-Stream-Protocol-Version: {protocol}" for protocol in protocols]
        writer.write("\r\n".join([*lines, "", ""]).encode() + extra)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except (OSError, EOFError):
            await client.close()
            raise
        first, *rest = head.split("\r\n")
        client.status = int(first.split()[1])
        client.response = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        if client.status == 101:
            client._task = asyncio.create_task(client._read())
        else:
            client.body = await reader.read()
        return client

    @classmethod
    def tunnelled(cls, tunnel: TunnelClient) -> SpdyClient:
        """Speak through a WebSocket."""
        client = cls(tunnel, tunnel)
        client._task = asyncio.create_task(client._read())
        return client

    async def open(self, headers: Mapping[str, str], *, fin: bool = False) -> int:
        """Open a stream and wait for its reply or reset."""
        stream = self._next
        self._next += 2
        self.streams[stream] = StreamState()
        self.writer.write(self.frames.syn_stream(stream, headers, FIN if fin else 0))
        await self.until(lambda: self.streams[stream].replied or self.streams[stream].reset is not None)
        return stream

    async def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        self.writer.write(data_frame(stream, data, FIN if fin else 0))
        await self.writer.drain()

    def reset(self, stream: int, status: int = 5) -> None:
        self.writer.write(control(3, 0, struct.pack(">II", stream, status)))

    async def until(self, condition: object) -> None:
        """Wait for a state, or for the server to end the connection."""
        assert callable(condition)
        async with self._changed:
            await self._changed.wait_for(lambda: condition() or self.ended)
        assert condition(), "the server ended the connection first"

    async def all_of(self, stream: int) -> bytes:
        """Everything up to the end of a stream."""
        state = self.streams[stream]
        await self.until(lambda: state.fin or state.reset is not None)
        return bytes(state.data)

    async def until_ended(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.ended)

    def abort(self) -> None:
        """Disappear at once: unsent data is thrown away (SO_LINGER 0 makes the kernel send a reset)."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass

    async def _read(self) -> None:
        try:
            while True:
                await self.reading.wait()
                data = await self.reader.read(65536)
                async with self._changed:
                    self._take(data)
                    self.ended = not data
                    self._changed.notify_all()
                if not data:
                    return
        except OSError:
            async with self._changed:
                self.ended = True
                self._changed.notify_all()

    def _take(self, data: bytes) -> None:
        for kind, stream, body, fin in self.frames.parse(data):
            if kind == "ping":
                self.pings.append(stream)
                continue
            if kind == "goaway":
                self.goaway = True
                continue
            state = self.streams.setdefault(stream, StreamState())
            if kind == "reply":
                state.replied = True
            elif kind == "reset":
                state.reset = struct.unpack(">I", body)[0]
            else:
                assert not state.fin
                state.data += body
            state.fin = state.fin or fin
