"""Following containerd's events: each only says where to look."""

from __future__ import annotations

import structlog

from sandboxd.containerd import events as containerd_events
from sandboxd.containerd.client import Containerd
from sandboxd.containerd.events import Event
from sandboxd.images.store import ImageStore
from sandboxd.lifecycle.host import Host
from sandboxd.lifecycle.processes import note_oom, settle_container, settle_sandbox
from sandboxd.lifecycle.recover import compare

log = structlog.get_logger(__name__)


async def follow(host: Host, client: Containerd, images: ImageStore) -> None:
    """Follow the stream until it breaks. What happened while nobody listened is found by comparing first."""
    stream = containerd_events.subscribe(client)
    host.jobs.start("compare", lambda: compare(host))
    host.jobs.start("images", images.refresh)
    async for event in stream:
        _wake(host, images, event)


def _wake(host: Host, images: ImageStore, event: Event) -> None:
    if event.topic == containerd_events.OOM:
        note_oom(host, event.container_id)
    elif event.topic == containerd_events.EXIT:
        if event.container_id in host.ledger.containers:
            host.jobs.start(("settle", event.container_id), lambda: settle_container(host, event.container_id))
        elif event.container_id in host.ledger.sandboxes:
            host.jobs.start(("settle", event.container_id), lambda: settle_sandbox(host, event.container_id))
    else:
        host.jobs.start("images", images.refresh)
