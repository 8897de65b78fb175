"""How many execs one pod takes, who waits, and who is told that there is no point in waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from sandboxd import steps
from sandboxd.containers import admission
from sandboxd.containers import exec as exec_
from sandboxd.containers.exec import Pending, Process, exec_sync
from sandboxd.containers.output import Output
from sandboxd.errors import Exhausted, NotReady
from sandboxd.node import Execs
from sandboxd.pods.teardown import stop_sandbox
from tests.fakes.bundle import Bundle
from tests.fakes.runtime import Program

SLEEP, ECHO = ("sleep",), ("echo",)


@pytest.fixture
async def box(fakes: Bundle) -> str:
    """A running container, in a pod that takes six execs, four of them sessions, and one start at once."""
    object.__setattr__(fakes.node.machine.load, "execs", Execs(6))
    fakes.runtime.programs[SLEEP] = Program()
    fakes.runtime.programs[ECHO] = Program(output=b"said\n", code=0)
    return await fakes.running_container()


@pytest.fixture
def recorded() -> Iterator[list[steps.StepRecord]]:
    records: list[steps.StepRecord] = []
    stop = steps.subscribe(records.append)
    yield records
    stop()


async def session(fakes: Bundle, box: str) -> Process:
    pending = Pending(fakes.node, box, SLEEP, tty=False, streams=())
    await pending.admit()
    return await pending.start()


def living(fakes: Bundle, box: str) -> int:
    return len(fakes.runtime.tasks[box].execs)


async def queued(waiting: int, fakes: Bundle, box: str) -> None:
    """Return once so many wait for a place."""
    pod = fakes.node.ledger.containers[box].sandbox_id
    async with asyncio.timeout(30):
        for _ in range(100_000):
            if fakes.node.machine.load.execs.places.waiting(pod) == waiting:
                return
            await asyncio.sleep(0.001)


async def test_sessions_leave_places_for_what_runs_to_its_end(fakes: Bundle, box: str) -> None:
    sessions = [await session(fakes, box) for _ in range(4)]
    assert await exec_sync(fakes.node, box, ECHO, 0) == (b"said\n", b"", 0)
    for each in sessions:
        await each.close()


async def test_a_session_too_many_is_refused_and_told_who_has_the_places(
    fakes: Bundle, box: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "SESSION_SECONDS", 0.01)
    sessions = [await session(fakes, box) for _ in range(4)]
    with pytest.raises(Exhausted, match=rf"4 open exec sessions \(4 in container {box[:12]}\).*execs_per_pod"):
        await session(fakes, box)

    await sessions.pop().close()
    sessions.append(await session(fakes, box))
    for each in sessions:
        await each.close()
    assert not fakes.node.machine.load.execs.places._queues and not fakes.node.machine.load.execs.sessions._queues


async def test_who_comes_while_all_places_are_taken_runs_when_one_is_free_and_leaves_a_step(
    fakes: Bundle, box: str, recorded: list[steps.StepRecord]
) -> None:
    """The time that it waits does not count against its limit."""
    sleeping = [asyncio.ensure_future(exec_sync(fakes.node, box, SLEEP, 0)) for _ in range(6)]
    waits = asyncio.ensure_future(exec_sync(fakes.node, box, ECHO, 1))
    await queued(1, fakes, box)
    assert living(fakes, box) <= 6 and not waits.done()

    sleeping[0].cancel()
    assert await waits == (b"said\n", b"", 0)
    waited = [record for record in recorded if record.name == "container.exec.wait"]
    assert any(record.detail.get("running") == "6" for record in waited)
    for each in sleeping:
        each.cancel()
    await asyncio.gather(*sleeping, return_exceptions=True)
    await fakes.settled()


async def test_a_client_that_leaves_while_it_waits_has_begun_nothing_and_is_no_failure(
    fakes: Bundle, box: str, recorded: list[steps.StepRecord]
) -> None:
    sleeping = [asyncio.ensure_future(exec_sync(fakes.node, box, SLEEP, 0)) for _ in range(6)]
    waits = asyncio.ensure_future(exec_sync(fakes.node, box, ECHO, 0))
    await queued(1, fakes, box)
    async with asyncio.timeout(30):
        while fakes.points.count("processes.start") < 6:  # noqa: ASYNC110 - a fake has no event for it
            await asyncio.sleep(0.001)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    waited = [record for record in recorded if record.name == "container.exec.wait"]
    assert "the client left" in [record.detail.get("ended") for record in waited]
    assert not [record for record in waited if record.error]
    for each in sleeping:
        each.cancel()
    await asyncio.gather(*sleeping, return_exceptions=True)
    await fakes.settled()
    assert fakes.points.count("processes.add") == 6


async def test_stopping_the_pod_waits_for_no_place_and_sends_away_who_does(fakes: Bundle, box: str) -> None:
    pod = fakes.node.ledger.containers[box].sandbox_id
    sleeping = [asyncio.ensure_future(exec_sync(fakes.node, box, SLEEP, 0)) for _ in range(6)]
    waits = asyncio.ensure_future(exec_sync(fakes.node, box, ECHO, 0))
    await queued(1, fakes, box)
    await stop_sandbox(fakes.node, pod)
    with pytest.raises(NotReady, match="being stopped"):
        await waits
    await asyncio.gather(*sleeping, return_exceptions=True)
    await fakes.settled()


async def test_a_start_that_fails_gives_its_place_back(fakes: Bundle, box: str) -> None:
    fakes.runtime.programs[("nosuch",)] = Program(missing=True)
    for _ in range(8):
        with pytest.raises(NotReady):
            await exec_sync(fakes.node, box, ("nosuch",), 0)
    await fakes.settled()
    assert not fakes.node.machine.load.execs.places._queues


async def test_an_exec_sync_uses_the_output_that_it_is_given(fakes: Bundle, box: str) -> None:
    output = Output(fakes.node)
    assert await exec_.exec_sync(fakes.node, box, ECHO, 0, output) == (b"said\n", b"", 0)
    assert output._collected and output.wanted
    output.sent()
