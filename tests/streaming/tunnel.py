"""A WebSocket that carries a client's SPDY bytes, from which a `SpdyClient` reads and to which it writes."""

from __future__ import annotations

import asyncio
import socket
from typing import Any
from urllib.parse import urlsplit

from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side


class TunnelClient:
    """A WebSocket whose handshake is written by hand, because the name of the tunnel protocol is not a legal token
    and the `websockets` client does not let it through."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.protocol = Protocol(Side.CLIENT)

    @classmethod
    async def connect(cls, url: str, *, sock: socket.socket | None = None) -> TunnelClient:
        """Over `sock` if it is given, which is connected."""
        parts = urlsplit(url)
        if sock is None:
            client = cls(*await asyncio.open_connection(parts.hostname, parts.port))
        else:
            client = cls(*await asyncio.open_connection(sock=sock))
        lines = [f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: Upgrade", "Upgrade: websocket"]
        lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
        lines += ["Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io", "", ""]
        client._writer.write("\r\n".join(lines).encode())
        head = (await client._reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 101 ")
        assert "Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io" in head
        return client

    def send(self, data: bytes, *, text: bool = False) -> None:
        (self.protocol.send_text if text else self.protocol.send_binary)(data)
        self._writer.writelines(self.protocol.data_to_send())

    async def receive(self) -> list[Frame]:
        """The next frames; none is the end."""
        while data := await self._reader.read(65536):
            self.protocol.receive_data(data)
            if frames := [event for event in self.protocol.events_received() if isinstance(event, Frame)]:
                return frames
        return []

    def close(self) -> None:
        self._writer.close()

    # What a SpdyClient needs of a reader and of a writer.

    async def read(self, _most: int) -> bytes:
        """The tunnelled bytes of the next messages; b"" is the end."""
        while frames := await self.receive():
            if data := b"".join(frame.data for frame in frames if frame.opcode in (Opcode.BINARY, Opcode.CONT)):
                return data
        return b""

    def write(self, data: bytes) -> None:
        self.send(data)

    def write_eof(self) -> None:
        self._writer.write_eof()

    async def drain(self) -> None:
        await self._writer.drain()

    async def wait_closed(self) -> None:
        await self._writer.wait_closed()

    def get_extra_info(self, name: str) -> Any:
        return self._writer.get_extra_info(name)

    @property
    def transport(self) -> asyncio.WriteTransport:
        return self._writer.transport
