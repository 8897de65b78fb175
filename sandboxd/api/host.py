"""Our own RPCs for what CRI cannot say: logs and figures read."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from sandboxd.api.lookup import Lookup
from sandboxd.errors import InvalidRequest, NotReady
from sandboxd.ledger import Ledger
from sandboxd.logs import reader
from sandboxd.model import ContainerState
from sandboxd.node import Logs
from sandboxd.pb.host.v1 import host_pb2


class Host:
    """See host.proto for what each RPC promises."""

    def __init__(self, ledger: Ledger, logs: Logs, exposition: Callable[[], bytes]) -> None:
        """`exposition` gives the daemon's figures in Prometheus' text format."""
        self._ledger = ledger
        self._logs = logs
        self._lookup = Lookup(ledger)
        self._exposition = exposition

    async def Metrics(self, request: host_pb2.MetricsRequest, context: Any) -> host_pb2.MetricsResponse:
        return host_pb2.MetricsResponse(text=self._exposition().decode())

    async def ReadLogs(
        self, request: host_pb2.ReadLogsRequest, context: Any
    ) -> AsyncIterator[host_pb2.ReadLogsResponse]:
        container = self._lookup.container(request.container_id)
        if not container.log_path:
            raise NotReady(f"container {container.id} was created without a log path, its output is discarded")
        if request.tail < -1:
            raise InvalidRequest(f"tail must be a number of lines or -1 for all, got {request.tail}")
        running = container.state is ContainerState.RUNNING
        changes = self._logs.changes(container.id) if request.follow and running else None
        async with contextlib.aclosing(
            reader.read(container.log_path, tail=request.tail, since=request.since, changes=changes)
        ) as batches:
            async for batch in batches:
                yield host_pb2.ReadLogsResponse(
                    lines=[
                        host_pb2.LogLine(timestamp=e.timestamp, stream=e.stream, text=e.text, partial=e.partial)
                        for e in batch
                    ]
                )
