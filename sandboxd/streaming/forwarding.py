"""Port-forward: any number of connections into one pod over one link.

Every connection has its own task; one that fails reports that on its error stream, and the others go on. A
connection whose target does not read blocks the others of the same client once its inbox is full, because SPDY as
its clients use it has no flow control per stream.
"""

from __future__ import annotations

import asyncio

from sandboxd.errors import InvalidRequest, SandboxdError
from sandboxd.streaming.inbox import Inbox
from sandboxd.streaming.link import READ_BYTES, Broken, Gone, Idle, Link, first_leaf
from sandboxd.streaming.portforward import Pair, Pairing
from sandboxd.streaming.sessions import PortForwardRequest
from sandboxd.streaming.streams import Data, Event, StreamOpened, StreamReset


class Room:
    """How many connections are forwarded at once, over all clients: of the streams that make them, twice as many."""

    def __init__(self, connections: int) -> None:
        self._most = 2 * connections
        self.streams = 0

    def take(self) -> bool:
        """Whether there is room for another stream, which has it then."""
        if self.streams >= self._most:
            return False
        self.streams += 1
        return True

    def give_back(self, count: int) -> None:
        """So many streams have ended."""
        self.streams -= count


class Forwarding:
    """One client's port-forward, from the upgrade to the close."""

    def __init__(
        self, link: Link, request: PortForwardRequest, *, connections: int | None = None, room: Room
    ) -> None:
        """`connections`: the fixed number of connections, after which the session ends; None for any number."""
        self.link = link
        self._request = request
        self._connections = connections
        self._room = room
        self._streams: set[int] = set()  # that take room
        self._finished = 0
        self._pairing = Pairing()
        self._late: dict[str, asyncio.TimerHandle] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by data stream
        self._all_done = asyncio.Event()
        self.inboxes: dict[int, Inbox] = {}  # by data stream

    async def run(self) -> str:
        """Serve the client until it disconnects. Returns why the session ended, for the log."""
        try:
            ended = await self._attended()
        except asyncio.CancelledError:
            self.link.mux.close()
            self.link.push()
            raise
        finally:
            for timer in self._late.values():
                timer.cancel()
            self._ended(*self._streams)
        if isinstance(ended, Gone):
            self.link.close()
        else:
            await self.link.finish(str(ended) if isinstance(ended, Broken) else "")
        return str(ended)

    async def _attended(self) -> Gone | Broken | Idle | str:
        try:
            async with asyncio.TaskGroup() as group:
                watchers = [
                    group.create_task(self.link.read(lambda event: self._handle(event, group))),
                    group.create_task(self.link.watch_idle()),
                ]
                await self._all_done.wait()
                for task in watchers:
                    task.cancel()
        except BaseExceptionGroup as errors:
            match first_leaf(errors):
                case Gone() | Broken() | Idle() as ended:
                    return ended
                case _:
                    raise
        return "all forwarded connections have ended"

    async def _handle(self, event: Event, group: asyncio.TaskGroup) -> None:
        match event:
            case StreamOpened():
                self._opened(event, group)
            case Data(stream=stream, data=data, fin=fin) if stream in self.inboxes:
                inbox = self.inboxes[stream]
                await inbox.put(data)
                if fin:
                    inbox.close()
            case StreamReset(stream=stream):
                if stream in self._tasks:
                    self._tasks[stream].cancel()
                elif stream in self.inboxes:
                    self.inboxes[stream].close()

    def _opened(self, event: StreamOpened, group: asyncio.TaskGroup) -> None:
        mux = self.link.mux
        if not self._room.take():
            mux.reset(event.stream, refused=True)
            return
        self._streams.add(event.stream)
        try:
            request, pair = self._pairing.add(event.stream, event.headers)
        except InvalidRequest:
            self._ended(event.stream)
            mux.reset(event.stream, refused=True)
            return
        mux.reply(event.stream)
        if event.headers.get("streamtype") == "data":
            inbox = self.inboxes[event.stream] = Inbox()
            if event.fin:
                inbox.close()
        if pair is None:
            loop = asyncio.get_running_loop()
            self._late[request] = loop.call_later(self.link.limits.streams, self._expire, request)
            return
        if timer := self._late.pop(request, None):
            timer.cancel()
        task = group.create_task(self._forward(pair))
        self._tasks[pair.data] = task
        task.add_done_callback(lambda _task: self._forget(pair))

    def _expire(self, request: str) -> None:
        self._late.pop(request, None)
        data, error = self._pairing.drop(request)
        self._ended(*(stream for stream in (data, error) if stream is not None))
        if error is not None:
            text = f"request {request[:60]}: the client did not open its data stream"
            self.link.mux.send_data(error, text.encode(), fin=True)
        if data is not None:
            self._drop_inbox(data)
            self.link.mux.reset(data)
        self.link.push()

    def _forget(self, pair: Pair) -> None:
        self._tasks.pop(pair.data, None)
        self._ended(pair.data, pair.error)
        self._drop_inbox(pair.data)
        self._finished += 1
        if self._finished == self._connections:
            self._all_done.set()

    def _ended(self, *streams: int) -> None:
        """These take no room any more. Idempotent."""
        ended = self._streams.intersection(streams)
        self._streams -= ended
        self._room.give_back(len(ended))

    def _drop_inbox(self, data: int) -> None:
        inbox = self.inboxes.pop(data, None)
        if inbox is not None:
            inbox.discard()  # a pending put must not wait forever

    async def _forward(self, pair: Pair) -> None:
        mux = self.link.mux
        try:
            reader, writer = await self._request.target.open(pair.port)
            try:
                await self._copy(pair, reader, writer)
                mux.send_data(pair.error, b"", fin=True)
                self.link.push()
                await self._close(writer)
            finally:
                # A target that does not read would keep the connection and its buffered data forever.
                writer.transport.abort()
        except (SandboxdError, OSError) as exc:
            await self._fail(pair, exc)
        finally:
            # Also after the client has reset the data stream: it waits for the end of the error stream.
            mux.send_data(pair.data, b"", fin=True)
            mux.send_data(pair.error, b"", fin=True)
            self.link.push()

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        try:
            async with asyncio.timeout(self.link.limits.linger):
                await writer.wait_closed()
        except OSError:  # includes TimeoutError
            pass

    async def _fail(self, pair: Pair, error: Exception) -> None:
        text = f"{self._request.subject}: port {pair.port}: {error}"
        self.link.mux.send_data(pair.error, text.encode(), fin=True)
        self.link.mux.reset(pair.data)
        await self.link.flush()

    async def _copy(self, pair: Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                upward = group.create_task(_pour(self.inboxes[pair.data], writer))
                while data := await reader.read(READ_BYTES):
                    await self.link.send(pair.data, data)
                await self.link.send(pair.data, b"", fin=True)
                await asyncio.wait({upward}, timeout=self.link.limits.half_closed)
                upward.cancel()
        except BaseExceptionGroup as errors:
            raise first_leaf(errors) from errors


async def _pour(inbox: Inbox, writer: asyncio.StreamWriter) -> None:
    """Copy from client to target; the client's end of data closes the target's input."""
    try:
        while data := await inbox.take():
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        # The target no longer reads, but may still send; the task that reads from it sees how the connection ends.
        inbox.discard()
