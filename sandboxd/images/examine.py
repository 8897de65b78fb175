"""Examining a layer while it arrives: `oci.layers.scan` in a thread, fed from the event loop.

The scan reads a file that must not end before the layer does; `LayerCheck` is that file. The thread waits for
bytes, the event loop waits when the thread is too far behind. All layers under way share what may wait for their
threads, `AHEAD` bytes, but each has `LEAST_AHEAD`. A small layer comes sooner than the two could take turns:
`WholeCheck` examines it when all of it is there. The digest of the bytes as they come is not computed here:
whoever stores them verifies it.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections import deque
from concurrent.futures import Executor, Future
from typing import Any, BinaryIO, cast

from sandboxd.errors import InvalidRequest
from sandboxd.oci import layers
from sandboxd.oci.layers import Visitor

AHEAD = 16 << 20  # bytes; what one layer alone may have waiting
LEAST_AHEAD = 4 << 20


class Backlog:
    """What all layers under way may have waiting for their threads; each has the same share."""

    def __init__(self) -> None:
        self.layers = 0  # under way

    def share(self) -> int:
        """What one of them may have waiting, in bytes."""
        return max(LEAST_AHEAD, AHEAD // max(1, self.layers))


class LayerCheck:
    """One layer's examination. `feed` it whole, then `finish`; `stop` in any case."""

    def __init__(self, executor: Executor, what: str, visitor: Visitor | None = None, *, backlog: Backlog) -> None:
        self._source = _Source(asyncio.get_running_loop(), backlog)
        self._stopped = threading.Event()
        self._scan: Future[layers.Scan] = executor.submit(self._run, what, visitor)

    def _run(self, what: str, visitor: Visitor | None) -> layers.Scan:
        try:
            source = cast(BinaryIO, self._source)
            return layers.scan(source, what, visitor, digest=False, stopped=self._stopped.is_set)
        finally:
            self._source.abandon()

    async def feed(self, data: bytes) -> None:
        """The next bytes. After the scan has found something wrong they are ignored: `finish` tells what.

        Raises what else made an end of the scan, such as Exhausted.
        """
        await self._source.put(data)
        if self._scan.done() and not isinstance(self._scan.exception(), InvalidRequest | None):
            self._scan.result()

    async def finish(self) -> layers.Scan:
        """The layer has ended: what it was. Raises as `layers.scan`."""
        self._source.end()
        return await asyncio.wrap_future(self._scan)

    async def stop(self) -> None:
        """End the thread's work, if it still goes on; returns when it has ended."""
        self._stopped.set()
        self._source.cut()
        await ended(self._scan)


class WholeCheck:
    """The same for a layer that is small enough to be held in memory."""

    def __init__(self, executor: Executor, what: str, visitor: Visitor | None = None) -> None:
        self._executor = executor
        self._what = what
        self._visitor = visitor
        self._pieces: list[bytes] = []
        self._stopped = threading.Event()
        self._scan: Future[layers.Scan] | None = None

    async def feed(self, data: bytes) -> None:
        """The next bytes."""
        self._pieces.append(data)

    async def finish(self) -> layers.Scan:
        """The layer has ended: what it was. Raises as `layers.scan`."""
        whole = io.BytesIO(b"".join(self._pieces))
        self._scan = self._executor.submit(
            layers.scan, whole, self._what, self._visitor, digest=False, stopped=self._stopped.is_set
        )
        return await asyncio.wrap_future(self._scan)

    async def stop(self) -> None:
        """The same."""
        if self._scan is not None:
            self._stopped.set()
            await ended(self._scan)


async def ended(work: Future[Any]) -> None:
    """Wait until a thread's work has ended, however it did; what has not begun never will."""
    if not work.cancel() and not work.done():
        waiter = asyncio.wrap_future(work)
        waiter.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen
        await asyncio.wait((waiter,))


class _Source:
    """A pipe with the face of a file that can be rewound as long as only its first bytes were read."""

    def __init__(self, loop: asyncio.AbstractEventLoop, backlog: Backlog) -> None:
        self._loop = loop
        self._backlog = backlog
        backlog.layers += 1  # until it is cut
        self._lock = threading.Condition()
        self._chunks: deque[memoryview] = deque()
        self._held = 0
        self._ended = self._cut = self._abandoned = False
        self._head = b""
        self._position = 0
        self._room = asyncio.Event()
        self._room.set()

    # The event loop's side.

    async def put(self, data: bytes) -> None:
        with self._lock:
            if self._abandoned:
                return
            self._chunks.append(memoryview(data))
            self._held += len(data)
            if self._held > self._backlog.share():
                self._room.clear()
            self._lock.notify()
        await self._room.wait()

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self._lock.notify()

    def cut(self) -> None:
        if not self._cut:
            self._backlog.layers -= 1
        with self._lock:
            self._cut = self._ended = True
            self._chunks.clear()
            self._lock.notify()

    # The thread's side.

    def read(self, size: int = -1) -> bytes | memoryview:
        """At most `size` bytes, exactly as many until the end comes (as a buffered file does)."""
        parts: list[bytes | memoryview] = []
        wanted = size if size >= 0 else 1 << 62
        if self._position < len(self._head):
            part = self._head[self._position : self._position + wanted]
            self._position += len(part)
            wanted -= len(part)
            parts.append(part)
        while wanted:
            chunk = self._next(wanted)
            if not chunk:
                break
            if self._position < 4:
                self._head += bytes(chunk)
            self._position += len(chunk)
            wanted -= len(chunk)
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, offset: int) -> int:
        if offset != 0 or self._position > len(self._head):
            raise OSError("a stream cannot be rewound")
        self._position = 0
        return 0

    def _next(self, most: int) -> memoryview:
        with self._lock:
            while not self._chunks and not self._ended:
                self._lock.wait()
            if self._cut:
                raise InvalidRequest("the layer was not read to its end")
            if not self._chunks:
                return memoryview(b"")
            # Views, because a fraction of each chunk is asked for at a time.
            view = self._chunks.popleft()
            if len(view) > most:
                self._chunks.appendleft(view[most:])
                view = view[:most]
            self._held -= len(view)
            if self._held <= self._backlog.share() and not self._room.is_set():
                self._loop.call_soon_threadsafe(self._room.set)
        return view

    def abandon(self) -> None:
        """There is no reader any longer; release the writers that wait for room."""
        with self._lock:
            self._abandoned = True
            self._chunks.clear()
        self._loop.call_soon_threadsafe(self._room.set)
