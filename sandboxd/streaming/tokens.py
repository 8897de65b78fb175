"""Single-use tokens: what a URL holds instead of a right.

A token is 192 random bits; whoever has it may have the session once, within a minute.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Generic, TypeVar

from sandboxd.errors import Exhausted, NotFound

TOKEN_BYTES = 24
SECONDS = 60.0
MOST = 1000

T = TypeVar("T")


class Tokens(Generic[T]):
    """The tokens that are out, each with what it stands for.

    `random(n)` returns n unpredictable bytes; `clock()` seconds that only grow.
    """

    def __init__(
        self,
        *,
        random: Callable[[int], bytes],
        clock: Callable[[], float],
        seconds: float = SECONDS,
        most: int = MOST,
    ) -> None:
        self._random = random
        self._clock = clock
        self._seconds = seconds
        self._most = most
        self._out: dict[str, tuple[float, T]] = {}  # in the order of expiry: all live equally long

    def __len__(self) -> int:
        self._expire()
        return len(self._out)

    def issue(self, value: T) -> str:
        """A new token for `value`, in characters that a URL may hold. Raises Exhausted if too many are out."""
        self._expire()
        if len(self._out) >= self._most:
            raise Exhausted(
                f"{self._most} streaming URLs are waiting for their clients; "
                f"use one or try again when the oldest expires, within {self._seconds:g} s"
            )
        token = base64.urlsafe_b64encode(self._random(TOKEN_BYTES)).decode()
        self._out[token] = (self._clock() + self._seconds, value)
        return token

    def redeem(self, token: str) -> T:
        """What the token stands for; it works once. Raises NotFound, never telling used from unknown."""
        self._expire()
        try:
            return self._out.pop(token)[1]
        except KeyError:
            raise NotFound("no such streaming session: its URL is unknown, was used, or expired") from None

    def _expire(self) -> None:
        now = self._clock()
        while self._out:
            token = next(iter(self._out))
            if self._out[token][0] > now:
                return
            del self._out[token]
