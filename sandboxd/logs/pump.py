"""Reading container FIFOs and writing CRI log files, on the event loop.

The shim holds both ends of each FIFO, so an application never gets a SIGPIPE and blocks only while a full pipe
has no reader. Rules:

1. Reading never stops because writing failed: a full disk or a removed directory costs log lines, not the
   container. The failure is reported once per stretch of it.
2. Whole entries are written with one write(2) to a file opened with O_APPEND.
3. A stream ends when its last writer is gone, which is when the shim has copied everything.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from sandboxd.logs.format import LineSplitter

log = structlog.get_logger(__name__)

READ_BYTES = 65536  # a pipe's default capacity


class ContainerPump:
    """The output of one container. Streams that are not wanted are not given."""

    def __init__(
        self, container_id: str, fifos: dict[str, str], log_path: str, max_line: int, resume: bool = False
    ) -> None:
        """Open the FIFOs and the file (`log_path` "" reads and discards) and start reading.

        A FIFO that no writer has opened yet says nothing, rather than that it ended; `resume` reads once at
        once, which does tell.
        """
        self.container_id = container_id
        self._log_path = log_path
        self._file = -1
        self._broken = False
        self._open: dict[int, LineSplitter] = {}
        self._ended = asyncio.Event()
        self._waiting: set[Callable[[], None]] = set()
        try:
            self.reopen()
            for stream, path in fifos.items():
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._open[fd] = LineSplitter(stream, max_line)
                asyncio.get_running_loop().add_reader(fd, self._readable, fd)
        except OSError:
            self.close()
            raise
        if resume:
            for fd in tuple(self._open):
                self._readable(fd)
        if not self._open:
            self._ended.set()

    def reopen(self) -> None:
        """Open the log file anew (after it was renamed); raises OSError and keeps the old one if that fails."""
        if not self._log_path:
            return
        Path(self._log_path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        if self._file >= 0:
            os.close(self._file)
        self._file = fd

    def on_more(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call `call` after each write and at the end; returns how to stop that."""
        self._waiting.add(call)
        return lambda: self._waiting.discard(call)

    @property
    def ended(self) -> bool:
        """Whether every stream has ended."""
        return self._ended.is_set()

    async def wait(self, timeout: float) -> bool:
        """Wait for the streams to end; False when `timeout` seconds were not enough."""
        try:
            async with asyncio.timeout(timeout):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Stop reading, write what is held, close everything."""
        for fd in tuple(self._open):
            self._end(fd)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _readable(self, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError as exc:
            log.warning("container output cannot be read", container=self.container_id, error=str(exc))
            data = b""
        if data:
            self._write(self._open[fd].feed(data, time.time_ns()))
        else:
            self._end(fd)

    def _end(self, fd: int) -> None:
        splitter = self._open.pop(fd)
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        self._write(splitter.eof(time.time_ns()))
        if not self._open:
            self._ended.set()
            self._tell()

    def _write(self, entries: bytes) -> None:
        if not entries or self._file < 0:
            return
        try:
            rest = memoryview(entries)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            self._broken = False
        except OSError as exc:
            if not self._broken:
                log.warning("container log cannot be written, lines are lost", file=self._log_path, error=str(exc))
            self._broken = True
        self._tell()

    def _tell(self) -> None:
        for call in tuple(self._waiting):
            call()
