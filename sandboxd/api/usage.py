"""CRI's RPCs about what pods and containers use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from sandboxd.api import usage_views as views
from sandboxd.api.lists import batches
from sandboxd.api.lookup import Lookup
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.usage import cadvisor, families
from sandboxd.usage.stats import Stats


class Usage:
    """See the CRI API for what each RPC promises."""

    def __init__(self, node: Node, stats: Stats) -> None:
        self._node = node
        self._stats = stats
        self._lookup = Lookup(node.ledger)

    async def ContainerStats(self, request: cri.ContainerStatsRequest, context: Any) -> cri.ContainerStatsResponse:
        record = self._lookup.created_container(request.container_id)
        return cri.ContainerStatsResponse(stats=views.container_stats(await self._stats.container(record)))

    async def ListContainerStats(
        self, request: cri.ListContainerStatsRequest, context: Any
    ) -> cri.ListContainerStatsResponse:
        return cri.ListContainerStatsResponse(stats=await self._containers(request.filter))

    async def StreamContainerStats(
        self, request: cri.StreamContainerStatsRequest, context: Any
    ) -> AsyncIterator[cri.StreamContainerStatsResponse]:
        for batch in batches(await self._containers(request.filter)):
            yield cri.StreamContainerStatsResponse(container_stats=batch)

    async def _containers(self, wanted: cri.ContainerStatsFilter) -> list[cri.ContainerStats]:
        records = self._lookup.containers(wanted.id, wanted.pod_sandbox_id, wanted.label_selector)
        return [views.container_stats(usage) for usage in await self._stats.containers(records)]

    async def PodSandboxStats(self, request: cri.PodSandboxStatsRequest, context: Any) -> cri.PodSandboxStatsResponse:
        usage = await self._stats.pod(self._lookup.sandbox(request.pod_sandbox_id))
        return cri.PodSandboxStatsResponse(stats=views.pod_stats(usage))

    async def ListPodSandboxStats(
        self, request: cri.ListPodSandboxStatsRequest, context: Any
    ) -> cri.ListPodSandboxStatsResponse:
        return cri.ListPodSandboxStatsResponse(stats=await self._pods(request.filter))

    async def StreamPodSandboxStats(
        self, request: cri.StreamPodSandboxStatsRequest, context: Any
    ) -> AsyncIterator[cri.StreamPodSandboxStatsResponse]:
        for batch in batches(await self._pods(request.filter)):
            yield cri.StreamPodSandboxStatsResponse(pod_sandbox_stats=batch)

    async def _pods(self, wanted: cri.PodSandboxStatsFilter) -> list[cri.PodSandboxStats]:
        records = self._lookup.sandboxes(wanted.id, wanted.label_selector)
        return [views.pod_stats(usage) for usage in await self._stats.pods(records)]

    async def ListMetricDescriptors(
        self, request: cri.ListMetricDescriptorsRequest, context: Any
    ) -> cri.ListMetricDescriptorsResponse:
        descriptors = [views.descriptor(family) for family in families.FAMILIES]
        return cri.ListMetricDescriptorsResponse(descriptors=descriptors)

    async def ListPodSandboxMetrics(
        self, request: cri.ListPodSandboxMetricsRequest, context: Any
    ) -> cri.ListPodSandboxMetricsResponse:
        return cri.ListPodSandboxMetricsResponse(pod_metrics=await self._metrics())

    async def StreamPodSandboxMetrics(
        self, request: cri.StreamPodSandboxMetricsRequest, context: Any
    ) -> AsyncIterator[cri.StreamPodSandboxMetricsResponse]:
        for batch in batches(await self._metrics()):
            yield cri.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=batch)

    async def _metrics(self) -> list[cri.PodSandboxMetrics]:
        pods = await cadvisor.list_pod_metrics(self._node, self._stats)
        # In a thread: a machine full of pods has tens of thousands of values.
        return await asyncio.to_thread(lambda: [views.pod_metrics(pod) for pod in pods])
