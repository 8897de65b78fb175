"""Ending a process in a container: its own group gets a signal, nobody else. The rest is tests/e2e/test_exec.py."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from sandboxd.containers import exec as exec_
from tests.fakes.bundle import CONTAINER, Bundle
from tests.fakes.points import Point
from tests.fakes.runtime import Program


@pytest.mark.parametrize(
    ("pid", "group", "signalled"),
    [
        (77, 77, [77]),
        (77, 78, []),  # not the first of its group
        (0, 0, []),  # gone; as a group it would be ours
        (1, 1, []),  # killpg(1) is kill(-1): everybody
        (os.getpgrp(), os.getpgrp(), []),
    ],
)
async def test_only_a_process_that_leads_a_group_of_its_own_takes_it_along(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch, pid: int, group: int, signalled: list[int]
) -> None:
    fakes.runtime.put(CONTAINER)
    if pid:
        await fakes.runtime.processes.add(CONTAINER, "exec", {"args": ["sleep"]})
        await fakes.runtime.processes.start(CONTAINER, "exec")
        fakes.runtime.tasks[CONTAINER].execs["exec"].pid = pid
    found: list[int] = []
    monkeypatch.setattr(Path, "read_text", lambda path, **_: f"0::/pods/{CONTAINER}\n")
    monkeypatch.setattr(os, "getpgid", lambda pid: group)
    monkeypatch.setattr(os, "killpg", lambda pgid, number: found.append(pgid))
    await exec_._kill(fakes.node, CONTAINER, "exec")
    assert found == signalled
    assert fakes.points.count("processes.kill") == 1


ECHO = ("echo", "said")
SLEEP = ("sleep", "1000")


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize(
    "streams", [(), ("stdin",), ("stdout",), ("stderr",), ("stdin", "stdout"), ("stdout", "stderr")]
)
async def test_a_client_gets_the_streams_that_it_wants_whatever_the_shim_needs(
    fakes: Bundle, streams: tuple[str, ...], tty: bool
) -> None:
    fakes.runtime.programs[ECHO] = Program(output=b"said\n", code=3)
    container_id = await fakes.running_container()
    pending = exec_.Pending(fakes.node, container_id, ECHO, tty=tty, streams=streams)
    await pending.admit()
    process = await pending.start()
    try:
        if "stdout" in streams:
            assert [data async for data in process.stdout()] == [b"said\n"]
        assert await process.wait() == 3
    finally:
        await process.close()
    assert not fakes.runtime.tasks[container_id].execs
    assert not os.listdir(fakes.places.execs(container_id))


@pytest.mark.parametrize("point", ["processes.add", "processes.start"])
@pytest.mark.parametrize("after", [False, True])
async def test_a_client_that_leaves_while_its_process_is_being_started_leaves_none_behind(
    fakes: Bundle, point: str, after: bool
) -> None:
    """There is nothing to kill yet when it leaves, and nobody to kill it later."""
    fakes.runtime.programs[SLEEP] = Program(code=None)
    container_id = await fakes.running_container()
    fakes.points.hang(Point(point, 0), after=after)
    client = asyncio.ensure_future(exec_.exec_sync(fakes.node, container_id, SLEEP, 0))
    await fakes.points.hangs.wait()
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client
    async with asyncio.timeout(30):
        while any(key[-1] == "kill" for key in fakes.node.jobs.in_flight() if isinstance(key, tuple)):  # noqa: ASYNC110 - a job has no event for its end
            await asyncio.sleep(0)  # the kill has found nothing
        fakes.points.release()
        await fakes.settled()
    assert not fakes.runtime.tasks[container_id].execs
