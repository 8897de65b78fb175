"""What a pod, a container or an image could leave in a bed, seen without starting a program there.

`tests.audit` sees more (packet filter rules, routes, addresses) and takes seconds. A matrix glances after every cell,
and audits every few.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from sandboxd.pb.containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from sandboxd.pb.containerd.services.content.v1 import content_pb2, content_pb2_grpc
from sandboxd.pb.containerd.services.images.v1 import images_pb2, images_pb2_grpc
from sandboxd.pb.containerd.services.leases.v1 import leases_pb2, leases_pb2_grpc
from sandboxd.pb.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from sandboxd.pb.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from tests import audit
from tests.testbed import Testbed

SOCKET = "/run/sandboxd/containerd/containerd.sock"
_META = (("containerd-namespace", "sandboxd"),)
_CALL: dict[str, Any] = {"metadata": _META, "timeout": 30}


def glance(bed: Testbed, *, images: bool = False) -> audit.Snapshot:
    """The state of the bed as far as it can be seen so; with `images`, what containerd stores of images too.

    Raises grpc.RpcError when containerd does not answer.
    """
    sources = (audit._netns, audit._ipam, audit._mounts, audit._files, audit._processes, audit._cgroups, _links)
    lines = [line for source in sources for line in source(bed)]
    with grpc.insecure_channel(f"unix:{bed.path(SOCKET)}") as channel:
        lines += _containerd(channel)
        if images:
            lines += _images(channel)
    return audit.Snapshot(lines=tuple(sorted(lines)))


def _links(bed: Testbed) -> Iterator[str]:
    devices = Path(bed.netns).parents[1] / "net" / "dev"
    for line in devices.read_text(encoding="ascii").splitlines()[2:]:
        yield f"link {line.partition(':')[0].strip()}"


def _containerd(channel: grpc.Channel) -> Iterator[str]:
    containers = containers_pb2_grpc.ContainersStub(channel)
    for container in containers.List(containers_pb2.ListContainersRequest(), **_CALL).containers:
        yield f"containerd container {container.id}"
    for task in tasks_pb2_grpc.TasksStub(channel).List(tasks_pb2.ListTasksRequest(), **_CALL).tasks:
        yield f"containerd task {task.id}"
    for lease in leases_pb2_grpc.LeasesStub(channel).List(leases_pb2.ListRequest(), **_CALL).leases:
        yield f"containerd lease {lease.id}"
    snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
    for answer in snapshots.List(snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs"), **_CALL):
        yield from (f"containerd snapshot {info.name}" for info in answer.info)


def _images(channel: grpc.Channel) -> Iterator[str]:
    images = images_pb2_grpc.ImagesStub(channel)
    for image in images.List(images_pb2.ListImagesRequest(), **_CALL).images:
        yield f"containerd image {image.name}"
    content = content_pb2_grpc.ContentStub(channel)
    for answer in content.List(content_pb2.ListContentRequest(), **_CALL):
        yield from (f"containerd content {info.digest}" for info in answer.info)
    statuses = content.ListStatuses(content_pb2.ListStatusesRequest(), **_CALL).statuses
    yield from (f"containerd transfer {status.ref}" for status in statuses)
