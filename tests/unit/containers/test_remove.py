"""RemoveContainer: whatever there is of a container goes, its record last.

What happens where one of the parts fails or hangs is in tests/unit/matrix.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import structlog

from sandboxd.containers.create import create_container
from sandboxd.containers.remove import remove_container
from sandboxd.containers.start import start_container
from sandboxd.errors import CleanupIncomplete, TimedOut, Unavailable
from sandboxd.model import ContainerState, SandboxRecord
from sandboxd.operations import hold
from tests.fakes.bundle import Bundle, container_config
from tests.fakes.points import Point


@pytest.fixture
async def container(fakes: Bundle, pod: SandboxRecord) -> str:
    """A container that runs and is being logged."""
    config = container_config()
    config.log_path = "app.log"
    container_id = await create_container(fakes.node, pod.id, config)
    await start_container(fakes.node, container_id)
    await fakes.settled()
    return container_id


async def test_a_container_that_there_is_not_is_removed(fakes: Bundle) -> None:
    await remove_container(fakes.node, "nowhere")

    assert fakes.points.passed == []


async def test_everything_of_a_running_container_goes(fakes: Bundle, container: str) -> None:
    Path(fakes.places.volumes(container), "0").mkdir(parents=True)
    os.makedirs(fakes.places.stage(container))

    await remove_container(fakes.node, container)
    assert fakes.left() == []
    assert not fakes.node.ledger.containers


async def test_a_container_of_which_only_the_record_is_left_is_removed(fakes: Bundle, container: str) -> None:
    await fakes.runtime.kill(container, 9)
    await fakes.runtime.delete(container)
    await fakes.logs.close(container)
    await fakes.runtime.delete_container(container)
    await fakes.images.remove_rootfs(container)

    await remove_container(fakes.node, container)
    assert fakes.left() == []
    assert not fakes.node.ledger.containers


async def test_its_end_is_recorded_before_its_task_and_then_its_files_go(fakes: Bundle, container: str) -> None:
    """And containerd's record goes after the task, which could not be reached without it."""
    fakes.points.reset()
    await remove_container(fakes.node, container)

    assert [point.name for point in fakes.points.passed] == [
        "runtime.kill",
        "runtime.wait",
        "logs.drain",
        "runtime.delete",
        "runtime.delete_container",
        "images.remove_rootfs",
    ]


async def test_the_record_stays_with_what_could_not_be_removed_and_another_attempt_goes_on(
    fakes: Bundle, container: str
) -> None:
    fakes.points.fail(Point("images.remove_rootfs", 0), Unavailable("containerd is away"))
    with pytest.raises(Unavailable, match="containerd is away"):
        await remove_container(fakes.node, container)
    assert container in fakes.node.ledger.containers
    assert f"snapshot {container}" in fakes.left()

    await remove_container(fakes.node, container)
    assert fakes.left() == []
    assert not fakes.node.ledger.containers


async def test_a_process_that_does_not_end_keeps_everything(fakes: Bundle, container: str) -> None:
    left = fakes.left()
    fakes.points.fail(Point("runtime.wait", 0), TimedOut("it is still there"))

    with pytest.raises(CleanupIncomplete, match="did not end 30 s after SIGKILL"):
        await remove_container(fakes.node, container)
    assert container in fakes.node.ledger.containers
    assert fakes.left() == left


async def test_a_bug_is_reported_as_an_incomplete_cleanup_and_does_not_repeat(fakes: Bundle, container: str) -> None:
    fakes.points.fail(Point("images.remove_rootfs", 0), RuntimeError("a bug"))
    words = f"container {container}: unexpected RuntimeError: a bug"
    with structlog.testing.capture_logs() as logged, pytest.raises(CleanupIncomplete, match=words):
        await remove_container(fakes.node, container)
    assert [e["log_level"] for e in logged if e["log_level"] != "info"] == ["error"], "its traceback is logged"

    await remove_container(fakes.node, container)
    assert not fakes.node.ledger.containers


async def test_the_same_request_meanwhile_waits_for_the_first_and_gets_its_answer(
    fakes: Bundle, container: str
) -> None:
    fakes.points.reset()
    fakes.points.hang(Point("logs.drain", 0))
    first = asyncio.create_task(remove_container(fakes.node, container))
    await fakes.points.hangs.wait()
    second = asyncio.create_task(remove_container(fakes.node, container))
    await asyncio.sleep(0)
    assert not second.done()
    fakes.points.release()

    await asyncio.gather(first, second)
    assert fakes.points.count("logs.drain") == 1


async def test_a_daemon_that_dies_after_the_task_has_gone_leaves_a_record_that_says_how_it_ended(
    fakes: Bundle, container: str
) -> None:
    fakes.points.hang(Point("runtime.delete", 0), after=True)
    removal = asyncio.create_task(remove_container(fakes.node, container))
    await fakes.points.hangs.wait()

    left = fakes.node.ledger.containers[container]
    assert container not in fakes.runtime.tasks
    assert (left.state, left.exit_code, left.reason) == (ContainerState.EXITED, 137, "Error")
    fakes.points.release()
    await removal


async def test_a_container_that_went_while_the_request_waited_for_its_pod_is_left_alone(
    fakes: Bundle, pod: SandboxRecord, container: str
) -> None:
    """The pod may have been removed with all its containers, and what has their names now is not theirs."""
    async with hold(fakes.node, pod.id):
        request = asyncio.create_task(remove_container(fakes.node, container))
        for _ in range(3):  # turns in which it comes to the lock
            await asyncio.sleep(0)
        fakes.node.ledger.remove_container(container)
    left = fakes.left()
    fakes.points.reset()

    await request
    assert fakes.points.passed == []
    assert fakes.left() == left
