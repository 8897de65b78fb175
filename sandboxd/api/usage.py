"""CRI's RPCs about what pods and containers use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sandboxd.api.lists import batches
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.usage import cadvisor
from sandboxd.usage.stats import Stats


class Usage:
    """See the CRI API for what each RPC promises."""

    def __init__(self, node: Node, stats: Stats) -> None:
        self._node = node
        self._stats = stats

    async def ContainerStats(self, request: cri.ContainerStatsRequest, context: Any) -> cri.ContainerStatsResponse:
        return cri.ContainerStatsResponse(stats=await self._stats.container(request.container_id))

    async def ListContainerStats(
        self, request: cri.ListContainerStatsRequest, context: Any
    ) -> cri.ListContainerStatsResponse:
        return cri.ListContainerStatsResponse(stats=await self._stats.containers(request.filter))

    async def StreamContainerStats(
        self, request: cri.StreamContainerStatsRequest, context: Any
    ) -> AsyncIterator[cri.StreamContainerStatsResponse]:
        for batch in batches(await self._stats.containers(request.filter)):
            yield cri.StreamContainerStatsResponse(container_stats=batch)

    async def PodSandboxStats(self, request: cri.PodSandboxStatsRequest, context: Any) -> cri.PodSandboxStatsResponse:
        return cri.PodSandboxStatsResponse(stats=await self._stats.pod(request.pod_sandbox_id))

    async def ListPodSandboxStats(
        self, request: cri.ListPodSandboxStatsRequest, context: Any
    ) -> cri.ListPodSandboxStatsResponse:
        return cri.ListPodSandboxStatsResponse(stats=await self._stats.pods(request.filter))

    async def StreamPodSandboxStats(
        self, request: cri.StreamPodSandboxStatsRequest, context: Any
    ) -> AsyncIterator[cri.StreamPodSandboxStatsResponse]:
        for batch in batches(await self._stats.pods(request.filter)):
            yield cri.StreamPodSandboxStatsResponse(pod_sandbox_stats=batch)

    async def ListMetricDescriptors(
        self, request: cri.ListMetricDescriptorsRequest, context: Any
    ) -> cri.ListMetricDescriptorsResponse:
        return cri.ListMetricDescriptorsResponse(descriptors=cadvisor.descriptors())

    async def ListPodSandboxMetrics(
        self, request: cri.ListPodSandboxMetricsRequest, context: Any
    ) -> cri.ListPodSandboxMetricsResponse:
        metrics = await cadvisor.list_pod_metrics(self._node, self._stats)
        return cri.ListPodSandboxMetricsResponse(pod_metrics=metrics)

    async def StreamPodSandboxMetrics(
        self, request: cri.StreamPodSandboxMetricsRequest, context: Any
    ) -> AsyncIterator[cri.StreamPodSandboxMetricsResponse]:
        for batch in batches(await cadvisor.list_pod_metrics(self._node, self._stats)):
            yield cri.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=batch)
