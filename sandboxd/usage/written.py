"""What containers wrote to their root file systems, remembered.

containerd walks all files of a writable layer to compute its size, which can take long. So a read returns the last
figure; one that is older than `FRESH_SECONDS` is measured again in the background, one layer at a time. A
container's layer is first measured soon after the container starts, so that a client's first request finds a figure;
what lives for a moment only is not measured.
"""

from __future__ import annotations

import asyncio
import itertools
import time

import structlog

from sandboxd.errors import NotFound, SandboxdError
from sandboxd.model import AnyRecord, ContainerRecord
from sandboxd.node import Node
from sandboxd.usage.records import Layer

log = structlog.get_logger(__name__)

FRESH_SECONDS = 10.0
FIRST_SECONDS = 1.0  # after the start of a container


class Layers:
    """The writable layers of all containers."""

    def __init__(
        self, node: Node, fresh_seconds: float = FRESH_SECONDS, first_seconds: float = FIRST_SECONDS
    ) -> None:
        self._node = node
        self._fresh = int(fresh_seconds * 1e9)
        self._first_seconds = first_seconds
        self._known: dict[str, Layer] = {}
        self._wanted: dict[str, None] = {}  # in the order of asking
        self._working = False
        self._batches = itertools.count()
        node.ledger.subscribe(self._on_change)

    def get(self, container_id: str) -> Layer | None:
        """The last figure, None before the first measurement. Never waits."""
        layer = self._known.get(container_id)
        if layer is None or time.time_ns() - layer.at > self._fresh:
            self._want(container_id)
        return layer

    def _on_change(self, before: AnyRecord | None, after: AnyRecord | None) -> None:
        if after is None:
            if before is not None:
                self._known.pop(before.id, None)
                self._wanted.pop(before.id, None)
        elif isinstance(after, ContainerRecord) and isinstance(before, ContainerRecord):
            started = after.started_at and not before.started_at
            if started:
                self._node.jobs.background(("first layer", after.id), lambda: self._first(after.id))

    async def _first(self, container_id: str) -> None:
        await asyncio.sleep(self._first_seconds)
        if container_id in self._node.ledger.containers and container_id not in self._known:
            self._want(container_id)

    def _want(self, container_id: str) -> None:
        self._wanted[container_id] = None
        if not self._working:
            self._working = True
            # A key of its own: the job of the last batch may have ended without being forgotten yet.
            self._node.jobs.start(("layers", next(self._batches)), self._work)

    async def _work(self) -> None:
        try:
            while self._wanted:
                container_id = next(iter(self._wanted))
                del self._wanted[container_id]
                try:
                    usage = await self._node.images.rootfs_usage(container_id)
                except NotFound:
                    continue
                except SandboxdError as exc:
                    log.info("a writable layer could not be measured", container=container_id, error=str(exc))
                    continue
                if container_id in self._node.ledger.containers:
                    at = time.time_ns()
                    self._known[container_id] = Layer(bytes=usage.bytes, inodes=usage.inodes, at=at)
        finally:
            self._working = False
