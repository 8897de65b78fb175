"""How containers end: stopping them, seeing that they have ended, and recording it.

A container has ended when its task has; that is looked up with containerd (`settle_*`), whoever noticed it: an
event, a stop that waited for it, or the periodic comparison. Nothing here needs the container's cooperation.
"""

from __future__ import annotations

import signal as signals
import time

import structlog

from sandboxd import steps
from sandboxd.containerd.tasks import Exit, TaskState
from sandboxd.errors import CleanupIncomplete, InvalidRequest, NotFound, TimedOut
from sandboxd.lifecycle import pod_files
from sandboxd.lifecycle.host import Host
from sandboxd.model import ContainerState

log = structlog.get_logger(__name__)

KILL_SECONDS = 30.0  # how long a SIGKILL may take to show; longer means a process stuck in the kernel
VANISHED = 255  # exit code of a container whose task nobody saw ending


async def stop_container(host: Host, container_id: str, timeout: int) -> None:
    """StopContainer: the stop signal, `timeout` seconds of grace, then SIGKILL. Unknown or ended is done."""
    await host.jobs.run_to_end(("StopContainer", container_id, timeout), lambda: _stop(host, container_id, timeout))


async def _stop(host: Host, container_id: str, timeout: int) -> None:
    container = host.ledger.containers.get(container_id)
    if container is None or container.state is not ContainerState.RUNNING:
        return
    with (
        steps.operation("StopContainer", sandbox_id=container.sandbox_id, container_id=container_id),
        steps.step("container.stop", container=container.name, grace=timeout) as step,
    ):
        if timeout > 0:
            try:
                await host.runtime.kill(container_id, signal_number(container.stop_signal or "SIGTERM"))
                ended = await host.runtime.wait(container_id, timeout=timeout)
                step.note(code=ended.code)
            except TimedOut:
                step.note(killed="grace period over")
            except NotFound:
                pass  # it ended meanwhile and its task is gone; settled below
        await kill(host, container_id)
        await settle_container(host, container_id)


def signal_number(name: str) -> int:
    """The number of a signal named "SIGTERM", "TERM", "15" or "SIGRTMIN+3"; raises InvalidRequest."""
    text = name.upper().removeprefix("SIG")
    base, plus, offset = text.partition("+")
    try:
        named = 0 if text.isdigit() else signals.Signals[f"SIG{base}"].value
        number = named + int(offset) if plus else named or int(text)
        if 0 < number <= signals.SIGRTMAX:
            return number
    except (KeyError, ValueError):
        pass
    raise InvalidRequest(f"unknown signal {name!r}")


async def kill(host: Host, task_id: str) -> None:
    """SIGKILL a task and wait until it has ended; gone is done.

    Raises CleanupIncomplete when it is still there after half a minute.
    """
    await host.runtime.kill(task_id, signals.SIGKILL)
    try:
        await host.runtime.wait(task_id, timeout=KILL_SECONDS)
    except NotFound:
        pass
    except TimedOut as exc:
        raise CleanupIncomplete(f"the process of {task_id} did not end {KILL_SECONDS:g} s after SIGKILL") from exc


async def free(host: Host, task_id: str) -> Exit | None:
    """Free what an ended task holds, its shim when it was the last; gone is done.

    One at a time with settling: two deletions at once see the shim vanish under each other.
    """
    async with host.jobs.exclusive(f"settle:{task_id}"):
        return await host.runtime.delete(task_id)


async def settle_container(host: Host, container_id: str) -> None:
    """If a running container's task has ended, free it and record how. Running on is fine, unknown is done.

    A container that is only being started is left alone: StartContainer settles it once it is known to run.
    Freed before that, nobody would learn how it ended.
    """
    async with host.jobs.exclusive(f"settle:{container_id}"):
        container = host.ledger.containers.get(container_id)
        if container is None or container.state is not ContainerState.RUNNING:
            return
        end = await _ended(host, container_id)
        if end is None:
            return
        await host.logs.drain(container_id, host.config.logs.drain_seconds)
        vanished = end.code == VANISHED and not end.at
        host.ledger.update_container(
            container_id,
            pid=0,
            finished_at=end.at or time.time_ns(),
            exit_code=end.code,
            reason=_reason(end, vanished, container.reason),
            message="its process ended while nobody watched" if vanished else "",
        )
        log.info("container ended", sandbox=container.sandbox_id, container=container_id, code=end.code)


def _reason(end: Exit, vanished: bool, noted: str) -> str:
    """CRI leaves the words open; these are the ones that clients know from other runtimes."""
    if vanished:
        return "Unknown"
    # An OOM event comes before the exit and leaves its reason on the record.
    return noted or ("Completed" if end.code == 0 else "Error")


async def _ended(host: Host, task_id: str) -> Exit | None:
    """How the task ended, with its resources freed; None while it runs (or waits to be started)."""
    try:
        task = await host.runtime.get(task_id)
    except NotFound:
        return Exit(code=VANISHED, at=0)
    if task.state is not TaskState.STOPPED:
        return None
    return await host.runtime.delete(task_id) or task.exit


async def settle_sandbox(host: Host, sandbox_id: str) -> None:
    """If the pause container has ended, record that the sandbox is not ready."""
    async with host.jobs.exclusive(f"settle:{sandbox_id}"):
        record = host.ledger.sandboxes.get(sandbox_id)
        if record is None or not record.started_at or record.exited_at:
            return
        end = await _ended(host, sandbox_id)
        if end is not None and (record := host.ledger.sandboxes.get(sandbox_id)) and not record.exited_at:
            host.ledger.update_sandbox(sandbox_id, pid=0, exited_at=end.at or time.time_ns())
            log.warning("pause container ended", sandbox=sandbox_id, code=end.code)


async def remove_container_remains(host: Host, container_id: str) -> None:
    """Everything of a container, its task to its record; each part gone already is done."""
    await kill(host, container_id)
    await free(host, container_id)
    await host.logs.drain(container_id, host.config.logs.drain_seconds)
    await host.runtime.delete_container(container_id)
    await host.images.remove_rootfs(container_id)
    pod_files.remove_directory(host.config.container_dir(container_id))
    host.ledger.remove_container(container_id)
