"""RemoveContainer: everything of a container, its task to its record."""

from __future__ import annotations

from sandboxd import trees
from sandboxd.containers import checkpoint, ending
from sandboxd.jobs import in_pieces
from sandboxd.machine import room, userns
from sandboxd.node import Node
from sandboxd.operations import Held, cleaning, perform


async def remove_container(node: Node, container_id: str) -> None:
    """Remove a container, running or not; no error if there is none.

    Raises CleanupIncomplete when something stays; its record stays too then, and another attempt goes on from there.
    """
    container = node.ledger.containers.get(container_id)
    if container is None:
        return

    async def work(held: Held) -> None:
        if container_id in node.ledger.containers:
            async with held.effect("container.remove", container=container.config.metadata.name):
                await remove_remains(held, container_id)

    await perform(
        node,
        "RemoveContainer",
        container.sandbox_id,
        work,
        container_id=container_id,
        turns=node.machine.load.teardowns,
    )


async def remove_remains(held: Held, container_id: str) -> None:
    """Remove whatever there is of a container; each part may be gone already.

    Raises CleanupIncomplete, and the runtime's errors, when something stays; its record stays too then.
    """
    node = held.node
    room.make(node)
    with cleaning(f"container {container_id}"):
        await checkpoint.undo(held, container_id)
        # Until the record is gone nothing may take the end of the task for news.
        async with ending.settling(node, container_id):
            ended = await ending.kill(node, container_id)
            # Recorded although the record is about to go: should we die in between, it says how the container ended.
            recorded = await ending.record_end(node, container_id, ended)
            await node.runtime.delete(container_id)
            if not recorded:
                await node.logs.drain(container_id, node.config.logs.drain_seconds)
            await node.runtime.delete_container(container_id)
            await userns.drop(node, container_id)
            await node.images.remove_rootfs(container_id)
            await in_pieces(trees.remove(node.places.volumes(container_id)))
            await in_pieces(trees.remove(node.places.container(container_id)))
            node.ledger.remove_container(container_id)
