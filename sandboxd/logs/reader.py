"""Reading a CRI log file back: the last lines, lines since a time, and lines as they come."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from itertools import chain
from operator import itemgetter

from sandboxd.logs.format import Entry, parse

BATCH = 256  # entries handed on at once
READ_BYTES = 1 << 20


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


def last(entries: Iterator[Entry], *, tail: int, since: int) -> Iterator[Entry]:
    """Of what is there: the entries not older than `since`, of those the last `tail` lines (-1: all).

    Partial entries belong to the line that their stream's next full entry ends, and count as one with it; those of
    a line that has not ended come in addition.
    """
    recent = (entry for entry in entries if entry.timestamp >= since)
    if tail < 0:
        yield from recent
        return
    # Streams interleave, so a line's parts need not be neighbours; the numbers restore the file's order.
    lines: deque[list[tuple[int, Entry]]] = deque(maxlen=tail)
    parts: dict[str, list[tuple[int, Entry]]] = {}
    for number, entry in enumerate(recent):
        parts.setdefault(entry.stream, []).append((number, entry))
        if not entry.partial:
            lines.append(parts.pop(entry.stream))
    kept = chain(*lines, *parts.values()) if tail else ()
    for _, entry in sorted(kept, key=itemgetter(0)):
        yield entry


async def read(
    path: str, *, tail: int, since: int, changes: AsyncIterator[None] | None
) -> AsyncGenerator[list[Entry], None]:
    """Batches of entries; with `changes`, goes on after each of them until they end."""
    file = LogFile(path)
    try:
        for batch in _batches(last(file.more(), tail=tail, since=since)):
            yield batch
        if changes is not None:
            async for _ in changes:
                for batch in _batches(file.more()):
                    yield batch
            for batch in _batches(file.more()):
                yield batch
    finally:
        file.close()


def _batches(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
