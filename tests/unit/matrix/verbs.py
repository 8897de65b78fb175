"""The mutating verbs, and what holds after each of them has succeeded, or failed, wherever it was interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sandboxd.containerd.tasks import TaskState
from sandboxd.containers import checkpoint, create, exec, remove, resources, start, stop
from sandboxd.model import ContainerRecord, ContainerState, SandboxState
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import debts, replay, teardown
from sandboxd.pods import resources as pod_resources
from sandboxd.steps import PluginExecution, StepRecord
from tests.fakes.bundle import Bundle, container_config, pod_config
from tests.fakes.runtime import Program
from tests.unit.pods.pooled import filled

ECHO = ("echo", "hi")
PROGRAMS = {ECHO: Program(output=b"hi\n", code=0), ("/bin/app",): Program(handles={15: 0})}
LIMITS = cri.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=1 << 26)
POD_LIMITS = cri.LinuxContainerResources(cpu_shares=2048)


@dataclass(slots=True)
class World:
    """A bundle, and the pod and container that a verb is about."""

    fakes: Bundle
    pod: cri.PodSandboxConfig = field(default_factory=pod_config)
    handler: str = ""
    config: cri.ContainerConfig = field(default_factory=container_config)
    sandbox_id: str = ""
    container_id: str = ""
    before: list[str] = field(default_factory=list)  # what was there before the verb

    @property
    def container(self) -> ContainerRecord:
        return self.fakes.node.ledger.containers[self.container_id]

    def there(self) -> list[str]:
        """Everything that is there, in the fakes, the directories and the ledger."""
        return sorted([*self.fakes.left(), *self.fakes.records()])

    def without_owner(self) -> list[str]:
        """What is there and belongs to no record: its name does not hold the id of one."""
        ledger = self.fakes.node.ledger
        owners = {
            *ledger.sandboxes,
            *ledger.containers,
            *(each.sandbox_id for each in ledger.attachments),
        }
        return [item for item in self.there() if not any(owner[:16] in item for owner in owners)]

    async def run(self) -> str:
        return await self.fakes.ready_pod(self.pod, self.handler)

    async def create(self) -> str:
        return await create.create_container(self.fakes.node, self.sandbox_id, self.config)

    async def clear(self) -> None:
        """Remove every container and pod, as a client would, then pay what is owed, as the daemon does by itself."""
        node = self.fakes.node
        for container_id in tuple(node.ledger.containers):
            await remove.remove_container(node, container_id)
        for sandbox_id in tuple(node.ledger.sandboxes):
            await teardown.remove_sandbox(node, sandbox_id)
        for attachment in node.ledger.attachments:
            await debts.pay(node, attachment.sandbox_id)
        await self.fakes.settled()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One mutating request."""

    name: str
    least: int  # awaited calls: were there fewer, something would no longer be covered
    before: Callable[[World], Awaitable[None]]
    call: Callable[[World], Coroutine[Any, Any, object]]
    done: Callable[[World], None]  # asserts that it has succeeded
    undone: Callable[[World], None]  # asserts that nothing is left of it, or that a record says why
    joins: bool = True  # the same request while it runs is the same job; an exec is one of its own
    compared: bool = False  # what an unexpected failure leaves is found by the next comparison, as after a crash


def node(world: World) -> Node:
    return world.fakes.node


def task_state(world: World, container_id: str) -> TaskState | None:
    task = world.fakes.runtime.tasks.get(container_id)
    return task.init.state if task else None


def as_before(world: World) -> None:
    assert world.there() == world.before


def recorded(command: str, type_: str) -> StepRecord:
    """What was executed for a pod that is gone."""
    execution = PluginExecution(
        command=command,
        binary=f"/plugins/{type_}",
        env={"CNI_COMMAND": command, "CNI_CONTAINERID": "a" * 64, "CNI_NETNS": "/run/netns/a", "CNI_IFNAME": "eth0"},
        stdin=json.dumps({"cniVersion": "1.0.0", "name": "pods", "type": type_}).encode(),
        stdout=b"",
        stderr=b"",
        exit_code=0,
        duration=1,
    )
    return StepRecord(
        operation="RunPodSandbox",
        name=f"cni.{command.lower()}",
        sandbox_id="a" * 64,
        container_id="",
        started_at=1,
        duration=1,
        error="",
        plugin=execution,
    )


RECORDED = [recorded("ADD", "bridge"), recorded("DEL", "bridge")]


def as_before_or_owed(world: World) -> None:
    """Nothing is left, or a debt that has the namespace's owner."""
    owed = {debt.attachment.sandbox_id for debt in debts.listed(node(world))}
    assert [item for item in world.there() if not any(each in item for each in owed)] == world.before


# RunPodSandbox


async def nothing(world: World) -> None:
    """The pod does not exist yet."""


async def on_host(world: World) -> None:
    world.pod.linux.security_context.namespace_options.network = cri.NODE


async def with_sysctl(world: World) -> None:
    world.pod.linux.sysctls["net.ipv4.conf.eth0.forwarding"] = "1"


async def pinned(world: World) -> None:
    world.handler = world.fakes.with_pinned()
    world.pod.linux.security_context.namespace_options.pid = cri.CONTAINER
    world.config.linux.security_context.namespace_options.pid = cri.CONTAINER


def pod_is_pinned(world: World) -> None:
    (record,) = world.fakes.node.ledger.sandboxes.values()
    assert record.state is SandboxState.READY
    assert record.pinned and record.ips
    assert task_state(world, record.id) is None
    assert len(world.fakes.netns.pinned) == 3
    assert len(world.fakes.kernel.mounts) == 2


async def with_prepared(world: World) -> None:
    await filled(world.fakes)


def as_before_or_less(world: World) -> None:
    """Nothing is left but, when it was not touched, the prepared pod."""
    assert world.there() in ([], world.before)


def pod_runs(world: World) -> None:
    (record,) = world.fakes.node.ledger.sandboxes.values()
    assert record.state is SandboxState.READY
    assert task_state(world, record.id) is TaskState.RUNNING
    assert bool(record.netns_path) == bool(world.fakes.netns.pinned) == bool(world.fakes.cni.attached)
    assert bool(record.ips) == bool(record.netns_path)
    assert len(world.fakes.kernel.mounts) == 2


# CreateContainer


async def pod(world: World) -> None:
    world.sandbox_id = await world.run()


async def pod_and_image_mount(world: World) -> None:
    await pod(world)
    world.config.mounts.append(cri.Mount(container_path="/models", image=cri.ImageSpec(image="app"), readonly=True))
    volumes = world.fakes.directory / "mounted"
    volumes.mkdir()
    world.config.mounts.append(cri.Mount(container_path="/host", host_path=str(volumes)))


def container_created(world: World) -> None:
    (record,) = world.fakes.node.ledger.containers.values()
    assert record.state is ContainerState.CREATED
    assert record.id in world.fakes.runtime.containers and record.id in world.fakes.images.snapshots


def no_container(world: World) -> None:
    """Nothing is left, but for images that the pod has mounted for whichever container asks next."""
    kept = [item for item in world.there() if "image-volumes" not in item and "-image-" not in item]
    assert kept == world.before
    assert task_state(world, world.sandbox_id) is TaskState.RUNNING


# StartContainer


async def created(world: World) -> None:
    await pod(world)
    world.container_id = await world.create()


async def created_with_log(world: World) -> None:
    world.pod.log_directory = str(world.fakes.directory / "log")
    world.config.log_path = "app.log"
    world.config.stdin = True
    await created(world)


def container_runs(world: World) -> None:
    assert world.container.state is ContainerState.RUNNING
    assert task_state(world, world.container_id) is TaskState.RUNNING
    assert world.container_id in world.fakes.logs.opened


def start_failed(world: World) -> None:
    """The container has ended, and says why, and nothing of it runs; or it was cut off and what came of it is so."""
    if world.container.state is ContainerState.RUNNING:
        container_runs(world)
    elif world.container.state is ContainerState.CREATED:
        as_before(world)
    else:
        assert world.container.state is ContainerState.EXITED
        assert (world.container.reason, bool(world.container.message)) == ("StartError", True)
        assert world.container_id not in world.fakes.logs.opened
        assert task_state(world, world.container_id) is None
        own = world.fakes.places.container(world.container_id)
        assert [item for item in world.there() if item != own] == world.before


# StopContainer, RemoveContainer


async def running(world: World) -> None:
    await created_with_log(world)
    await start.start_container(world.fakes.node, world.container_id)
    await world.fakes.settled()


async def deaf(world: World) -> None:
    """It does not listen to its stop signal."""
    world.config.command.append("/bin/deaf")
    await running(world)


def container_ended(world: World) -> None:
    assert world.container.state is ContainerState.EXITED
    assert world.container.reason in ("Completed", "Error")
    assert task_state(world, world.container_id) is None
    assert world.container_id not in world.fakes.logs.opened


def runs_or_has_ended(world: World) -> None:
    """What the record says agrees with what is so."""
    runs = task_state(world, world.container_id) is TaskState.RUNNING
    if world.container.state is ContainerState.RUNNING:
        assert world.container_id in world.fakes.runtime.containers
    else:
        assert not runs


def container_gone(world: World) -> None:
    assert world.container_id not in world.fakes.node.ledger.containers
    assert not [item for item in world.there() if world.container_id in item]


def record_stays(world: World) -> None:
    assert world.container_id in world.fakes.node.ledger.containers


# StopPodSandbox, RemovePodSandbox


async def pod_with_containers(world: World) -> None:
    await running(world)
    idle = container_config("idle")
    idle.linux.CopyFrom(world.config.linux)
    await create.create_container(world.fakes.node, world.sandbox_id, idle)


async def pinned_pod_with_containers(world: World) -> None:
    await pinned(world)
    await pod_with_containers(world)


def owed(world: World) -> list[str]:
    return [attachment.error for attachment in world.fakes.node.ledger.attachments]


def pod_stopped(world: World) -> None:
    record = world.fakes.node.ledger.sandboxes[world.sandbox_id]
    assert (record.state, record.failure) == (SandboxState.NOTREADY, "")
    assert not world.fakes.runtime.tasks
    assert not world.fakes.kernel.mounts
    assert not world.fakes.logs.opened
    if owed(world):
        assert all(owed(world))
    else:
        assert not world.fakes.netns.pinned
        assert not world.fakes.cni.left()


def pod_gone(world: World) -> None:
    assert not world.fakes.node.ledger.sandboxes
    if owed(world):
        assert all(owed(world))
        return
    assert world.there() == []


def pod_says_why(world: World) -> None:
    record = world.fakes.node.ledger.sandboxes[world.sandbox_id]
    assert record.failure
    assert record.state is SandboxState.NOTREADY


# Updates


def limits(world: World) -> tuple[int, int]:
    """CPU shares: of the record, of the spec from which it would be started."""
    spec = json.loads(world.fakes.runtime.containers[world.container_id].spec)
    stored = spec["linux"]["resources"].get("cpu", {}).get("shares", 0)
    return world.container.config.linux.resources.cpu_shares, stored


def limits_changed(world: World) -> None:
    assert limits(world) == (512, 512)
    assert world.fakes.runtime.tasks[world.container_id].limits["cpu"]["shares"] == 512


def limits_as_before(world: World) -> None:
    recorded, stored = limits(world)
    assert recorded == 0
    assert stored != 512
    assert task_state(world, world.container_id) is TaskState.RUNNING
    as_before(world)


def pod_limits_changed(world: World) -> None:
    record = world.fakes.node.ledger.sandboxes[world.sandbox_id]
    assert record.config.linux.resources.cpu_shares == 2048


# CheckpointContainer


def archive(world: World) -> Path:
    return world.fakes.directory / "checkpoint.tar"


async def checkpointable(world: World) -> None:
    """A CRIU that fits, before everything else in PATH."""
    criu = world.fakes.directory / "bin" / "criu"
    criu.parent.mkdir()
    criu.write_text("#!/bin/sh\nexit 0\n")
    criu.chmod(0o755)
    world.fakes.patch.setenv("PATH", f"{criu.parent}:{os.environ['PATH']}")
    await running(world)


def runs_on(world: World) -> None:
    container_runs(world)
    assert not world.fakes.images.packed
    as_before(world)


def checkpoint_taken(world: World) -> None:
    runs_on(world)
    assert archive(world).is_file()


def no_checkpoint(world: World) -> None:
    runs_on(world)
    assert not archive(world).exists()


# Exec


def no_process(world: World) -> None:
    assert not world.fakes.runtime.tasks[world.container_id].execs
    assert not os.path.isdir(directory := world.fakes.places.execs(world.container_id)) or not os.listdir(directory)
    container_runs(world)


async def exec_once(world: World) -> object:
    """A process that a client drives: opened and closed by jobs, as the streaming server does it."""
    jobs, streams = node(world).jobs, ("stdin", "stdout", "stderr")

    async def session() -> int:
        pending = exec.Pending(node(world), world.container_id, ECHO, tty=False, streams=streams)
        await pending.admit()
        process = await pending.start()
        try:
            await process.write_stdin(b"x")
            await process.close_stdin()
            return await process.wait()
        finally:
            jobs.start(("close",), process.close)

    return await jobs.run_to_end(("session",), session)


VERBS: Sequence[Verb] = (
    Verb(name="RunPodSandbox", least=9, before=nothing, call=World.run, done=pod_runs, undone=as_before),
    Verb(name="RunPodSandbox host", least=6, before=on_host, call=World.run, done=pod_runs, undone=as_before),
    Verb(name="RunPodSandbox serial", least=9, before=with_sysctl, call=World.run, done=pod_runs, undone=as_before),
    Verb(name="RunPodSandbox pinned", least=5, before=pinned, call=World.run, done=pod_is_pinned, undone=as_before),
    Verb(
        name="RunPodSandbox of a prepared pod",
        least=6,
        before=with_prepared,
        call=World.run,
        done=pod_runs,
        undone=as_before_or_less,
    ),
    Verb(name="CreateContainer", least=5, before=pod, call=World.create, done=container_created, undone=no_container),
    Verb(
        name="CreateContainer with mounts",
        least=9,
        before=pod_and_image_mount,
        call=World.create,
        done=container_created,
        undone=no_container,
    ),
    Verb(
        name="StartContainer",
        least=4,
        before=created_with_log,
        call=lambda world: start.start_container(node(world), world.container_id),
        done=container_runs,
        undone=start_failed,
    ),
    Verb(
        name="StopContainer",
        least=5,
        before=running,
        call=lambda world: stop.stop_container(node(world), world.container_id, 5),
        done=container_ended,
        undone=runs_or_has_ended,
        compared=True,
    ),
    Verb(
        name="StopContainer by force",
        least=6,
        before=deaf,
        call=lambda world: stop.stop_container(node(world), world.container_id, 5),
        done=container_ended,
        undone=runs_or_has_ended,
        compared=True,
    ),
    Verb(
        name="RemoveContainer",
        least=7,
        before=running,
        call=lambda world: remove.remove_container(node(world), world.container_id),
        done=container_gone,
        undone=record_stays,
    ),
    Verb(
        name="StopPodSandbox",
        least=12,
        before=pod_with_containers,
        call=lambda world: teardown.stop_sandbox(node(world), world.sandbox_id),
        done=pod_stopped,
        undone=pod_says_why,
    ),
    Verb(
        name="RemovePodSandbox",
        least=28,
        before=pod_with_containers,
        call=lambda world: teardown.remove_sandbox(node(world), world.sandbox_id),
        done=pod_gone,
        undone=pod_says_why,
    ),
    Verb(
        name="StopPodSandbox pinned",
        least=10,
        before=pinned_pod_with_containers,
        call=lambda world: teardown.stop_sandbox(node(world), world.sandbox_id),
        done=pod_stopped,
        undone=pod_says_why,
    ),
    Verb(
        name="RemovePodSandbox pinned",
        least=20,
        before=pinned_pod_with_containers,
        call=lambda world: teardown.remove_sandbox(node(world), world.sandbox_id),
        done=pod_gone,
        undone=pod_says_why,
    ),
    Verb(
        name="UpdateContainerResources",
        least=3,
        before=running,
        call=lambda world: resources.update_container(node(world), world.container_id, LIMITS),
        done=limits_changed,
        undone=limits_as_before,
    ),
    Verb(
        name="UpdatePodSandboxResources",
        least=0,
        before=pod,
        call=lambda world: pod_resources.update_sandbox(
            node(world), world.sandbox_id, cri.UpdatePodSandboxResourcesRequest(resources=POD_LIMITS)
        ),
        done=pod_limits_changed,
        undone=as_before,
    ),
    Verb(
        name="CheckpointContainer",
        least=8,
        before=checkpointable,
        call=lambda world: checkpoint.checkpoint_container(node(world), world.container_id, str(archive(world)), 60),
        done=checkpoint_taken,
        undone=no_checkpoint,
        compared=True,
    ),
    Verb(
        name="Replay",
        least=5,
        before=pod,
        call=lambda world: replay.replay(node(world), RECORDED, RECORDED[-1], "default/web"),
        done=as_before_or_owed,
        undone=as_before_or_owed,
        joins=False,
        compared=True,
    ),
    Verb(
        name="ExecSync",
        least=5,
        before=running,
        call=lambda world: exec.exec_sync(node(world), world.container_id, ECHO, 0),
        done=no_process,
        undone=no_process,
        joins=False,
        compared=True,
    ),
    Verb(
        name="Exec",
        least=6,
        before=running,
        call=exec_once,
        done=no_process,
        undone=no_process,
        joins=False,
        compared=True,
    ),
)


@asynccontextmanager
async def world(verb: Verb, directory: Path) -> AsyncIterator[World]:
    """The state before a verb, in a new directory below `directory`; the points count from here."""
    place = Path(tempfile.mkdtemp(dir=directory))
    with pytest.MonkeyPatch.context() as patch, Bundle(place, patch, PROGRAMS) as fakes:
        made = World(fakes)
        await verb.before(made)
        await fakes.settled()
        made.before = made.there()
        fakes.points.reset()
        fakes.points.watch_threads(asyncio.get_running_loop(), patch)
        yield made
