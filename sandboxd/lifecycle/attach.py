"""Attach: a client at a running container's own streams, from now on; the container goes on when it leaves."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from sandboxd.errors import NotFound, NotReady
from sandboxd.lifecycle.exec import running, write_all
from sandboxd.lifecycle.host import Host
from sandboxd.model import ContainerRecord


class Attached:
    """One client's view of the container's stdin, stdout and stderr."""

    def __init__(self, host: Host, container: ContainerRecord, *, stdin: bool, stdout: bool, stderr: bool) -> None:
        self._host = host
        self._container = container
        self._wanted = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        self._stdin = -1
        self._outputs: dict[str, AsyncIterator[tuple[str, bytes]]] = {}
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        """Subscribe to the output before anything is sent. Raises NotReady for a container without a stdin."""
        try:
            if self._wanted["stdin"]:
                path = stdin_path(self._host, self._container)
                try:
                    # For reading too: opening never waits for the shim, and it holds its own end until told.
                    self._stdin = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                except OSError as exc:
                    words = f"container {self._container.id} has no stdin to attach to: {exc.strerror}"
                    raise NotReady(f"{words}; create it with stdin") from exc
            # One subscription for each stream, so that neither waits for the other to be read.
            for stream in ("stdout", "stderr"):
                if self._wanted[stream]:
                    source = self._host.logs.output(self._container.id)
                    self._outputs[stream] = await self._stack.enter_async_context(source)
        except BaseException:
            await self.close()
            raise

    async def write_stdin(self, data: bytes) -> None:
        """Hand data to the container; returns when all of it is in its pipe."""
        if self._stdin < 0:
            raise BrokenPipeError("stdin is closed")
        await write_all(self._stdin, data)

    async def close_stdin(self) -> None:
        """The client has sent everything; with stdin_once that is the end for the container too."""
        self._let_go_of_stdin()
        if self._container.config.stdin_once and not self._container.config.tty:
            await self._host.processes.close_stdin(self._container.id, "")

    def stdout(self) -> AsyncIterator[bytes]:
        """What the container writes from now on; with a terminal, all of it."""
        return self._only("stdout")

    def stderr(self) -> AsyncIterator[bytes]:
        """Its errors from now on."""
        return self._only("stderr")

    async def _only(self, stream: str) -> AsyncIterator[bytes]:
        async for name, data in self._outputs[stream]:
            if name == stream:
                yield data

    async def resize(self, size: Any) -> None:
        """Set the terminal's size (`width` and `height` in characters)."""
        await self._host.processes.resize(self._container.id, "", width=size.width, height=size.height)

    async def wait(self) -> None:
        """Returns when the container has ended."""
        try:
            await self._host.runtime.wait(self._container.id)
        except NotFound:
            pass

    async def close(self) -> None:
        """Leave; the container does not notice."""
        self._let_go_of_stdin()
        await self._stack.aclose()

    def _let_go_of_stdin(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1


def stdin_path(host: Host, container: ContainerRecord) -> str:
    """The FIFO of a container that was created with stdin."""
    return f"{host.config.container_dir(container.id)}/io/stdin"


async def attach(host: Host, container_id: str, *, stdin: bool, stdout: bool, stderr: bool) -> Attached:
    """Attach to a running container; raises NotFound or NotReady."""
    session = Attached(host, running(host, container_id), stdin=stdin, stdout=stdout, stderr=stderr)
    await session.open()
    return session
