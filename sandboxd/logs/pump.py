"""One container's output: from its FIFOs into its log file, and to its listeners.

The shim holds both ends of each FIFO, so an application never gets a SIGPIPE and blocks only while a full pipe
has no reader. Rules:

1. Reading never stops because writing failed: a full disk or a removed directory costs log lines, not the
   container. It pauses only for a slow listener that must get every byte, and not for long (`logger`).
2. Whole entries are written with one write(2) to a file opened with O_APPEND.
3. A stream ends when its last writer is gone, which is when the shim has copied everything.
4. The beginning of an unfinished line is kept in a file beside the FIFO, so that the next logger continues with it
   however this one ends. It is emptied before the entries that it is part of are written: being killed in between
   loses what was read and not yet written, and never writes anything twice.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import time
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from sandboxd.logs.format import LineSplitter
from sandboxd.logs.regular import open_regular
from sandboxd.logs.writer import LogWriter

# Of one read. Its handling bounds how long anything else in the logger waits: 5 ms if each line is a single byte,
# well under 1 ms for typical lines. Larger reads would not be faster.
READ_BYTES = 1 << 16
PIPE_BYTES = 1 << 20  # that an application can write without a reader; the default of /proc/sys/fs/pipe-max-size


class Listener(Protocol):
    """Receives a container's output."""

    def output(self, stream: str, data: bytes) -> None:
        """`data` was read, and written to the log as far as its lines are complete."""

    def ended(self, why: str) -> None:
        """There will be no more output."""


class Counts:
    """What several pumps have done, in bytes."""

    __slots__ = ("lost", "read")

    def __init__(self) -> None:
        self.read = 0  # of output
        self.lost = 0  # of entries that could not be written


class _Stream:
    """One FIFO."""

    __slots__ = ("_beginning", "_kept", "came_first", "fd", "name", "splitter")

    def __init__(self, name: str, path: str, max_line: int, came_first: bool) -> None:
        self.name = name
        self.came_first = came_first
        self._beginning = f"{path}.held"
        try:
            with open(open_regular(self._beginning, os.O_RDONLY), "rb") as file:
                held = file.read(max_line + 1)
        except OSError:
            held = b""
        self._kept = bool(held)
        self.splitter = LineSplitter(name, max_line, held)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if fcntl.fcntl(self.fd, fcntl.F_GETPIPE_SZ) < PIPE_BYTES:
                fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # the machine allows less, or its limit for the user is reached: the default holds 64 KiB

    def forget(self) -> None:
        """Empty the file with the beginning of a line."""
        if self._kept:
            try:
                with open(open_regular(self._beginning, os.O_WRONLY), "wb") as file:
                    file.truncate(0)
            except OSError:
                pass  # the container's directory is gone
            self._kept = False

    def remember(self) -> None:
        """Keep the beginning of a line for the next logger."""
        if not self.splitter.held:
            return
        try:
            with open(open_regular(self._beginning, os.O_WRONLY | os.O_CREAT), "wb", buffering=0) as file:
                self._kept = True
                file.truncate(0)
                file.write(self.splitter.held)
        except OSError:
            pass  # the directory is gone or the disk full: it is lost if this logger dies


class ContainerPump:
    """The output of one container; only the given streams are read."""

    def __init__(
        self,
        container_id: str,
        fifos: Mapping[str, str],
        log_path: str,
        max_line: int,
        selector: selectors.BaseSelector,
        report: Callable[[str], None],
        *,
        came_first: Collection[str] = (),
        must_write: bool = True,
        counts: Counts | None = None,
    ) -> None:
        """Open the FIFOs and the file (`log_path` "" reads and discards) and have `selector` watch the FIFOs.

        The owner of `selector` calls `read` with each descriptor that is ready. A FIFO that no writer has opened
        yet is silent, rather than ended; the streams in `came_first` had their writer before us and are read at
        once, which reveals their end. `must_write` says whether a log file that cannot be opened is an error, or
        costs lines like a full disk.

        Raises OSError, with nothing left open.
        """
        self.container_id = container_id
        self.fifos = dict(fifos)
        self.listeners: set[Listener] = set()
        self._report = report
        self._counts = counts or Counts()
        self._selector = selector
        self._paused = False
        self._streams: dict[int, _Stream] = {}
        self._file = LogWriter(log_path, max_line, report, must_open=must_write)
        try:
            for name, path in fifos.items():
                stream = _Stream(name, path, max_line, name in came_first)
                self._streams[stream.fd] = stream
                selector.register(stream.fd, selectors.EVENT_READ, self)
        except OSError:
            self.keep()
            raise
        self.check(came_first)

    @property
    def log_path(self) -> str:
        """The path of the log file."""
        return self._file.path

    @property
    def ended(self) -> bool:
        """Whether every stream has ended."""
        return not self._streams

    def reopen(self) -> None:
        """Reopen the log file (after it was renamed); raises OSError and keeps the old one if that fails."""
        self._file.reopen()

    def check(self, came_first: Collection[str]) -> None:
        """Read the streams that are known to have had a writer: they may have ended unseen."""
        for fd, stream in tuple(self._streams.items()):
            if stream.name in came_first:
                stream.came_first = True
                self.read(fd)

    def read(self, fd: int) -> None:
        """Read a stream that is ready; a no-op for a descriptor that is no longer ours."""
        stream = self._streams.get(fd)
        if stream is None:
            return
        # The end of a stream is not signalled to a descriptor opened after it, so such a stream is read until it
        # ends; what a pipe without a writer holds is bounded.
        remaining = PIPE_BYTES if stream.came_first else 0
        stream.came_first = False
        while (size := self._read(fd, stream)) and remaining > 0:
            remaining -= size

    def pause(self, paused: bool) -> None:
        """Stop or resume reading; while paused, the container's writers wait."""
        if paused == self._paused:
            return
        self._paused = paused
        for fd in self._streams:
            if paused:
                self._selector.unregister(fd)
            else:
                self._selector.register(fd, selectors.EVENT_READ, self)

    def close(self) -> None:
        """Stop reading, write the rest, close everything."""
        for fd in tuple(self._streams):
            self._end(fd)
        self.keep()

    def keep(self) -> None:
        """Stop reading and close everything, but leave the beginning of a line to the next logger."""
        for fd in tuple(self._streams):
            del self._streams[fd]
            self._release(fd)
        self._file.close()

    def _read(self, fd: int, stream: _Stream) -> int:
        """Read once and handle the data; returns its size in bytes."""
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError as exc:
            self._report(f"container output cannot be read from {self.fifos[stream.name]}: {exc.strerror}")
            data = b""
        if not data:
            self._end(fd)
            return 0
        stream.forget()
        self._counts.read += len(data)
        self._counts.lost += self._file.write(stream.splitter.feed(data, time.time_ns()))
        stream.remember()
        for listener in tuple(self.listeners):
            listener.output(stream.name, data)
        return len(data)

    def _end(self, fd: int) -> None:
        stream = self._streams.pop(fd)
        self._release(fd)
        stream.forget()
        self._counts.lost += self._file.write(stream.splitter.eof(time.time_ns()))
        if self._streams:
            return
        for listener in tuple(self.listeners):
            listener.ended("")

    def _release(self, fd: int) -> None:
        if not self._paused:
            try:
                self._selector.unregister(fd)
            except KeyError:
                pass  # it was opened, but not registered yet
        os.close(fd)
