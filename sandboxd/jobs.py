"""Background work with an owner: the only place in sandboxd that creates tasks.

Rules:
1. A mutating request is a *job*: it runs to its end whatever becomes of the client that asked
   (`run_to_end`). The request only waits for it.
2. A job that is asked for again while it runs is joined, not repeated.
3. A loop that must live (`watch`) is named, logged when it ends, and restarted with backoff.
4. `drain` waits for jobs, never cancels them; loops are cancelled.
5. A key may hold a whole request. Whoever names a job, be it asyncio, uses `described`.
6. Long work on files is done in threads, a piece at a time (`in_pieces`): it neither holds up the others nor the end.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import structlog

from sandboxd import disclosure

log = structlog.get_logger(__name__)

T = TypeVar("T")

RESTART_FIRST = 0.2  # seconds
RESTART_MOST = 30.0  # seconds
MOST_NAME = 300  # characters of a text in a key that is shown as it is; image names have at most so many
STEADY = 60.0  # seconds that a loop must have lived for its backoff to start over

# Not asyncio's own threads: who waits for one of those waits for a moment only.
_THREADS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="pieces")


async def in_pieces(work: Generator[None, None, T]) -> T:
    """Run a generator to its end in threads, one `next` after the other, and return its result.

    However many run at once, each gets its turn. Cancelled, as at a shutdown, it ends after the piece under way.
    """
    loop = asyncio.get_running_loop()
    while not (ended := await loop.run_in_executor(_THREADS, _piece, work)):
        pass
    return ended[0]


def _piece(work: Generator[None, None, T]) -> tuple[T] | None:
    try:
        next(work)
    except StopIteration as end:
        return (end.value,)
    return None


class Jobs:
    """All tasks of one daemon."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Any]] = {}
        self._loops: set[asyncio.Task[None]] = set()
        self._locks: dict[str, _Turnstile] = {}

    async def run_to_end(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work` as a job that the caller's own cancellation does not touch, and return its result.

        A job with the same key that is still running is joined: its result or error is everybody's.
        """
        return await asyncio.shield(self.spawn(key, work))

    def spawn(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """The job with this key, started if it does not run. Await it under `shield`."""
        return self._spawn(key, work, unobserved=False)

    def start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Start a job nobody waits for, unless one with this key is running; a failure is logged."""
        self._spawn(key, work, unobserved=True)

    def _spawn(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], unobserved: bool) -> asyncio.Task[T]:
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(work(), name=f"job:{described(key)}")
            self._running[key] = task
            task.add_done_callback(lambda done: self._finished(key, done, unobserved))
        return cast("asyncio.Task[T]", task)

    def _finished(self, key: Hashable, task: asyncio.Task[Any], unobserved: bool) -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if task.cancelled():
            return
        # Reading the exception marks it as seen: whoever waited may be gone, and asyncio would
        # otherwise report a "never retrieved" error at garbage collection.
        error = task.exception()
        if error is not None and unobserved:
            log.error("job failed", job=described(key), error=disclosure.words(error), exc_info=error)

    def in_flight(self) -> tuple[Hashable, ...]:
        """Keys of the jobs that run now."""
        return tuple(self._running)

    def watch(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Keep `loop` running until `drain`: when it ends or fails, log it and start it again."""
        task = asyncio.create_task(self._watched(name, loop), name=f"watch:{name}")
        self._loops.add(task)
        task.add_done_callback(self._loops.discard)

    async def _watched(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        delay = RESTART_FIRST
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await loop()
                log.warning("loop ended, restarting it", loop=name, in_seconds=delay)
            except (Exception, asyncio.CancelledError) as error:
                # grpc.aio raises CancelledError for a call that it gave up; only drain cancels the loop itself.
                if isinstance(error, asyncio.CancelledError) and _asked_to_end():
                    raise
                words = disclosure.words(error)
                log.warning("loop failed, restarting it", loop=name, in_seconds=delay, error=words)
            if clock() - began > STEADY:
                delay = RESTART_FIRST
            await asyncio.sleep(delay)
            delay = min(delay * 2, RESTART_MOST)

    @asynccontextmanager
    async def exclusive(self, key: str) -> AsyncIterator[None]:
        """One holder at a time for `key` (a sandbox or container id); first come, first served."""
        turnstile = self._locks.setdefault(key, _Turnstile())
        turnstile.interested += 1
        try:
            async with turnstile.lock:
                yield
        finally:
            turnstile.interested -= 1
            if not turnstile.interested:
                del self._locks[key]

    def held(self) -> frozenset[str]:
        """The keys that somebody holds or waits for exclusively."""
        return frozenset(self._locks)

    async def drain(self, grace: float) -> tuple[Hashable, ...]:
        """Stop the loops, wait up to `grace` seconds for the jobs, and those that they start meanwhile.

        Returns the keys still running.
        """
        for task in tuple(self._loops):
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        clock = asyncio.get_running_loop().time
        deadline = clock() + grace
        while self._running and (left := deadline - clock()) > 0:
            await asyncio.wait(tuple(self._running.values()), timeout=left)
        return tuple(self._running)


def described(key: Hashable) -> str:
    """A job's key for logs and for asyncio: its short texts and numbers, of everything else a digest or the type."""
    return " ".join(_described(part) for part in key) if isinstance(key, tuple) else _described(key)


def _described(part: object) -> str:
    if isinstance(part, int | float):
        return str(part)
    if isinstance(part, str) and len(part) <= MOST_NAME:
        return part
    if isinstance(part, str | bytes):
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        return f"sha256:{hashlib.sha256(data).hexdigest()[:12]}"
    return type(part).__name__


def _asked_to_end() -> bool:
    """Whether somebody cancelled the task that runs now."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Turnstile:
    """A lock and the number of those who hold it or wait for it, so that it can be forgotten."""

    __slots__ = ("interested", "lock")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.interested = 0
