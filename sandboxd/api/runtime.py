"""CRI's RPCs about the runtime itself: its version, whether it is ready, how it is configured."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import sandboxd
from sandboxd.cni.conf import Choice
from sandboxd.config import effective
from sandboxd.machine import handlers, room
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import cidr, debts

# What CRI clients compare with; it is the version of the kubelet's runtime API, not of sandboxd.
KUBE_API_VERSION = "0.1.0"
CRI_VERSION = "v1"


class Runtime:
    """See the CRI API for what each RPC promises."""

    def __init__(self, node: Node, containerd_trouble: Callable[[], str]) -> None:
        """`containerd_trouble` says what is known to be wrong with containerd, "" when nothing is."""
        self._node = node
        self._trouble = containerd_trouble

    async def Version(self, request: cri.VersionRequest, context: Any) -> cri.VersionResponse:
        return cri.VersionResponse(
            version=KUBE_API_VERSION,
            runtime_name="sandboxd",
            runtime_version=sandboxd.__version__,
            runtime_api_version=CRI_VERSION,
        )

    async def Status(self, request: cri.StatusRequest, context: Any) -> cri.StatusResponse:
        choice = self._node.network.conf.current()
        names = ["", *sorted(self._node.config.runtime.handlers)]
        offered = [await self._handler(name) for name in names]
        answer = cri.StatusResponse(
            status=cri.RuntimeStatus(conditions=self._conditions(choice)),
            runtime_handlers=offered,
            features=cri.RuntimeFeatures(
                supplemental_groups_policy=True,
                user_namespaces_host_network=all(
                    h.features.recursive_read_only_mounts for h in offered if h.features.user_namespaces
                )
                and any(h.features.user_namespaces for h in offered),
            ),
        )
        if request.verbose:
            answer.info.update(self._info(choice))
        return answer

    def _conditions(self, choice: Choice) -> list[cri.RuntimeCondition]:
        trouble, shortage = self._trouble(), room.shortage(self._node)
        problems = "; ".join(f"{problem.path}: {problem.text}" for problem in choice.problems)
        network = choice.config is not None
        without = "" if network else f"no network configuration in {self._node.config.network.conf_dir}"
        return [
            cri.RuntimeCondition(
                type="RuntimeReady",
                status=not trouble,
                reason="ContainerdUnavailable" if trouble else "",
                message=trouble,
            ),
            cri.RuntimeCondition(
                type="NetworkReady",
                status=network,
                reason="" if network else "NetworkNotConfigured",
                message=problems or without,
            ),
            # Our own. Kubelet looks at the other two only, and would stop removing pods without them.
            cri.RuntimeCondition(
                type="DiskReady",
                status=not shortage,
                reason="NoRoom" if shortage else "",
                message=shortage,
            ),
        ]

    async def _handler(self, name: str) -> cri.RuntimeHandler:
        features = await handlers.features(self._node, handlers.resolve(self._node, name))
        return cri.RuntimeHandler(
            name=name,
            features=cri.RuntimeHandlerFeatures(
                recursive_read_only_mounts=features.recursive_read_only, user_namespaces=features.user_namespaces
            ),
        )

    def _info(self, choice: Choice) -> dict[str, str]:
        owed = [debt.attachment for debt in debts.listed(self._node) if not debt.attachment.kept]
        return {
            "config": json.dumps({name: value for name, value, _ in effective(self._node.config)}),
            "network": json.dumps(
                {
                    "name": choice.config.name if choice.config else "",
                    "file": choice.config.source if choice.config else "",
                    "plugins": [p["type"] for p in choice.config.plugins] if choice.config else [],
                    "problems": [f"{p.path}: {p.text}" for p in choice.problems],
                    "debts": [
                        {
                            "sandbox": a.sandbox_id,
                            "pod": a.pod,
                            "network": a.network,
                            "error": a.error,
                            "attempts": a.attempts,
                        }
                        for a in owed
                    ],
                }
            ),
            "quarantine": json.dumps(
                [{"kind": q.kind, "id": q.id, "reason": q.reason} for q in self._node.ledger.quarantined()]
            ),
        }

    async def RuntimeConfig(self, request: cri.RuntimeConfigRequest, context: Any) -> cri.RuntimeConfigResponse:
        driver = cri.SYSTEMD if self._node.config.runtime.cgroup_driver == "systemd" else cri.CGROUPFS
        return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def UpdateRuntimeConfig(
        self, request: cri.UpdateRuntimeConfigRequest, context: Any
    ) -> cri.UpdateRuntimeConfigResponse:
        cidr.set_pod_cidr(self._node, request.runtime_config.network_config.pod_cidr)
        return cri.UpdateRuntimeConfigResponse()
