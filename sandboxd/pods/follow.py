"""Follow containerd's events: an event only says where to look. And look whether it answers at all."""

from __future__ import annotations

import asyncio

import structlog

from sandboxd.containerd import events as containerd_events
from sandboxd.containerd.client import Containerd
from sandboxd.containerd.events import Event
from sandboxd.containers import ending
from sandboxd.images.store import ImageStore
from sandboxd.node import Node
from sandboxd.pods import pool
from sandboxd.pods.recover import compare

log = structlog.get_logger(__name__)


LOOK_SECONDS = 5.0  # between two looks
ANSWER_SECONDS = 10.0  # for an answer that takes a millisecond; a loaded machine may take long


async def look(node: Node, client: Containerd) -> None:
    """Look for ever whether containerd answers; compare when it does again, as after any outage."""
    while True:
        if await client.look(ANSWER_SECONDS):
            log.info("containerd answers again")
            caught_up(node)
        await asyncio.sleep(LOOK_SECONDS)


def caught_up(node: Node) -> None:
    """containerd is there: look what happened meanwhile, and try again at once what failed."""
    node.jobs.retries.hurry()
    node.jobs.start("compare", lambda: compare(node))


async def follow(node: Node, client: Containerd, images: ImageStore) -> None:
    """Follow the stream until it breaks. Compares first, to find what happened while not subscribed."""
    stream = containerd_events.subscribe(client)
    caught_up(node)
    node.jobs.start("images", images.refresh)
    async for event in stream:
        _wake(node, images, event)


def _wake(node: Node, images: ImageStore, event: Event) -> None:
    if event.topic == containerd_events.OOM:
        ending.note_oom(node, event.container_id)
    elif event.topic == containerd_events.EXIT:
        exited(node, event.container_id)
    else:
        node.jobs.start("images", images.refresh)


def exited(node: Node, task_id: str) -> None:
    """The first process of a task has exited: look at it, once a request that is starting it is over."""
    if task_id in node.ledger.containers:
        node.jobs.start(("settle", task_id), lambda: ending.exited(node, task_id))
    elif task_id in node.ledger.sandboxes:
        node.jobs.start(("settle", task_id), lambda: pool.exited(node, task_id))
