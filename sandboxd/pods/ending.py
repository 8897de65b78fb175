"""How pods end: with their pause container, or with the namespaces that somebody took from them."""

from __future__ import annotations

import time

import structlog

from sandboxd.containers.ending import free_recorded, how_ended, settling
from sandboxd.machine import pins
from sandboxd.model import SandboxRecord, SandboxState
from sandboxd.node import Node
from sandboxd.operations import hold, lost

log = structlog.get_logger(__name__)


async def exited(node: Node, sandbox_id: str) -> None:
    """containerd reports that a pause container has exited: `settle_sandbox`, once the pod is made."""
    record = node.ledger.sandboxes.get(sandbox_id)
    if record is not None and not record.started_at:
        async with node.jobs.exclusive(sandbox_id):
            pass
    await settle_sandbox(node, sandbox_id)


async def settle_sandbox(node: Node, sandbox_id: str) -> None:
    """If the pause container has ended, record that the pod is not ready; no error if it runs on or is not known."""
    async with settling(node, sandbox_id):
        record = node.ledger.sandboxes.get(sandbox_id)
        if record is None or not record.started_at or record.exited_at:
            return
        ended = await how_ended(node, sandbox_id)
        if ended is not None and (record := node.ledger.sandboxes.get(sandbox_id)) and not record.exited_at:
            gone = {} if pins.intact(node, record) else {"ips": ()}
            node.ledger.update_sandbox(sandbox_id, pid=0, exited_at=ended.at or time.time_ns(), **gone)
            log.warning("pause container ended", sandbox=sandbox_id, code=ended.code)
        if ended is not None:
            await free_recorded(node, sandbox_id)


def unpinned(node: Node) -> list[str]:
    """The pods whose namespaces are not where they were pinned. Pods with an operation in flight are left to it."""
    busy = node.jobs.held()
    return [
        sandbox_id for sandbox_id in node.ledger.sandboxes if sandbox_id not in busy and _unpinned(node, sandbox_id)
    ]


async def settle_namespaces(node: Node, sandbox_id: str) -> None:
    """Pin again what others unpinned; a pod for which that cannot be done is not ready and has no address.

    Raises Unavailable when containerd does not say which processes the pod has, NotReady when the kernel refuses.
    """
    async with hold(node, sandbox_id):
        # It may have been stopped while the lock was waited for.
        if (record := _unpinned(node, sandbox_id)) and not await pins.restore(node, record):
            lost(node, record)
            log.warning("a pod has lost its namespaces", sandbox=sandbox_id, path=record.netns_path)


def _unpinned(node: Node, sandbox_id: str) -> SandboxRecord | None:
    """The pod, if it was made, has not been stopped and claims namespaces that are not where they were pinned."""
    record = node.ledger.sandboxes.get(sandbox_id)
    if record is None or not record.started_at or record.stopped_at:
        return None
    claims = record.state is SandboxState.READY or record.ips
    return record if claims and not pins.intact(node, record) else None
