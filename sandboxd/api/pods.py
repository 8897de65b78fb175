"""CRI's RPCs about pods."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from sandboxd.api import views
from sandboxd.api.entries import Entries
from sandboxd.api.lists import batches
from sandboxd.api.lookup import Lookup, image_name, spec_if_known
from sandboxd.errors import SandboxdError
from sandboxd.machine import handlers, pod_files
from sandboxd.model import ContainerState, ImageRecord, SandboxRecord
from sandboxd.node import Node
from sandboxd.oci import pinned, sandbox
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import resources, run, teardown


class Pods:
    """See the CRI API for what each RPC promises."""

    def __init__(self, node: Node, pause_image: Callable[[], Awaitable[ImageRecord]]) -> None:
        self._node = node
        self._pause_image = pause_image
        self._lookup = Lookup(node.ledger)
        self._entries = Entries(cri.ListPodSandboxResponse, _list_of_one)

    async def RunPodSandbox(self, request: cri.RunPodSandboxRequest, context: Any) -> cri.RunPodSandboxResponse:
        sandbox_id = await run.run_sandbox(self._node, self._pause_image, request.config, request.runtime_handler)
        return cri.RunPodSandboxResponse(pod_sandbox_id=sandbox_id)

    async def StopPodSandbox(self, request: cri.StopPodSandboxRequest, context: Any) -> cri.StopPodSandboxResponse:
        if sandbox_id := self._lookup.sandbox_id_if_known(request.pod_sandbox_id):
            await teardown.stop_sandbox(self._node, sandbox_id)
        return cri.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: cri.RemovePodSandboxRequest, context: Any
    ) -> cri.RemovePodSandboxResponse:
        if sandbox_id := self._lookup.sandbox_id_if_known(request.pod_sandbox_id):
            await teardown.remove_sandbox(self._node, sandbox_id)
        return cri.RemovePodSandboxResponse()

    async def PodSandboxStatus(
        self, request: cri.PodSandboxStatusRequest, context: Any
    ) -> cri.PodSandboxStatusResponse:
        record = self._lookup.sandbox(request.pod_sandbox_id)
        answer = cri.PodSandboxStatusResponse(status=views.sandbox_status(record))
        answer.containers_statuses.extend(
            views.container_status(c)
            for c in self._node.ledger.containers_of(record.id)
            if c.state is not ContainerState.CREATING
        )
        if request.verbose:
            answer.info.update(await self._info(record))
        return answer

    async def _info(self, record: SandboxRecord) -> dict[str, str]:
        results = [a.result for a in self._node.ledger.attachments_of(record.id) if a.result]
        spec = await spec_if_known(self._node.runtime, record.id)
        return views.info(
            pid=record.pid,
            pinnedNamespaces=pinned.pins(record, self._node.places) if record.pinned else None,
            state=record.state.value,
            failure=record.failure or None,
            warnings=list(record.warnings) or None,
            runtimeHandler=record.runtime_handler,
            netNamespacePath=record.netns_path,
            netNamespaceInode=self._node.netns.inode(record.netns_path) if record.netns_path else 0,
            config=views.message_dict(record.config),
            cniResult=json.loads(results[0]) if results else None,
            runtimeSpec=spec,
            imageName=image_name(self._node.images, sandbox.image_of(spec)) if spec else None,
            containerd=self._containerd(record),
            files=pod_files.texts(self._node, record.id) or None,
            timeline=views.timeline(self._node.ledger.timeline(record.id)),
        )

    def _containerd(self, record: SandboxRecord) -> dict[str, str]:
        """Where the pod's containers are, and what runs them: enough to look at them with ctr."""
        config = self._node.config
        known = {
            "address": config.containerd_socket,
            "namespace": config.containerd.namespace,
            "snapshotter": config.containerd.snapshotter,
        }
        try:
            runtime = handlers.runtime_options(self._node, record)
        except SandboxdError:  # the configuration has not had it since the pod was made
            return known
        return {**known, "runtimeType": runtime.type, "runtimeBinary": runtime.binary}

    async def ListPodSandbox(self, request: cri.ListPodSandboxRequest, context: Any) -> cri.ListPodSandboxResponse:
        return self._list(request.filter)

    async def StreamPodSandboxes(
        self, request: cri.StreamPodSandboxesRequest, context: Any
    ) -> AsyncIterator[cri.StreamPodSandboxesResponse]:
        for batch in batches(self._list(request.filter).items):
            yield cri.StreamPodSandboxesResponse(pod_sandboxes=batch)

    def _list(self, wanted: cri.PodSandboxFilter) -> cri.ListPodSandboxResponse:
        records = self._lookup.sandboxes(wanted.id, wanted.label_selector)
        if wanted.HasField("state"):
            records = [record for record in records if views.sandbox_state(record) == wanted.state.state]
        return self._entries.of(records, self._node.ledger.sandboxes)

    async def UpdatePodSandboxResources(
        self, request: cri.UpdatePodSandboxResourcesRequest, context: Any
    ) -> cri.UpdatePodSandboxResourcesResponse:
        sandbox_id = self._lookup.sandbox(request.pod_sandbox_id).id
        await resources.update_sandbox(self._node, sandbox_id, request)
        return cri.UpdatePodSandboxResourcesResponse()


def _list_of_one(record: SandboxRecord) -> cri.ListPodSandboxResponse:
    return cri.ListPodSandboxResponse(items=[views.sandbox(record)])
