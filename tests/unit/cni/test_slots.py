"""Slots: a bound on what runs at once, under which nobody starves."""

from __future__ import annotations

import asyncio

from sandboxd.cni.slots import Slots

NEVER = 1e6  # seconds


class Visitor:
    """Takes a slot and runs until told to end."""

    def __init__(self, slots: Slots, key: str) -> None:
        self._slots = slots
        self._key = key
        self._end = asyncio.Event()
        self.runs = asyncio.Event()
        self.task = asyncio.create_task(self._visit())

    async def _visit(self) -> None:
        async with self._slots.slot(self._key):
            self.runs.set()
            await self._end.wait()

    async def end(self) -> None:
        self._end.set()
        await self.task


async def settle() -> None:
    """Let every task run until it has nothing left to do but wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_more_run_at_once_than_a_queue_has_slots_and_the_first_that_waits_is_next() -> None:
    slots = Slots(2, NEVER)
    visitors = [Visitor(slots, "a") for _ in range(4)]
    await settle()
    assert [visitor.runs.is_set() for visitor in visitors] == [True, True, False, False]
    assert slots.full("a")

    await visitors[1].end()
    await settle()
    assert [visitor.runs.is_set() for visitor in visitors] == [True, True, True, False]
    for visitor in visitors:
        await visitor.end()
    assert not slots.full("a")


async def test_a_full_queue_holds_up_no_other() -> None:
    slots = Slots(1, NEVER)
    first, waits, other = Visitor(slots, "a"), Visitor(slots, "a"), Visitor(slots, "b")
    await settle()

    assert [first.runs.is_set(), waits.runs.is_set(), other.runs.is_set()] == [True, False, True]
    for visitor in (first, waits, other):
        await visitor.end()


async def test_who_runs_for_longer_than_a_slot_is_lent_runs_on_without_it() -> None:
    slots = Slots(1, 0.01)
    hangs, waits = Visitor(slots, "a"), Visitor(slots, "a")

    async with asyncio.timeout(30):
        await waits.runs.wait()
    assert hangs.runs.is_set()

    await hangs.end()
    await waits.end()


async def test_a_slot_is_given_back_once_by_whoever_lost_it() -> None:
    slots = Slots(1, 0.01)
    hangs, other = Visitor(slots, "a"), Visitor(slots, "a")
    async with asyncio.timeout(30):
        await other.runs.wait()
    await hangs.end()

    slots._lent_seconds = NEVER
    async with asyncio.timeout(30):
        async with slots.slot("a"):
            assert slots.full("a")
    await other.end()


async def test_a_cancelled_wait_leaves_the_queue_usable_and_nothing_behind() -> None:
    slots = Slots(1, NEVER)
    first, waits, last = Visitor(slots, "a"), Visitor(slots, "a"), Visitor(slots, "a")
    await settle()

    waits.task.cancel()
    await first.end()
    await settle()
    assert last.runs.is_set()
    await last.end()

    assert slots._queues == {}


async def test_who_runs_and_who_waits_is_counted_by_queue() -> None:
    slots = Slots(1, NEVER)
    visitors = [Visitor(slots, key) for key in ("a", "a", "a", "b")]
    await settle()
    assert slots.use() == {"a": (1, 2), "b": (1, 0)}
    visitors[1].task.cancel()
    await settle()
    assert slots.use() == {"a": (1, 1), "b": (1, 0)}
    for visitor in (visitors[0], *visitors[2:]):
        await visitor.end()
    assert slots.use() == {}
