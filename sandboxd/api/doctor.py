"""Our own RPC about whether a pod's network, or the machine, is well."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sandboxd.api.lookup import Lookup
from sandboxd.insight import machine_look, pod_look
from sandboxd.insight.evidence import Check
from sandboxd.node import Node
from sandboxd.pb.host.v1 import host_pb2


class Doctor:
    """See host.proto for what the RPC promises."""

    def __init__(self, node: Node, containerd_version: Callable[[], Awaitable[str]]) -> None:
        """`containerd_version` asks containerd, and raises when it does not answer."""
        self._node = node
        self._lookup = Lookup(node.ledger)
        self._containerd_version = containerd_version

    async def Doctor(self, request: host_pb2.DoctorRequest, context: Any) -> host_pb2.DoctorResponse:
        if request.pod_sandbox_id:
            checks = await pod_look.examined(self._node, self._lookup.sandbox(request.pod_sandbox_id))
        else:
            checks = await machine_look.examined(self._node, self._containerd_version)
        return host_pb2.DoctorResponse(checks=[_view(check) for check in checks])


def _view(check: Check) -> host_pb2.DoctorCheck:
    return host_pb2.DoctorCheck(
        name=check.name,
        severity=check.severity.value,
        says=check.says,
        evidence=check.evidence,
        remedy=check.remedy,
        commands=check.commands,
    )
