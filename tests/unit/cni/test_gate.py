"""GC excludes everything else on its network, and nothing on others."""

from __future__ import annotations

import asyncio

import pytest

from sandboxd.cni import gate as module
from sandboxd.cni.gate import Gates
from sandboxd.errors import Unavailable


class Visitor:
    """Passes a gate and stays inside until told to leave."""

    def __init__(self, gates: Gates, network: str, *, alone: bool = False) -> None:
        self._pass = gates.exclusive(network) if alone else gates.shared(network)
        self.inside = asyncio.Event()
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit())

    async def _visit(self) -> None:
        async with self._pass:
            self.inside.set()
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def settle() -> None:
    """Let every task run until it has nothing left to do but wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_shared_visits_overlap() -> None:
    gates = Gates()
    first, second = Visitor(gates, "a"), Visitor(gates, "a")
    await settle()

    assert first.inside.is_set()
    assert second.inside.is_set()
    await first.leave()
    await second.leave()


async def test_an_exclusive_visit_waits_for_all_and_holds_off_those_who_come_later() -> None:
    gates = Gates()
    first = Visitor(gates, "a")
    await settle()
    gc, late, elsewhere = Visitor(gates, "a", alone=True), Visitor(gates, "a"), Visitor(gates, "b")
    await settle()

    assert [gc.inside.is_set(), late.inside.is_set(), elsewhere.inside.is_set()] == [False, False, True]
    await first.leave()
    await settle()
    assert [gc.inside.is_set(), late.inside.is_set()] == [True, False]
    await gc.leave()
    await settle()
    assert late.inside.is_set()
    await late.leave()
    await elsewhere.leave()


async def test_a_cancelled_wait_leaves_the_gate_usable_and_nothing_behind() -> None:
    gates = Gates()
    first = Visitor(gates, "a")
    await settle()
    gc, late = Visitor(gates, "a", alone=True), Visitor(gates, "a")
    await settle()

    gc.task.cancel()
    await settle()
    assert late.inside.is_set()
    late.task.cancel()
    await settle()
    await first.leave()

    assert gates._gates == {}


async def test_an_exclusive_visit_gives_up_on_what_does_not_end_and_lets_the_others_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    gates = Gates()
    hangs = Visitor(gates, "a")
    await settle()
    gc, late = Visitor(gates, "a", alone=True), Visitor(gates, "a")

    with pytest.raises(Unavailable, match="network a is in use by 1 operations; repeat the GC"):
        await gc.task
    async with asyncio.timeout(30):
        await late.inside.wait()
    await hangs.leave()
    await late.leave()
