"""Gather, reconcile, apply: at start, whenever the event stream was lost, and periodically.

Every repair is bounded in time and fails alone: neither a bad object nor a bug in one repair prevents the daemon from
starting or stops the periodic comparison.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from sandboxd import disclosure, steps
from sandboxd.containerd.tasks import Task, TaskState
from sandboxd.containers import checkpoint
from sandboxd.containers.ending import settle_container
from sandboxd.containers.exec import end_leftovers
from sandboxd.containers.remove import remove_remains
from sandboxd.errors import SandboxdError
from sandboxd.logs.client import fifo_paths
from sandboxd.model import ContainerRecord, ContainerState
from sandboxd.node import Node
from sandboxd.operations import hold
from sandboxd.pods import files, network
from sandboxd.pods.ending import settle_sandbox
from sandboxd.pods.reconcile import Action, Repair, Seen, reconcile
from sandboxd.pods.teardown import remove_sandbox

log = structlog.get_logger(__name__)

REPAIR_SECONDS = 90.0  # a repair may have to wait for a plugin's own limit

_SEEN = {TaskState.CREATED: Seen.CREATED, TaskState.STOPPED: Seen.STOPPED}


async def recover(node: Node) -> None:
    """Bring records and reality together after a start. Raises Unavailable when containerd does not answer."""
    try:
        files.prepare_missing(node)
        await _round(node, starting_up=True)
    except (SandboxdError, OSError):
        raise
    except Exception as exc:
        log.error("recovery was cut short, the next comparison goes on", error=disclosure.sentence(exc), exc_info=exc)


async def compare(node: Node) -> None:
    """The same while running: what an event should have told us and did not."""
    try:
        await _round(node, starting_up=False)
    except SandboxdError as exc:
        log.warning("records could not be compared with containerd", error=str(exc))
    except Exception as exc:
        log.error("records could not be compared with containerd", error=disclosure.sentence(exc), exc_info=exc)


async def compare_forever(node: Node, every: float) -> None:
    """Compare every `every` seconds."""
    while True:
        await asyncio.sleep(every)
        await compare(node)


async def _round(node: Node, *, starting_up: bool) -> None:
    await checkpoint.undo_all(node, REPAIR_SECONDS)
    tasks = {task_id: _seen(task) for task_id, task in (await node.runtime.list()).items()}
    repairs = reconcile(
        node.ledger.sandboxes,
        node.ledger.containers,
        node.ledger.attachments,
        tasks,
        busy=frozenset() if starting_up else node.jobs.held(),
        starting_up=starting_up,
        now=time.time_ns(),
    )
    for repair in repairs:
        log.info("repairing", repair=repair.describe())
        try:
            async with asyncio.timeout(REPAIR_SECONDS):
                with steps.operation("recover"):
                    await _apply(node, repair)
        except Exception as exc:
            _failed("a repair failed, it is tried again later", exc, repair=repair.describe())
    for container in tuple(node.ledger.containers.values()):
        if container.state is ContainerState.RUNNING:
            try:
                await end_leftovers(node, container.id)
            except Exception as exc:
                _failed("a process was left behind, it is tried again later", exc, container=container.id)


def _failed(what: str, exc: Exception, **of: str) -> None:
    """Log a failure, with a traceback if it was unexpected."""
    if isinstance(exc, SandboxdError | OSError | TimeoutError):
        log.error(what, error=str(exc) or type(exc).__name__, **of)
    else:
        log.error(what, error=disclosure.sentence(exc), exc_info=exc, **of)


def _seen(task: Task) -> Seen:
    return _SEEN.get(task.state, Seen.RUNNING)


async def _apply(node: Node, repair: Repair) -> None:
    match repair.action:
        case Action.REMOVE_SANDBOX:
            await remove_sandbox(node, repair.id)
        case Action.SETTLE_SANDBOX:
            await settle_sandbox(node, repair.id)
        case Action.REMOVE_CONTAINER:
            async with hold(node, node.ledger.containers[repair.id].sandbox_id) as held:
                await remove_remains(held, repair.id)
        case Action.SETTLE_CONTAINER:
            # What it wrote before it ended is still in its FIFOs, if its shim lives.
            await _open_log(node, node.ledger.containers[repair.id])
            await settle_container(node, repair.id)
        case Action.CONFIRM_RUNNING:
            task = await node.runtime.get(repair.id)
            await _open_log(node, node.ledger.containers[repair.id])
            node.ledger.update_container(repair.id, pid=task.pid, started_at=time.time_ns())
            await settle_container(node, repair.id)
        case Action.UNDO_START:
            await node.runtime.kill(repair.id, 9)
            await node.runtime.delete(repair.id)
        case Action.REOPEN_LOG:
            await _open_log(node, node.ledger.containers[repair.id])
        case Action.PAY_DEBT:
            await _pay(node, repair.id)


async def _open_log(node: Node, container: ContainerRecord) -> None:
    fifos = fifo_paths(node.places.streams(container.id))
    if fifos:
        await node.logs.open(container.id, fifos, container.log_path, resume=True)


async def _pay(node: Node, sandbox_id: str) -> None:
    async with hold(node, sandbox_id) as held:
        await network.settle_debts(held)
    log.info("network debt paid", sandbox=sandbox_id)
