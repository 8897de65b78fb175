"""How many plugins run at once: enough to use the machine, and never so that one who waits starves.

Rules:
1. Each queue has slots of its own, so that no network waits for another's plugins, and a DEL for no ADD.
2. A slot is for work. A plugin that runs for longer than a slot is lent mostly sleeps: on a lock, on a server, for
   ever. It runs on without its slot, which goes to the next in the queue.
3. Within a queue, first come, first served.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Slots:
    """Queues by key, each kept only while it is in use."""

    def __init__(self, each: int, lent_seconds: float) -> None:
        """`each` queue has this many slots, each lent for at most `lent_seconds`."""
        self._each = each
        self._lent_seconds = lent_seconds
        self._queues: dict[Hashable, _Queue] = {}

    def full(self, key: Hashable) -> bool:
        """Whether the next in this queue would have to wait."""
        queue = self._queues.get(key)
        return queue is not None and queue.free.locked()

    def use(self) -> dict[Hashable, tuple[int, int]]:
        """How many run, with a slot or without one any more, and how many wait, by queue."""
        return {key: (queue.interested - queue.waiting, queue.waiting) for key, queue in self._queues.items()}

    @asynccontextmanager
    async def slot(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for a slot of this queue and have it, for as long as it is lent, while the body runs."""
        queue = self._queues.setdefault(key, _Queue(self._each))
        queue.interested += 1
        try:
            queue.waiting += 1
            try:
                await queue.free.acquire()
            finally:
                queue.waiting -= 1
            lent = _Lent(queue.free)
            lapse = asyncio.get_running_loop().call_later(self._lent_seconds, lent.give_back)
            try:
                yield
            finally:
                lapse.cancel()
                lent.give_back()
        finally:
            queue.interested -= 1
            if not queue.interested:
                del self._queues[key]


class _Queue:
    __slots__ = ("free", "interested", "waiting")

    def __init__(self, slots: int) -> None:
        self.free = asyncio.Semaphore(slots)
        self.interested = 0
        self.waiting = 0  # of them


class _Lent:
    """One slot, given back once, at the end or before."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free: asyncio.Semaphore | None = free

    def give_back(self) -> None:
        free, self._free = self._free, None
        if free is not None:
            free.release()
