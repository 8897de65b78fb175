"""StartContainer: open the log, create the task, let it run.

A start that was cut off has no outcome yet. The container stays CREATED until containerd says what came of it
(`decide`): it runs, it has ended, or it can be started again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

from sandboxd import disclosure, steps, trees
from sandboxd.containerd.tasks import Task, TaskState
from sandboxd.containers import runtime_reads
from sandboxd.containers.ending import free, kill, settle_container
from sandboxd.errors import NotFound, NotReady, SandboxdError, TimedOut, Unavailable, Unclassified
from sandboxd.jobs import in_pieces
from sandboxd.logs.client import fifo_paths, make_fifos
from sandboxd.machine import userns
from sandboxd.model import ContainerRecord, ContainerState
from sandboxd.node import Node
from sandboxd.operations import Held, known_container, perform

START_ERROR = 128  # exit code of a container that could not be started, as other runtimes report it


async def start_container(node: Node, container_id: str) -> None:
    """Start a created container; no error if it is running already.

    Raises NotFound; NotReady with the runtime's words, the container has ended then and says why; Unavailable when
    containerd went away meanwhile, and then it has not.
    """
    sandbox_id = known_container(node, container_id).sandbox_id
    await perform(
        node,
        "StartContainer",
        sandbox_id,
        lambda held: _start(held, container_id),
        container_id=container_id,
        turns=node.machine.load.containers,
    )


async def _start(held: Held, container_id: str) -> None:
    container = held.container(container_id)
    if container.state is ContainerState.RUNNING:
        return
    if container.state is not ContainerState.CREATED:
        raise NotReady(f"container {container_id} is {container.state.value}, not created")
    await held.ready_sandbox()
    node = held.node
    if os.path.isdir(node.places.streams(container_id)):
        # An earlier start was cut off, and what came of it may not be known yet.
        await decide(node, container_id)
        await _start(held, container_id)
        return

    async def undo(cause: BaseException) -> None:
        await _has_failed(node, container_id, cause)

    async with held.effect("container.start", undo=undo, container=container.config.metadata.name) as step:
        pid = await _run(node, container)
        step.note(pid=pid)
    # Should the process have exited already, `ending.exited` waits for the pod's lock.
    node.ledger.update_container(container_id, pid=pid, started_at=time.time_ns())


async def _run(node: Node, container: ContainerRecord) -> int:
    config = container.config
    streams = ("stdout",) if config.tty else ("stdout", "stderr")
    with steps.step("container.log", path=container.log_path):
        directory = node.places.streams(container.id)
        fifos = make_fifos(directory, streams)
        stdin = make_fifos(directory, ("stdin",))["stdin"] if config.stdin else ""
        await node.logs.open(container.id, fifos, container.log_path)
        if container.log_path:
            steps.act("file", container.log_path)
    sandbox = node.ledger.sandboxes[container.sandbox_id]
    rootfs = await node.images.rootfs(container.id)
    command = config.command or config.args
    with steps.step("container.task.create"), disclosure.program_only(command):
        async with userns.staged(node, sandbox, container.id, rootfs, config) as mapped:
            if config.mounts:
                # Other containers may have changed since what is mounted.
                mounts = runtime_reads.mounted(await node.runtime.spec(container.id))
                await asyncio.to_thread(runtime_reads.check, rootfs, mounts)
            await node.runtime.create(
                container.id,
                mapped,
                stdout=fifos["stdout"],
                stderr=fifos.get("stderr", ""),
                stdin=stdin,
                terminal=config.tty,
            )
    with steps.step("container.task.start"), disclosure.program_only(command):
        return await node.runtime.start(container.id)


async def _has_failed(node: Node, container_id: str, cause: BaseException) -> None:
    """A container that could not be started has ended, and says why. RemoveContainer frees what is left.

    When nobody refused the start, and only its outcome is not known, it is not said to have failed.
    """
    if _cut_off(node, cause):
        if isinstance(cause, SandboxdError):  # and not a shutdown: the next start of the daemon decides then
            await decide(node, container_id)
        return
    node.ledger.update_container(
        container_id,
        finished_at=time.time_ns(),
        exit_code=START_ERROR,
        reason="StartError",
        message=str(cause) if isinstance(cause, SandboxdError) else disclosure.sentence(cause),
    )
    try:
        await node.runtime.kill(container_id, signal.SIGKILL)
        await node.runtime.delete(container_id)
    finally:
        await node.logs.close(container_id)


def _cut_off(node: Node, cause: BaseException) -> bool:
    """Whether the start was given up without an answer: containerd went away, or the daemon ends."""
    silent = isinstance(cause, TimedOut) and node.runtime.trouble()
    return bool(silent) or isinstance(cause, Unavailable | asyncio.CancelledError)


async def decide(node: Node, container_id: str) -> None:
    """A start was cut off: record that the container runs, or undo what had not begun to run, for another start.

    The caller holds the pod's lock. Raises Unavailable, and nothing is decided, when containerd does not answer; the
    next comparison asks again.
    """
    task: Task | None
    try:
        task = await node.runtime.get(container_id)
    except NotFound:
        task = None
    if task is None or task.state is TaskState.CREATED:
        await _undo(node, container_id)
        await node.logs.close(container_id)
        await in_pieces(trees.remove(node.places.container(container_id)))
        return
    await open_log(node, container_id)
    node.ledger.update_container(container_id, pid=task.pid, started_at=time.time_ns())
    await settle_container(node, container_id)


async def _undo(node: Node, container_id: str) -> None:
    """End a task that had not begun to run, if there is one. Raises the runtime's errors."""
    try:
        # In one call: killed before it is deleted, it would look as if it had run should we die in between.
        await node.runtime.delete(container_id)
    except (NotReady, Unclassified):
        # A shim that deletes nothing but what has ended.
        await kill(node, container_id)
        await free(node, container_id)


async def open_log(node: Node, container_id: str) -> None:
    """Go on logging a container that has been started."""
    container = node.ledger.containers.get(container_id)
    fifos = fifo_paths(node.places.streams(container_id)) if container else {}
    if container and fifos:
        await node.logs.open(container_id, fifos, container.log_path, resume=True)
