"""How much goes on at once: who comes first is served first, and who waits can be told so, or sent away.

Both kinds of bound hold no state but what is taken and waited for, and a wait that is cancelled leaves nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from sandboxd.errors import Exhausted, SandboxdError

MOST_WAITING = 10_000  # in one queue


class Turns:
    """Queues by key, each kept only while it is in use: in each, a bounded number have a turn at once.

    A turn that is lent is for work: who has it for longer mostly sleeps, on a lock, on a plugin, for ever. It goes on
    without it, and the turn to the next.
    """

    def __init__(self, each: int, lent_seconds: float | None = None) -> None:
        """`each` queue has this many turns, each lent for `lent_seconds` if that is not None."""
        self._each = each
        self._lent_seconds = lent_seconds
        self._queues: dict[Hashable, _Queue] = {}

    @property
    def each(self) -> int:
        """How many have a turn at once in one queue."""
        return self._each

    @property
    def taken_in_all(self) -> int:
        """How many have a turn, in all queues."""
        return sum(len(queue.holders) for queue in self._queues.values())

    @property
    def waiting_in_all(self) -> int:
        """How many wait, in all queues."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    def full(self, key: Hashable = "") -> bool:
        """Whether the next in this queue would have to wait."""
        queue = self._queues.get(key)
        return queue is not None and len(queue.holders) >= self._each

    def waiting(self, key: Hashable = "") -> int:
        """How many wait."""
        queue = self._queues.get(key)
        return len(queue.waiting) if queue else 0

    def holders(self, key: Hashable = "") -> list[str]:
        """Who has a turn, by the names that they gave, the first to get one first."""
        queue = self._queues.get(key)
        return list(queue.holders.values()) if queue else []

    def dismiss(self, key: Hashable, why: SandboxdError) -> None:
        """Send away all who wait in this queue: `turn` raises `why` to each."""
        queue = self._queues.get(key)
        if queue is None:
            return
        while queue.waiting:
            ticket = queue.waiting.popleft()
            if not ticket.done():
                ticket.set_exception(type(why)(*why.args))

    def dismiss_all(self, why: SandboxdError) -> None:
        """`dismiss` in every queue."""
        for key in tuple(self._queues):
            self.dismiss(key, why)

    @asynccontextmanager
    async def turn(self, key: Hashable = "", who: str = "") -> AsyncIterator[None]:
        """Wait for a turn and have it while the body runs.

        Raises Exhausted when too many wait already, and what `dismiss` was given.
        """
        queue = self._queues.setdefault(key, _Queue())
        queue.interested += 1
        mine = object()
        try:
            await self._admitted(queue, mine, who)
            lapse = None
            if self._lent_seconds is not None:
                lapse = asyncio.get_running_loop().call_later(self._lent_seconds, queue.take_back, mine)
            try:
                yield
            finally:
                if lapse is not None:
                    lapse.cancel()
                queue.take_back(mine)
        finally:
            queue.interested -= 1
            if not queue.interested:
                del self._queues[key]

    async def _admitted(self, queue: _Queue, mine: object, who: str) -> None:
        if len(queue.holders) < self._each:  # then nobody waits
            queue.holders[mine] = who
            return
        if len(queue.waiting) >= MOST_WAITING:
            raise Exhausted(f"{MOST_WAITING} requests of this kind wait for their turn already; try again later")
        ticket = _Ticket(mine, who)
        queue.waiting.append(ticket)
        try:
            await ticket
        except BaseException:
            # Called and cancelled at the same time: the turn goes to the next.
            queue.take_back(mine)
            if ticket in queue.waiting:
                queue.waiting.remove(ticket)
            raise


class _Ticket(asyncio.Future[None]):
    def __init__(self, holder: object, who: str) -> None:
        super().__init__()
        self.holder = holder
        self.who = who


@dataclass(slots=True)
class _Queue:
    holders: dict[object, str] = field(default_factory=dict)
    waiting: deque[_Ticket] = field(default_factory=deque)
    interested: int = 0

    def take_back(self, holder: object) -> None:
        """End a turn, if it has not ended yet: it goes to the first who still waits for one."""
        if self.holders.pop(holder, None) is None:
            return
        while self.waiting:
            ticket = self.waiting.popleft()
            if not ticket.done():
                self.holders[ticket.holder] = ticket.who
                ticket.set_result(None)
                return


class Budget:
    """A number of bytes that many share, none of whom knows beforehand how many it needs.

    Each takes more and more, and gives all of it back at once. When there is too little for all, it could be that
    each holds a part and waits for the rest, for ever. So `largest`, the most that one may take, is kept in reserve
    for the first of those who wait: it gets all that it asks for, ends, and leaves the reserve to the next.
    """

    def __init__(self, total: int, largest: int) -> None:
        assert total >= largest
        self.free = total - largest  # and the reserve
        self._first: Share | None = None  # who takes from the reserve
        self._waiting: deque[tuple[Share, int, asyncio.Future[None]]] = deque()

    @contextmanager
    def share(self) -> Iterator[Share]:
        """A part of the budget, nothing at first; it is given back at the end of the body."""
        mine = Share(self)
        try:
            yield mine
        finally:
            mine.give_back()

    async def take(self, share: Share, count: int) -> None:
        """See `Share.take`."""
        if share is self._first:
            return
        if not self._waiting and count <= self.free:
            self._grant(share, count)
            return
        granted = asyncio.get_running_loop().create_future()
        entry = (share, count, granted)
        self._waiting.append(entry)
        self.hand_out()
        try:
            await granted
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self.hand_out()

    def put_back(self, share: Share) -> None:
        """See `Share.give_back`."""
        if share is self._first:
            self._first = None
        self.free += share.taken
        share.taken = 0
        self.hand_out()

    def hand_out(self) -> None:
        """Serve those who wait, in order, as far as there is something."""
        while self._waiting:
            share, count, granted = self._waiting[0]
            if self._first is None:
                self._first = share
            if share is not self._first:
                if count > self.free:
                    break
                self._grant(share, count)
            self._waiting.popleft()
            if not granted.done():
                granted.set_result(None)
        self._serve_first()

    def _serve_first(self) -> None:
        """Whoever has the reserve waits for nothing, wherever in the queue it is."""
        for entry in [entry for entry in self._waiting if entry[0] is self._first]:
            self._waiting.remove(entry)
            if not entry[2].done():
                entry[2].set_result(None)

    def _grant(self, share: Share, count: int) -> None:
        self.free -= count
        share.taken += count


class Share:
    """What one has of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.taken = 0  # without what came from the reserve

    async def take(self, count: int) -> None:
        """Return once `count` bytes more may be used. No more than the budget's `largest` in all."""
        await self._budget.take(self, count)

    def give_back(self) -> None:
        """Give back all that was taken. Idempotent."""
        self._budget.put_back(self)
