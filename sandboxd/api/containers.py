"""CRI's RPCs about containers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sandboxd.api import views
from sandboxd.api.entries import Entries
from sandboxd.api.lists import batches
from sandboxd.api.lookup import Lookup, image_name, spec_if_known
from sandboxd.containers import checkpoint, create, remove, resources, start, stop
from sandboxd.model import ContainerRecord
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri


class Containers:
    """See the CRI API for what each RPC promises."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lookup = Lookup(node.ledger)
        self._entries = Entries(cri.ListContainersResponse, _list_of_one)

    async def CreateContainer(self, request: cri.CreateContainerRequest, context: Any) -> cri.CreateContainerResponse:
        sandbox_id = self._lookup.sandbox(request.pod_sandbox_id).id
        container_id = await create.create_container(self._node, sandbox_id, request.config)
        return cri.CreateContainerResponse(container_id=container_id)

    async def StartContainer(self, request: cri.StartContainerRequest, context: Any) -> cri.StartContainerResponse:
        await start.start_container(self._node, self._lookup.container(request.container_id).id)
        return cri.StartContainerResponse()

    async def StopContainer(self, request: cri.StopContainerRequest, context: Any) -> cri.StopContainerResponse:
        if container_id := self._lookup.container_id_if_known(request.container_id):
            await stop.stop_container(self._node, container_id, request.timeout)
        return cri.StopContainerResponse()

    async def RemoveContainer(self, request: cri.RemoveContainerRequest, context: Any) -> cri.RemoveContainerResponse:
        if container_id := self._lookup.container_id_if_known(request.container_id):
            await remove.remove_container(self._node, container_id)
        return cri.RemoveContainerResponse()

    async def ListContainers(self, request: cri.ListContainersRequest, context: Any) -> cri.ListContainersResponse:
        return self._list(request.filter)

    async def StreamContainers(
        self, request: cri.StreamContainersRequest, context: Any
    ) -> AsyncIterator[cri.StreamContainersResponse]:
        for batch in batches(self._list(request.filter).containers):
            yield cri.StreamContainersResponse(containers=batch)

    def _list(self, wanted: cri.ContainerFilter) -> cri.ListContainersResponse:
        records = self._lookup.containers(wanted.id, wanted.pod_sandbox_id, wanted.label_selector)
        if wanted.HasField("state"):
            records = [record for record in records if views.container_state(record) == wanted.state.state]
        return self._entries.of(records, self._node.ledger.containers)

    async def ContainerStatus(self, request: cri.ContainerStatusRequest, context: Any) -> cri.ContainerStatusResponse:
        record = self._lookup.created_container(request.container_id)
        answer = cri.ContainerStatusResponse(status=views.container_status(record))
        if request.verbose:
            info = views.info(
                pid=record.pid,
                sandboxID=record.sandbox_id,
                snapshotKey=record.id,
                imageName=image_name(self._node.images, record.image_id),
                config=views.message_dict(record.config),
                runtimeSpec=await spec_if_known(self._node.runtime, record.id),
            )
            answer.info.update(info)
        return answer

    async def ReopenContainerLog(
        self, request: cri.ReopenContainerLogRequest, context: Any
    ) -> cri.ReopenContainerLogResponse:
        await self._node.logs.reopen(self._lookup.container(request.container_id).id)
        return cri.ReopenContainerLogResponse()

    async def UpdateContainerResources(
        self, request: cri.UpdateContainerResourcesRequest, context: Any
    ) -> cri.UpdateContainerResourcesResponse:
        container_id = self._lookup.container(request.container_id).id
        await resources.update_container(self._node, container_id, request.linux)
        return cri.UpdateContainerResourcesResponse()

    async def CheckpointContainer(
        self, request: cri.CheckpointContainerRequest, context: Any
    ) -> cri.CheckpointContainerResponse:
        container_id = self._lookup.container(request.container_id).id
        await checkpoint.checkpoint_container(self._node, container_id, request.location, request.timeout)
        return cri.CheckpointContainerResponse()


def _list_of_one(record: ContainerRecord) -> cri.ListContainersResponse:
    return cri.ListContainersResponse(containers=[views.container(record)])
