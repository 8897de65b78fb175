"""The RPC Audit: what was found, and what came of it, as messages."""

from __future__ import annotations

from typing import cast

from sandboxd.api.audit import Audit
from sandboxd.insight.audit import Auditor, Outcome
from sandboxd.insight.residue import Finding, Kind
from sandboxd.pb.host.v1 import host_pb2

FOUND = Finding(
    kind=Kind.RULE, name="a rule", owner="ab" * 32, pod="shop/web", since=7, why="nobody's", remedy="remove it"
)
UNCLEAR = Finding(kind=Kind.CGROUP, name="/x", why="who knows", remedy="leave it alone", certain=False)


class Found:
    """An auditor that always finds the same."""

    async def audit(self) -> list[Finding]:
        return [FOUND, UNCLEAR]

    async def repair(self) -> list[Outcome]:
        return [
            Outcome(finding=FOUND, repaired=True),
            Outcome(finding=UNCLEAR, repaired=False, error="in use"),
        ]


SUBJECT = Audit(cast(Auditor, Found()))


async def test_an_audit_tells_all_that_is_known_of_a_finding() -> None:
    first, second = (await SUBJECT.Audit(host_pb2.AuditRequest(), None)).findings
    assert first == host_pb2.AuditFinding(
        kind="iptables rule",
        name="a rule",
        owner_id="ab" * 32,
        pod="shop/web",
        since=7,
        why="nobody's",
        remedy="remove it",
    )
    assert (second.unclear, second.missing, second.repaired) == (True, False, False)


async def test_a_repair_tells_what_came_of_each() -> None:
    first, second = (await SUBJECT.Audit(host_pb2.AuditRequest(repair=True), None)).findings
    assert (first.repaired, first.error) == (True, "")
    assert (second.repaired, second.error) == (False, "in use")
