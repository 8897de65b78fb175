"""How containers end: stopping them, seeing that they have ended, and recording it.

A container has ended when its task has. Every caller (an event, StopContainer, the periodic comparison) asks
containerd before recording it (`settle_*`). The end is recorded before the task is deleted: containerd forgets the
exit code then. Nothing here needs the container's cooperation.
"""

from __future__ import annotations

import asyncio
import signal as signals
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeGuard

import structlog

from sandboxd.containerd.tasks import Exit, TaskState
from sandboxd.errors import CleanupIncomplete, NotFound, SandboxdError, TimedOut
from sandboxd.model import ContainerRecord, ContainerState
from sandboxd.node import Node

log = structlog.get_logger(__name__)

SOON_SECONDS = 1.0  # within which a SIGKILL shows, unless the task is paused or the machine slow
KILL_SECONDS = 30.0  # how long a SIGKILL may take to show; longer means a process stuck in the kernel
TOLD_SECONDS = 10.0  # for a shim to say how a task ended that it reports as stopped
VANISHED = 255  # exit code of a container whose end was not seen

OOM_KILLED = "OOMKilled"  # noted as a reason before the end, if an OOM event comes first
LATE_OOM_NS = 5_000_000_000  # how long after the container's end an OOM event may still arrive


def note_oom(node: Node, container_id: str) -> None:
    """Note that a process of the container was killed for lack of memory: the reason, if the container ends.

    The event may arrive before the exit or after it. Settling usually decides by the cgroup's counter; the event
    matters when systemd has removed the cgroup first, and for a process that has left the container's own cgroup.
    """
    container = node.ledger.containers.get(container_id)
    if container is None:
        return
    late = (
        node.places.cgroup_driver == "systemd"
        and container.reason in ("Completed", "Error")
        and time.time_ns() - container.finished_at < LATE_OOM_NS
    )
    if late or not container.finished_at:
        node.ledger.update_container(container_id, reason=OOM_KILLED)


async def kill(node: Node, task_id: str) -> Exit | None:
    """SIGKILL a task and wait until it has ended; how it did, None if it is gone.

    One that somebody has paused is resumed: on cgroup v1 a frozen process does not act even on SIGKILL, and not every
    OCI runtime thaws it. Raises CleanupIncomplete when it is still there after half a minute.
    """
    await node.runtime.kill(task_id, signals.SIGKILL)
    try:
        try:
            async with asyncio.timeout(SOON_SECONDS):
                return await node.runtime.wait(task_id, timeout=KILL_SECONDS)
        except TimeoutError:
            await resume(node, task_id)
            return await node.runtime.wait(task_id, timeout=KILL_SECONDS)
    except NotFound:
        return None
    except TimedOut as exc:
        raise CleanupIncomplete(f"the process of {task_id} did not end {KILL_SECONDS:g} s after SIGKILL") from exc


async def resume(node: Node, task_id: str) -> None:
    """Resume a task that is to end, if somebody has paused it. What fails is logged: it may end nevertheless."""
    try:
        await node.runtime.resume(task_id)
    except SandboxdError as exc:
        log.warning("a task that is to end could not be resumed", task=task_id, error=str(exc))


async def end(node: Node, container_id: str, *, freeing: bool = True) -> None:
    """`kill` a container, record how it ended and free it, or leave that to the caller. Its exit event finds that."""
    async with settling(node, container_id):
        ended = await kill(node, container_id)
        if await record_end(node, container_id, ended) and freeing:
            await free_recorded(node, container_id)


@asynccontextmanager
async def settling(node: Node, task_id: str) -> AsyncIterator[None]:
    """Only one caller at a time may inspect or delete an ended task: concurrent deletions fail when the shim exits.
    May be taken while the pod's lock is held, never the other way round."""
    async with node.jobs.exclusive(f"settle:{task_id}"):
        yield


async def free(node: Node, task_id: str) -> None:
    """Free what an ended task holds, its shim when it was the last; no error if it is gone.

    A container that was never started has a task only if its start was cut off.
    """
    async with settling(node, task_id):
        await node.runtime.delete(task_id)


async def exited(node: Node, container_id: str) -> None:
    """The container's process has exited, says containerd: `settle_container`, once a start under way is over."""
    container = node.ledger.containers.get(container_id)
    if container is not None and container.state is ContainerState.CREATED:
        async with node.jobs.exclusive(container.sandbox_id):
            pass
    await settle_container(node, container_id)


async def settle_container(node: Node, container_id: str) -> None:
    """If a running container's task has ended, record how and free it; no error if it runs on, or is not known.

    A container that is being started is left alone: StartContainer settles it once it is known to run. Freed before
    that, how it ended would be lost.
    """
    async with settling(node, container_id):
        if await record_end(node, container_id):
            await free_recorded(node, container_id)


async def record_end(node: Node, container_id: str, known: Exit | None = None) -> bool:
    """Record how a running container's task ended, if it has; whether that was done.

    Call it while settling, with what is `known` of it from waiting. All that the container wrote is in its log by
    then, and its task is still there.
    """
    container = node.ledger.containers.get(container_id)
    if container is None or container.state is not ContainerState.RUNNING:
        return False
    ended = known if _is_told(known) else await how_ended(node, container_id)
    if ended is None:
        return False
    oom = _oom_kills(node, container) > 0  # while its cgroup is there
    await node.logs.drain(container_id, node.config.logs.drain_seconds)
    vanished = ended.code == VANISHED and not ended.at
    node.ledger.update_container(
        container_id,
        pid=0,
        finished_at=ended.at or time.time_ns(),
        exit_code=ended.code,
        reason=_reason(node, container_id, ended, vanished=vanished, oom=oom),
        message="its process ended while sandboxd was not watching" if vanished else "",
    )
    log.info("container ended", sandbox=container.sandbox_id, container=container_id, code=ended.code)
    return True


def _oom_kills(node: Node, container: ContainerRecord) -> int:
    """How many of the container's processes an OOM killer ended; 0 when its cgroup is gone."""
    sandbox = node.ledger.sandboxes.get(container.sandbox_id)
    if sandbox is None:
        return 0
    return node.machine.cgroups.oom_kills(node.places.cgroup(sandbox, container.id)) or 0


def _reason(node: Node, container_id: str, end: Exit, *, vanished: bool, oom: bool) -> str:
    """CRI does not define the values; these are the ones that other runtimes use.

    OOMKilled as soon as an OOM killer has ended any of the container's processes, whatever its own exit code and
    whoever ended it: the memory that a child lacked is usually why a shell ends with a code of its own.
    """
    container = node.ledger.containers.get(container_id)
    noticed = container is not None and container.reason == OOM_KILLED
    if vanished:
        return "Unknown"
    if oom or noticed:
        return OOM_KILLED
    return "Completed" if end.code == 0 else "Error"


async def how_ended(node: Node, task_id: str) -> Exit | None:
    """How the task ended; None while it is running or has not been started.

    The task stays if it can: who asks records this first, and frees it then (`free_recorded`). The other way round a
    daemon that dies in between would lose the code. A shim that reports it only when it deletes the task is asked
    to. `at` is 0 when nothing reports when it ended.
    """
    try:
        task = await node.runtime.get(task_id)
        if task.state is not TaskState.STOPPED:
            return None
        if _is_told(task.exit):
            return task.exit
        waited = await node.runtime.wait(task_id, timeout=TOLD_SECONDS)
    except NotFound:
        return Exit(code=VANISHED, at=0)
    except TimedOut:
        waited = None
    if _is_told(waited):
        return waited
    ended = await node.runtime.delete(task_id) or waited or task.exit
    return Exit(code=VANISHED, at=0) if ended is None else replace(ended, at=max(0, ended.at))


def _is_told(end: Exit | None) -> TypeGuard[Exit]:
    """Whether it says when that was; a time that is not known is the year 1, or 0."""
    return end is not None and end.at > 0


async def free_recorded(node: Node, task_id: str) -> None:
    """`free` a task whose end is recorded and which is being settled; what fails is left to the next comparison.

    So is a task whose end is not on the disk yet: only containerd would know it if we died.
    """
    if node.ledger.commits.behind:
        return
    try:
        await node.runtime.delete(task_id)
    except SandboxdError as exc:
        log.warning("an ended task could not be freed, this is tried again later", task=task_id, error=str(exc))
