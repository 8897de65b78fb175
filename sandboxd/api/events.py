"""CRI's GetContainerEvents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sandboxd.announce import Announcement, Announcer, Change
from sandboxd.api import views
from sandboxd.pb.cri.v1 import api_pb2 as cri

_TYPES = {
    Change.CREATED: cri.CONTAINER_CREATED_EVENT,
    Change.STARTED: cri.CONTAINER_STARTED_EVENT,
    Change.STOPPED: cri.CONTAINER_STOPPED_EVENT,
    Change.DELETED: cri.CONTAINER_DELETED_EVENT,
}


class Events:
    """What happens, as it happens. The call of a client that reads too slowly ends with RESOURCE_EXHAUSTED."""

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer

    async def GetContainerEvents(
        self, request: cri.GetEventsRequest, context: Any
    ) -> AsyncIterator[cri.ContainerEventResponse]:
        with self._announcer.subscribe() as subscription:
            # Sent at once: from here on, as the client can see, it misses nothing.
            await context.send_initial_metadata(())
            async for announcement in subscription:
                yield event(announcement)


def event(announcement: Announcement) -> cri.ContainerEventResponse:
    """An announcement as a message of CRI."""
    sandbox = announcement.sandbox
    return cri.ContainerEventResponse(
        container_id=announcement.id,
        container_event_type=_TYPES[announcement.change],
        created_at=announcement.at,
        pod_sandbox_status=views.sandbox_status(sandbox) if sandbox is not None else None,
        containers_statuses=[views.container_status(record) for record in announcement.containers],
    )
