"""CRI's calls that change what runs, or what will: limits, checkpoints, the machine's pod CIDR."""

from __future__ import annotations

from typing import Any

from sandboxd.containers import checkpoint, resources
from sandboxd.model import find
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import cidr
from sandboxd.pods import resources as pod_resources


class ResourceRpcs:
    """Changes after the creation."""

    _node: Node

    async def UpdateContainerResources(
        self, request: cri.UpdateContainerResourcesRequest, context: Any
    ) -> cri.UpdateContainerResourcesResponse:
        container_id = find(self._node.ledger.containers, request.container_id, "container")
        await resources.update_container(self._node, container_id, request.linux)
        return cri.UpdateContainerResourcesResponse()

    async def UpdatePodSandboxResources(
        self, request: cri.UpdatePodSandboxResourcesRequest, context: Any
    ) -> cri.UpdatePodSandboxResourcesResponse:
        sandbox_id = find(self._node.ledger.sandboxes, request.pod_sandbox_id, "pod")
        await pod_resources.update_sandbox(self._node, sandbox_id, request)
        return cri.UpdatePodSandboxResourcesResponse()

    async def CheckpointContainer(
        self, request: cri.CheckpointContainerRequest, context: Any
    ) -> cri.CheckpointContainerResponse:
        container_id = find(self._node.ledger.containers, request.container_id, "container")
        await checkpoint.checkpoint_container(self._node, container_id, request.location, request.timeout)
        return cri.CheckpointContainerResponse()

    async def UpdateRuntimeConfig(
        self, request: cri.UpdateRuntimeConfigRequest, context: Any
    ) -> cri.UpdateRuntimeConfigResponse:
        wanted = request.runtime_config.network_config.pod_cidr
        cidr.set_pod_cidr(self._node, wanted)
        return cri.UpdateRuntimeConfigResponse()
