"""How containers end: stopping them, seeing that they have ended, and recording it.

A container has ended when its task has; that is looked up with containerd (`settle_*`), whoever noticed it: an
event, a stop that waited for it, or the periodic comparison. Nothing here needs the container's cooperation.
"""

from __future__ import annotations

import signal as signals
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from sandboxd import disclosure, steps, trees
from sandboxd.containerd.tasks import Exit, TaskState
from sandboxd.containers import checkpoint
from sandboxd.errors import CleanupIncomplete, NotFound, SandboxdError, TimedOut
from sandboxd.jobs import in_pieces
from sandboxd.machine import userns
from sandboxd.model import ContainerRecord, ContainerState
from sandboxd.node import Node
from sandboxd.oci import stop_signal

log = structlog.get_logger(__name__)

KILL_SECONDS = 30.0  # how long a SIGKILL may take to show; longer means a process stuck in the kernel
VANISHED = 255  # exit code of a container whose task nobody saw ending
SIGKILLED = 128 + signals.SIGKILL  # exit code of whatever SIGKILL ended, whoever sent it

OOM_KILLED = "OOMKilled"  # noted as a reason before the end, if an OOM event comes first
LATE_OOM = 5_000_000_000  # nanoseconds after its end in which an OOM event may still come


async def stop_container(node: Node, container_id: str, timeout: int) -> None:
    """StopContainer: the stop signal, `timeout` seconds of grace, then SIGKILL. Unknown or ended is done."""
    await node.jobs.run_to_end(("StopContainer", container_id, timeout), lambda: _stop(node, container_id, timeout))


async def _stop(node: Node, container_id: str, timeout: int) -> None:
    container = node.ledger.containers.get(container_id)
    if container is None or container.state is not ContainerState.RUNNING:
        return
    with (
        steps.operation("StopContainer", sandbox_id=container.sandbox_id, container_id=container_id),
        steps.step("container.stop", container=container.name, grace=timeout) as step,
    ):
        if timeout > 0:
            try:
                await _ask_to_end(node, container)
                ended = await node.runtime.wait(container_id, timeout=timeout)
                step.note(code=ended.code)
            except TimedOut:
                step.note(killed="grace period over")
                note_kill(node, container_id)
            except NotFound:
                pass  # it ended meanwhile and its task is gone; settled below
            except _NotAsked as exc:
                step.note(killed=f"stop signal not sent: {exc}")
                note_kill(node, container_id)
        else:
            note_kill(node, container_id)
        await kill(node, container_id)
        await settle_container(node, container_id)


class _NotAsked(Exception):
    """The stop signal could not be sent: there is no point in granting a grace period."""


async def _ask_to_end(node: Node, container: ContainerRecord) -> None:
    """Send the stop signal. Raises NotFound and TimedOut, and _NotAsked when it is refused."""
    number = signal_number(container)
    try:
        await node.runtime.kill(container.id, number)
    except (NotFound, TimedOut):
        raise
    except SandboxdError as exc:
        log.warning("stop signal not sent, killing", container=container.id, signal=number, error=str(exc))
        raise _NotAsked(str(exc)) from exc


def signal_number(container: ContainerRecord) -> int:
    """The number of the container's stop signal; SIGTERM's where nobody knows the name.

    It is decided when the container is created, but there are records from before that was so.
    """
    if not container.stop_signal:
        return signals.SIGTERM
    number = stop_signal.number(container.stop_signal)
    if number is None:
        log.warning("unknown stop signal, SIGTERM takes its place", container=container.id)
        return signals.SIGTERM
    return number


def note_kill(node: Node, container_id: str) -> None:
    """A running container is about to get our SIGKILL: its end will look like that of an OOM, and is none."""
    container = node.ledger.containers.get(container_id)
    if container is not None and container.state is ContainerState.RUNNING:
        node.killed.add(container_id)


def note_oom(node: Node, container_id: str) -> None:
    """A process of the container was killed for lack of memory; if that ends the container, it is why.

    The event may come before the exit or after it. The counter that settling reads decides mostly; the event is
    for when systemd was faster than us to remove the cgroup with the counter.
    """
    container = node.ledger.containers.get(container_id)
    if container is None:
        return
    late = (
        node.places.cgroup_driver == "systemd"
        and container.exit_code == SIGKILLED
        and container.reason == "Error"
        and time.time_ns() - container.finished_at < LATE_OOM
    )
    if late or not container.finished_at:
        node.ledger.update_container(container_id, reason=OOM_KILLED)


async def kill(node: Node, task_id: str) -> None:
    """SIGKILL a task and wait until it has ended; gone is done.

    Raises CleanupIncomplete when it is still there after half a minute.
    """
    await node.runtime.kill(task_id, signals.SIGKILL)
    try:
        await node.runtime.wait(task_id, timeout=KILL_SECONDS)
    except NotFound:
        pass
    except TimedOut as exc:
        raise CleanupIncomplete(f"the process of {task_id} did not end {KILL_SECONDS:g} s after SIGKILL") from exc


async def free(node: Node, task_id: str) -> Exit | None:
    """Free what an ended task holds, its shim when it was the last; gone is done.

    One at a time with settling: two deletions at once see the shim vanish under each other.
    """
    async with node.jobs.exclusive(f"settle:{task_id}"):
        return await node.runtime.delete(task_id)


async def settle_container(node: Node, container_id: str) -> None:
    """If a running container's task has ended, free it and record how. Running on is fine, unknown is done.

    A container that is only being started is left alone: StartContainer settles it once it is known to run.
    Freed before that, nobody would learn how it ended.
    """
    async with node.jobs.exclusive(f"settle:{container_id}"):
        container = node.ledger.containers.get(container_id)
        if container is None or container.state is not ContainerState.RUNNING:
            return
        oom = False

        def look() -> None:
            nonlocal oom
            oom = _oom_kills(node, container_id) > 0

        end = await _ended(node, container_id, look)
        if end is None:
            return
        await node.logs.drain(container_id, node.config.logs.drain_seconds)
        vanished = end.code == VANISHED and not end.at
        node.ledger.update_container(
            container_id,
            pid=0,
            finished_at=end.at or time.time_ns(),
            exit_code=end.code,
            reason=_reason(node, container_id, end, vanished=vanished, oom=oom),
            message="its process ended while nobody watched" if vanished else "",
        )
        log.info("container ended", sandbox=container.sandbox_id, container=container_id, code=end.code)


def _oom_kills(node: Node, container_id: str) -> int:
    """How many of the container's processes an OOM killer ended; 0 when its cgroup is gone."""
    container = node.ledger.containers.get(container_id)
    sandbox = node.ledger.sandboxes.get(container.sandbox_id) if container else None
    if sandbox is None:
        return 0
    return node.cgroups.oom_kills(node.places.cgroup(sandbox, container_id)) or 0


def _reason(node: Node, container_id: str, end: Exit, *, vanished: bool, oom: bool) -> str:
    """CRI leaves the words open; these are the ones that clients know from other runtimes.

    OOMKilled only where it ended the container: a shell whose child was killed may go on and end well, and one that
    we kill later did not end for lack of memory. A shell that ends with its child's code did.
    """
    container = node.ledger.containers.get(container_id)
    noticed = container is not None and container.reason == OOM_KILLED
    ours = container_id in node.killed
    node.killed.discard(container_id)
    if vanished:
        return "Unknown"
    if end.code == SIGKILLED and not ours and (oom or noticed):
        return OOM_KILLED
    return "Completed" if end.code == 0 else "Error"


async def _ended(node: Node, task_id: str, look: Callable[[], None] | None = None) -> Exit | None:
    """How the task ended, with its resources freed; None while it runs (or waits to be started).

    `look` is called when it has ended and its cgroup, which goes with its resources, is still there.
    """
    try:
        task = await node.runtime.get(task_id)
    except NotFound:
        return Exit(code=VANISHED, at=0)
    if task.state is not TaskState.STOPPED:
        return None
    if look is not None:
        look()
    return await node.runtime.delete(task_id) or task.exit


async def settle_sandbox(node: Node, sandbox_id: str) -> None:
    """If the pause container has ended, record that the sandbox is not ready."""
    async with node.jobs.exclusive(f"settle:{sandbox_id}"):
        record = node.ledger.sandboxes.get(sandbox_id)
        if record is None or not record.started_at or record.exited_at:
            return
        end = await _ended(node, sandbox_id)
        if end is not None and (record := node.ledger.sandboxes.get(sandbox_id)) and not record.exited_at:
            node.ledger.update_sandbox(sandbox_id, pid=0, exited_at=end.at or time.time_ns())
            log.warning("pause container ended", sandbox=sandbox_id, code=end.code)


async def remove_container_remains(node: Node, container_id: str) -> None:
    """Everything of a container, its task to its record; each part gone already is done.

    Raises CleanupIncomplete, and the runtime's errors, when something stays; its record stays too then.
    """
    with cleaning(f"container {container_id}"):
        await checkpoint.undo(node, container_id)
        await kill(node, container_id)
        await free(node, container_id)
        await node.logs.drain(container_id, node.config.logs.drain_seconds)
        await node.runtime.delete_container(container_id)
        await userns.drop(node, container_id)
        await node.images.remove_rootfs(container_id)
        await in_pieces(trees.remove(node.places.volumes(container_id)))
        await in_pieces(trees.remove(node.places.container(container_id)))
        node.ledger.remove_container(container_id)
        node.killed.discard(container_id)


@contextmanager
def cleaning(what: str) -> Iterator[None]:
    """Turn an error that nobody expected into CleanupIncomplete: no fault of ours may make a pod undeletable.

    Whatever it was, a retry goes on from there. The log has where it came from.
    """
    try:
        yield
    except SandboxdError:
        raise
    except Exception as exc:
        log.error("cleaning up failed unexpectedly, a retry goes on from there", what=what, exc_info=exc)
        raise CleanupIncomplete(f"{what}: {disclosure.sentence(exc)}") from exc
