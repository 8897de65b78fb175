"""A container's log file, open for appending: only whole entries, whatever the disk does.

A missing directory is created; anything but a regular file is refused (`regular`). A file that cannot be written is
retried with each write, one that could not even be opened once a second. What cannot be written is lost, and each
stretch of losses is reported once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from sandboxd.logs.format import begins_entry
from sandboxd.logs.regular import make_directory, open_regular

RETRY_SECONDS = 1.0
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND


class LogWriter:
    """One log file; the path "" discards everything."""

    __slots__ = ("_fd", "_max_entry", "_report", "_retry_at", "_trouble", "path")

    def __init__(self, path: str, max_line: int, report: Callable[[str], None], *, must_open: bool) -> None:
        """Open the file. `report` receives a sentence when lines are lost.

        Raises OSError when that fails; without `must_open`, it is retried instead.
        """
        self.path = path
        self._max_entry = max_line + 64  # for time, stream and tag before the text
        self._report = report
        self._fd = -1
        self._retry_at = 0.0
        self._trouble = False
        try:
            self.reopen()
        except OSError as exc:
            if must_open:
                raise
            self._failed(exc)

    def reopen(self) -> None:
        """Open the file at the path again (after it was renamed); raises OSError and keeps the old one then."""
        if not self.path:
            return
        make_directory(os.path.dirname(self.path))
        fd = open_regular(self.path, _FLAGS, 0o640)
        try:
            self._mend(fd)
        except OSError:
            pass  # the disk is full: readers skip a torn line
        self.close()
        self._fd = fd

    def write(self, entries: bytes) -> int:
        """Append whole entries; never raises and never waits for room. Returns how many bytes were lost."""
        if not entries or not self.path:
            return 0
        if self._fd < 0 and not self._try_again():
            return len(entries)
        done = 0
        try:
            rest = memoryview(entries)
            while done < len(entries):
                done += os.write(self._fd, rest[done:])
            self._trouble = False
        except OSError as exc:
            self._untear(entries[:done])
            self._failed(exc)
            return len(entries) - (entries.rfind(b"\n", 0, done) + 1)
        return 0

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _try_again(self) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        try:
            self.reopen()
        except OSError as exc:
            self._failed(exc)
            return False
        return True

    def _failed(self, exc: OSError) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if not self._trouble:
            self._report(f"container log {self.path} cannot be written, lines are lost: {exc.strerror or exc}")
        self._trouble = True

    def _untear(self, written: bytes) -> None:
        """Remove the part of an entry that still fit on a full disk: the next entry must begin a line."""
        torn = len(written) - (written.rfind(b"\n") + 1)
        if torn:
            try:
                os.ftruncate(self._fd, max(os.fstat(self._fd).st_size - torn, 0))
            except OSError:
                pass  # the next entry is appended to a torn one: readers skip that line

    def _mend(self, fd: int) -> None:
        """Cut off an incomplete last entry, which a logger leaves only if it is killed while writing."""
        size = os.fstat(fd).st_size
        if not size or os.pread(fd, 1, size - 1) == b"\n":
            return
        start = max(size - self._max_entry, 0)
        last = os.pread(fd, size - start, start)
        newline = last.rfind(b"\n")
        if (newline >= 0 or not start) and begins_entry(last[newline + 1 :]):
            os.ftruncate(fd, start + newline + 1)
        else:
            os.write(fd, b"\n")  # not one of ours: leave it, but begin a new line
