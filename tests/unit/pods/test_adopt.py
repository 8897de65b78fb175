"""What the ledger has lost comes back from containerd, the namespaces and the tasks; nobody else's does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd import steps
from sandboxd.cni import result
from sandboxd.containerd.client import OWNER_LABEL
from sandboxd.containerd.tasks import TaskState
from sandboxd.containers.create import create_container
from sandboxd.containers.ending import kill
from sandboxd.containers.resources import update_container
from sandboxd.containers.start import start_container
from sandboxd.errors import NotReady, Unavailable
from sandboxd.jobs import Jobs
from sandboxd.ledger import Ledger
from sandboxd.model import AttachmentState, ContainerRecord, ContainerState, SandboxRecord, SandboxState
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import adopt, boots, recover
from sandboxd.pods.teardown import remove_sandbox, stop_sandbox
from tests.fakes.bundle import Bundle, container_config, pod_config
from tests.fakes.points import Point
from tests.unit.pods.conftest import LogLines
from tests.unit.pods.requests import on_host, with_own_pids

ADOPTED = "a pod that the ledger had lost is adopted"
REFUSED = "what containerd has of us is unknown and cannot be adopted"


@pytest.fixture(autouse=True)
def quiet(log_lines: LogLines) -> LogLines:
    return log_lines


def lose(fakes: Bundle) -> Node:
    """Another daemon, with an empty ledger."""
    fakes.node.ledger.close()
    fakes.node = replace(fakes.node, ledger=Ledger(":memory:"), jobs=Jobs())
    fakes.points.reset()
    return fakes.node


async def recovered(fakes: Bundle) -> Node:
    """The node, after the ledger was lost and the daemon started."""
    node = lose(fakes)
    await recover.recover(node)
    await fakes.repaired()
    return node


async def pod_with_address(
    fakes: Bundle, config: cri.PodSandboxConfig | None = None, handler: str = ""
) -> SandboxRecord:
    pod_id = await fakes.ready_pod(config, handler)
    await fakes.settled()
    record = fakes.node.ledger.sandboxes[pod_id]
    fakes.netns.addresses[record.netns_path] = {"eth0": ("10.88.0.2/16", "fd00::2/64", "fe80::1/64")}
    return record


async def container_in(fakes: Bundle, pod_id: str, config: cri.ContainerConfig | None = None) -> ContainerRecord:
    container_id = await create_container(fakes.node, pod_id, config or container_config())
    await start_container(fakes.node, container_id)
    await fakes.settled()
    return fakes.node.ledger.containers[container_id]


async def removed(fakes: Bundle, *pods: str) -> bool:
    """Whether nothing is left once these were removed."""
    for pod_id in pods:
        await remove_sandbox(fakes.node, pod_id)
    await fakes.settled()
    return not fakes.left() and not fakes.records()


# Pods


async def test_a_pod_that_runs_is_as_it_was(fakes: Bundle, log_lines: LogLines) -> None:
    was = await pod_with_address(fakes)
    node = await recovered(fakes)
    now = node.ledger.sandboxes[was.id]
    assert replace(now, started_at=was.started_at, ips=was.ips) == was
    assert now.state is SandboxState.READY and now.started_at
    assert now.ips == ("10.88.0.2", "fd00::2"), "as they are in the namespace, without what the kernel made"
    assert [line["sandbox"] for line in log_lines if line["event"] == ADOPTED] == [was.id]
    assert await fakes.ready_pod() == was.id, "the same request again"
    assert await removed(fakes, was.id)


async def test_its_attachment_is_the_one_that_add_was_given_with_a_result_from_its_namespace(fakes: Bundle) -> None:
    was = await pod_with_address(fakes)
    (before,) = fakes.node.ledger.attachments
    node = await recovered(fakes)
    (now,) = node.ledger.attachments
    assert replace(now, result=before.result) == before
    assert now.state is AttachmentState.ADDED
    parsed = result.parse_result(now.result, "bridge")
    assert parsed.cni_version == "1.0.0", "of its configuration"
    assert [(each.name, each.mac, each.sandbox) for each in parsed.interfaces] == [
        ("eth0", "00:00:00:00:00:01", was.netns_path)
    ]
    assert [(each.address, each.interface) for each in parsed.ips] == [("10.88.0.2/16", 0), ("fd00::2/64", 0)]
    assert await removed(fakes, was.id)


async def test_it_is_told_in_the_timeline(fakes: Bundle) -> None:
    was = await pod_with_address(fakes)
    node = lose(fakes)
    unsubscribe = steps.subscribe(node.ledger.append_step)
    try:
        await recover.recover(node)
    finally:
        unsubscribe()
    (step,) = node.ledger.timeline(was.id)
    assert (step.name, step.operation, step.detail["ips"]) == ("pod.adopt", "recover", "10.88.0.2,fd00::2")


async def test_a_pod_in_the_hosts_network_comes_back_too(fakes: Bundle) -> None:
    pod_id = await fakes.ready_pod(on_host())
    await fakes.settled()
    node = await recovered(fakes)
    assert node.ledger.sandboxes[pod_id].state is SandboxState.READY
    assert not node.ledger.attachments
    assert await removed(fakes, pod_id)


async def test_a_pod_that_was_stopped_is_not_ready_and_can_be_removed(fakes: Bundle) -> None:
    was = await pod_with_address(fakes)
    await stop_sandbox(fakes.node, was.id)
    node = await recovered(fakes)
    now = node.ledger.sandboxes[was.id]
    assert (now.state, now.ips, now.pid) == (SandboxState.NOTREADY, (), 0)
    await stop_sandbox(node, was.id)
    assert await removed(fakes, was.id)


async def test_a_pod_whose_pause_container_ended_meanwhile_is_not_ready(fakes: Bundle) -> None:
    was = await pod_with_address(fakes)
    await container_in(fakes, was.id)
    fakes.runtime.tasks[was.id].init.end(137)
    node = await recovered(fakes)
    now = node.ledger.sandboxes[was.id]
    assert now.state is SandboxState.NOTREADY and now.exited_at
    assert now.ips, "it has its namespace"
    assert await removed(fakes, was.id)


@pytest.mark.parametrize("task", [None, TaskState.CREATED, TaskState.STOPPED])
async def test_a_pod_that_was_being_made_or_undone_is_removed(fakes: Bundle, task: TaskState | None) -> None:
    was = await pod_with_address(fakes)
    if task is None:
        fakes.runtime.tasks.pop(was.id)
    elif task is TaskState.CREATED:
        fakes.runtime.tasks[was.id].init.state = task
    else:
        fakes.runtime.tasks[was.id].init.end(137)
    await recovered(fakes)
    assert not fakes.left() and not fakes.records()


async def test_a_pod_without_a_pause_container_is_as_it_was(fakes: Bundle) -> None:
    was = await pod_with_address(fakes, with_own_pids(), fakes.with_pinned())
    node = await recovered(fakes)
    now = node.ledger.sandboxes[was.id]
    assert replace(now, started_at=was.started_at, ips=was.ips) == was
    assert now.state is SandboxState.READY and now.ips
    assert await removed(fakes, was.id)


async def test_one_that_was_stopped_is_not_ready(fakes: Bundle) -> None:
    was = await pod_with_address(fakes, with_own_pids(), fakes.with_pinned())
    await stop_sandbox(fakes.node, was.id)
    node = await recovered(fakes)
    assert node.ledger.sandboxes[was.id].state is SandboxState.NOTREADY
    assert await removed(fakes, was.id)


async def test_one_whose_plugins_had_not_answered_was_being_made_and_is_removed(fakes: Bundle) -> None:
    was = await pod_with_address(fakes, with_own_pids(), fakes.with_pinned())
    fakes.netns.addresses.clear()
    await recovered(fakes)
    assert was.pinned and not fakes.left() and not fakes.records()


async def test_a_pod_of_an_earlier_boot_has_ended_and_gives_its_address_back(fakes: Bundle) -> None:
    fakes.node = replace(fakes.node, machine=replace(fakes.node.machine, boot="first"))
    was = await pod_with_address(fakes)
    container = await container_in(fakes, was.id)
    fakes.runtime.tasks.clear()
    fakes.netns.pinned.clear()
    fakes.node = replace(fakes.node, machine=replace(fakes.node.machine, boot="second"))
    node = await recovered(fakes)
    now = node.ledger.sandboxes[was.id]
    assert (now.state, now.ips, now.failure) == (SandboxState.NOTREADY, (), boots.ENDED)
    assert node.ledger.containers[container.id].state is ContainerState.EXITED
    assert not fakes.cni.left() and not node.ledger.attachments
    assert await removed(fakes, was.id)


async def test_a_namespace_that_somebody_unpinned_is_pinned_again_and_read(fakes: Bundle) -> None:
    was = await pod_with_address(fakes)
    fakes.netns.inside[was.pid, "net"] = was.netns_inode
    Path(was.netns_path).unlink()
    node = await recovered(fakes)
    now = node.ledger.sandboxes[was.id]
    assert (now.state, now.ips) == (SandboxState.READY, ("10.88.0.2", "fd00::2"))
    assert await removed(fakes, was.id)


# Containers


async def test_a_container_that_runs_is_as_it_was_and_is_logged_on(fakes: Bundle) -> None:
    pod = await pod_with_address(fakes)
    was = await container_in(fakes, pod.id)
    node = await recovered(fakes)
    now = node.ledger.containers[was.id]
    assert replace(now, created_at=was.created_at, started_at=was.started_at) == was
    assert (now.state, now.user) == (ContainerState.RUNNING, (7, 7, 7))
    assert now.created_at and now.started_at
    assert was.id in fakes.logs.opened
    assert await removed(fakes, pod.id)


async def test_one_that_was_not_started_can_be_started(fakes: Bundle) -> None:
    pod = await pod_with_address(fakes)
    container_id = await create_container(fakes.node, pod.id, container_config())
    node = await recovered(fakes)
    assert node.ledger.containers[container_id].state is ContainerState.CREATED
    await start_container(node, container_id)
    assert node.ledger.containers[container_id].state is ContainerState.RUNNING
    assert await removed(fakes, pod.id)


async def test_one_that_ended_meanwhile_has_its_exit_code_while_its_task_is_there(fakes: Bundle) -> None:
    pod = await pod_with_address(fakes)
    was = await container_in(fakes, pod.id)
    fakes.runtime.tasks[was.id].init.end(5)
    node = await recovered(fakes)
    now = node.ledger.containers[was.id]
    assert (now.state, now.exit_code, now.reason) == (ContainerState.EXITED, 5, "Error")
    assert now.started_at <= now.finished_at
    assert await removed(fakes, pod.id)


async def test_one_whose_end_only_the_ledger_knew_has_ended_in_a_way_that_is_not_known(fakes: Bundle) -> None:
    pod = await pod_with_address(fakes)
    was = await container_in(fakes, pod.id)
    await kill(fakes.node, was.id)
    await fakes.runtime.delete(was.id)
    node = await recovered(fakes)
    now = node.ledger.containers[was.id]
    assert (now.state, now.exit_code, now.reason) == (ContainerState.EXITED, 255, "Unknown")
    assert await removed(fakes, pod.id)


async def test_limits_that_were_changed_are_those_that_come_back(fakes: Bundle) -> None:
    pod = await pod_with_address(fakes)
    was = await container_in(fakes, pod.id)
    await update_container(fakes.node, was.id, cri.LinuxContainerResources(cpu_shares=512))
    node = await recovered(fakes)
    assert node.ledger.containers[was.id].config.linux.resources.cpu_shares == 512
    assert await removed(fakes, pod.id)


# Parts of a ledger


async def test_a_lost_container_comes_back_to_a_pod_that_is_known(fakes: Bundle) -> None:
    pod = await pod_with_address(fakes)
    was = await container_in(fakes, pod.id)
    fakes.node.ledger.remove_container(was.id)
    await recover.recover(fakes.node)
    assert fakes.node.ledger.containers[was.id].state is ContainerState.RUNNING
    assert fakes.node.ledger.sandboxes[pod.id] == pod
    assert await removed(fakes, pod.id)


async def test_a_lost_pod_comes_back_to_containers_that_are_known(fakes: Bundle) -> None:
    pod = await pod_with_address(fakes)
    was = await container_in(fakes, pod.id)
    node = lose(fakes)
    node.ledger.add_container(was)
    await recover.recover(node)
    assert node.ledger.sandboxes[pod.id].state is SandboxState.READY
    assert node.ledger.containers[was.id] == was
    assert await removed(fakes, pod.id)


async def test_a_lost_attachment_comes_back_to_a_pod_that_is_known(fakes: Bundle) -> None:
    pod = await pod_with_address(fakes)
    (was,) = fakes.node.ledger.attachments
    fakes.node.ledger.remove_attachment(was)
    await recover.recover(fakes.node)
    (now,) = fakes.node.ledger.attachments
    assert (replace(now, result=was.result), fakes.node.ledger.sandboxes[pod.id]) == (was, pod)
    assert await removed(fakes, pod.id)


async def test_nothing_comes_back_that_is_not_lost(fakes: Bundle, log_lines: LogLines) -> None:
    pod = await pod_with_address(fakes)
    await container_in(fakes, pod.id)
    stopped = await pod_with_address(fakes, pod_config("stopped"))
    await stop_sandbox(fakes.node, stopped.id)
    ledger = fakes.node.ledger
    before = dict(ledger.sandboxes), dict(ledger.containers), ledger.attachments
    await adopt.adopt(fakes.node)
    assert (dict(ledger.sandboxes), dict(ledger.containers), ledger.attachments) == before
    assert not [line for line in log_lines if line["event"] in (ADOPTED, REFUSED)]


# What cannot be put back


@pytest.fixture
def refused(log_lines: LogLines) -> Iterator[list[str]]:
    """The ids of what is found to be impossible to put back."""
    found: list[str] = []
    yield found
    assert found == [line["id"] for line in log_lines if line["event"] == REFUSED]


@pytest.mark.parametrize("owner", [None, "another daemon"])
async def test_strangers_are_left_alone(fakes: Bundle, refused: list[str], owner: str | None) -> None:
    pod = await pod_with_address(fakes)
    labels = {key: value for key, value in fakes.runtime.containers[pod.id].labels.items() if key != OWNER_LABEL}
    fakes.runtime.containers[pod.id].labels = {**labels, OWNER_LABEL: owner} if owner else labels
    before = fakes.left()
    node = await recovered(fakes)
    assert (node.ledger.sandboxes, fakes.left()) == ({}, before)


@pytest.mark.parametrize("kept", [b"", b"{", b"\xff\x00", b'{"version": 99}', b"[]"])
async def test_what_cannot_be_read_is_left_and_told_and_so_are_its_containers(
    fakes: Bundle, refused: list[str], kept: bytes
) -> None:
    pod, other = await pod_with_address(fakes), await pod_with_address(fakes, pod_config("other"))
    container = await container_in(fakes, pod.id)
    fakes.runtime.containers[pod.id].kept = kept
    before = fakes.left()
    node = await recovered(fakes)
    assert (set(node.ledger.sandboxes), fakes.left()) == ({other.id}, before)
    assert not node.jobs.retries.failing(adopt.KEY), "it would fail for ever"
    refused += [pod.id, container.id]


async def test_of_two_with_one_name_the_one_that_runs_comes_back(fakes: Bundle, refused: list[str]) -> None:
    first = await pod_with_address(fakes)
    await stop_sandbox(fakes.node, first.id)
    fakes.node.ledger.remove_sandbox(first.id)
    second = await pod_with_address(fakes)
    fakes.runtime.containers[first.id].created_at = fakes.runtime.containers[second.id].created_at + 1
    node = await recovered(fakes)
    assert set(node.ledger.sandboxes) == {second.id}
    refused += [first.id]


async def test_a_name_that_is_in_use_by_now_stays_with_its_holder(fakes: Bundle, refused: list[str]) -> None:
    old = await pod_with_address(fakes)
    lose(fakes)
    new = await pod_with_address(fakes)
    await recover.recover(fakes.node)
    assert set(fakes.node.ledger.sandboxes) == {new.id}
    assert [each.sandbox_id for each in fakes.node.ledger.attachments] == [new.id]
    refused += [old.id]


@pytest.mark.parametrize("stopped_first", [True, False])
async def test_a_container_that_cannot_be_put_back_ends_and_goes_with_its_pod(
    fakes: Bundle, refused: list[str], stopped_first: bool
) -> None:
    pod = await pod_with_address(fakes)
    container = await container_in(fakes, pod.id)
    fakes.runtime.containers[container.id].kept = b"{"
    node = await recovered(fakes)
    refused += [container.id]
    assert not node.ledger.containers
    if stopped_first:
        await stop_sandbox(node, pod.id)
        assert not fakes.runtime.tasks
    assert await removed(fakes, pod.id)
    assert not node.ledger.strays


async def test_a_container_that_was_to_be_put_back_later_goes_with_its_pod_meanwhile(fakes: Bundle) -> None:
    pod = await pod_with_address(fakes)
    await container_in(fakes, pod.id)
    node = lose(fakes)
    fakes.points.fail(Point("runtime.spec", 1), NotReady("no"))
    await recover.recover(node)
    assert (set(node.ledger.sandboxes), set(node.ledger.containers)) == ({pod.id}, set())
    assert await removed(fakes, pod.id)


# What fails for the moment


async def test_without_containerd_a_start_is_told_so(fakes: Bundle) -> None:
    fakes.points.fail_always("runtime.records.list", Unavailable("containerd does not answer"))
    with pytest.raises(Unavailable):
        await recover.recover(fakes.node)


@pytest.mark.parametrize("error", [NotReady("no"), MemoryError(), OSError(24, "Too many open files"), KeyError("x")])
async def test_what_fails_for_the_moment_is_put_back_by_a_later_comparison(fakes: Bundle, error: Exception) -> None:
    pod, other = await pod_with_address(fakes), await pod_with_address(fakes, pod_config("other"))
    node = lose(fakes)
    fakes.points.fail(Point("netns.interfaces", 0), error)
    await recover.recover(node)
    assert len(node.ledger.sandboxes) == 1, "the other one does not wait"
    await recover.compare(node)
    assert len(node.ledger.sandboxes) == 1, "it failed a moment ago"
    node.jobs.retries.hurry()
    await recover.compare(node)
    assert set(node.ledger.sandboxes) == {pod.id, other.id}
    assert not node.jobs.retries.failing(adopt.KEY)
    assert await removed(fakes, pod.id, other.id)


async def test_one_that_hangs_holds_up_neither_the_start_nor_the_others(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt, "SECONDS", 1.0)
    pod, other = await pod_with_address(fakes), await pod_with_address(fakes, pod_config("other"))
    node = lose(fakes)
    fakes.points.hang(Point("netns.interfaces", 0))
    await recover.recover(node)
    assert len(node.ledger.sandboxes) == 1
    fakes.points.reset()
    node.jobs.retries.hurry()
    await recover.compare(node)
    assert set(node.ledger.sandboxes) == {pod.id, other.id}


async def test_what_is_removed_while_it_is_looked_for_does_not_come_back(fakes: Bundle) -> None:
    pod = await pod_with_address(fakes)
    container = await container_in(fakes, pod.id)
    fakes.node.ledger.remove_container(container.id)  # so that there is something to look at
    fakes.points.reset()
    fakes.points.hang(Point("runtime.records.list", 0), after=True)
    adopting = asyncio.ensure_future(adopt.adopt(fakes.node))
    await fakes.points.hangs.wait()
    fakes.runtime.tasks.pop(container.id)
    await remove_sandbox(fakes.node, pod.id)
    await fakes.runtime.delete_container(container.id)
    fakes.points.release()
    await adopting
    assert not fakes.records()


def test_what_is_kept_holds_no_more_than_the_record(fakes: Bundle) -> None:
    """And the configuration of the network: nothing that containerd's own record would not show to root anyway."""

    async def kept() -> dict[str, object]:
        pod = await pod_with_address(fakes)
        return json.loads(fakes.runtime.containers[pod.id].kept)  # type: ignore[no-any-return]

    assert set(asyncio.run(kept())) == {"version", "config", "body", "attachment"}
