"""Sessions for the streaming tests: a process that is a coroutine, and a pod that is a loopback server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from sandboxd.errors import NotReady
from sandboxd.streaming.remotecommand import Streams, TerminalSize
from sandboxd.streaming.sessions import AttachRequest, ExecRequest, PortForwardRequest

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class FakeProcess:
    """A process whose program is `main`; its pipes hold one write each, so that every stall is felt at once."""

    def __init__(self, main: Callable[[FakeProcess], Awaitable[int]]) -> None:
        self.stdin: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self.out: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self.err: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self.sizes: asyncio.Queue[TerminalSize] = asyncio.Queue()
        self.holds_output = False  # a child keeps the pipes open after the exit
        self.reads_no_stdin = False
        self.closes = 0
        self.closed = asyncio.Event()
        self._task = asyncio.create_task(self._run(main))

    async def _run(self, main: Callable[[FakeProcess], Awaitable[int]]) -> int:
        return await main(self)

    async def write_stdin(self, data: bytes) -> None:
        if self.reads_no_stdin:
            raise BrokenPipeError("nobody reads")
        await self.stdin.put(data)

    async def close_stdin(self) -> None:
        await self.stdin.put(None)

    def stdout(self) -> AsyncIterator[bytes]:
        return self._read(self.out)

    def stderr(self) -> AsyncIterator[bytes]:
        return self._read(self.err)

    async def _read(self, pipe: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
        while (data := await pipe.get()) is not None:
            yield data

    async def resize(self, *, width: int, height: int) -> None:
        await self.sizes.put(TerminalSize(width=width, height=height))

    async def wait(self) -> int:
        code = await asyncio.shield(self._task)
        if not self.holds_output:
            self._end = asyncio.create_task(self._end_output())
        return code

    async def _end_output(self) -> None:
        await self.out.put(None)
        await self.err.put(None)

    async def close(self) -> None:
        self.closes += 1
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.closed.set()


class Container:
    """Starts processes for exec requests and remembers them."""

    def __init__(self, main: Callable[[FakeProcess], Awaitable[int]]) -> None:
        self._main = main
        self.processes: list[FakeProcess] = []
        self.waiting = asyncio.Event()
        self.may_admit = asyncio.Event()
        self.may_admit.set()
        self.opening = asyncio.Event()
        self.may_open = asyncio.Event()
        self.may_open.set()

    async def admit(self) -> None:
        self.waiting.set()
        await self.may_admit.wait()

    async def start(self) -> FakeProcess:
        self.opening.set()
        await self.may_open.wait()
        self.processes.append(FakeProcess(self._main))
        return self.processes[-1]

    def exec(self, **streams: bool) -> ExecRequest:
        return ExecRequest(subject="container c1", streams=Streams(**streams), admit=self.admit, open=self.start)

    def attach(self, **streams: bool) -> AttachRequest:
        return AttachRequest(subject="container c1", streams=Streams(**streams), open=self._attach)

    async def _attach(self) -> Any:
        return await self.start()


class Pod:
    """Port-forward's other end: real sockets on loopback, one handler per port number that the client names."""

    def __init__(self, **ports: Handler) -> None:
        self._handlers = {int(name.removeprefix("p")): handler for name, handler in ports.items()}
        self._real: dict[int, int] = {}
        self._servers: list[asyncio.Server] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Pod:
        for port, handler in self._handlers.items():
            server = await asyncio.start_server(partial(self._serve, handler), "127.0.0.1", 0)
            self._servers.append(server)
            self._real[port] = server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for task in tuple(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving)

    async def _serve(self, handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await handler(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            writer.transport.abort()
        finally:
            self._serving.discard(task)

    async def open(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if port not in self._real:
            raise NotReady(f"nothing listens on port {port}")
        return await asyncio.open_connection("127.0.0.1", self._real[port])

    def request(self, *ports: int) -> PortForwardRequest:
        return PortForwardRequest(subject="pod p1", ports=ports, target=self)


async def cat(process: FakeProcess) -> int:
    """Copies its input to its output."""
    while (data := await process.stdin.get()) is not None:
        await process.out.put(data)
    return 0


def says(out: bytes = b"", err: bytes = b"", code: int = 0) -> Callable[[FakeProcess], Awaitable[int]]:
    """A program that writes and exits."""

    async def main(process: FakeProcess) -> int:
        if out:
            await process.out.put(out)
        if err:
            await process.err.put(err)
        return code

    return main


async def sleeps(process: FakeProcess) -> int:
    """Never ends by itself."""
    await asyncio.Event().wait()
    return 0
