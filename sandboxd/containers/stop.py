"""StopContainer: the stop signal, a grace period, SIGKILL."""

from __future__ import annotations

import signal as signals

import structlog

from sandboxd import steps
from sandboxd.containers.ending import end, resume, settle_container
from sandboxd.errors import NotFound, SandboxdError, TimedOut, Unavailable
from sandboxd.model import ContainerRecord, ContainerState
from sandboxd.node import Node
from sandboxd.oci import stop_signal
from sandboxd.operations import perform_unlocked

log = structlog.get_logger(__name__)

LONGEST_SECONDS = 10 * 365 * 86_400  # a grace period; gRPC takes deadlines much further away for such that are over


async def stop_container(node: Node, container_id: str, timeout: int) -> None:
    """Send the stop signal, wait `timeout` seconds, kill what still runs. No error if there is no such container, or
    it has ended.

    Raises CleanupIncomplete when it does not end even so; Unavailable when containerd goes away meanwhile.
    """
    container = node.ledger.containers.get(container_id)
    if container is None or container.state is not ContainerState.RUNNING:
        return
    await perform_unlocked(
        node, "StopContainer", container, lambda: _stop(node, container, timeout), key=(container_id, timeout)
    )


async def _stop(node: Node, container: ContainerRecord, timeout: int) -> None:
    with steps.step("container.stop", container=container.name, grace=timeout) as step:
        if timeout > 0 and await _ends_by_itself(node, container, min(timeout, LONGEST_SECONDS), step):
            await settle_container(node, container.id)
        else:
            await end(node, container.id)


async def _ends_by_itself(node: Node, container: ContainerRecord, timeout: int, step: steps.Step) -> bool:
    """Send the stop signal and wait; whether the container has ended."""
    try:
        await _ask_to_end(node, container)  # the grace period begins once the container has been asked
        ended = await node.runtime.wait(container.id, timeout=timeout)
        step.note(code=ended.code)
    except NotFound:
        pass  # it ended on its own and its task is gone
    except TimedOut:
        step.note(killed="grace period over")
        return False
    except _NotAsked as exc:
        step.note(killed=f"stop signal not sent: {exc}")
        return False
    return True


class _NotAsked(Exception):
    """The stop signal could not be sent: there is no point in granting a grace period."""


async def _ask_to_end(node: Node, container: ContainerRecord) -> None:
    """Send the stop signal, and resume a container that somebody has paused: it could not act on it.

    Raises NotFound and Unavailable, and _NotAsked when the signal is refused.
    """
    number = signal_number(container)
    try:
        try:
            await node.runtime.kill(container.id, number)
        except TimedOut as exc:
            # It may have been sent or not. A shim that answers neither this nor the next is not waited for.
            log.warning("sending the stop signal again", container=container.id, signal=number, error=str(exc))
            await node.runtime.kill(container.id, number)
    except (NotFound, Unavailable):
        raise  # with the last, nobody refused: it may have been sent, and an outage must not cost the grace period
    except SandboxdError as exc:
        log.warning(
            "stop signal not sent, killing the container", container=container.id, signal=number, error=str(exc)
        )
        raise _NotAsked(str(exc)) from exc
    await resume(node, container.id)


def signal_number(container: ContainerRecord) -> int:
    """The number of the container's stop signal; SIGTERM if the name is unknown.

    CreateContainer validates it, but older records may hold an unknown name.
    """
    if not container.stop_signal:
        return signals.SIGTERM
    number = stop_signal.number(container.stop_signal)
    if number is None:
        log.warning("unknown stop signal, using SIGTERM", container=container.id)
        return signals.SIGTERM
    return number
