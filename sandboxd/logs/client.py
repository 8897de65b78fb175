"""What the daemon sees of container output: open, reopen, drain, close, follow.

This is the seam behind which the pumps live. They run on the daemon's own event loop for now; a process of its
own takes their place without a change to callers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping

import structlog

from sandboxd.errors import NotReady
from sandboxd.logs.pump import ContainerPump

log = structlog.get_logger(__name__)


class Logs:
    """The output of every running container."""

    def __init__(self, *, max_line_bytes: int) -> None:
        self._max_line = max_line_bytes
        self._pumps: dict[str, ContainerPump] = {}

    def open(self, container_id: str, fifos: Mapping[str, str], log_path: str, *, resume: bool = False) -> None:
        """Start pumping; called again for the same container it does nothing.

        `resume` says that the writer came first: a FIFO without one has ended.

        Raises NotReady when a FIFO or the log file cannot be opened.
        """
        if container_id in self._pumps:
            return
        try:
            self._pumps[container_id] = ContainerPump(container_id, dict(fifos), log_path, self._max_line, resume)
        except OSError as exc:
            raise NotReady(f"the output of container {container_id} cannot be logged: {exc}") from exc

    def reopen(self, container_id: str) -> None:
        """Write to a new file at the same path; raises NotReady when the container is not being logged."""
        pump = self._pumps.get(container_id)
        if pump is None:
            raise NotReady(f"container {container_id} is not running, its log cannot be reopened")
        try:
            pump.reopen()
        except OSError as exc:
            raise NotReady(f"the log of container {container_id} cannot be reopened: {exc}") from exc

    async def drain(self, container_id: str, timeout: float) -> None:
        """Wait up to `timeout` seconds for the rest of a dead container's output, then let go of it."""
        pump = self._pumps.get(container_id)
        if pump is None:
            return
        if not await pump.wait(timeout):
            log.warning("container output did not end, it is cut off", container=container_id, seconds=timeout)
        self.close(container_id)

    def close(self, container_id: str) -> None:
        """Stop pumping now; unknown is done."""
        pump = self._pumps.pop(container_id, None)
        if pump is not None:
            pump.close()

    def close_all(self) -> None:
        """Let go of everything; what containers write meanwhile waits in the FIFOs."""
        for container_id in tuple(self._pumps):
            self.close(container_id)

    async def changes(self, container_id: str) -> AsyncIterator[None]:
        """Yield whenever the container's log may have grown, until its output has ended."""
        pump = self._pumps.get(container_id)
        if pump is None:
            return
        more = asyncio.Event()
        stop = pump.on_more(more.set)
        more.set()  # for what was written before we listened
        try:
            while not pump.ended and self._pumps.get(container_id) is pump:
                await more.wait()
                more.clear()
                yield
        finally:
            stop()


def make_fifos(directory: str, streams: tuple[str, ...]) -> dict[str, str]:
    """Create the named FIFOs below `directory`, return their paths; those that exist are kept."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    paths = {stream: f"{directory}/{stream}" for stream in streams}
    for path in paths.values():
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            pass
    return paths


def fifo_paths(directory: str) -> dict[str, str]:
    """The FIFOs that `make_fifos` made below `directory`."""
    paths = {stream: f"{directory}/{stream}" for stream in ("stdout", "stderr")}
    return {stream: path for stream, path in paths.items() if os.path.exists(path)}
