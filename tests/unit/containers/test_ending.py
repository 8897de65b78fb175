"""How the end of a task is recorded: once, by one of those who noticed, and never after the record is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from sandboxd.containerd.tasks import Exit, Task, TaskState
from sandboxd.containers.ending import OOM_KILLED, SIGKILLED, VANISHED, end, note_oom, settle_container
from sandboxd.containers.remove import remove_container
from sandboxd.model import ContainerRecord, ContainerState
from sandboxd.node import Node
from tests.fakes.node import CONTAINER, Faults, Resource, fake_node, with_pod

ENDED = Task(id=CONTAINER, pid=7, state=TaskState.STOPPED, exit=Exit(code=3, at=99))


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def node(tmp_path: Path, faults: Faults) -> Node:
    made = fake_node(tmp_path, faults)
    with_pod(made)
    made.ledger.update_container(CONTAINER, pid=7, started_at=5)
    return made


def answering(node: Node, faults: Faults, task: Task | Exception) -> None:
    """containerd's answer about the container from now on."""
    ended = task.exit if isinstance(task, Task) else None
    runtime = Resource(faults, "runtime", get=task, delete=ended, wait=ended)
    cast(Any, node).runtime = runtime


def record(node: Node) -> ContainerRecord:
    return node.ledger.containers[CONTAINER]


async def test_the_end_is_recorded_as_the_task_says(node: Node, faults: Faults) -> None:
    answering(node, faults, ENDED)

    await settle_container(node, CONTAINER)

    assert (record(node).exit_code, record(node).finished_at, record(node).reason) == (3, 99, "Error")


async def test_a_task_that_is_gone_ended_unseen(node: Node) -> None:
    await settle_container(node, CONTAINER)

    assert (record(node).exit_code, record(node).reason) == (VANISHED, "Unknown")
    assert "not watching" in record(node).message


async def test_a_container_that_is_only_created_is_left_alone(node: Node, faults: Faults) -> None:
    node.ledger.update_container(CONTAINER, pid=0, started_at=0)
    answering(node, faults, ENDED)

    await settle_container(node, CONTAINER)

    assert record(node).state is ContainerState.CREATED
    assert not faults.calls


async def test_an_end_that_several_notice_is_recorded_once(node: Node, faults: Faults) -> None:
    answering(node, faults, ENDED)

    await asyncio.gather(*(settle_container(node, CONTAINER) for _ in range(3)))

    assert faults.calls["runtime.delete"] == 1


async def test_an_exit_that_is_seen_during_the_removal_finds_a_task_or_no_record(node: Node, faults: Faults) -> None:
    """It used to find neither: a record without a task, which it wrote to once the record was gone as well."""
    at_drain, go_on = asyncio.Event(), asyncio.Event()

    async def drain(container_id: str, timeout: float) -> None:
        at_drain.set()
        await go_on.wait()

    cast(Any, node.logs).drain = drain
    removal = asyncio.ensure_future(remove_container(node, CONTAINER))
    await at_drain.wait()
    noticed = asyncio.ensure_future(settle_container(node, CONTAINER))
    for _ in range(20):
        await asyncio.sleep(0)
    assert record(node).state is ContainerState.RUNNING, "its end was recorded although it is being removed"
    go_on.set()

    await asyncio.gather(removal, noticed)
    assert CONTAINER not in node.ledger.containers


async def test_our_own_kill_is_not_taken_for_an_oom(node: Node, faults: Faults) -> None:
    killed = Task(id=CONTAINER, pid=7, state=TaskState.STOPPED, exit=Exit(code=SIGKILLED, at=99))
    answering(node, faults, killed)
    note_oom(node, CONTAINER)

    await end(node, CONTAINER)

    assert record(node).reason == "Error"


async def test_a_kill_that_is_not_ours_after_an_oom_event_is_one(node: Node, faults: Faults) -> None:
    killed = Task(id=CONTAINER, pid=7, state=TaskState.STOPPED, exit=Exit(code=SIGKILLED, at=99))
    answering(node, faults, killed)
    note_oom(node, CONTAINER)

    await settle_container(node, CONTAINER)

    assert record(node).reason == OOM_KILLED
