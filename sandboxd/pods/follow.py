"""Follow containerd's events: an event only says where to look."""

from __future__ import annotations

import structlog

from sandboxd.containerd import events as containerd_events
from sandboxd.containerd.client import Containerd
from sandboxd.containerd.events import Event
from sandboxd.containers.ending import note_oom, settle_container
from sandboxd.images.store import ImageStore
from sandboxd.node import Node
from sandboxd.pods.ending import settle_sandbox
from sandboxd.pods.recover import compare

log = structlog.get_logger(__name__)


async def follow(node: Node, client: Containerd, images: ImageStore) -> None:
    """Follow the stream until it breaks. Compares first, to find what happened while not subscribed."""
    stream = containerd_events.subscribe(client)
    node.jobs.retries.hurry()  # what failed may have failed for want of containerd
    node.jobs.start("compare", lambda: compare(node))
    node.jobs.start("images", images.refresh)
    async for event in stream:
        _wake(node, images, event)


def _wake(node: Node, images: ImageStore, event: Event) -> None:
    if event.topic == containerd_events.OOM:
        note_oom(node, event.container_id)
    elif event.topic == containerd_events.EXIT:
        if event.container_id in node.ledger.containers:
            node.jobs.start(("settle", event.container_id), lambda: settle_container(node, event.container_id))
        elif event.container_id in node.ledger.sandboxes:
            node.jobs.start(("settle", event.container_id), lambda: settle_sandbox(node, event.container_id))
    else:
        node.jobs.start("images", images.refresh)
