"""How the end of a task is recorded: once, by one of those who noticed, and never after the record is gone."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sandboxd.containerd.tasks import Exit, Task
from sandboxd.containers.ending import OOM_KILLED, VANISHED, end, exited, note_oom, settle_container
from sandboxd.containers.remove import remove_container
from sandboxd.errors import TimedOut, Unavailable
from sandboxd.model import ContainerRecord, ContainerState
from sandboxd.node import Node
from sandboxd.operations import hold
from tests.fakes.bundle import CONTAINER, Bundle
from tests.fakes.points import Point
from tests.fakes.runtime import NEVER_STARTED

ENDED = Exit(code=3, at=99)
KILLED = Exit(code=137, at=99)


@pytest.fixture
def node(fakes: Bundle) -> Node:
    made = fakes.with_records()
    made.ledger.update_container(CONTAINER, pid=7, started_at=5)
    return made


def record(node: Node) -> ContainerRecord:
    return node.ledger.containers[CONTAINER]


async def test_the_end_is_recorded_as_the_task_says(fakes: Bundle, node: Node) -> None:
    fakes.runtime.put(CONTAINER, ENDED)

    await settle_container(node, CONTAINER)

    assert (record(node).exit_code, record(node).finished_at, record(node).reason) == (3, 99, "Error")


async def test_a_task_that_is_gone_ended_unseen(node: Node) -> None:
    await settle_container(node, CONTAINER)

    assert (record(node).exit_code, record(node).reason) == (VANISHED, "Unknown")
    assert "not watching" in record(node).message


async def test_a_container_that_is_only_created_is_left_alone(fakes: Bundle, node: Node) -> None:
    node.ledger.update_container(CONTAINER, pid=0, started_at=0)
    fakes.runtime.put(CONTAINER, ENDED)

    await settle_container(node, CONTAINER)

    assert record(node).state is ContainerState.CREATED
    assert not fakes.points.passed


async def test_an_end_that_several_notice_is_recorded_once(fakes: Bundle, node: Node) -> None:
    fakes.runtime.put(CONTAINER, ENDED)

    await asyncio.gather(*(settle_container(node, CONTAINER) for _ in range(3)))

    assert fakes.points.count("runtime.delete") == 1


async def test_an_end_is_recorded_before_the_task_is_deleted_which_forgets_it(fakes: Bundle, node: Node) -> None:
    """A daemon that dies at any moment finds either the record or the task."""
    fakes.runtime.put(CONTAINER, ENDED)
    fakes.points.hang(Point("runtime.delete", 0))
    settling = asyncio.ensure_future(settle_container(node, CONTAINER))
    await fakes.points.hangs.wait()

    assert CONTAINER in fakes.runtime.tasks
    assert (record(node).exit_code, record(node).finished_at, record(node).reason) == (3, 99, "Error")
    fakes.points.release()
    await settling
    assert CONTAINER not in fakes.runtime.tasks


async def test_while_the_end_is_not_recorded_the_task_stays(fakes: Bundle, node: Node) -> None:
    fakes.runtime.put(CONTAINER, ENDED)
    fakes.points.hang(Point("logs.drain", 0))
    settling = asyncio.ensure_future(settle_container(node, CONTAINER))
    await fakes.points.hangs.wait()
    settling.cancel()  # the daemon dies
    await asyncio.gather(settling, return_exceptions=True)
    assert record(node).state is ContainerState.RUNNING

    await settle_container(node, CONTAINER)

    assert (record(node).exit_code, record(node).finished_at) == (3, 99)


async def test_a_task_that_cannot_be_freed_keeps_no_end_from_being_known(fakes: Bundle, node: Node) -> None:
    fakes.runtime.put(CONTAINER, ENDED)
    fakes.points.fail(Point("runtime.delete", 0), Unavailable("containerd is away"))

    await settle_container(node, CONTAINER)

    assert (record(node).state, record(node).exit_code) == (ContainerState.EXITED, 3)
    assert CONTAINER in fakes.runtime.tasks


@pytest.mark.parametrize("at", [0, NEVER_STARTED])
async def test_an_end_that_is_told_only_to_who_waits_is_asked_for_so(
    fakes: Bundle, node: Node, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    fakes.runtime.put(CONTAINER, ENDED)
    silent(monkeypatch, fakes, at)

    await settle_container(node, CONTAINER)

    assert (record(node).exit_code, record(node).finished_at, record(node).reason) == (3, 99, "Error")
    assert [point.name for point in fakes.points.passed][-2:] == ["logs.drain", "runtime.delete"]


async def test_an_end_that_only_the_deletion_tells_is_taken_from_it(
    fakes: Bundle, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.runtime.put(CONTAINER, ENDED)
    silent(monkeypatch, fakes, 0)
    fakes.points.fail(Point("runtime.wait", 0), TimedOut("it does not say"))

    await settle_container(node, CONTAINER)

    assert (record(node).exit_code, record(node).finished_at, record(node).reason) == (3, 99, "Error")


async def test_an_end_of_which_only_the_code_is_told_is_recorded_as_of_now(
    fakes: Bundle, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.runtime.put(CONTAINER, Exit(code=3, at=NEVER_STARTED))

    await settle_container(node, CONTAINER)

    assert (record(node).state, record(node).exit_code) == (ContainerState.EXITED, 3)
    assert record(node).finished_at > 0


def silent(monkeypatch: pytest.MonkeyPatch, fakes: Bundle, at: int) -> None:
    """A shim whose state says nothing of how the process ended."""
    get = fakes.runtime.get

    async def state_only(container_id: str) -> Task:
        return replace(await get(container_id), exit=Exit(code=0, at=at))

    monkeypatch.setattr(fakes.runtime, "get", state_only)


async def test_an_exit_that_is_seen_during_the_removal_finds_a_record_or_nothing(fakes: Bundle, node: Node) -> None:
    """It used to find a record without a task, which it wrote to once the record was gone as well."""
    fakes.points.hang(Point("logs.drain", 0))
    removal = asyncio.ensure_future(remove_container(node, CONTAINER))
    await fakes.points.hangs.wait()
    noticed = asyncio.ensure_future(settle_container(node, CONTAINER))
    for _ in range(20):
        await asyncio.sleep(0)
    assert record(node).state is ContainerState.RUNNING, "the removal records it"
    fakes.points.release()

    await asyncio.gather(removal, noticed)
    assert CONTAINER not in node.ledger.containers
    assert fakes.points.count("runtime.get") == 1, "only one of them looks"


@pytest.mark.parametrize("code", [0, 3, 137, 143])
async def test_a_container_of_which_a_process_ran_out_of_memory_says_so_whatever_its_code(
    fakes: Bundle, node: Node, code: int
) -> None:
    fakes.runtime.put(CONTAINER, Exit(code=code, at=99))
    note_oom(node, CONTAINER)

    await settle_container(node, CONTAINER)

    assert (record(node).exit_code, record(node).reason) == (code, OOM_KILLED)


async def test_a_container_that_ran_out_of_memory_says_so_although_we_killed_it(fakes: Bundle, node: Node) -> None:
    fakes.runtime.put(CONTAINER, KILLED)
    note_oom(node, CONTAINER)

    await end(node, CONTAINER)

    assert record(node).reason == OOM_KILLED


async def test_our_own_kill_alone_is_not_taken_for_an_oom(fakes: Bundle, node: Node) -> None:
    fakes.runtime.put(CONTAINER, KILLED)

    await end(node, CONTAINER)

    assert record(node).reason == "Error"


async def test_an_exit_that_is_seen_during_the_start_is_looked_at_after_it(fakes: Bundle, node: Node) -> None:
    node.ledger.update_container(CONTAINER, pid=0, started_at=0)
    fakes.runtime.put(CONTAINER, ENDED)
    async with hold(node, record(node).sandbox_id):
        seen = asyncio.ensure_future(exited(node, CONTAINER))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not fakes.points.passed
        node.ledger.update_container(CONTAINER, pid=7, started_at=5)

    await seen
    assert (record(node).state, record(node).exit_code) == (ContainerState.EXITED, 3)


async def test_a_kill_asks_for_nothing_twice_although_its_exit_is_seen_meanwhile(fakes: Bundle, node: Node) -> None:
    fakes.runtime.put(CONTAINER)

    await end(node, CONTAINER)
    await node.jobs.drain(5)

    assert [point.name for point in fakes.points.passed] == [
        "runtime.kill",
        "runtime.wait",
        "logs.drain",
        "runtime.delete",
    ]
