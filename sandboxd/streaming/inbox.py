"""Bytes between the connection, which must not be read too far, and whoever takes them."""

from __future__ import annotations

import asyncio

LIMIT = 256 * 1024  # bytes waiting before the connection is no longer read


class Inbox:
    """A bounded queue of bytes with one writer and one reader.

    It holds less than `limit` and one piece more. `size` and `peak` are its bytes now and at most so far.
    """

    def __init__(self, limit: int = LIMIT) -> None:
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
        """Add data once there is room. After `close` and `discard` it is dropped at once."""
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
        """Everything that waits, as soon as there is any; b"" is the end."""
        await self._filled.wait()
        data = b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        self._room.set()
        if not self._closed:
            self._filled.clear()
        return data

    def close(self) -> None:
        """Nothing more will be put; what waits can still be taken."""
        self._closed = True
        self._filled.set()

    def discard(self) -> None:
        """Nobody will take any more: drop what waits and all that comes."""
        self._discarding = True
        self._pieces.clear()
        self.size = 0
        self._room.set()
