"""Which of containerd's calls change something, and what each is about: for the timeline. Pure.

The others read, or wait. A test demands that each method of the services is one or the other. What a call is about
is named and never what it carries: specs, environments and labels are nobody's who reads a timeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

About = Callable[[Any], str]  # a request → the key of what it is about


def name(method: str) -> str:
    """The service and the method, for people: "Tasks.Create" of "/containerd.services.tasks.v1.Tasks/Create"."""
    service, _, verb = method.strip("/").partition("/")
    return f"{service.rpartition('.')[2]}.{verb}"


def _process(request: Any) -> str:
    """A process of a container: its init process has no id of its own."""
    return f"{request.container_id}/{request.exec_id}" if request.exec_id else str(request.container_id)


def _signalled(request: Any) -> str:
    return f"{_process(request)} signal {request.signal}"


def _resource(request: Any) -> str:
    return f"{request.id} {request.resource.type}/{request.resource.id}"


_container: About = attrgetter("container_id")

CHANGING: Mapping[str, About] = {
    "Containers.Create": attrgetter("container.id"),
    "Containers.Update": attrgetter("container.id"),
    "Containers.Delete": attrgetter("id"),
    "Content.Abort": attrgetter("ref"),
    "Content.Delete": attrgetter("digest"),
    "Content.Update": attrgetter("info.digest"),
    "Diff.Apply": attrgetter("diff.digest"),
    "Diff.Diff": attrgetter("ref"),
    "Images.Create": attrgetter("image.name"),
    "Images.Delete": attrgetter("name"),
    "Images.Update": attrgetter("image.name"),
    "Leases.AddResource": _resource,
    "Leases.Create": attrgetter("id"),
    "Leases.Delete": attrgetter("id"),
    "Leases.DeleteResource": _resource,
    "Snapshots.Cleanup": attrgetter("snapshotter"),
    "Snapshots.Commit": attrgetter("name"),
    "Snapshots.Prepare": attrgetter("key"),
    "Snapshots.Remove": attrgetter("key"),
    "Snapshots.Update": attrgetter("info.name"),
    "Snapshots.View": attrgetter("key"),
    "Tasks.Checkpoint": _container,
    "Tasks.CloseIO": _process,
    "Tasks.Create": _container,
    "Tasks.Delete": _container,
    "Tasks.DeleteProcess": _process,
    "Tasks.Exec": _process,
    "Tasks.Kill": _signalled,
    "Tasks.Pause": _container,
    "Tasks.ResizePty": _process,
    "Tasks.Resume": _container,
    "Tasks.Start": _process,
    "Tasks.Update": _container,
}
WRITE = "Content.Write"  # a stream of messages: whoever sends it notes it
