"""Background work with an owner: the only place in sandboxd that creates detached tasks.

Rules:
1. A mutating request is a *job*: it runs to its end even if the client disconnects (`run_to_end`). The request
   only waits for it.
2. A job that is requested again while it runs is joined, not repeated.
3. A permanent loop (`watch`) is named, logged when it ends, and restarted with backoff; one that was up, soon.
4. `drain` waits for jobs and never cancels them; loops are cancelled, and so is what runs in the `background`.
5. A key may hold a whole request. Logs and asyncio name a job by `described`, never by its key.
6. Long work on files runs in threads, a piece at a time (`in_pieces`): it delays neither other work nor a shutdown.
7. What changes the thread that it runs in, as setns(2) does, has one that ends with it (`in_own_thread`).
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import structlog

from sandboxd import disclosure
from sandboxd.retries import Retries

log = structlog.get_logger(__name__)

T = TypeVar("T")

RESTART_SECONDS = 0.2  # before a loop is restarted for the first time; doubled each time
MAX_RESTART_SECONDS = 30.0
STEADY_SECONDS = 60.0  # after which a loop's backoff starts over
MAX_NAME_CHARS = 300  # of a string in a key that is shown as it is; no image name is longer

OWN_THREAD = "own"  # the name of each thread of `in_own_thread`

# Separate from asyncio's own threads, which are for calls that take only a moment.
_THREADS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="pieces")


def restart_seconds(ends: int) -> float:
    """How long a loop rests that has ended `ends` times before since it was last up."""
    return float(min(RESTART_SECONDS * 2 ** min(ends, 16), MAX_RESTART_SECONDS))


async def in_pieces(work: Generator[None, None, T]) -> T:
    """Run a generator to its end in threads, one `next` after the other, and return its result.

    However many run at once, each gets its turn. When cancelled, as at a shutdown, it ends after the current piece.
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


async def in_own_thread(call: Callable[[], T], give_up: Callable[[], object] | None = None) -> T:
    """Run `call` in a thread that ends with it, and return its result.

    Nothing stops the thread: when this is cancelled, it runs on, and its result is lost. With `give_up`, which asks
    it to end, it has ended when this returns.
    """
    outcome: Future[T] = Future()

    def body() -> None:
        try:
            outcome.set_result(call())
        except BaseException as exc:
            outcome.set_exception(exc)

    threading.Thread(target=body, name=OWN_THREAD, daemon=True).start()
    ending = asyncio.wrap_future(outcome)
    try:
        return await asyncio.shield(ending)
    except asyncio.CancelledError:
        if give_up is not None:
            give_up()
            await asyncio.wait({ending})
            ending.exception()  # seen: asyncio would report it
        raise


class Jobs:
    """All tasks of one daemon, and when those that failed are due again."""

    def __init__(self) -> None:
        self.retries = Retries()
        self._running: dict[Hashable, asyncio.Task[Any]] = {}
        self._loops: set[asyncio.Task[None]] = set()
        self._ends: Counter[str] = Counter()  # of each loop, since it came up
        self._background: set[asyncio.Task[Any]] = set()
        self._locks: dict[str, _Turnstile] = {}

    async def run_to_end(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work` as a job that cancelling the caller does not affect, and return its result.

        A job with the same key that is still running is joined: all callers get its result or error.
        """
        return await asyncio.shield(self.spawn(key, work))

    def spawn(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """The job with this key, started if it is not running. Await it under `shield`."""
        return self._spawn(key, work, unobserved=False)

    def start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Start a job in the background, unless one with this key is running; a failure is logged."""
        self._spawn(key, work, unobserved=True)

    def background(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """`start` for work that the next start of the daemon takes up again: `drain` cancels it."""
        task = self._spawn(key, work, unobserved=True)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def interrupt(self, key: Hashable) -> None:
        """Cancel what runs in the background under this key, for who is about to do the same or undo it."""
        task = self._running.get(key)
        if task in self._background:
            task.cancel()

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
        # Reading the exception marks it as seen: the waiting request may be gone, and asyncio would otherwise
        # report a "never retrieved" error at garbage collection.
        error = task.exception()
        if error is not None and unobserved:
            log.error("job failed", job=described(key), error=disclosure.words(error), exc_info=error)

    def in_flight(self) -> tuple[Hashable, ...]:
        """Keys of the running jobs."""
        return tuple(self._running)

    def tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """The running jobs, to be waited for."""
        return tuple(self._running.values())

    def watch(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Keep `loop` running until `drain`: when it ends or fails, log it and start it again."""
        task = asyncio.create_task(self._watched(name, loop), name=f"watch:{name}")
        self._loops.add(task)
        task.add_done_callback(self._loops.discard)

    def came_up(self, name: str) -> None:
        """The loop `name` is where it wanted to be: when it ends now, it is started again soon, as at first."""
        self._ends.pop(name, None)

    async def _watched(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            began, error = clock(), ""
            try:
                await loop()
            except (Exception, asyncio.CancelledError) as exc:
                # grpc.aio raises CancelledError for a call that it abandoned; only drain cancels the loop itself.
                if isinstance(exc, asyncio.CancelledError) and _is_cancelled():
                    raise
                error = disclosure.words(exc) or type(exc).__name__
            if clock() - began > STEADY_SECONDS:
                self.came_up(name)
            delay = restart_seconds(self._ends[name])
            self._ends[name] += 1
            if error:
                log.warning("loop failed, restarting it", loop=name, in_seconds=delay, error=error)
            else:
                log.warning("loop ended, restarting it", loop=name, in_seconds=delay)
            await asyncio.sleep(delay)

    @asynccontextmanager
    async def exclusive(self, key: str) -> AsyncIterator[None]:
        """One holder at a time for `key`, such as a sandbox id; first come, first served."""
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
        """The keys that are held or waited for."""
        return frozenset(self._locks)

    async def drain(self, grace: float) -> tuple[Hashable, ...]:
        """Stop the loops, then wait up to `grace` seconds for the jobs and for those that they start.

        Returns the keys of the jobs still running.
        """
        cancelled = (*self._loops, *self._background)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        clock = asyncio.get_running_loop().time
        deadline = clock() + grace
        while self._running and (remaining := deadline - clock()) > 0:
            await asyncio.wait(tuple(self._running.values()), timeout=remaining)
        return tuple(self._running)


def described(key: Hashable) -> str:
    """A job's key for logs and for asyncio: short strings and numbers as they are, the rest as a digest or type."""
    return " ".join(_described(part) for part in key) if isinstance(key, tuple) else _described(key)


def _described(part: object) -> str:
    if isinstance(part, int | float):
        return str(part)
    if isinstance(part, str) and len(part) <= MAX_NAME_CHARS:
        return part
    if isinstance(part, str | bytes):
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        return f"sha256:{hashlib.sha256(data).hexdigest()[:12]}"
    return type(part).__name__


def _is_cancelled() -> bool:
    """Whether the current task was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Turnstile:
    """A lock and the number of tasks that hold it or wait for it; at 0 it can be forgotten."""

    __slots__ = ("interested", "lock")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.interested = 0
