"""One connection becomes several only where that pays."""

from __future__ import annotations

import pytest

from sandboxd.registry.ranges import Probe, Ranges, TooSlow


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def passing(probe: Probe, clock: Clock, *, pieces: int, waiting: float) -> None:
    for _ in range(pieces):
        clock.now += waiting
        await probe.take(bytes(100))


@pytest.mark.parametrize(("waiting", "taking"), [(1.0, 2.0), (0.00001, 0.0)], ids=["slow sink", "fast enough"])
async def test_one_connection_will_do_when_it_is_not_what_is_waited_for(waiting: float, taking: float) -> None:
    clock = Clock()

    async def sink(data: bytes) -> None:
        clock.now += taking

    probe = Probe(Ranges(count=2, least=500, probe=300, fast=1_000_000), sink, 100_000, clock=clock)

    await passing(probe, clock, pieces=20, waiting=waiting)

    assert probe.passed == 2000


async def test_a_connection_that_becomes_slow_is_found_out() -> None:
    clock = Clock()
    taken: list[bytes] = []

    async def sink(data: bytes) -> None:
        clock.now += 1.0
        taken.append(data)

    probe = Probe(Ranges(count=2, least=500, probe=300), sink, 100_000, clock=clock)
    await passing(probe, clock, pieces=9, waiting=0.1)

    with pytest.raises(TooSlow):
        await passing(probe, clock, pieces=3, waiting=9.0)

    assert (len(taken), probe.passed) == (12, 1200)


async def test_the_little_that_is_left_is_not_worth_more_connections() -> None:
    clock = Clock()

    async def sink(data: bytes) -> None: ...

    await passing(Probe(Ranges(count=2, least=500, probe=300), sink, 700, clock=clock), clock, pieces=7, waiting=9.0)
