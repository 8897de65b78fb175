"""Container output without a logger process: the client that `sandboxd.logs.client.Logs` is, in memory.

Held to the real thing by `tests/root/contracts/test_logs.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sandboxd.errors import NotReady, TimedOut
from sandboxd.logs.fifos import Keeper
from sandboxd.logs.format import LineSplitter
from sandboxd.logs.writer import LogWriter
from tests.fakes.points import Points

MAX_LINE = 16384


@dataclass(slots=True, kw_only=True)
class _Opened:
    """A container that is being logged."""

    keeper: Keeper
    fifos: Mapping[str, str]
    writer: LogWriter
    splitters: dict[str, LineSplitter] = field(default_factory=dict)


class Logs:
    """The output of every running container; it is read when it is drained."""

    def __init__(self, points: Points) -> None:
        self.opened: dict[str, _Opened] = {}
        self._points = points

    def left(self) -> list[str]:
        """Every container that is being logged."""
        return [f"log of {container_id}" for container_id in self.opened]

    async def connect(self) -> None:
        async with self._points.at("logs.connect", NotReady):
            pass

    async def keep_up(self) -> None:
        async with self._points.at("logs.keep_up", NotReady):
            pass

    async def open(self, container_id: str, fifos: Mapping[str, str], log_path: str, *, resume: bool = False) -> None:
        async with self._points.at("logs.open", NotReady, TimedOut):
            if container_id in self.opened:
                return
            try:
                keeper = Keeper(fifos)
                try:
                    writer = LogWriter(log_path, MAX_LINE, lambda words: None, must_open=not resume)
                except BaseException:
                    keeper.close()
                    raise
            except OSError as exc:
                raise NotReady(f"the output of container {container_id} cannot be logged: {exc}") from exc
            splitters = {stream: LineSplitter(stream, MAX_LINE) for stream in fifos}
            self.opened[container_id] = _Opened(keeper=keeper, fifos=fifos, writer=writer, splitters=splitters)

    async def reopen(self, container_id: str) -> None:
        async with self._points.at("logs.reopen", NotReady, TimedOut):
            if container_id not in self.opened:
                raise NotReady(f"container {container_id} is not running, its log cannot be reopened")
            try:
                self.opened[container_id].writer.reopen()
            except OSError as exc:
                raise NotReady(f"the log of container {container_id} cannot be reopened: {exc}") from exc

    async def drain(self, container_id: str, timeout: float) -> None:
        async with self._points.at("logs.drain"):
            self.forget(container_id)

    async def close(self, container_id: str) -> None:
        async with self._points.at("logs.close"):
            self.forget(container_id)

    async def retain(self, container_ids: Collection[str]) -> None:
        async with self._points.at("logs.retain", NotReady, TimedOut):
            for container_id in set(self.opened) - set(container_ids):
                self.forget(container_id)

    async def leave(self) -> None:
        for container_id in tuple(self.opened):
            self.forget(container_id)

    async def changes(self, container_id: str) -> AsyncGenerator[None, None]:
        for _ in range(int(container_id in self.opened)):
            yield

    @asynccontextmanager
    async def output(self, container_id: str) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        async with self._points.at("logs.output", NotReady):
            if container_id not in self.opened:
                raise NotReady(f"container {container_id} is not running, it has no output")
        yield _nothing()

    def forget(self, container_id: str) -> None:
        """Read what there is, and close it."""
        opened = self.opened.pop(container_id, None)
        if opened is None:
            return
        for stream, path in opened.fifos.items():
            opened.writer.write(opened.splitters[stream].feed(_available(path), time.time_ns()))
        opened.keeper.close()
        opened.writer.close()


def _available(path: str) -> bytes:
    """What can be read from a FIFO now; its writers may have gone, its keeper has not."""
    parts = []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        while part := os.read(fd, 65536):
            parts.append(part)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
    return b"".join(parts)


async def _nothing() -> AsyncIterator[tuple[str, bytes]]:
    nothing: tuple[tuple[str, bytes], ...] = ()
    for pair in nothing:
        yield pair
