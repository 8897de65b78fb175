"""Reading a CRI log file back: the last lines, lines since a time, and lines as they come.

A log may be of any size, and is read on the daemon's event loop: after each batch the others have their turn.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from itertools import chain
from operator import itemgetter

from sandboxd.logs.format import Entry, parse

BATCH = 256  # entries handed on at once
READ_BYTES = 1 << 17


class LogFile:
    """One log file, read from its beginning; survives a rotation by following the new file at the path."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._held = b""

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._held = b""

    def more(self) -> Iterator[Entry]:
        """The entries written since the last call."""
        yield from self._rest()
        if self._rotated():
            self.close()
            yield from self._rest()

    def _rest(self) -> Iterator[Entry]:
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return
        while data := os.read(self._fd, READ_BYTES):
            *lines, self._held = (self._held + data).split(b"\n")
            for line in lines:
                entry = parse(line)
                if entry is not None:
                    yield entry

    def _rotated(self) -> bool:
        if self._fd < 0:
            return False
        try:
            at_path = os.stat(self._path)
        except FileNotFoundError:
            return False
        here = os.fstat(self._fd)
        return (at_path.st_dev, at_path.st_ino) != (here.st_dev, here.st_ino)


class Last:
    """The last `tail` lines of what is added.

    Partial entries belong to the line that their stream's next full entry ends, and count as one with it; those of
    a line that has not ended come in addition.
    """

    def __init__(self, tail: int) -> None:
        # Streams interleave, so a line's parts need not be neighbours; the numbers restore the file's order.
        self._lines: deque[list[tuple[int, Entry]]] = deque(maxlen=tail)
        self._parts: dict[str, list[tuple[int, Entry]]] = {}
        self._tail = tail
        self._added = 0

    def add(self, entry: Entry) -> None:
        """The next entry of the file."""
        self._added += 1
        self._parts.setdefault(entry.stream, []).append((self._added, entry))
        if not entry.partial:
            self._lines.append(self._parts.pop(entry.stream))

    def kept(self) -> list[Entry]:
        """What is left, in the file's order."""
        kept = chain(*self._lines, *self._parts.values()) if self._tail else ()
        return [entry for _, entry in sorted(kept, key=itemgetter(0))]


async def read(
    path: str, *, tail: int, since: int, changes: AsyncIterator[None] | None
) -> AsyncGenerator[list[Entry], None]:
    """Batches of entries not older than `since`, of those the last `tail` lines (-1: all).

    With `changes`, goes on after each of them until they end.
    """
    file = LogFile(path)
    try:
        if tail < 0:
            async for batch in _batches(file.more(), since):
                yield batch
        else:
            last = Last(tail)
            async for batch in _batches(file.more(), since):
                for entry in batch:
                    last.add(entry)
            async for batch in _batches(iter(last.kept()), since):
                yield batch
        if changes is not None:
            async for _ in changes:
                async for batch in _batches(file.more(), 0):
                    yield batch
            async for batch in _batches(file.more(), 0):
                yield batch
    finally:
        file.close()


async def _batches(entries: Iterator[Entry], since: int) -> AsyncIterator[list[Entry]]:
    batch: list[Entry] = []
    for number, entry in enumerate(entries, 1):
        if entry.timestamp >= since:
            batch.append(entry)
        if number % BATCH == 0:
            if batch:
                yield batch
                batch = []
            await asyncio.sleep(0)
    if batch:
        yield batch
