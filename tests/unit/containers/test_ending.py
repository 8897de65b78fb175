"""How the end of a task is recorded: once, by one of those who noticed, and never after the record is gone."""

from __future__ import annotations

import asyncio

import pytest

from sandboxd.containerd.tasks import Exit
from sandboxd.containers.ending import OOM_KILLED, VANISHED, end, note_oom, settle_container
from sandboxd.containers.remove import remove_container
from sandboxd.model import ContainerRecord, ContainerState
from sandboxd.node import Node
from tests.fakes.bundle import CONTAINER, Bundle
from tests.fakes.points import Point

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


async def test_an_exit_that_is_seen_during_the_removal_finds_a_task_or_no_record(fakes: Bundle, node: Node) -> None:
    """It used to find neither: a record without a task, which it wrote to once the record was gone as well."""
    fakes.points.hang(Point("logs.drain", 0))
    removal = asyncio.ensure_future(remove_container(node, CONTAINER))
    await fakes.points.hangs.wait()
    noticed = asyncio.ensure_future(settle_container(node, CONTAINER))
    for _ in range(20):
        await asyncio.sleep(0)
    assert record(node).state is ContainerState.RUNNING, "its end was recorded although it is being removed"
    fakes.points.release()

    await asyncio.gather(removal, noticed)
    assert CONTAINER not in node.ledger.containers


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
