"""What happens to pods and containers, announced to subscribers.

The ledger's changes are the source: an event is what a change of a record means to a client, so nothing that happens
can be forgotten here, and nothing is announced that is not recorded. Rules:

1. Announcing never waits and never fails. Each listener has a queue with room for `QUEUE` events.
2. A listener that falls further behind gets what is in its queue, and then Exhausted in place of the rest: it knows
   that it missed something and has to list again. A gap in the middle would go unnoticed.
3. An announcement carries the records as they were at that moment; turning them into messages is the listener's work.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from sandboxd.errors import Exhausted
from sandboxd.model import AnyRecord, ContainerRecord, ContainerState, SandboxRecord

log = structlog.get_logger(__name__)

QUEUE = 1024  # events; each holds on to a few records, which are a few KiB


class Records(Protocol):
    """The records and their changes; `sandboxd.ledger.Ledger` is the real one."""

    @property
    def sandboxes(self) -> Mapping[str, SandboxRecord]: ...
    def containers_of(self, sandbox_id: str) -> list[ContainerRecord]: ...
    def subscribe(self, listener: Callable[[AnyRecord | None, AnyRecord | None], None]) -> None: ...


class Change(enum.Enum):
    """What happened."""

    CREATED = "created"
    STARTED = "started"
    STOPPED = "stopped"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """Something happened to a container, or to a pod as a whole (`id` is then the pod's)."""

    change: Change
    id: str
    at: int  # unix nanoseconds
    sandbox: SandboxRecord | None  # the pod after it, or as it was last when it is gone
    containers: tuple[ContainerRecord, ...]  # the pod's after it


class Subscription:
    """One listener's queue."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._queue: deque[Announcement] = deque()
        self._filled = asyncio.Event()
        self.missed = 0

    def offer(self, announcement: Announcement) -> None:
        """Queue it, or count it as missed; after a miss nothing more is queued."""
        if self.missed or len(self._queue) >= self._room:
            self.missed += 1
        else:
            self._queue.append(announcement)
        self._filled.set()

    async def __aiter__(self) -> AsyncIterator[Announcement]:
        """Every announcement in order, without an end; raises Exhausted where one was missed."""
        while True:
            await self._filled.wait()
            while self._queue:
                yield self._queue.popleft()
            if self.missed:
                raise Exhausted(
                    f"events came faster than this client read them: {self.missed} and more are missed;"
                    " list pods and containers, and subscribe again"
                )
            self._filled.clear()


class Announcer:
    """Turns the ledger's changes into announcements for any number of listeners."""

    def __init__(self, records: Records, room: int = QUEUE) -> None:
        self._records = records
        self._room = room
        self._subscriptions: set[Subscription] = set()
        self.dropped = 0  # listeners that fell behind
        records.subscribe(self._on_change)

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._subscriptions)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Announcements from now on."""
        subscription = Subscription(self._room)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            if subscription.missed:
                self.dropped += 1
                log.warning("a subscriber to the events was too slow", missed=subscription.missed)

    def _on_change(self, before: AnyRecord | None, after: AnyRecord | None) -> None:
        if not self._subscriptions:
            return
        for change, at in changes(before, after):
            announcement = self._announcement(change, at, before, after)
            for subscription in self._subscriptions:
                subscription.offer(announcement)

    def _announcement(
        self, change: Change, at: int, before: AnyRecord | None, after: AnyRecord | None
    ) -> Announcement:
        record = after or before
        assert record is not None
        if isinstance(record, SandboxRecord):
            sandbox: SandboxRecord | None = record
            sandbox_id = record.id
        else:
            sandbox_id = record.sandbox_id
            sandbox = self._records.sandboxes.get(sandbox_id)
        containers = tuple(
            c for c in self._records.containers_of(sandbox_id) if c.state is not ContainerState.CREATING
        )
        return Announcement(change=change, id=record.id, at=at, sandbox=sandbox, containers=containers)


def changes(before: AnyRecord | None, after: AnyRecord | None) -> list[tuple[Change, int]]:
    """What a change of a record means, in order, and when it happened (unix nanoseconds).

    An object that is still being created is not announced, nor is its removal if the creation fails.
    """
    if after is None:
        return [(Change.DELETED, time.time_ns())] if before is not None and _known(before) else []
    if isinstance(after, SandboxRecord):
        was_sandbox = before if isinstance(before, SandboxRecord) else None
        return _sandbox_changes(was_sandbox, after)
    was_container = before if isinstance(before, ContainerRecord) else None
    return _container_changes(was_container, after)


def _known(record: AnyRecord) -> bool:
    """Whether it was ever announced: a pod whose run failed never started."""
    return bool(record.started_at if isinstance(record, SandboxRecord) else record.created_at)


def _sandbox_changes(before: SandboxRecord | None, after: SandboxRecord) -> list[tuple[Change, int]]:
    found = []
    if after.started_at and not (before and before.started_at):
        found += [(Change.CREATED, after.created_at), (Change.STARTED, after.started_at)]
    if after.started_at and after.exited_at and not (before and before.exited_at):
        found.append((Change.STOPPED, after.exited_at))
    return found


def _container_changes(before: ContainerRecord | None, after: ContainerRecord) -> list[tuple[Change, int]]:
    found = []
    if after.created_at and not (before and before.created_at):
        found.append((Change.CREATED, after.created_at))
    if after.started_at and not (before and before.started_at):
        found.append((Change.STARTED, after.started_at))
    if after.finished_at and not (before and before.finished_at):
        found.append((Change.STOPPED, after.finished_at))
    return found
