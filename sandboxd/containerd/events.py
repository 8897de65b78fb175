"""containerd's event stream. Events only wake us: the state is looked up, never taken from them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from sandboxd.containerd.client import Containerd, translate
from sandboxd.pb.containerd.events import task_pb2
from sandboxd.pb.containerd.services.events.v1 import events_pb2, events_pb2_grpc

EXIT, OOM, IMAGES = "/tasks/exit", "/tasks/oom", "/images/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to a container or to the images."""

    topic: str
    container_id: str = ""


async def subscribe(client: Containerd) -> AsyncIterator[Event]:
    """Events of our namespace from now on; raises Unavailable when the stream breaks."""
    # Filters are ORed; within one, terms are ANDed.
    names = ('topic=="/tasks/exit"', 'topic=="/tasks/oom"', 'topic~="^/images/"')
    request = events_pb2.SubscribeRequest(filters=[f'namespace=="{client.namespace}",{name}' for name in names])
    with translate("containerd's events"):
        stream = events_pb2_grpc.EventsStub(client.channel).Subscribe(request, metadata=client.metadata)
        async for envelope in stream:
            if envelope.topic == EXIT:
                ended = task_pb2.TaskExit.FromString(envelope.event.value)
                # An exec'd process has an id of its own; only the init process's exit ends the container.
                if ended.id == ended.container_id:
                    yield Event(topic=EXIT, container_id=ended.container_id)
            elif envelope.topic == OOM:
                yield Event(topic=OOM, container_id=task_pb2.TaskOOM.FromString(envelope.event.value).container_id)
            else:
                yield Event(topic=IMAGES)
