"""One client's TCP connection: bytes to events, stream data to bytes, and everything that can end it.

Reading waits for the handler of an event, and writing waits for the client: that is the back-pressure, in both
directions. While the connection is not read, a hang-up of the client goes unnoticed, so epoll watches for it. The
kernel does not report it while undelivered data of the client is outstanding, or when a machine vanishes; TCP
keepalive detects these.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sandboxd.streaming.streams import Event, GoneAway, Multiplexer, ProtocolError

READ_BYTES = 64 * 1024  # at a time
MAX_REPLY_BYTES = 256 * 1024  # of unsent pongs and resets; beyond that, reading waits for the client


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time limits in seconds, and the maximum numbers of connections and sessions."""

    head: float = 10.0  # for the HTTP request to arrive
    streams: float = 30.0  # for the client to open the streams that it needs
    idle: float = 4 * 3600.0  # without a byte in either direction
    silence: float = 5.0  # after a process has ended, before its output counts as ended too
    linger: float = 5.0  # for the client to read the rest and hang up, and for its last input after that
    half_closed: float = 1.0  # for a client to finish after the pod's side of a forwarded connection has
    strangers: int = 256  # connections that have not presented a token yet; beyond that, the oldest is closed
    sessions: int = 1000
    forwarded: int = 4096  # connections into pods, over all sessions
    token: float = 60.0
    tokens: int = 1000


class Gone(Exception):
    """The client has disconnected, or the connection is lost."""


class Broken(Exception):
    """The client broke the protocol."""


class Idle(Exception):
    """Nothing was sent or received for too long."""


def first_leaf(errors: BaseExceptionGroup[Any]) -> BaseException:
    """The error that ended a task group; the others follow from it."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Link:
    """A connection after its upgrade. Only one task may `read`, any may `send`."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        mux: Multiplexer,
        *,
        limits: Limits,
        received: bytes = b"",
    ) -> None:
        """`received` has already been read from the connection."""
        self.mux = mux
        self.limits = limits
        self._reader = reader
        self._writer = writer
        self._received = received
        _keep_alive(writer)
        self._loop = asyncio.get_running_loop()
        self._moved = self._loop.time()
        self._hung_up = False
        self._blocked: asyncio.Timeout | None = None

    @property
    def unsent(self) -> int:
        """Bytes that were written and that the kernel has not accepted yet."""
        return self._writer.transport.get_write_buffer_size()

    async def read(self, handle: Callable[[Event], Awaitable[None]]) -> None:
        """Pass every event to `handle`, one after the other. Ends only by raising Gone or Broken."""
        watch = _HangUpWatch(self._writer, self._on_hang_up)
        try:
            await self._handle(self.mux.begin(), handle)
            data = self._received
            while True:
                await self._handle(self.mux.receive_data(data), handle)
                data = await self._reader.read(READ_BYTES)
                if not data:
                    await self._handle(self.mux.receive_eof(), handle)
                    raise Gone("the client closed the connection")
                self._moved = self._loop.time()
        except OSError as exc:
            raise Gone(f"the connection is lost: {exc}") from exc
        finally:
            watch.close()

    async def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Send on a stream, at the speed of the client. Raises Gone."""
        for start in range(0, len(data) or 1, READ_BYTES):
            self.mux.send_data(stream, data[start : start + READ_BYTES], fin=fin and start + READ_BYTES >= len(data))
            await self.flush()
        self._moved = self._loop.time()

    async def flush(self) -> None:
        """Write what the multiplexer has queued, and wait while the client is behind. Raises Gone."""
        self.push()
        try:
            await self._writer.drain()
        except OSError as exc:
            raise Gone(f"the connection is lost: {exc}") from exc

    def push(self) -> None:
        """Write what the multiplexer has queued, without waiting."""
        data = self.mux.data_to_send()
        if data and not self._writer.is_closing():
            self._writer.write(data)

    async def watch_idle(self) -> None:
        """Raise Idle once nothing was sent or received for `limits.idle`."""
        while True:
            left = self._moved + self.limits.idle - self._loop.time()
            if left <= 0:
                raise Idle(f"nothing was sent or received for {self.limits.idle:g} s")
            await asyncio.sleep(left)

    async def finish(self, reason: str = "") -> None:
        """Close gracefully, so that the client gets everything that was sent: send the close, wait for its hang-up.

        Closing at once would discard data in transit, because unread input turns the close into a reset.
        """
        self.mux.close(reason)
        try:
            async with asyncio.timeout(self.limits.linger):
                await self.flush()
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                while data := await self._reader.read(READ_BYTES):
                    if any(isinstance(event, GoneAway) for event in self.mux.receive_data(data)):
                        break
        except (Gone, OSError, TimeoutError):
            pass
        self.close()

    def close(self) -> None:
        """Close the connection; what was written is still sent, if the client reads it soon."""
        self._writer.close()

    async def _handle(self, events: list[Event], handle: Callable[[Event], Awaitable[None]]) -> None:
        for event in events:
            if isinstance(event, ProtocolError):
                self.push()
                raise Broken(event.reason)
            if isinstance(event, GoneAway):
                if event.final:
                    self.push()
                    raise Gone("the client said goodbye")
                continue
            try:
                async with asyncio.timeout(self.limits.linger if self._hung_up else None) as self._blocked:
                    await handle(event)
            except TimeoutError as exc:
                raise Gone("the client hung up before its data was consumed") from exc
            finally:
                self._blocked = None
        self.push()
        if self.unsent > MAX_REPLY_BYTES:
            await self.flush()

    def _on_hang_up(self) -> None:
        self._hung_up = True
        if self._blocked is not None:
            self._blocked.reschedule(self._loop.time() + self.limits.linger)


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Detect a client that no longer responds after a minute."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


class _HangUpWatch:
    """Calls back once when the other end of a TCP connection is closed, also while the connection is not read.

    epoll(7) reports EPOLLRDHUP even with unread data, and the event loop can watch an epoll descriptor.
    """

    def __init__(self, writer: asyncio.StreamWriter, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._epoll: select.epoll | None = None
        connection = writer.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            self._epoll = select.epoll()
            self._epoll.register(connection.fileno(), select.EPOLLRDHUP)
            self._loop.add_reader(self._epoll.fileno(), self._fired)

    def close(self) -> None:
        """Stop watching."""
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _fired(self) -> None:
        self.close()
        self._callback()
