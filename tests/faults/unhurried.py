"""An event loop in which what happens, and when, depends on nothing but what runs in it.

Its clock stands still while there is anything to do, and jumps to the next timer when there is not. So
`settled(loop)` runs everything until it waits, without a moment of real time, and a second run is the same.
Threads would be somebody else: what asyncio would have one do is done at once.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

MOMENT = 1e-4  # seconds of the loop's own time; shorter than any timer


class Stuck(AssertionError):
    """Everything waits for something that nothing will bring about."""


class _Selector(selectors.DefaultSelector):
    """Never waits: when nothing is ready, the time that it would have waited has passed."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise Stuck("everything waits, and no timer runs")
            self.passed += max(timeout, 0.0)
        return events


class Unhurried(asyncio.SelectorEventLoop):
    """See the head of this module."""

    def __init__(self) -> None:
        self._own = _Selector()
        super().__init__(self._own)

    def time(self) -> float:
        return self._own.passed

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as exc:
            done.set_exception(exc)
        return done


def settled(loop: asyncio.AbstractEventLoop, seconds: float = MOMENT) -> None:
    """Run until everything waits, and so much of the loop's time has passed."""
    loop.run_until_complete(asyncio.sleep(seconds))
