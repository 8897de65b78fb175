"""Ending a process in a container: its own group gets a signal, nobody else. The rest is tests/e2e/test_exec.py."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from sandboxd.containers import exec as exec_
from sandboxd.containers import runtime_reads
from sandboxd.errors import NotReady, SandboxdError, TimedOut, Unavailable
from sandboxd.pb.cri.v1 import api_pb2 as cri
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


@pytest.fixture
async def pending(fakes: Bundle) -> exec_.Pending:
    """A process that is admitted, to be started in a container that runs."""
    made = exec_.Pending(fakes.node, await fakes.running_container(), SLEEP, tty=False, streams=())
    await made.admit()
    return made


@pytest.fixture
def ended(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What `_end_unknown` has ended of two processes in the container, 71 and 72."""
    found: list[int] = []
    monkeypatch.setattr(runtime_reads, "executed", lambda container_id, pid: [71, 72])
    monkeypatch.setattr(exec_, "_kill_group", lambda pid, container_id: found.append(pid))
    return found


@pytest.mark.parametrize("cause", [Unavailable("containerd is away"), TimedOut("it takes too long")])
async def test_a_start_that_was_cut_off_leaves_no_process_that_the_shim_does_not_know(
    fakes: Bundle, pending: exec_.Pending, ended: list[int], cause: SandboxdError
) -> None:
    (container_id,) = fakes.node.ledger.containers
    await fakes.runtime.processes.add(container_id, "somebodys", {"args": SLEEP})
    await fakes.runtime.processes.start(container_id, "somebodys")
    fakes.runtime.tasks[container_id].execs["somebodys"].pid = 71
    fakes.points.fail(Point("processes.start", fakes.points.count("processes.start")), cause)

    with pytest.raises(type(cause)):
        await pending.start()

    assert ended == [72]
    assert os.listdir(fakes.places.execs(container_id)) == []


async def test_a_start_that_was_refused_is_not_looked_for(
    fakes: Bundle, pending: exec_.Pending, ended: list[int]
) -> None:
    fakes.runtime.programs[SLEEP] = Program(missing=True)
    with pytest.raises(NotReady):
        await pending.start()
    assert ended == []


async def test_nothing_is_looked_for_while_another_is_being_started_but_after_it(
    fakes: Bundle, pending: exec_.Pending, ended: list[int]
) -> None:
    (container_id,) = fakes.node.ledger.containers
    other = exec_.Pending(fakes.node, container_id, SLEEP, tty=False, streams=())
    await other.admit()
    fakes.points.hang(Point("processes.start", fakes.points.count("processes.start")))
    starting = asyncio.ensure_future(other.start())
    await fakes.points.hangs.wait()
    left = Path(fakes.places.execs(container_id), "left")
    left.mkdir()

    with pytest.raises(NotReady, match="is looked for once"):
        await exec_.end_leftovers(fakes.node, container_id)
    assert (ended, left.is_dir()) == ([], True)

    fakes.points.release()
    running = await starting
    await exec_.end_leftovers(fakes.node, container_id)
    assert (sorted(ended), left.is_dir()) == ([71, 72], False)
    await running.close()


async def test_in_the_machines_pid_namespace_nothing_is_looked_for(
    fakes: Bundle, pending: exec_.Pending, ended: list[int]
) -> None:
    (container_id,) = fakes.node.ledger.containers
    record = fakes.node.ledger.containers[container_id]
    record.config.linux.security_context.namespace_options.pid = cri.NODE
    fakes.points.fail(Point("processes.start", 0), Unavailable("containerd is away"))
    with pytest.raises(Unavailable):
        await pending.start()
    assert ended == []
