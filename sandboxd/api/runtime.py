"""CRI's RuntimeService, one short method per RPC.

Those that belong together are in mixins beside it: exec, events, lists, resources, stats.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import sandboxd
from sandboxd.announce import Announcer
from sandboxd.api import views
from sandboxd.api.events import EventRpcs
from sandboxd.api.exec import ExecRpcs
from sandboxd.api.lists import ListRpcs
from sandboxd.api.resources import ResourceRpcs
from sandboxd.api.stats import StatsRpcs
from sandboxd.config import effective
from sandboxd.containers import create, remove, start, stop
from sandboxd.containers.attach import Attaching
from sandboxd.errors import NotFound, SandboxdError
from sandboxd.machine import handlers
from sandboxd.model import ContainerRecord, ContainerState, ImageRecord, SandboxRecord, SandboxState, find
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.cri.v1 import api_pb2_grpc
from sandboxd.pods import run, teardown
from sandboxd.streaming.server import StreamingServer
from sandboxd.usage.stats import Stats

# What CRI clients compare with; it is the version of the kubelet's runtime API, not of sandboxd.
KUBE_API_VERSION = "0.1.0"
CRI_VERSION = "v1"


class RuntimeService(ExecRpcs, EventRpcs, ListRpcs, ResourceRpcs, StatsRpcs, api_pb2_grpc.RuntimeServiceServicer):
    """See the CRI API for what each RPC promises."""

    def __init__(
        self,
        node: Node,
        pause_image: Callable[[], Awaitable[ImageRecord]],
        streaming: StreamingServer,
        announcer: Announcer,
        stats: Stats,
        containerd_trouble: Callable[[], str],
    ) -> None:
        """`containerd_trouble` says what is known to be wrong with containerd, "" when nothing is."""
        self._node = node
        self._pause_image = pause_image
        self._attaching = Attaching(node)
        self._streaming = streaming
        self._announcer = announcer
        self._stats = stats
        self._trouble = containerd_trouble

    async def Version(self, request: cri.VersionRequest, context: Any) -> cri.VersionResponse:
        return cri.VersionResponse(
            version=KUBE_API_VERSION,
            runtime_name="sandboxd",
            runtime_version=sandboxd.__version__,
            runtime_api_version=CRI_VERSION,
        )

    async def Status(self, request: cri.StatusRequest, context: Any) -> cri.StatusResponse:
        trouble = self._trouble()
        choice = self._node.network.conf.current()
        problems = "; ".join(f"{problem.path}: {problem.text}" for problem in choice.problems)
        network = choice.config is not None
        conditions = [
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
                message=problems or ("" if network else f"no network configuration in {self._conf_dir}"),
            ),
        ]
        names = ["", *sorted(self._node.config.runtime.handlers)]
        offered = [await self._handler(name) for name in names]
        answer = cri.StatusResponse(
            status=cri.RuntimeStatus(conditions=conditions),
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
            answer.info.update(self._status_info(choice))
        return answer

    async def _handler(self, name: str) -> cri.RuntimeHandler:
        found = await handlers.features(self._node, handlers.resolve(self._node, name))
        return cri.RuntimeHandler(
            name=name,
            features=cri.RuntimeHandlerFeatures(
                recursive_read_only_mounts=found.recursive_read_only, user_namespaces=found.user_namespaces
            ),
        )

    @property
    def _conf_dir(self) -> str:
        return self._node.config.network.conf_dir

    def _status_info(self, choice: Any) -> dict[str, str]:
        debts = [a for a in self._node.ledger.attachments if a.sandbox_id not in self._node.ledger.sandboxes]
        return {
            "config": json.dumps({name: value for name, value, _ in effective(self._node.config)}),
            "network": json.dumps(
                {
                    "name": choice.config.name if choice.config else "",
                    "file": choice.config.source if choice.config else "",
                    "plugins": [p["type"] for p in choice.config.plugins] if choice.config else [],
                    "problems": [f"{p.path}: {p.text}" for p in choice.problems],
                    "debts": [
                        {"sandbox": a.sandbox_id, "network": a.network, "error": a.error, "attempts": a.attempts}
                        for a in debts
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

    # Sandboxes

    async def RunPodSandbox(self, request: cri.RunPodSandboxRequest, context: Any) -> cri.RunPodSandboxResponse:
        sandbox_id = await run.run_sandbox(self._node, self._pause_image, request.config, request.runtime_handler)
        return cri.RunPodSandboxResponse(pod_sandbox_id=sandbox_id)

    async def StopPodSandbox(self, request: cri.StopPodSandboxRequest, context: Any) -> cri.StopPodSandboxResponse:
        if sandbox_id := self._known_sandbox(request.pod_sandbox_id):
            await teardown.stop_sandbox(self._node, sandbox_id)
        return cri.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: cri.RemovePodSandboxRequest, context: Any
    ) -> cri.RemovePodSandboxResponse:
        if sandbox_id := self._known_sandbox(request.pod_sandbox_id):
            await teardown.remove_sandbox(self._node, sandbox_id)
        return cri.RemovePodSandboxResponse()

    async def PodSandboxStatus(
        self, request: cri.PodSandboxStatusRequest, context: Any
    ) -> cri.PodSandboxStatusResponse:
        record = self._sandbox(request.pod_sandbox_id)
        answer = cri.PodSandboxStatusResponse(status=views.sandbox_status(record))
        answer.containers_statuses.extend(
            views.container_status(c)
            for c in self._node.ledger.containers_of(record.id)
            if c.state is not ContainerState.CREATING
        )
        if request.verbose:
            answer.info.update(await self._sandbox_info(record))
        return answer

    async def _sandbox_info(self, record: SandboxRecord) -> dict[str, str]:
        results = [a.result for a in self._node.ledger.attachments_of(record.id) if a.result]
        return views.info(
            pid=record.pid,
            state=record.state.value,
            failure=record.failure or None,
            runtimeHandler=record.runtime_handler,
            netNamespacePath=record.netns_path,
            netNamespaceInode=self._node.netns.inode(record.netns_path) if record.netns_path else 0,
            config=views.message_dict(record.config),
            cniResult=json.loads(results[0]) if results else None,
            runtimeSpec=await self._spec(record.id),
            timeline=views.timeline(self._node.ledger.timeline(record.id)),
        )

    async def _spec(self, container_id: str) -> dict[str, Any] | None:
        try:
            return await self._node.runtime.spec(container_id)
        except SandboxdError:
            return None  # a status that lacks the spec is better than none

    async def ListPodSandbox(self, request: cri.ListPodSandboxRequest, context: Any) -> cri.ListPodSandboxResponse:
        wanted = request.filter
        found = [
            views.sandbox(record)
            for record in self._node.ledger.sandboxes.values()
            if record.state is not SandboxState.CREATING
            and record.id.startswith(wanted.id)
            and (not wanted.HasField("state") or views.sandbox_state(record) == wanted.state.state)
            and views.labels_match(wanted.label_selector, record.config.labels)
        ]
        return cri.ListPodSandboxResponse(items=found)

    # Containers

    async def CreateContainer(self, request: cri.CreateContainerRequest, context: Any) -> cri.CreateContainerResponse:
        sandbox_id = self._sandbox(request.pod_sandbox_id).id
        container_id = await create.create_container(self._node, sandbox_id, request.config)
        return cri.CreateContainerResponse(container_id=container_id)

    async def StartContainer(self, request: cri.StartContainerRequest, context: Any) -> cri.StartContainerResponse:
        await start.start_container(self._node, self._container(request.container_id).id)
        return cri.StartContainerResponse()

    async def StopContainer(self, request: cri.StopContainerRequest, context: Any) -> cri.StopContainerResponse:
        if container_id := self._known_container(request.container_id):
            await stop.stop_container(self._node, container_id, request.timeout)
        return cri.StopContainerResponse()

    async def RemoveContainer(self, request: cri.RemoveContainerRequest, context: Any) -> cri.RemoveContainerResponse:
        if container_id := self._known_container(request.container_id):
            await remove.remove_container(self._node, container_id)
        return cri.RemoveContainerResponse()

    async def ListContainers(self, request: cri.ListContainersRequest, context: Any) -> cri.ListContainersResponse:
        wanted = request.filter
        entries = [
            views.container(record)
            for record in self._node.ledger.containers.values()
            if record.state is not ContainerState.CREATING
            and record.id.startswith(wanted.id)
            and record.sandbox_id.startswith(wanted.pod_sandbox_id)
            and views.labels_match(wanted.label_selector, record.config.labels)
        ]
        if wanted.HasField("state"):
            entries = [entry for entry in entries if entry.state == wanted.state.state]
        return cri.ListContainersResponse(containers=entries)

    async def ContainerStatus(self, request: cri.ContainerStatusRequest, context: Any) -> cri.ContainerStatusResponse:
        record = self._container(request.container_id)
        answer = cri.ContainerStatusResponse(status=views.container_status(record))
        if request.verbose:
            info = views.info(
                pid=record.pid,
                sandboxID=record.sandbox_id,
                snapshotKey=record.id,
                config=views.message_dict(record.config),
                runtimeSpec=await self._spec(record.id),
            )
            answer.info.update(info)
        return answer

    async def ReopenContainerLog(
        self, request: cri.ReopenContainerLogRequest, context: Any
    ) -> cri.ReopenContainerLogResponse:
        await self._node.logs.reopen(self._container(request.container_id).id)
        return cri.ReopenContainerLogResponse()

    # Ids: any unambiguous prefix names an object

    def _sandbox(self, text: str) -> SandboxRecord:
        return self._node.ledger.sandboxes[find(self._node.ledger.sandboxes, text, "pod")]

    def _container(self, text: str) -> ContainerRecord:
        return self._node.ledger.containers[find(self._node.ledger.containers, text, "container")]

    def _known_sandbox(self, text: str) -> str:
        try:
            return self._sandbox(text).id
        except NotFound:
            return ""  # CRI: stopping or removing the unknown succeeds

    def _known_container(self, text: str) -> str:
        try:
            return self._container(text).id
        except NotFound:
            return ""
