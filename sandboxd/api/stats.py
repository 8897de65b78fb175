"""CRI's statistics and metrics of pods and containers."""

from __future__ import annotations

from typing import Any

from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.usage import cadvisor
from sandboxd.usage.stats import Stats


class StatsRpcs:
    """What pods and containers use."""

    _node: Node
    _stats: Stats

    async def ContainerStats(self, request: cri.ContainerStatsRequest, context: Any) -> cri.ContainerStatsResponse:
        return cri.ContainerStatsResponse(stats=await self._stats.container(request.container_id))

    async def ListContainerStats(
        self, request: cri.ListContainerStatsRequest, context: Any
    ) -> cri.ListContainerStatsResponse:
        return cri.ListContainerStatsResponse(stats=await self._stats.containers(request.filter))

    async def PodSandboxStats(self, request: cri.PodSandboxStatsRequest, context: Any) -> cri.PodSandboxStatsResponse:
        return cri.PodSandboxStatsResponse(stats=await self._stats.pod(request.pod_sandbox_id))

    async def ListPodSandboxStats(
        self, request: cri.ListPodSandboxStatsRequest, context: Any
    ) -> cri.ListPodSandboxStatsResponse:
        return cri.ListPodSandboxStatsResponse(stats=await self._stats.pods(request.filter))

    async def ListMetricDescriptors(
        self, request: cri.ListMetricDescriptorsRequest, context: Any
    ) -> cri.ListMetricDescriptorsResponse:
        return cri.ListMetricDescriptorsResponse(descriptors=cadvisor.descriptors())

    async def ListPodSandboxMetrics(
        self, request: cri.ListPodSandboxMetricsRequest, context: Any
    ) -> cri.ListPodSandboxMetricsResponse:
        found = await cadvisor.list_pod_metrics(self._node, self._stats)
        return cri.ListPodSandboxMetricsResponse(pod_metrics=found)
