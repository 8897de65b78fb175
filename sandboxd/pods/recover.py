"""Gather, reconcile, apply: at start, whenever the event stream was lost, and periodically.

Each repair is a job of its own: bounded in time, failing alone, and after a failure tried again by a later
comparison, with pauses that grow. A comparison waits a moment for those that make records true. It does not wait for
those that run plugins or end processes, so that none that is stuck holds up the start, another repair or the next
comparison. They are in line for the pod's lock before it returns: requests for such a pod come after them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog

from sandboxd import disclosure, steps
from sandboxd.containerd.tasks import Task, TaskState
from sandboxd.containers import checkpoint, start
from sandboxd.containers.ending import free, how_ended, kill, settle_container
from sandboxd.containers.exec import end_leftovers
from sandboxd.containers.remove import remove_remains
from sandboxd.errors import SandboxdError
from sandboxd.model import ContainerState, SandboxState
from sandboxd.node import Node
from sandboxd.operations import Held, hold
from sandboxd.pods import boots, debts, files, holders, placing
from sandboxd.pods.adopt import adopt
from sandboxd.pods.adopt import is_due as adoption_is_due
from sandboxd.pods.ending import settle_namespaces, settle_sandbox, unpinned
from sandboxd.pods.reconcile import PROMPT, Action, Repair, Seen, reconcile
from sandboxd.pods.teardown import remove_abandoned

log = structlog.get_logger(__name__)

REPAIR_SECONDS = 90.0  # for a repair without limits of its own, once it has its turn
PROMPT_SECONDS = 5.0  # that a comparison waits for the repairs that make records true

_SEEN = {TaskState.CREATED: Seen.CREATED, TaskState.STOPPED: Seen.STOPPED}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A repair that can be done."""

    key: tuple[str, str]  # what is done, the id of what it is done to
    do: Callable[[], Awaitable[None]]
    prompt: bool = False
    quiet: bool = False  # who does it logs how it fails


async def recover(node: Node) -> None:
    """Bring records and reality together after a start. Raises Unavailable when containerd does not answer."""
    try:
        files.prepare_missing(node)
        await adopt(node)
        boots.retire(node)
        await holders.release_unowned(node)
        await _round(node, starting_up=True)
    except (SandboxdError, OSError):
        raise
    except Exception as exc:
        log.error("recovery was cut short, the next comparison goes on", error=disclosure.sentence(exc), exc_info=exc)


async def compare(node: Node) -> None:
    """The same while running: what an event should have told us and did not."""
    try:
        node.ledger.check()
    except SandboxdError as exc:  # it goes on with what it has
        log.error("the ledger is lost if this daemon ends now", error=str(exc))
    try:
        if adoption_is_due(node):
            await adopt(node)
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
    tasks = {task_id: _seen(task) for task_id, task in (await node.runtime.list()).items()}
    # What is not busy now is in no operation's hands; nothing changes before the repairs have begun.
    repairs = reconcile(
        node.ledger.sandboxes,
        node.ledger.containers,
        node.ledger.attachments,
        tasks,
        busy=node.jobs.held(),
        boot=node.machine.boot,
        starting_up=starting_up,
    )
    begun = [_begin(node, work) for work in _works(node, repairs) if node.jobs.retries.due(work.key)]
    await asyncio.sleep(0)  # each gets in line for its lock
    if prompt := [task for task in begun if task is not None]:
        await asyncio.wait(prompt, timeout=PROMPT_SECONDS)


def _works(node: Node, repairs: Iterable[Repair]) -> Iterator[_Work]:
    for repair in repairs:
        yield _Work(
            key=repair.key,
            do=partial(_apply, node, repair),
            prompt=repair.action in PROMPT,
            quiet=repair.action is Action.PAY_DEBT,
        )
    for sandbox_id in unpinned(node):
        yield _Work(key=("PIN_NAMESPACES", sandbox_id), do=partial(_pin_namespaces, node, sandbox_id), prompt=True)
    for sandbox_id in placing.misplaced(node):
        yield _Work(key=placing.key(sandbox_id), do=partial(placing.move, node, sandbox_id))
    for container_id, owner in checkpoint.interrupted(node):
        yield _Work(key=("UNDO_CHECKPOINT", container_id), do=partial(_undo_checkpoint, node, container_id, owner))
    for container in node.ledger.containers.values():
        if container.state is ContainerState.RUNNING:
            again = Repair(action=Action.REOPEN_LOG, id=container.id)
            if node.jobs.retries.failing(again.key):
                yield _Work(key=again.key, do=partial(_apply, node, again))
            if os.path.isdir(node.places.execs(container.id)):
                yield _Work(key=("END_PROCESSES", container.id), do=partial(_end_leftovers, node, container.id))


def _begin(node: Node, work: _Work) -> asyncio.Task[None] | None:
    """Start the repair, unless it is under way; the job, if it is one to wait for."""
    key = ("repair", *work.key)
    if work.prompt:
        return node.jobs.spawn(key, lambda: _carried_out(node, work))
    node.jobs.background(key, lambda: _carried_out(node, work))
    return None


async def _carried_out(node: Node, work: _Work) -> None:
    """Do the repair, and note how it ended. A failure is logged once, with a traceback if it was unexpected."""
    try:
        with steps.operation("recover"):
            await work.do()
    except Exception as exc:
        expected = isinstance(exc, SandboxdError | OSError | TimeoutError)
        words = (str(exc) or type(exc).__name__) if expected else disclosure.sentence(exc)
        news = node.jobs.retries.failed(work.key, words)
        what, of = work.key
        (log.error if news and not work.quiet else log.debug)(
            "a repair failed, it is tried again later",
            repair=what.lower().replace("_", " "),
            of=of,
            error=words,
            exc_info=None if expected else exc,
        )
    else:
        node.jobs.retries.succeeded(work.key)


def _seen(task: Task) -> Seen:
    return _SEEN.get(task.state, Seen.RUNNING)


async def _apply(node: Node, repair: Repair) -> None:
    (log.debug if node.jobs.retries.failing(repair.key) else log.info)("repairing", repair=repair.describe())
    match repair.action:
        case Action.REMOVE_SANDBOX:
            await _abandon(node, repair.id)
        case Action.PAY_DEBT:
            await debts.pay(node, repair.id)
        case Action.SETTLE_SANDBOX:
            async with _bounded(node):
                await settle_sandbox(node, repair.id)
        case Action.SETTLE_CONTAINER:
            async with _bounded(node):
                # What it wrote before it ended is still in its FIFOs, if its shim lives.
                await start.open_log(node, repair.id)
                await settle_container(node, repair.id)
        case Action.REOPEN_LOG:
            async with _bounded(node):
                await start.open_log(node, repair.id)
        case Action.REMOVE_CONTAINER:
            async with _held(node, repair.id, ContainerState.CREATING) as held:
                if held:
                    await remove_remains(held, repair.id)
        case Action.FREE_TASK:
            async with _held(node, repair.id, ContainerState.EXITED) as held:
                if held:
                    await kill(node, repair.id)
                    await free(node, repair.id)
        case Action.FREE_PAUSE:
            async with hold(node, repair.id), _bounded(node):
                await free(node, repair.id)
        case Action.CONFIRM_RUNNING | Action.UNDO_START:
            async with _held(node, repair.id, ContainerState.CREATED) as held:
                if held:
                    await start.decide(node, repair.id)


async def _abandon(node: Node, sandbox_id: str) -> None:
    """Remove what never came to be; not a pod that was prepared after its task had been looked for."""
    record = node.ledger.sandboxes.get(sandbox_id)
    if record is None or record.state is not SandboxState.PREPARED or await how_ended(node, sandbox_id) is not None:
        await remove_abandoned(node, sandbox_id)


@asynccontextmanager
async def _bounded(node: Node) -> AsyncIterator[None]:
    """A turn, and a limit of its own."""
    async with node.jobs.retries.lane(""), asyncio.timeout(REPAIR_SECONDS):
        yield


@asynccontextmanager
async def _held(node: Node, container_id: str, state: ContainerState) -> AsyncIterator[Held | None]:
    """The lock on the container's pod, if the container is still in this state."""
    container = node.ledger.containers.get(container_id)
    if container is None:
        yield None
        return
    async with hold(node, container.sandbox_id) as held, _bounded(node):
        now = node.ledger.containers.get(container_id)
        yield held if now is not None and now.state is state else None


async def _pin_namespaces(node: Node, sandbox_id: str) -> None:
    async with _bounded(node):
        await settle_namespaces(node, sandbox_id)


async def _undo_checkpoint(node: Node, container_id: str, owner: str) -> None:
    log.warning("a checkpoint was interrupted, its container is resumed", container=container_id)
    async with hold(node, owner) as held, _bounded(node):
        await checkpoint.undo(held, container_id)


async def _end_leftovers(node: Node, container_id: str) -> None:
    async with _bounded(node):
        await end_leftovers(node, container_id)
