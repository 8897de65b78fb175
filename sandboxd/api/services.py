"""The gRPC services, composed from the rooms: each RPC is served by the one room that has a method of its name.

A room is an object whose public methods are RPCs. Nothing depends on the order of the rooms.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from sandboxd.announce import Announcer
from sandboxd.api.audit import Audit
from sandboxd.api.containers import Containers
from sandboxd.api.debts import Debts
from sandboxd.api.doctor import Doctor
from sandboxd.api.events import Events
from sandboxd.api.history import History
from sandboxd.api.host import Host
from sandboxd.api.images import Images
from sandboxd.api.inside import Inside
from sandboxd.api.networks import Networks
from sandboxd.api.pods import Pods
from sandboxd.api.replay import Replay
from sandboxd.api.runtime import Runtime
from sandboxd.api.transfer import Transfer
from sandboxd.api.usage import Usage
from sandboxd.images.pull import Pulls
from sandboxd.images.store import ImageStore
from sandboxd.images.uploads import Uploads
from sandboxd.insight.audit import Auditor
from sandboxd.jobs import Jobs
from sandboxd.model import ImageRecord
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2, api_pb2_grpc
from sandboxd.pb.host.v1 import host_pb2, host_pb2_grpc
from sandboxd.streaming.server import StreamingServer
from sandboxd.usage.stats import Stats


class Miscomposed(Exception):
    """The rooms do not make up the service: a bug, reported at start."""


def compose(service: ServiceDescriptor, *rooms: object) -> SimpleNamespace:
    """An object with a method for each RPC of `service`.

    Raises Miscomposed when an RPC has no method or several, or one that cannot answer as the contract says, and
    when a room has a public method that is not an RPC of the service.
    """
    problems = []
    methods: dict[str, Any] = {}
    for rpc in service.methods:
        offered = [room for room in rooms if hasattr(room, rpc.name)]
        if len(offered) != 1:
            names = ", ".join(type(room).__name__ for room in offered)
            problems.append(f"{rpc.name} is implemented by {names or 'no room'}")
            continue
        methods[rpc.name] = getattr(offered[0], rpc.name)
        if not _answers_as(rpc, methods[rpc.name]):
            kind = "an async generator" if rpc.server_streaming else "a coroutine function"
            problems.append(f"{type(offered[0]).__name__}.{rpc.name} is not {kind}")
    for room in rooms:
        public = (name for name in dir(room) if not name.startswith("_"))
        problems += [
            f"{type(room).__name__}.{name} is not an RPC" for name in public if name not in service.methods_by_name
        ]
    if problems:
        raise Miscomposed(f"{service.full_name}: {'; '.join(problems)}")
    return SimpleNamespace(**methods)


def _answers_as(rpc: MethodDescriptor, method: Any) -> bool:
    return inspect.isasyncgenfunction(method) if rpc.server_streaming else inspect.iscoroutinefunction(method)


def runtime_service(
    node: Node,
    pause_image: Callable[[], Awaitable[ImageRecord]],
    streaming: StreamingServer,
    announcer: Announcer,
    stats: Stats,
    containerd_trouble: Callable[[], str],
) -> api_pb2_grpc.RuntimeServiceServicer:
    """CRI's RuntimeService. `containerd_trouble` says what is wrong with containerd, "" when nothing is."""
    composed = compose(
        api_pb2.DESCRIPTOR.services_by_name["RuntimeService"],
        Runtime(node, containerd_trouble),
        Pods(node, pause_image),
        Containers(node),
        Inside(node, streaming),
        Usage(node, stats),
        Events(announcer),
    )
    return cast(api_pb2_grpc.RuntimeServiceServicer, composed)


def image_service(images: ImageStore, pulls: Pulls, jobs: Jobs) -> api_pb2_grpc.ImageServiceServicer:
    """CRI's ImageService."""
    composed = compose(api_pb2.DESCRIPTOR.services_by_name["ImageService"], Images(images, pulls, jobs))
    return cast(api_pb2_grpc.ImageServiceServicer, composed)


def host_service(
    node: Node,
    images: ImageStore,
    pulls: Pulls,
    auditor: Auditor,
    exposition: Callable[[], bytes],
    containerd_version: Callable[[], Awaitable[str]],
) -> host_pb2_grpc.HostServicer:
    """Our own Host service.

    `exposition` gives the daemon's figures in Prometheus' text format; `containerd_version` asks containerd, and
    raises when it does not answer.
    """
    composed = compose(
        host_pb2.DESCRIPTOR.services_by_name["Host"],
        Host(node.ledger, node.logs, exposition),
        History(node.ledger, node.netns),
        Networks(node.ledger),
        Debts(node),
        Audit(auditor),
        Replay(node),
        Doctor(node, containerd_version),
        Transfer(images, pulls, Uploads(images, node.jobs, node.places.uploads), node.jobs),
    )
    return cast(host_pb2_grpc.HostServicer, composed)
