"""Every call of every mutating verb hangs, and the client leaves: the job ends all the same.

The client is cancelled while the call hangs, before its effect or after it; then the call goes on. Nothing has
failed, so the verb must have succeeded in the end.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxd.pods import teardown
from tests.fakes.bundle import pod_config
from tests.fakes.points import Point
from tests.unit.matrix.test_rollback import by_verb, points_of
from tests.unit.matrix.verbs import VERBS, Verb, World, world

APART = ("RunPodSandbox", "StartContainer", "StopContainer by force", "RemovePodSandbox")
SECONDS = 20.0  # for what takes milliseconds


async def until_it_hangs(here: World, client: asyncio.Task[object]) -> None:
    """Return when the call hangs; a client that has its answer by then waits for nothing any more."""
    hangs = asyncio.create_task(here.fakes.points.hangs.wait())
    try:
        async with asyncio.timeout(SECONDS):
            await asyncio.wait((hangs, client), return_when=asyncio.FIRST_COMPLETED)
            await hangs  # a job that the verb has started comes to it a little later
    finally:
        hangs.cancel()


async def try_hang(verb: Verb, directory: Path, point: Point, after: bool) -> None:
    async with world(verb, directory) as here:
        here.fakes.points.hang(point, after=after)
        client = asyncio.create_task(verb.call(here))
        await until_it_hangs(here, client)
        if client.done():
            await client
        else:
            client.cancel()
            await asyncio.gather(client, return_exceptions=True)
            assert client.cancelled()
        here.fakes.points.release()
        await here.fakes.settled()
        verb.done(here)
        await here.clear()
        assert here.there() == []


@by_verb
async def test_the_job_ends_when_its_client_leaves(
    verb: Verb, in_memory: Path, record_property: Callable[[str, object], None]
) -> None:
    points = [point for point in await points_of(verb, in_memory) if point.waits]
    assert len(points) >= verb.least, [str(point) for point in points]
    problems = []
    for point in points:
        for after in (False, True):
            try:
                await try_hang(verb, in_memory, point, after)
            except Exception:
                how = f"{point} hangs {'after' if after else 'before'} its effect"
                problems.append(f"--- {how}\n{traceback.format_exc(limit=-4)}")
    record_property("covered", f"{verb.name}: {len(points)} calls hang in {2 * len(points)} ways")
    assert not problems, f"{len(problems)} of {2 * len(points)}:\n" + "\n".join(problems)


@by_verb
async def test_a_request_joins_the_same_one_whose_client_has_left(verb: Verb, in_memory: Path) -> None:
    points = [point for point in await points_of(verb, in_memory) if point.waits]
    for point in points[:1] if verb.joins else ():
        async with world(verb, in_memory) as here:
            here.fakes.points.hang(point)
            first, second = (asyncio.create_task(verb.call(here)) for _ in range(2))
            await until_it_hangs(here, first)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            here.fakes.points.release()
            await second
            await here.fakes.settled()
            verb.done(here)
            assert sorted(here.fakes.points.passed) == sorted(await points_of(verb, in_memory))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.name in APART], ids=lambda verb: verb.name)
async def test_a_request_that_hangs_holds_up_no_other_pod(verb: Verb, in_memory: Path) -> None:
    for point in [point for point in await points_of(verb, in_memory) if point.waits]:
        async with world(verb, in_memory) as here:
            here.fakes.points.hang(point)
            client = asyncio.create_task(verb.call(here))
            await until_it_hangs(here, client)
            other = World(here.fakes, pod=pod_config("other"))
            async with asyncio.timeout(SECONDS):
                other.sandbox_id = await other.run()
                await other.create()
                await teardown.remove_sandbox(here.fakes.node, other.sandbox_id)
            here.fakes.points.release()
            await client
            await here.fakes.settled()
            verb.done(here)
