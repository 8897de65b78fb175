"""The buffer between a connection, which must not be read too far ahead, and the consumer of its data."""

from __future__ import annotations

import asyncio

LIMIT_BYTES = 256 * 1024  # waiting, after which the connection is not read


class Inbox:
    """A bounded queue of bytes with one writer and one reader.

    It holds less than `limit` bytes plus one piece. `size` is the number of bytes now, `peak` the largest so far.
    """

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._filled = asyncio.Event()  # something to take, or the end
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False
        self._discarding = False
        self.size = 0
        self.peak = 0

    async def put(self, data: bytes) -> None:
        """Add data once there is room. After `close` or `discard` data is dropped at once."""
        await self._room.wait()
        if self._closed or self._discarding or not data:
            return
        self._pieces.append(data)
        self.size += len(data)
        self.peak = max(self.peak, self.size)
        self._filled.set()
        if self.size >= self._limit:
            self._room.clear()

    async def take(self) -> bytes:
        """All waiting data, once there is any; b"" is the end."""
        await self._filled.wait()
        data = b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        self._room.set()
        if not self._closed:
            self._filled.clear()
        return data

    def close(self) -> None:
        """End the data; what is waiting can still be taken."""
        self._closed = True
        self._filled.set()

    def discard(self) -> None:
        """Drop what is waiting and all further data: there is no reader any more."""
        self._discarding = True
        self._pieces.clear()
        self.size = 0
        self._room.set()
