"""Turns and budgets: bounds under which nobody starves, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import random

import pytest

from sandboxd.errors import Exhausted, NotReady
from sandboxd.turns import Budget, Share, Turns


async def settle() -> None:
    """Let every task run until it has nothing left to do but wait."""
    for _ in range(20):
        await asyncio.sleep(0)


class Visitor:
    """Takes a turn and has it until told to end."""

    def __init__(self, turns: Turns, key: str = "", who: str = "") -> None:
        self._end = asyncio.Event()
        self.turn_came = asyncio.Event()
        self.task = asyncio.create_task(self._visit(turns, key, who))

    async def _visit(self, turns: Turns, key: str, who: str) -> None:
        async with turns.turn(key, who):
            self.turn_came.set()
            await self._end.wait()

    @property
    def has_turn(self) -> bool:
        return self.turn_came.is_set()

    async def end(self) -> None:
        self._end.set()
        await self.task


async def called(leaving: Visitor, turns: Turns) -> None:
    """End a turn, and return when the next has been called, before it knows."""
    before = turns.waiting()
    leaving._end.set()
    for _ in range(20):
        if turns.waiting() < before:
            return
        await asyncio.sleep(0)
    pytest.fail("nobody was called")


async def test_turns_of_all_queues_are_counted() -> None:
    turns = Turns(1)
    visitors = [Visitor(turns, key) for key in ("a", "a", "a", "b")]
    await settle()
    assert (turns.taken_in_all, turns.waiting_in_all) == (2, 2)
    for visitor in visitors:
        await visitor.end()
    assert (turns.taken_in_all, turns.waiting_in_all) == (0, 0)


async def test_turns_are_bounded_and_given_in_the_order_in_which_they_are_asked_for() -> None:
    turns = Turns(2)
    visitors = [Visitor(turns, who=str(i)) for i in range(5)]
    await settle()
    assert [v.has_turn for v in visitors] == [True, True, False, False, False]
    assert (turns.full(), turns.waiting(), turns.holders()) == (True, 3, ["0", "1"])

    await visitors[1].end()
    await settle()
    assert [v.has_turn for v in visitors] == [True, True, True, False, False]
    assert turns.holders() == ["0", "2"]
    for visitor in visitors:
        await visitor.end()
    assert (turns.full(), turns.waiting(), turns._queues) == (False, 0, {})


async def test_a_turn_that_is_free_for_an_instant_goes_to_who_waited_not_to_who_comes() -> None:
    turns = Turns(1)
    first, waits = Visitor(turns), Visitor(turns)
    await settle()
    await called(first, turns)
    late = Visitor(turns)
    await settle()
    assert (waits.has_turn, late.has_turn) == (True, False)
    await waits.end()
    await late.end()


async def test_a_full_queue_holds_up_no_other() -> None:
    turns = Turns(1)
    visitors = [Visitor(turns, "a"), Visitor(turns, "a"), Visitor(turns, "b")]
    await settle()
    assert [v.has_turn for v in visitors] == [True, False, True]
    for visitor in visitors:
        await visitor.end()


async def test_a_cancelled_wait_leaves_nothing_behind_even_when_its_turn_has_just_come() -> None:
    turns = Turns(1)
    first, cancelled, just_called, last = (Visitor(turns) for _ in range(4))
    await settle()
    cancelled.task.cancel()
    await settle()
    assert turns.waiting() == 2

    await called(first, turns)
    just_called.task.cancel()  # its turn has come, and it does not know yet
    await settle()
    assert (just_called.has_turn, last.has_turn) == (False, True)
    await last.end()
    assert turns._queues == {}


async def test_who_waits_can_be_sent_away_with_a_reason_and_who_has_a_turn_stays() -> None:
    turns = Turns(1)
    first, waits = Visitor(turns, "pod"), Visitor(turns, "pod")
    await settle()
    turns.dismiss("pod", NotReady("it is being stopped"))
    with pytest.raises(NotReady, match="it is being stopped"):
        await waits.task
    turns.dismiss("no such queue", NotReady(""))

    after = Visitor(turns, "pod")
    await first.end()
    await settle()
    assert after.has_turn
    await after.end()


async def test_a_queue_does_not_grow_without_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxd.turns.MOST_WAITING", 2)
    turns = Turns(1)
    visitors = [Visitor(turns) for _ in range(3)]
    await settle()
    with pytest.raises(Exhausted, match="try again later"):
        async with turns.turn():
            pass
    for visitor in visitors:
        await visitor.end()


async def test_a_turn_that_is_lent_goes_to_the_next_when_its_time_is_over() -> None:
    turns = Turns(1, lent_seconds=0.01)
    hangs, waits = Visitor(turns), Visitor(turns)
    async with asyncio.timeout(30):
        await waits.turn_came.wait()
    assert hangs.has_turn and not hangs.task.done()
    await hangs.end()
    await waits.end()
    assert turns._queues == {}


# Budgets


async def test_a_budget_is_taken_and_given_back() -> None:
    budget = Budget(30, 10)
    with budget.share() as one, budget.share() as two:
        await one.take(12)
        await two.take(8)
        assert budget.free == 0
    assert budget.free == 20


async def test_the_first_who_waits_gets_all_that_it_asks_for_and_the_next_when_it_has_ended() -> None:
    budget = Budget(20, 10)
    one, two, three = Share(budget), Share(budget), Share(budget)
    for share in (one, two):
        await share.take(5)
    await asyncio.wait_for(one.take(5), 30)  # out of the reserve
    waits, behind = asyncio.ensure_future(two.take(3)), asyncio.ensure_future(three.take(3))
    await settle()
    assert not waits.done() and not behind.done()

    one.give_back()
    await settle()
    assert waits.done() and behind.done()
    two.give_back()
    three.give_back()
    assert budget.free == 10


async def test_a_small_one_does_not_overtake_who_waits() -> None:
    budget = Budget(20, 10)
    one, two, three = Share(budget), Share(budget), Share(budget)
    await one.take(8)
    await one.take(3)  # from the reserve
    waits, small = asyncio.ensure_future(two.take(3)), asyncio.ensure_future(three.take(1))
    await settle()
    assert not waits.done() and not small.done()
    one.give_back()
    await asyncio.gather(waits, small)


async def test_both_streams_of_who_has_the_reserve_are_served() -> None:
    budget = Budget(20, 10)
    one, two = Share(budget), Share(budget)
    await two.take(10)
    await two.take(1)  # two has the reserve
    waiting = [asyncio.ensure_future(one.take(5)) for _ in range(2)]
    await settle()
    assert not any(wait.done() for wait in waiting)
    two.give_back()
    await asyncio.wait_for(asyncio.gather(*waiting), 30)


async def test_a_wait_that_is_cancelled_holds_nobody_up() -> None:
    budget = Budget(20, 10)
    holder, gone, next_ = Share(budget), Share(budget), Share(budget)
    await holder.take(10)
    await holder.take(1)
    left = asyncio.ensure_future(gone.take(9))
    waits = asyncio.ensure_future(next_.take(1))
    await settle()
    left.cancel()
    gone.give_back()
    holder.give_back()
    await asyncio.wait_for(waits, 30)


@pytest.mark.parametrize("seed", range(20))
async def test_however_many_take_however_much_all_of_them_end_and_the_bound_holds(seed: int) -> None:
    """Each takes up to the largest, in pieces, from two streams, and some are cancelled: no deadlock, no loss."""
    dice = random.Random(seed)
    budget, held, most = Budget(250, 100), 0, 0

    async def stream(share: Share, pieces: list[int]) -> None:
        nonlocal held, most
        for piece in pieces:
            await share.take(piece)
            held += piece
            mine[share] += piece
            most = max(most, held)
            await asyncio.sleep(0)

    async def one() -> None:
        nonlocal held
        with budget.share() as share:
            mine[share] = 0
            try:
                await asyncio.gather(*(stream(share, [dice.randint(1, 10) for _ in range(5)]) for _ in range(2)))
            finally:
                held -= mine[share]

    mine: dict[Share, int] = {}
    tasks = [asyncio.ensure_future(one()) for _ in range(40)]
    for victim in dice.sample(tasks, 5):
        await asyncio.sleep(0)
        victim.cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert held == 0 < most <= 250
    assert budget.free == 150
    assert budget._first is None and not budget._waiting
