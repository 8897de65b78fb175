"""The points at which a fake can be made to fail or to hang, one for each call.

A fake does its work inside a point:

    async with self._points.at("netns.create", NotReady):
        ...                                                    # the effect

A point has a name and a number, counted from 0 for each name: the second `Point("runtime.kill", 1)`. Names and
numbers stay the same from run to run, so a first run lists the points of an operation (`passed`), and each further
run is told to `fail` or to `hang` at one of them: before its effect, or after it, as when the answer is lost.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import GeneratorType
from typing import Any

import pytest

MakeError = Callable[[str], Exception]
"""An error from what it says: an exception's class, or a function."""


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One call of one kind."""

    name: str  # "runtime.kill"
    number: int  # of the calls with this name, from 0
    raises: tuple[MakeError, ...] = field(default=(), compare=False)  # what the real thing fails with
    waits: bool = field(default=True, compare=False)  # it is awaited, so it can hang

    def __str__(self) -> str:
        return f"{self.name}[{self.number}]"


class Points:
    """All points of one set of fakes. Any of them fail, and at most one hangs."""

    def __init__(self) -> None:
        self.passed: list[Point] = []
        self._counts: Counter[str] = Counter()
        self._failing: dict[tuple[Point, bool], Exception] = {}
        self._broken: dict[str, Exception] = {}
        self._hanging: tuple[Point, bool] | None = None
        self._release = asyncio.Event()
        self.hangs = asyncio.Event()  # set once the point that was to hang was reached
        self.gate: Callable[[Point], Awaitable[None]] | None = None

    def reset(self) -> None:
        """Count from 0 again; nothing fails or hangs any more."""
        self.release()
        self.passed.clear()
        self._counts.clear()
        self._failing.clear()
        self._broken.clear()
        self._hanging = None
        self._release, self.hangs = asyncio.Event(), asyncio.Event()

    @property
    def unreached(self) -> list[Point]:
        """The points that were to fail and have not been reached."""
        return [point for point, _ in self._failing]

    def count(self, name: str) -> int:
        """How often the point was reached."""
        return self._counts[name]

    def fail(self, point: Point, error: Exception, *, after: bool = False) -> None:
        """Raise `error` at `point`, once, before its effect or after it."""
        self._failing[point, after] = error

    def fail_always(self, name: str, error: Exception) -> None:
        """Raise `error` at every point of this name until `reset`, before its effect."""
        self._broken[name] = error

    def hang(self, point: Point, *, after: bool = False) -> None:
        """Wait at `point` until `release`."""
        self._hanging = (point, after)

    def release(self) -> None:
        """Let the point that hangs go on."""
        self._release.set()

    def watch_threads(self, loop: asyncio.AbstractEventLoop, patch: pytest.MonkeyPatch) -> None:
        """Make a point of each wait for a thread: `asyncio.to_thread`, and `jobs.in_pieces` with each piece."""
        run = loop.run_in_executor

        def pointed(executor: Executor | None, call: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
            async def waiting() -> Any:
                async with self.at(f"thread.{_called(call, args)}", _broken):
                    return await run(executor, call, *args)

            return asyncio.ensure_future(waiting())

        patch.setattr(loop, "run_in_executor", pointed)

    @asynccontextmanager
    async def at(self, name: str, *raises: MakeError) -> AsyncIterator[None]:
        """An awaited call whose real counterpart fails with one of `raises`."""
        point = self._reached(name, raises, waits=True)
        await self._pause(point, after=False)
        self._break(point, after=False)
        try:
            yield
        finally:  # also when the answer is an error, which can be lost as well
            await self._pause(point, after=True)
            self._break(point, after=True)

    @contextmanager
    def on(self, name: str, *raises: MakeError) -> Iterator[None]:
        """A call that is not awaited: it can fail, but not hang."""
        point = self._reached(name, raises, waits=False)
        self._break(point, after=False)
        try:
            yield
        finally:
            self._break(point, after=True)

    def _reached(self, name: str, raises: tuple[MakeError, ...], *, waits: bool) -> Point:
        point = Point(name, self._counts[name], raises, waits)
        self._counts[name] += 1
        self.passed.append(point)
        return point

    async def _pause(self, point: Point, *, after: bool) -> None:
        await asyncio.sleep(0)  # a real call never answers at once: others get their turn
        if self.gate is not None:
            await self.gate(point)
        if self._hanging == (point, after):
            self.hangs.set()
            await self._release.wait()

    def _break(self, point: Point, *, after: bool) -> None:
        if not after and point.name in self._broken:
            raise self._broken[point.name]
        if error := self._failing.pop((point, after), None):
            raise error


def _called(call: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """The name of what a thread is to do."""
    if isinstance(call, partial):  # asyncio.to_thread: run the function in a copy of the context
        (call, *rest), args = call.args, ()
        args = tuple(rest)
    if args and isinstance(args[0], GeneratorType):  # a piece of it
        return args[0].__name__
    return str(getattr(call, "__name__", call))


def _broken(words: str) -> OSError:
    return OSError(errno.EIO, words)
