"""The cgroup that a client names, for a pod whose pause container was prepared in another one.

It is moved right after the hand-out, with the pod already in use: the kernel takes as long for that as all the rest
does. What a daemon that dies has not moved, the comparison of the next one does.
"""

from __future__ import annotations

import asyncio

import structlog

from sandboxd.cgroups import moving
from sandboxd.errors import NotReady
from sandboxd.model import SandboxRecord, SandboxState
from sandboxd.node import Node

log = structlog.get_logger(__name__)


def key(sandbox_id: str) -> tuple[str, str]:
    """The name of a move among the retries."""
    return "MOVE_PAUSE", sandbox_id


def misplaced(node: Node) -> list[str]:
    """The pods whose pause container is still where it was prepared, and not below the cgroup that was asked for.

    Each that is not is looked at once: nothing moves it back.
    """
    placed = node.machine.stock.placed
    placed &= node.ledger.sandboxes.keys()
    found = []
    for record in node.ledger.sandboxes.values():
        if record.id in placed or record.state is not SandboxState.READY or not is_due(node, record):
            continue
        if moving.is_in(record.pid, _prepared_in(node, record.id), node.machine.cgroups.root):
            found.append(record.id)
        else:
            placed.add(record.id)
    return found


async def move(node: Node, sandbox_id: str) -> None:
    """Move a handed-out pod's pause container to its cgroup.

    Not within the hand-out, and without the pod's lock: the kernel takes as long for it as for all the rest. What is
    to be removed with the pod is there before, and a pause container that ends meanwhile needs no cgroup. A failure
    is logged; the comparison tries again.
    """
    record = node.ledger.sandboxes.get(sandbox_id)
    if record is None or not record.pid:
        return
    where = _prepared_in(node, sandbox_id), node.places.cgroup(record, sandbox_id)
    try:
        await asyncio.to_thread(moving.move, record.pid, *where, node.machine.cgroups.root)
    except OSError as exc:
        now = node.ledger.sandboxes.get(sandbox_id)
        if now is not None and now.state is SandboxState.READY:
            log.warning("a pause container could not be moved to the pod's cgroup", sandbox=now.id, error=str(exc))


async def prepare(node: Node, record: SandboxRecord) -> None:
    """Make the cgroup that `move` moves to, if it is to. Raises NotReady."""
    if is_due(node, record):
        where = _prepared_in(node, record.id), node.places.cgroup(record, record.id)
        try:
            await asyncio.to_thread(moving.prepare, *where, node.machine.cgroups.root)
        except OSError as exc:
            raise NotReady(f"the cgroup {where[1]} cannot be made: {exc}") from exc


def is_due(node: Node, record: SandboxRecord) -> bool:
    """Whether the pause container was prepared elsewhere than below the cgroup that the client names."""
    asked = record.prepared_at and record.config.linux.cgroup_parent
    return bool(asked) and not node.places.is_below_requested(record)


def _prepared_in(node: Node, sandbox_id: str) -> str:
    return f"{node.places.own_cgroup(sandbox_id)}/{sandbox_id}"
