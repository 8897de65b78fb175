"""The streaming forms of CRI's lists, for those that outgrow one message.

Each asks its unary form and cuts the answer: every item comes exactly once, no response is empty.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from sandboxd.pb.cri.v1 import api_pb2 as cri

BATCH_ITEMS = 1000
BATCH_BYTES = 1 << 20  # clients take messages of 4 MiB at the least; one item alone may be larger

Item = TypeVar("Item", bound=Message)


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in order, in parts that fit a message; nothing for nothing."""
    batch: list[Item] = []
    size = 0
    for item in items:
        more = item.ByteSize()
        if batch and (len(batch) >= BATCH_ITEMS or size + more > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += more
    if batch:
        yield batch


class Lists(Protocol):
    """The unary lists of RuntimeService."""

    async def ListPodSandbox(
        self, request: cri.ListPodSandboxRequest, context: Any
    ) -> cri.ListPodSandboxResponse: ...
    async def ListContainers(
        self, request: cri.ListContainersRequest, context: Any
    ) -> cri.ListContainersResponse: ...
    async def ListContainerStats(
        self, request: cri.ListContainerStatsRequest, context: Any
    ) -> cri.ListContainerStatsResponse: ...
    async def ListPodSandboxStats(
        self, request: cri.ListPodSandboxStatsRequest, context: Any
    ) -> cri.ListPodSandboxStatsResponse: ...
    async def ListPodSandboxMetrics(
        self, request: cri.ListPodSandboxMetricsRequest, context: Any
    ) -> cri.ListPodSandboxMetricsResponse: ...


class ImageLists(Protocol):
    """The unary list of ImageService."""

    async def ListImages(self, request: cri.ListImagesRequest, context: Any) -> cri.ListImagesResponse: ...


class ListRpcs:
    """RuntimeService's lists as streams."""

    async def StreamPodSandboxes(
        self: Lists, request: cri.StreamPodSandboxesRequest, context: Any
    ) -> AsyncIterator[cri.StreamPodSandboxesResponse]:
        answer = await self.ListPodSandbox(cri.ListPodSandboxRequest(filter=request.filter), context)
        for batch in batches(answer.items):
            yield cri.StreamPodSandboxesResponse(pod_sandboxes=batch)

    async def StreamContainers(
        self: Lists, request: cri.StreamContainersRequest, context: Any
    ) -> AsyncIterator[cri.StreamContainersResponse]:
        answer = await self.ListContainers(cri.ListContainersRequest(filter=request.filter), context)
        for batch in batches(answer.containers):
            yield cri.StreamContainersResponse(containers=batch)

    async def StreamContainerStats(
        self: Lists, request: cri.StreamContainerStatsRequest, context: Any
    ) -> AsyncIterator[cri.StreamContainerStatsResponse]:
        answer = await self.ListContainerStats(cri.ListContainerStatsRequest(filter=request.filter), context)
        for batch in batches(answer.stats):
            yield cri.StreamContainerStatsResponse(container_stats=batch)

    async def StreamPodSandboxStats(
        self: Lists, request: cri.StreamPodSandboxStatsRequest, context: Any
    ) -> AsyncIterator[cri.StreamPodSandboxStatsResponse]:
        answer = await self.ListPodSandboxStats(cri.ListPodSandboxStatsRequest(filter=request.filter), context)
        for batch in batches(answer.stats):
            yield cri.StreamPodSandboxStatsResponse(pod_sandbox_stats=batch)

    async def StreamPodSandboxMetrics(
        self: Lists, request: cri.StreamPodSandboxMetricsRequest, context: Any
    ) -> AsyncIterator[cri.StreamPodSandboxMetricsResponse]:
        answer = await self.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest(), context)
        for batch in batches(answer.pod_metrics):
            yield cri.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=batch)


class ImageListRpcs:
    """ImageService's list as a stream."""

    async def StreamImages(
        self: ImageLists, request: cri.StreamImagesRequest, context: Any
    ) -> AsyncIterator[cri.StreamImagesResponse]:
        answer = await self.ListImages(cri.ListImagesRequest(filter=request.filter), context)
        for batch in batches(answer.images):
            yield cri.StreamImagesResponse(images=batch)
