"""Reading a CRI log file back: the last lines, lines since a time, and lines as they come.

A log may be of any size and hold anything, and is read on the daemon's event loop: other tasks get their turn after
each batch, and the memory that it takes is bounded.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from itertools import chain
from operator import itemgetter

from sandboxd.errors import NotReady
from sandboxd.logs.format import Entry, parse
from sandboxd.logs.regular import open_regular

BATCH_ENTRIES = 256  # passed on at once
READ_BYTES = 1 << 17
MAX_LINE_BYTES = 16 << 20  # of the file; a longer line is not an entry, and is skipped
MAX_TAIL_BYTES = 64 << 20  # that the last lines may take; of more, the oldest are left out
ENTRY_BYTES = 256  # that an entry takes besides its text


class LogFile:
    """One log file, read from its beginning; survives a rotation by following the new file at the path.

    A missing file has no entries. Anything but a regular file, or one that cannot be read, raises NotReady.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._held: list[bytes] = []  # the beginning of a line, in the pieces in which it was read
        self._held_bytes = 0

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._hold()

    def more(self) -> Iterator[Entry | None]:
        """The entries written since the last call, and a None for each line or read that gives none."""
        yield from self._rest()
        if self._rotated():
            self.close()
            yield from self._rest()

    def _rest(self) -> Iterator[Entry | None]:
        if self._fd < 0:
            try:
                self._fd = open_regular(self._path, os.O_RDONLY)
            except FileNotFoundError:
                return
            except OSError as exc:
                raise NotReady(f"the log {self._path} cannot be read: {exc.strerror or exc}") from exc
        while data := self._read():
            *lines, rest = data.split(b"\n")
            if not lines:
                yield None
            for line in lines:
                too_long = self._held_bytes > MAX_LINE_BYTES
                whole = b"".join((*self._held, line))
                self._hold()
                yield None if too_long else parse(whole)
            self._held_bytes += len(rest)
            if self._held_bytes <= MAX_LINE_BYTES:
                self._held.append(rest)
            else:
                self._held.clear()

    def _hold(self) -> None:
        """Begin a line."""
        self._held.clear()
        self._held_bytes = 0

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, READ_BYTES)
        except OSError as exc:
            raise NotReady(f"the log {self._path} cannot be read: {exc.strerror or exc}") from exc

    def _rotated(self) -> bool:
        if self._fd < 0:
            return False
        try:
            at_path = os.lstat(self._path)
        except OSError:
            return False  # between the two renames, or for good: a new file is noticed once it exists
        here = os.fstat(self._fd)
        return (at_path.st_dev, at_path.st_ino) != (here.st_dev, here.st_ino)


class Last:
    """The last `tail` lines of what is added.

    Partial entries belong to the line that their stream's next full entry ends, and count as one with it; those of
    an unfinished line come in addition. Beyond MAX_TAIL_BYTES the oldest are left out: a line may never end.
    """

    def __init__(self, tail: int) -> None:
        # Streams interleave, so the parts of a line need not be adjacent; the numbers restore the file's order.
        self._lines: deque[deque[tuple[int, Entry]]] = deque()
        self._parts: dict[str, deque[tuple[int, Entry]]] = {}
        self._tail = tail
        self._added = 0
        self._bytes = 0

    def add(self, entry: Entry) -> None:
        """The next entry of the file."""
        self._added += 1
        self._parts.setdefault(entry.stream, deque()).append((self._added, entry))
        self._bytes += ENTRY_BYTES + len(entry.text)
        if not entry.partial:
            self._lines.append(self._parts.pop(entry.stream))
            if len(self._lines) > self._tail:
                self._drop(self._lines.popleft())
        while self._bytes > MAX_TAIL_BYTES:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Drop the oldest line or, if only unfinished lines are left, their oldest part."""
        if len(self._lines) > 1:
            self._drop(self._lines.popleft())
            return
        lines = [*self._lines, *self._parts.values()]
        _, entry = min((line for line in lines if line), key=lambda line: line[0][0]).popleft()
        self._bytes -= ENTRY_BYTES + len(entry.text)

    def _drop(self, line: Iterable[tuple[int, Entry]]) -> None:
        self._bytes -= sum(ENTRY_BYTES + len(entry.text) for _, entry in line)

    def kept(self) -> list[Entry]:
        """What is left, in the file's order."""
        kept = chain(*self._lines, *self._parts.values()) if self._tail else ()
        return [entry for _, entry in sorted(kept, key=itemgetter(0))]


async def read(
    path: str, *, tail: int, since: int, changes: AsyncIterator[None] | None
) -> AsyncGenerator[list[Entry], None]:
    """Batches of entries not older than `since`, of those the last `tail` lines (-1: all).

    With `changes`, continues after each of them until they end. Raises NotReady when the file cannot be read.
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
            async for batch in _batches(last.kept(), since):
                yield batch
        if changes is not None:
            async for _ in changes:
                async for batch in _batches(file.more(), 0):
                    yield batch
            async for batch in _batches(file.more(), 0):
                yield batch
    finally:
        file.close()


async def _batches(entries: Iterable[Entry | None], since: int) -> AsyncIterator[list[Entry]]:
    batch: list[Entry] = []
    for number, entry in enumerate(entries, 1):
        if entry is not None and entry.timestamp >= since:
            batch.append(entry)
        if number % BATCH_ENTRIES == 0:
            if batch:
                yield batch
                batch = []
            await asyncio.sleep(0)
    if batch:
        yield batch
