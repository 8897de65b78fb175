"""How long a transfer is retried: limited in attempts and in time without a byte, never in total time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from sandboxd.errors import Exhausted, SandboxdError, TimedOut, Unavailable

MIN_SECONDS = 1.0  # left for another attempt; with less it would fail for lack of time and hide the reason


class Broken(Unavailable):
    """A connection was closed or damaged: the same request may succeed at once."""


class Stalled(TimedOut):
    """Nothing arrived for too long on one connection: another one may work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one transfer. Times in seconds."""

    progress_seconds: float = 60.0  # without a byte, over all attempts: then it fails
    stall_seconds: float = 20.0  # without a byte on one connection: then another one is opened
    attempts: int = 5  # in a row without progress
    first_delay: float = 0.5  # doubled with each attempt
    max_delay: float = 10.0
    max_retry_after: float = 60.0  # longest wait that a registry may request
    progress_bytes: int = 1 << 20  # that an attempt must transfer to count as progress


class Patience:
    """The retry state of one transfer; create a new one for each."""

    def __init__(
        self,
        limits: Limits,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.limits = limits
        self._sleep, self._clock, self._jitter = sleep, clock, jitter
        self._failures = 0
        self._arrived = 0
        self._last = clock()

    def progressed(self, count: int) -> None:
        """Record that `count` bytes arrived."""
        self._last = self._clock()
        self._arrived += count
        if self._arrived >= self.limits.progress_bytes:
            self._failures = self._arrived = 0

    @property
    def seconds(self) -> float:
        """How long to wait for the next byte on this connection."""
        left = self._last + self.limits.progress_seconds - self._clock()
        return max(0.001, min(self.limits.stall_seconds, left))

    async def again(self, error: SandboxdError, retry_after: float | None = None) -> None:
        """Wait before the next attempt, or raise `error` when no attempts are left.

        `retry_after` is the wait in seconds that the server requested; its answer restarts `progress_seconds`.
        """
        self._failures += 1
        self._arrived = 0
        if self._failures >= self.limits.attempts:
            error.add_note(f"gave up after {self._failures} attempts")
            raise error
        if retry_after is not None:
            if retry_after > self.limits.max_retry_after:
                raise Exhausted(f"{error}; it asks to retry in {retry_after:.0f} s") from error
            # A little more than requested, so that clients do not all retry in the same instant.
            await self._sleep(retry_after + self._jitter() * min(1.0, self.limits.first_delay))
            self._last = self._clock()
            return
        delay = min(self.limits.max_delay, self.limits.first_delay * 2 ** (self._failures - 1))
        delay *= 0.5 + self._jitter() / 2
        least = min(MIN_SECONDS, self.limits.progress_seconds / 4)
        if self._clock() + delay + least - self._last > self.limits.progress_seconds:
            error.add_note(f"no progress for {self.limits.progress_seconds:g} s")
            raise error
        await self._sleep(delay)


def retry_after(value: str, now: float) -> float | None:
    """Seconds to wait from a Retry-After header (RFC 9110, 10.2.3); None when it is malformed."""
    text = value.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
