"""Attach: connect a client to a running container's own streams; the container continues when it disconnects.

With `stdin_once`, stdin ends permanently when the first client has sent everything or has disconnected, also for the
other clients. The FIFO has no reader then and can no longer be opened for writing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

from sandboxd.containers.stdin import Stdin
from sandboxd.errors import NotFound, NotReady
from sandboxd.model import ContainerRecord
from sandboxd.node import Node
from sandboxd.operations import running_container

AtStdin = dict[str, set[Callable[[], None]]]  # by container: what closes the stdin of each client attached to it


class Attached:
    """One client's view of the container's stdin, stdout and stderr."""

    def __init__(
        self, node: Node, at_stdin: AtStdin, container: ContainerRecord, *, stdin: bool, stdout: bool, stderr: bool
    ) -> None:
        self._node = node
        self._at_stdin = at_stdin
        self._container = container
        self._wanted = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        self._stdin: Stdin | None = None
        self._outputs: dict[str, AsyncIterator[tuple[str, bytes]]] = {}
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        """Subscribe to the output before anything is sent. Raises NotReady for a container without a stdin."""
        try:
            if self._wanted["stdin"]:
                self._open_stdin()
            # One subscription for each stream, so that neither waits for the other to be read.
            for stream in ("stdout", "stderr"):
                if self._wanted[stream]:
                    source = self._node.logs.output(self._container.id)
                    self._outputs[stream] = await self._stack.enter_async_context(source)
        except BaseException:
            await self.close()
            raise

    def _open_stdin(self) -> None:
        check_stdin(self._container)
        try:
            self._stdin = Stdin(f"{self._node.places.streams(self._container.id)}/stdin", os.O_WRONLY)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                words = f"the stdin of container {self._container.id} cannot be opened: {exc.strerror}"
                raise NotReady(words) from exc
            raise NotReady(f"the stdin of container {self._container.id} was closed by an earlier client") from exc
        self._at_stdin.setdefault(self._container.id, set()).add(self._stdin.close)

    async def write_stdin(self, data: bytes) -> None:
        """Hand data to the container; returns when all of it is in its pipe."""
        assert self._stdin is not None, "stdin was not asked for"
        await self._stdin.write(data)

    async def close_stdin(self) -> None:
        """The client has sent everything or has disconnected; with stdin_once the container's stdin ends too."""
        self._release_stdin()
        if self._container.config.stdin_once and not self._container.config.tty:
            for close in self._at_stdin.pop(self._container.id, ()):
                close()
            await self._node.runtime.processes.close_stdin(self._container.id, "")

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

    async def resize(self, *, width: int, height: int) -> None:
        """Set the terminal's size, in characters."""
        await self._node.runtime.processes.resize(self._container.id, "", width=width, height=height)

    async def wait(self) -> None:
        """Returns when the container has ended."""
        try:
            await self._node.runtime.wait(self._container.id)
        except NotFound:
            pass

    async def close(self) -> None:
        """Detach; the container is not affected."""
        self._release_stdin()
        await self._stack.aclose()

    def _release_stdin(self) -> None:
        if self._stdin is None:
            return
        self._stdin.close()
        attached = self._at_stdin.get(self._container.id, set())
        attached.discard(self._stdin.close)
        if not attached:
            self._at_stdin.pop(self._container.id, None)


def check_stdin(container: ContainerRecord) -> None:
    """Raises NotReady when the container was created without a stdin."""
    if not container.config.stdin:
        raise NotReady(f"container {container.id} has no stdin to attach to; create it with stdin")


class Attaching:
    """All clients that are attached to containers of this daemon."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._at_stdin: AtStdin = {}

    async def attach(self, container_id: str, *, stdin: bool, stdout: bool, stderr: bool) -> Attached:
        """Attach to a running container; raises NotFound or NotReady."""
        container = running_container(self._node, container_id)
        session = Attached(self._node, self._at_stdin, container, stdin=stdin, stdout=stdout, stderr=stderr)
        await session.open()
        return session
