"""StartContainer: open the log, create the task, let it run."""

from __future__ import annotations

import asyncio
import signal
import time

from sandboxd import disclosure, steps
from sandboxd.containers import runtime_reads
from sandboxd.containers.ending import settle_container
from sandboxd.errors import NotReady, SandboxdError
from sandboxd.logs.client import make_fifos
from sandboxd.machine import userns
from sandboxd.model import ContainerRecord, ContainerState
from sandboxd.node import Node
from sandboxd.operations import Held, known_container, perform

START_ERROR = 128  # exit code of a container that could not be started, as other runtimes report it


async def start_container(node: Node, container_id: str) -> None:
    """Start a created container; no error if it is running already.

    Raises NotFound, and NotReady with the runtime's words; the container has ended then and says why.
    """
    sandbox_id = known_container(node, container_id).sandbox_id
    await perform(
        node, "StartContainer", sandbox_id, lambda held: _start(held, container_id), container_id=container_id
    )


async def _start(held: Held, container_id: str) -> None:
    container = held.container(container_id)
    if container.state is ContainerState.RUNNING:
        return
    if container.state is not ContainerState.CREATED:
        raise NotReady(f"container {container_id} is {container.state.value}, not created")
    await held.ready_sandbox()
    node = held.node

    async def undo(cause: BaseException) -> None:
        await _has_failed(node, container_id, cause)

    async with held.effect("container.start", undo=undo, container=container.config.metadata.name) as step:
        pid = await _run(node, container)
        step.note(pid=pid)
    node.ledger.update_container(container_id, pid=pid, started_at=time.time_ns())
    # If the process exited at once, its exit event came before the container was recorded as running and was ignored.
    node.jobs.start(("started", container_id), lambda: settle_container(node, container_id))


async def _run(node: Node, container: ContainerRecord) -> int:
    config = container.config
    streams = ("stdout",) if config.tty else ("stdout", "stderr")
    with steps.step("container.log", path=container.log_path):
        directory = node.places.streams(container.id)
        fifos = make_fifos(directory, streams)
        stdin = make_fifos(directory, ("stdin",))["stdin"] if config.stdin else ""
        await node.logs.open(container.id, fifos, container.log_path)
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
    """A container that could not be started has ended, and says why. RemoveContainer frees what is left."""
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
