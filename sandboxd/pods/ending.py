"""How pods end: with their pause container."""

from __future__ import annotations

import time

import structlog

from sandboxd.containers.ending import ended_task, settling
from sandboxd.node import Node

log = structlog.get_logger(__name__)


async def settle_sandbox(node: Node, sandbox_id: str) -> None:
    """If the pause container has ended, record that the pod is not ready; no error if it runs on or is not known."""
    async with settling(node, sandbox_id):
        record = node.ledger.sandboxes.get(sandbox_id)
        if record is None or not record.started_at or record.exited_at:
            return
        ended = await ended_task(node, sandbox_id)
        if ended is not None and (record := node.ledger.sandboxes.get(sandbox_id)) and not record.exited_at:
            node.ledger.update_sandbox(sandbox_id, pid=0, exited_at=ended.at or time.time_ns())
            log.warning("pause container ended", sandbox=sandbox_id, code=ended.code)
