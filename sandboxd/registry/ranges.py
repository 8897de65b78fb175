"""Parts of blobs: when several connections are worth it, and what an answer to a range request holds."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandboxd.errors import InvalidRequest
from sandboxd.registry.patience import Broken

if TYPE_CHECKING:
    from sandboxd.registry.transport import Answer

Sink = Callable[[bytes], Awaitable[None]]

# With a limit on the digits: Python refuses to convert thousands of them.
_LENGTH = re.compile(r"[0-9]{1,20}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,20})-([0-9]{1,20})/([0-9]{1,20}|\*)")


class WrongRange(Broken):
    """The answer to a range request has another range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Fetching one blob over several connections. `count` 1 turns it off; it takes `count` times `bytes` of memory.

    It starts where one connection proves too slow: where most of the time is spent waiting for it.
    """

    count: int = 1
    bytes: int = 4 << 20
    least: int = 64 << 20  # bytes; smaller blobs are not worth it
    probe: int = 8 << 20  # bytes of one connection after which to decide, again and again; 0: widen at once
    waiting: float = 0.6  # the share of time spent waiting that is too much
    fast: int = 64 << 20  # bytes a second at which one connection is enough in any case


class TooSlow(Exception):
    """Most of the time is spent waiting for a single connection."""


class Probe:
    """Wraps a sink and measures where the time goes; raises TooSlow when it is the connection."""

    def __init__(self, ranges: Ranges, sink: Sink, size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`size` is how many bytes are to come."""
        self._ranges = ranges
        self._sink = sink
        self._size = size
        self._clock = clock
        self.passed = 0
        self._begin()

    def _begin(self) -> None:
        self._since = self._left = self._clock()
        self._bytes = 0
        self._waited = 0.0

    async def take(self, data: bytes) -> None:
        """Pass the next bytes on, also when this raises TooSlow."""
        self._waited += self._clock() - self._left
        await self._sink(data)
        self._left = self._clock()
        self.passed += len(data)
        self._bytes += len(data)
        if self._bytes >= self._ranges.probe:
            seconds = self._left - self._since
            slow = self._waited >= self._ranges.waiting * seconds and self._bytes < self._ranges.fast * seconds
            if slow and self._size - self.passed >= self._ranges.least:
                raise TooSlow
            self._begin()


def _whole(answer: Answer, digest: str, size: int) -> int:
    length = answer.header("Content-Length")
    if _LENGTH.fullmatch(length) and int(length) != size:
        raise InvalidRequest(f"{answer.where}: blob {digest} has {length} bytes there, the manifest says {size}")
    return 0


def body_start(answer: Answer, digest: str, size: int, at: int) -> int:
    """How many bytes of the answer to a range request precede `at`: `at` itself if the range was ignored."""
    if answer.status == 200:
        _whole(answer, digest, size)
        return at
    match = _CONTENT_RANGE.fullmatch(answer.header("Content-Range").strip())
    if match is None or int(match[1]) != at:
        raise WrongRange(f"{answer.where}: the answer has another range than the one requested")
    if match[3] != "*" and int(match[3]) != size:
        raise InvalidRequest(f"{answer.where}: blob {digest} has {match[3]} bytes there, the manifest says {size}")
    return 0
