"""CRI's RPCs about the runtime itself: its version, whether it is ready, how it is configured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import sandboxd
from sandboxd.cni.conf import Choice
from sandboxd.config import Handler, effective
from sandboxd.machine import handlers, room
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import cidr, debts, pool

# What CRI clients compare with; it is the version of the kubelet's runtime API, not of sandboxd.
KUBE_API_VERSION = "0.1.0"
CRI_VERSION = "v1"
LOOK_SECONDS = 1.0  # for which Status repeats what the runtimes offer: each look is a walk through PATH and /proc


class Runtime:
    """See the CRI API for what each RPC promises."""

    def __init__(
        self, node: Node, containerd_trouble: Callable[[], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`containerd_trouble` says what is known to be wrong with containerd, "" when nothing is."""
        self._node = node
        self._trouble = containerd_trouble
        self._clock = clock
        self._offers = cri.StatusResponse()
        self._offers_until = float("-inf")

    async def Version(self, request: cri.VersionRequest, context: Any) -> cri.VersionResponse:
        return cri.VersionResponse(
            version=KUBE_API_VERSION,
            runtime_name="sandboxd",
            runtime_version=sandboxd.__version__,
            runtime_api_version=CRI_VERSION,
        )

    async def Status(self, request: cri.StatusRequest, context: Any) -> cri.StatusResponse:
        choice = self._node.network.conf.current()
        answer = cri.StatusResponse(status=cri.RuntimeStatus(conditions=self._conditions(choice)))
        answer.MergeFrom(await self._offered())
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

    async def _offered(self) -> cri.StatusResponse:
        """Of a status, what the runtimes and this kernel can do."""
        if self._clock() >= self._offers_until:
            offered = await self._handlers()
            mapped = [each.features for each in offered if each.features.user_namespaces]
            self._offers = cri.StatusResponse(
                runtime_handlers=offered,
                features=cri.RuntimeFeatures(
                    supplemental_groups_policy=True,
                    user_namespaces_host_network=bool(mapped)
                    and all(features.recursive_read_only_mounts for features in mapped),
                ),
            )
            self._offers_until = self._clock() + LOOK_SECONDS
        return self._offers

    async def _handlers(self) -> list[cri.RuntimeHandler]:
        """The default one under the empty name, then all by theirs."""
        runtime = self._node.config.runtime
        offered = {name: await self._features(handler) for name, handler in sorted(runtime.handlers.items())}
        return [
            cri.RuntimeHandler(name="", features=offered[runtime.default_handler]),
            *(cri.RuntimeHandler(name=name, features=features) for name, features in offered.items()),
        ]

    async def _features(self, handler: Handler) -> cri.RuntimeHandlerFeatures:
        features = await handlers.features(self._node, handler)
        return cri.RuntimeHandlerFeatures(
            recursive_read_only_mounts=features.recursive_read_only, user_namespaces=features.user_namespaces
        )

    def _info(self, choice: Choice) -> dict[str, str]:
        owed = debts.failed(self._node)
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
            "pool": json.dumps(pool.told(self._node)),
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
