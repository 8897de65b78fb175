"""When what failed is tried again, and how much is tried at once.

Time is monotonic, so that a clock that is set back stalls nothing. Nothing is stored: after a restart all is due.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass

FIRST_SECONDS = 5.0  # from the first failure to the next attempt; doubled each time
MOST_SECONDS = 300.0
AT_ONCE = 16  # in one lane


class Retries:
    """The failures of one daemon, each under the key of what failed; a key that did not fail is due."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[Hashable, _Failure] = {}
        self._lanes: dict[str, _Lane] = {}

    def failed(self, key: Hashable, error: str) -> bool:
        """Note another failure; whether it says something else than the one before."""
        before = self._failures.get(key)
        count = before.count + 1 if before else 1
        wait = min(FIRST_SECONDS * 2 ** min(count - 1, 16), MOST_SECONDS)
        self._failures[key] = _Failure(count=count, due=self._clock() + wait, error=error)
        return before is None or before.error != error

    def succeeded(self, key: Hashable) -> None:
        """Forget the failures."""
        self._failures.pop(key, None)

    def failing(self, key: Hashable) -> bool:
        """Whether the last attempt failed."""
        return key in self._failures

    def due(self, key: Hashable) -> bool:
        """Whether it may be tried now."""
        return self.wait(key) <= 0

    def wait(self, key: Hashable) -> float:
        """Seconds until it is due, 0 when it is."""
        failure = self._failures.get(key)
        return max(0.0, failure.due - self._clock()) if failure else 0.0

    def hurry(self) -> None:
        """Make all due: what they waited for may be back."""
        now = self._clock()
        for failure in self._failures.values():
            failure.due = min(failure.due, now)

    @asynccontextmanager
    async def lane(self, name: str) -> AsyncIterator[None]:
        """Wait for a place among the AT_ONCE in this lane: what is stuck in one delays no other lane."""
        lane = self._lanes.setdefault(name, _Lane(places=asyncio.Semaphore(AT_ONCE)))
        lane.interested += 1
        try:
            async with lane.places:
                yield
        finally:
            lane.interested -= 1
            if not lane.interested:
                del self._lanes[name]


@dataclass(slots=True, kw_only=True)
class _Failure:
    count: int
    due: float  # on the clock
    error: str


@dataclass(slots=True, kw_only=True)
class _Lane:
    places: asyncio.Semaphore
    interested: int = 0  # tasks that have a place or wait for one; at 0 it can be forgotten
