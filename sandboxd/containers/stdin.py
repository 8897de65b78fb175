"""The writing end of the FIFO through which a process gets its stdin."""

from __future__ import annotations

import asyncio
import os


class Stdin:
    """One writer; it never blocks the event loop. Only one task may `write`, any may `close`."""

    def __init__(self, path: str, flags: int) -> None:
        """`flags` is os.O_WRONLY, which needs a reader to be there, or os.O_RDWR. Raises OSError."""
        self._fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
        self._changed: asyncio.Event | None = None  # of the write that waits for room

    async def write(self, data: bytes) -> None:
        """Write everything, waiting for room as often as it takes.

        Raises BrokenPipeError if there is no reader, or if it is closed.
        """
        loop = asyncio.get_running_loop()
        rest = memoryview(data)
        while True:
            if self._fd < 0:
                raise BrokenPipeError("stdin is closed")
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                pass
            if not rest:
                return
            fd, self._changed = self._fd, asyncio.Event()
            loop.add_writer(fd, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                self._changed = None
                if self._fd >= 0:
                    loop.remove_writer(fd)

    def close(self) -> None:
        """Close it; what was written can still be read. Idempotent."""
        if self._fd < 0:
            return
        if self._changed is not None:
            # Before the number belongs to another file.
            asyncio.get_running_loop().remove_writer(self._fd)
            self._changed.set()
        os.close(self._fd)
        self._fd = -1
