"""What is left of a pod in the file system: the files of an earlier version's pods, and cgroups."""

from __future__ import annotations

import asyncio
import os

import structlog

from sandboxd.cgroups import removal
from sandboxd.errors import CleanupIncomplete, NotReady
from sandboxd.jobs import in_pieces
from sandboxd.machine import pod_files
from sandboxd.model import SandboxState
from sandboxd.node import Node

log = structlog.get_logger(__name__)

_EBUSY_TRIES = 20


def prepare_missing(node: Node) -> None:
    """Prepare the files of an earlier sandboxd's pods, which kept them elsewhere. A failure is logged."""
    for sandbox in node.ledger.sandboxes.values():
        if sandbox.state is SandboxState.READY and not os.path.exists(node.places.pod_files(sandbox.id)):
            try:
                pod_files.prepare(node, sandbox)
            except NotReady as exc:
                log.error("a pod of an earlier version has no files", sandbox=sandbox.id, error=str(exc))


async def remove_cgroup(cgroup: str) -> None:
    """Remove a pod's own cgroup and its children from every hierarchy, and kill what still runs in them.

    It is normally empty. An OCI runtime that was killed while creating a container leaves a cgroup that is not
    recorded anywhere else, sometimes with a process in it. The kernel returns EBUSY until the last dead process has
    been reaped, so this is retried for a while. Raises CleanupIncomplete.
    """
    problem = ""
    for attempt in range(_EBUSY_TRIES):
        problem = await in_pieces(removal.attempt(cgroup))
        if not problem:
            return
        await asyncio.sleep(0.01 * (attempt + 1))
    raise CleanupIncomplete(f"cgroup {cgroup} cannot be removed: {problem}")
