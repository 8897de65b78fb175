"""Our own RPC about what is nobody's on this machine, or missing."""

from __future__ import annotations

from typing import Any

from sandboxd.insight.audit import Auditor, Outcome
from sandboxd.pb.host.v1 import host_pb2


class Audit:
    """See host.proto for what the RPC promises."""

    def __init__(self, auditor: Auditor) -> None:
        self._auditor = auditor

    async def Audit(self, request: host_pb2.AuditRequest, context: Any) -> host_pb2.AuditResponse:
        if request.repair:
            outcomes = await self._auditor.repair()
        else:
            outcomes = [Outcome(finding=finding, repaired=False) for finding in await self._auditor.audit()]
        return host_pb2.AuditResponse(findings=[_view(outcome) for outcome in outcomes])


def _view(outcome: Outcome) -> host_pb2.AuditFinding:
    finding = outcome.finding
    return host_pb2.AuditFinding(
        kind=finding.kind.value,
        name=finding.name,
        owner_id=finding.owner,
        pod=finding.pod,
        since=finding.since,
        why=finding.why,
        remedy=finding.remedy,
        missing=finding.missing,
        unclear=not finding.certain,
        repaired=outcome.repaired,
        error=outcome.error,
    )
