"""A pod is not ready any more once its pause container has ended; that is looked up, and recorded once."""

from __future__ import annotations

import asyncio

import pytest

from sandboxd.errors import Unavailable
from sandboxd.model import SandboxRecord, SandboxState
from sandboxd.operations import hold
from sandboxd.pods.ending import settle_namespaces, settle_sandbox, unpinned
from sandboxd.pods.teardown import stop_sandbox
from tests.fakes.bundle import Bundle, pod_config
from tests.fakes.points import Point
from tests.unit.pods.conftest import LogLines, RunPod

LOOK = Point("runtime.get", 0)


@pytest.fixture
async def pod(run_pod: RunPod) -> str:
    return await run_pod()


def record(fakes: Bundle, pod: str) -> SandboxRecord:
    return fakes.node.ledger.sandboxes[pod]


async def test_a_pod_is_not_ready_when_its_pause_container_has_ended(
    fakes: Bundle, pod: str, log_lines: LogLines
) -> None:
    pause = fakes.runtime.tasks[pod].init
    pause.end(3)
    assert pause.exit

    await settle_sandbox(fakes.node, pod)

    ended = record(fakes, pod)
    assert (ended.state, ended.pid, ended.exited_at) == (SandboxState.NOTREADY, 0, pause.exit.at)
    assert not ended.stopped_at, "what it holds is freed by StopPodSandbox"
    assert [(line["event"], line["sandbox"], line["code"]) for line in log_lines] == [
        ("pause container ended", pod, 3)
    ]


async def test_what_the_ended_task_held_is_freed_and_the_rest_stays_for_a_stop(fakes: Bundle, pod: str) -> None:
    fakes.runtime.tasks[pod].init.end(0)

    await settle_sandbox(fakes.node, pod)

    assert not fakes.runtime.tasks
    assert fakes.netns.pinned and fakes.kernel.mounts and fakes.cni.attached


async def test_the_end_is_recorded_before_the_task_is_deleted_which_forgets_it(fakes: Bundle, pod: str) -> None:
    pause = fakes.runtime.tasks[pod].init
    pause.end(3)
    assert pause.exit
    fakes.points.hang(Point("runtime.delete", 0))
    settling = asyncio.ensure_future(settle_sandbox(fakes.node, pod))
    await fakes.points.hangs.wait()

    assert record(fakes, pod).exited_at == pause.exit.at
    fakes.points.release()
    await settling


async def test_a_task_that_cannot_be_freed_keeps_no_end_from_being_known(fakes: Bundle, pod: str) -> None:
    fakes.runtime.tasks[pod].init.end(3)
    fakes.points.fail(Point("runtime.delete", 0), Unavailable("containerd is away"))

    await settle_sandbox(fakes.node, pod)

    assert record(fakes, pod).exited_at
    assert pod in fakes.runtime.tasks, "the comparison frees it"


async def test_a_stop_records_when_the_pause_container_ended_before_its_task_goes(fakes: Bundle, pod: str) -> None:
    pause = fakes.runtime.tasks[pod].init
    fakes.points.hang(Point("runtime.delete", 0))
    stopping = asyncio.ensure_future(stop_sandbox(fakes.node, pod))
    await fakes.points.hangs.wait()

    assert pause.exit and record(fakes, pod).exited_at == pause.exit.at
    fakes.points.release()
    await stopping


async def test_a_pod_whose_task_is_gone_has_ended_as_well(fakes: Bundle, pod: str) -> None:
    fakes.runtime.tasks[pod].init.end(0)
    del fakes.runtime.tasks[pod]

    await settle_sandbox(fakes.node, pod)

    assert record(fakes, pod).exited_at


async def test_a_pod_that_runs_stays_as_it_is(fakes: Bundle, pod: str) -> None:
    before = record(fakes, pod)

    await settle_sandbox(fakes.node, pod)

    assert record(fakes, pod) == before
    assert pod in fakes.runtime.tasks


async def test_a_pod_that_is_not_known_is_no_error(fakes: Bundle) -> None:
    await settle_sandbox(fakes.node, "0" * 64)


async def test_a_pod_that_is_still_being_made_is_left_alone(fakes: Bundle, pod: str) -> None:
    """Its task is there before the pod has started, and its end is for whoever makes the pod to find."""
    fakes.node.ledger.update_sandbox(pod, started_at=0)
    fakes.runtime.tasks[pod].init.end(1)

    await settle_sandbox(fakes.node, pod)

    assert record(fakes, pod).state is SandboxState.CREATING
    assert pod in fakes.runtime.tasks


async def test_an_end_is_recorded_once(fakes: Bundle, pod: str, log_lines: LogLines) -> None:
    fakes.runtime.tasks[pod].init.end(0)
    await asyncio.gather(*(settle_sandbox(fakes.node, pod) for _ in range(3)))
    first = record(fakes, pod)

    await settle_sandbox(fakes.node, pod)

    assert record(fakes, pod) == first
    assert len(log_lines) == 1
    assert fakes.points.count("runtime.get") == 1, "what is known is not looked up again"


async def test_a_pod_that_is_removed_meanwhile_is_not_recorded_again(
    fakes: Bundle, pod: str, log_lines: LogLines
) -> None:
    fakes.runtime.tasks[pod].init.end(0)
    fakes.points.hang(LOOK)
    settling = asyncio.ensure_future(settle_sandbox(fakes.node, pod))
    await fakes.points.hangs.wait()
    fakes.node.ledger.remove_sandbox(pod)
    fakes.points.release()

    await settling

    assert not fakes.node.ledger.sandboxes
    assert not log_lines


async def test_an_end_that_a_stop_has_recorded_meanwhile_stays(fakes: Bundle, pod: str, log_lines: LogLines) -> None:
    fakes.runtime.tasks[pod].init.end(0)
    fakes.points.hang(LOOK)
    settling = asyncio.ensure_future(settle_sandbox(fakes.node, pod))
    await fakes.points.hangs.wait()
    fakes.node.ledger.update_sandbox(pod, exited_at=5)
    fakes.points.release()

    await settling

    assert record(fakes, pod).exited_at == 5
    assert not log_lines


async def test_what_cannot_be_looked_up_is_not_recorded(fakes: Bundle, pod: str) -> None:
    fakes.runtime.tasks[pod].init.end(0)
    fakes.points.fail(LOOK, Unavailable("containerd does not answer"))

    with pytest.raises(Unavailable):
        await settle_sandbox(fakes.node, pod)

    assert record(fakes, pod).state is SandboxState.READY


# settle_namespaces


async def settle_all(fakes: Bundle) -> None:
    for pod in unpinned(fakes.node):
        await settle_namespaces(fakes.node, pod)


async def test_a_namespace_that_somebody_unpinned_is_pinned_again(fakes: Bundle) -> None:
    pod = await fakes.ready_pod()
    made = record(fakes, pod)
    fakes.netns.inside[made.pid, "net"] = made.netns_inode
    fakes.netns.pinned.pop(made.netns_path)

    await settle_all(fakes)

    assert fakes.netns.inode(made.netns_path) == made.netns_inode
    assert record(fakes, pod) == made


async def test_a_pod_whose_namespace_is_lost_is_not_ready_and_has_no_address(
    fakes: Bundle, log_lines: LogLines
) -> None:
    pod = await fakes.ready_pod()
    other = await fakes.ready_pod(pod_config("other"))
    fakes.netns.pinned.pop(record(fakes, pod).netns_path)

    await settle_all(fakes)

    assert (record(fakes, pod).state, record(fakes, pod).ips) == (SandboxState.NOTREADY, ())
    assert "no network namespace to join" in record(fakes, pod).failure
    assert record(fakes, other).state is SandboxState.READY and record(fakes, other).ips


async def test_a_pod_that_ended_keeps_its_address_for_as_long_as_it_has_its_namespace(
    fakes: Bundle, log_lines: LogLines
) -> None:
    pod = await fakes.ready_pod()
    fakes.runtime.tasks[pod].init.end(1)
    await settle_sandbox(fakes.node, pod)
    assert record(fakes, pod).ips
    fakes.netns.pinned.pop(record(fakes, pod).netns_path)

    await settle_all(fakes)

    assert (record(fakes, pod).ips, record(fakes, pod).failure) == ((), "")


async def test_a_pod_that_ends_without_its_namespace_has_no_address(fakes: Bundle, log_lines: LogLines) -> None:
    pod = await fakes.ready_pod()
    fakes.netns.pinned.pop(record(fakes, pod).netns_path)
    fakes.runtime.tasks[pod].init.end(1)

    await settle_sandbox(fakes.node, pod)

    assert record(fakes, pod).ips == ()


async def test_a_pod_that_was_stopped_or_is_busy_is_left_alone(fakes: Bundle) -> None:
    stopped, busy = await fakes.ready_pod(), await fakes.ready_pod(pod_config("busy"))
    await fakes.settled()
    await stop_sandbox(fakes.node, stopped)
    fakes.netns.pinned.clear()
    before = record(fakes, busy)

    async with hold(fakes.node, busy):
        await settle_all(fakes)

    assert record(fakes, busy) == before
    assert not fakes.points.count("netns.restore")


async def test_a_pod_whose_processes_are_not_known_stays_as_it_is(fakes: Bundle, log_lines: LogLines) -> None:
    pod = await fakes.ready_pod()
    await fakes.settled()
    fakes.netns.pinned.clear()
    fakes.points.fail(Point("runtime.get", fakes.points.count("runtime.get")), Unavailable("containerd is away"))

    with pytest.raises(Unavailable):
        await settle_all(fakes)

    assert record(fakes, pod).state is SandboxState.READY, "nobody knows yet"
    assert not log_lines
