"""Our own RPC about whether a pod's network, or the machine, is well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sandboxd.api.lookup import Lookup
from sandboxd.node import Node
from sandboxd.pb.host.v1 import host_pb2

if TYPE_CHECKING:
    from sandboxd.insight.evidence import Check


class Doctor:
    """See host.proto for what the RPC promises."""

    def __init__(self, node: Node, containerd_version: Callable[[], Awaitable[str]]) -> None:
        """`containerd_version` asks containerd, and raises when it does not answer."""
        self._node = node
        self._lookup = Lookup(node.ledger)
        self._containerd_version = containerd_version

    async def Doctor(self, request: host_pb2.DoctorRequest, context: Any) -> host_pb2.DoctorResponse:
        machine_look, pod_look = await asyncio.to_thread(_examinations)
        if request.pod_sandbox_id:
            checks = await pod_look.examined(self._node, self._lookup.sandbox(request.pod_sandbox_id))
        else:
            checks = await machine_look.examined(self._node, self._containerd_version)
        return host_pb2.DoctorResponse(checks=[_view(check) for check in checks])


def _examinations() -> tuple[ModuleType, ModuleType]:
    # Here and not above: all that can be wrong, a sixth of our code, is loaded for who asks and not for each start.
    from sandboxd.insight import machine_look, pod_look

    return machine_look, pod_look


def _view(check: Check) -> host_pb2.DoctorCheck:
    return host_pb2.DoctorCheck(
        name=check.name,
        severity=check.severity.value,
        says=check.says,
        evidence=check.evidence,
        remedy=check.remedy,
        commands=check.commands,
    )
