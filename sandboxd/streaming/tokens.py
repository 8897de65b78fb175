"""Single-use tokens, which authorize the bearer of a URL.

A token is 192 random bits. It opens one session, once, within a minute.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Generic, TypeVar

from sandboxd.errors import Exhausted, NotFound

TOKEN_BYTES = 24
LIFETIME_SECONDS = 60.0
MAX_TOKENS = 1000
MAX_BYTES = 64 << 20  # of what all that are out are for; a request may have 16 MiB

T = TypeVar("T")


class Tokens(Generic[T]):
    """The issued tokens, each with its value.

    `random(n)` returns n unpredictable bytes; `clock()` returns monotonic seconds.
    """

    def __init__(
        self,
        *,
        random: Callable[[int], bytes],
        clock: Callable[[], float],
        seconds: float = LIFETIME_SECONDS,
        most: int = MAX_TOKENS,
        most_bytes: int = MAX_BYTES,
    ) -> None:
        self._random = random
        self._clock = clock
        self._seconds = seconds
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._out: dict[str, tuple[float, T, int]] = {}  # in order of expiry, since all have the same lifetime

    def __len__(self) -> int:
        self._expire()
        return len(self._out)

    def issue(self, value: T, size: int = 0) -> str:
        """A new token for `value`, which holds `size` bytes; safe in a URL.

        Raises Exhausted if too many are unused, or hold too much.
        """
        self._expire()
        full = len(self._out) >= self._most
        if full or self._bytes + size > self._most_bytes:
            how_many = (
                f"{self._most} streaming URLs" if full else f"streaming URLs for {self._bytes >> 20} MiB of requests"
            )
            raise Exhausted(
                f"{how_many} are waiting for their clients; "
                f"use one or try again when the oldest expires, within {self._seconds:g} s"
            )
        token = base64.urlsafe_b64encode(self._random(TOKEN_BYTES)).decode()
        self._out[token] = (self._clock() + self._seconds, value, size)
        self._bytes += size
        return token

    def redeem(self, token: str) -> T:
        """The value of the token, once. Raises NotFound, which does not distinguish used from unknown."""
        self._expire()
        if token not in self._out:
            raise NotFound("no such streaming session: its URL is unknown, was used, or expired")
        return self._taken(token)

    def _taken(self, token: str) -> T:
        _, value, size = self._out.pop(token)
        self._bytes -= size
        return value

    def _expire(self) -> None:
        now = self._clock()
        while self._out:
            token = next(iter(self._out))
            if self._out[token][0] > now:
                return
            self._taken(token)
