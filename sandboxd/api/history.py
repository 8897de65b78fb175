"""Our own RPCs about what happened: a pod explained, the requests under way, and those that failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sandboxd import steps
from sandboxd.api import views
from sandboxd.api.lookup import Lookup
from sandboxd.errors import NotFound
from sandboxd.insight.explain import about
from sandboxd.ledger import Ledger
from sandboxd.model import subject_of
from sandboxd.node import Netns
from sandboxd.pb.host.v1 import host_pb2


class History:
    """See host.proto for what each RPC promises."""

    def __init__(self, ledger: Ledger, netns: Netns) -> None:
        self._ledger = ledger
        self._netns = netns
        self._lookup = Lookup(ledger)

    async def Explain(self, request: host_pb2.ExplainRequest, context: Any) -> host_pb2.ExplainResponse:
        reference = request.pod_sandbox_id or request.reference
        record = self._lookup.explained(request.pod_sandbox_id, request.reference)
        names = [record.id, subject_of(record.config.metadata)] if record else [reference]
        running, failed = about(steps.running(), *names), about(self._ledger.stories(), *names)
        if record is None and not running and not failed:
            raise NotFound(
                f"nothing is known of {reference!r}: there is no such pod, nothing of that name is under way, and"
                " nothing that failed is kept of it"
            )
        operations = [*map(views.running, running), *map(views.story, failed)]
        if record is None:
            return host_pb2.ExplainResponse(operations=operations)
        return host_pb2.ExplainResponse(
            pod_sandbox_id=record.id,
            netns_path=record.netns_path,
            pid=record.pid,
            netns_inode=self._netns.inode(record.netns_path) if record.netns_path else 0,
            steps=[views.step(step) for step in self._ledger.timeline(record.id)],
            attachments=[views.attachment(a) for a in self._ledger.attachments_of(record.id)],
            operations=operations,
            pinned=record.pinned,
        )

    async def ListOperations(
        self, request: host_pb2.ListOperationsRequest, context: Any
    ) -> host_pb2.ListOperationsResponse:
        return host_pb2.ListOperationsResponse(
            running=[views.running(each) for each in steps.running()],
            failed=[views.story(replace(each, steps=())) for each in self._ledger.stories()],
        )
