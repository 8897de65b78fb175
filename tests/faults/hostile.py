"""Hostile requests for a daemon in a bed: any message for any RPC, made harmless for the machine around the bed."""

from __future__ import annotations

import itertools
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2
from tests.faults.garbage import Garbage
from tests.pods import LOGS, container_config, create_container, pod_config, remove_pod, run_container, run_pod
from tests.testbed import Testbed

SECONDS = 60.0  # for an answer; nothing that is asked here may take so long
STREAM_SECONDS = 2.0  # to look at a stream that ends only with its client
FOR_EVER = frozenset({"GetContainerEvents"})
HERE = "/var/lib/hostile"  # what requests may name of the host
POD_LIMIT = 5

SERVICES = (*(cri.DESCRIPTOR.services_by_name.values()), *(host_pb2.DESCRIPTOR.services_by_name.values()))
# What measures, and takes its time.
MEASURING = frozenset(
    method.name
    for service in SERVICES
    for method in service.methods
    if "Stats" in method.name or "Metrics" in method.name
)
# What runs programs or makes things, and takes its time.
SLOW = frozenset(
    {"RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "ExecSync", "PullImage", "LoadImage"}
    | {"SaveImage", "CheckpointContainer", "StopPodSandbox", "RemovePodSandbox", "RemoveContainer"} | FOR_EVER
)  # fmt: skip
_ENDING = ("StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer")


def methods() -> Iterator[MethodDescriptor]:
    """Every RPC of every service."""
    for service in SERVICES:
        yield from service.methods


@dataclass(slots=True)
class Host:
    """A daemon with pods that live long enough to be met."""

    bed: Testbed
    garbage: Garbage
    pods: list[str] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    taken: Counter[str] = field(default_factory=Counter)  # requests that succeeded, by RPC

    def populate(self) -> None:
        """Replace the pods that were removed, and remove those that came to be."""
        listed = self.bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=SECONDS).items
        ready = {pod.id for pod in listed if pod.state == cri.SANDBOX_READY}
        self.pods = [pod for pod in self.pods if pod in ready]
        for pod in listed:
            if pod.id not in self.pods and (pod.id not in ready or len(listed) > POD_LIMIT):
                remove_pod(self.bed, pod.id)
        while len(self.pods) < 2:
            self.pods.append(run_pod(self.bed))
        listed_containers = self._containers()
        for pod_id in self.pods:
            states = {each.state for each in listed_containers if each.pod_sandbox_id == pod_id}
            name = f"long-{secrets.token_hex(4)}"
            if cri.CONTAINER_CREATED not in states:
                create_container(self.bed, pod_id, container_config(name, "busybox", ["sleep", "7200"]))
            if cri.CONTAINER_RUNNING not in states:
                run_container(self.bed, pod_id, container_config(f"{name}-run", "busybox", ["sleep", "7200"]))
        alive = (cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING)
        self.containers = [each.id for each in self._containers() if each.state in alive]

    def _containers(self) -> list[cri.Container]:
        return list(self.bed.runtime.ListContainers(cri.ListContainersRequest(), timeout=SECONDS).containers)

    def request(self, method: MethodDescriptor) -> Message:
        """Any request for an RPC: half of them valid but for what is laid over them."""
        made = GetMessageClass(method.input_type)()
        draw = self.garbage.random
        if draw.random() < 0.5:
            self._valid(method.name, made)
            if draw.random() < 0.3:
                return made
        made.MergeFrom(self.garbage.message(method.input_type, self._tame))
        self._aim(made, method.name)
        return made

    def _valid(self, name: str, made: Message) -> None:
        draw = self.garbage.random
        if isinstance(made, cri.RunPodSandboxRequest):
            made.config.CopyFrom(pod_config())
        elif isinstance(made, cri.CreateContainerRequest):
            made.config.CopyFrom(container_config(f"c{draw.random()}", "busybox", ["sleep", "7200"]))
        elif isinstance(made, cri.ExecSyncRequest | cri.ExecRequest):
            made.cmd.extend(draw.choice((["true"], ["echo", "ü"], ["sh", "-c", "exit 3"], ["no-such-program"])))
        self._aim(made, name)

    def _aim(self, made: Message, name: str) -> None:
        """Have it be about something that lives, mostly; what ends things does so rarely."""
        draw = self.garbage.random
        odds = 0.1 if name in _ENDING else 0.8
        known = {"pod_sandbox_id": self.pods, "container_id": self.containers}
        for key, ids in known.items():
            if key in made.DESCRIPTOR.fields_by_name and ids:
                if draw.random() < odds:
                    setattr(made, key, draw.choice(ids))
                elif name in _ENDING and getattr(made, key) in ids:
                    setattr(made, key, "0" * 64)

    def _tame(self, made: Message) -> None:
        """Keep it from reaching what the bed shares with the machine, and from taking long."""
        draw = self.garbage.random
        match made:
            case cri.Mount() | cri.Device():
                made.host_path = draw.choice((HERE, f"{HERE}/none/deeper", "", "/dev/null"))
                if isinstance(made, cri.Mount) and made.propagation == cri.PROPAGATION_BIDIRECTIONAL:
                    made.propagation = cri.PROPAGATION_PRIVATE
            case cri.NamespaceOption():
                made.network = made.pid = made.ipc = cri.POD
                made.target_id = ""
            case cri.LinuxSandboxSecurityContext() | cri.LinuxContainerSecurityContext():
                made.privileged = False
            case cri.LinuxPodSandboxConfig():
                made.cgroup_parent = draw.choice(("", f"{self.bed.cgroup_parent}/asked"))
            case cri.PodSandboxConfig():
                made.log_directory = draw.choice((LOGS, "", f"{LOGS}/ü"))
            case cri.ExecSyncRequest() | cri.StopContainerRequest():
                made.timeout = min(made.timeout, 1)
            case cri.CheckpointContainerRequest():
                made.location = draw.choice(("", f"{HERE}/c.tar", "relative", f"{HERE}/none/c.tar"))
                made.timeout = 5
            case host_pb2.ReadLogsRequest():
                made.follow = False
            case cri.RemoveImageRequest():
                made.image.image = draw.choice(("", "no-such-image", "a@b", "sha256:" + "1" * 64))
            case _:
                pass

    def call(self, method: MethodDescriptor, request: Message) -> str:
        """Call it; what is wrong with the answer, "" when nothing is. Any other refusal is a good answer."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        kinds: dict[str, Any] = {
            "request_serializer": type(request).SerializeToString,
            "response_deserializer": GetMessageClass(method.output_type).FromString,
        }
        channel = self.bed.channel
        seconds = STREAM_SECONDS if method.name in FOR_EVER else SECONDS
        asked: Callable[[], object]
        if method.client_streaming:
            requests = [request, *(self.request(method) for _ in range(3))]
            answers: Any = channel.stream_stream(path, **kinds)
            asked = lambda: list(itertools.islice(answers(iter(requests), timeout=seconds), 100))  # noqa: E731
        elif method.server_streaming:
            stream: Any = channel.unary_stream(path, **kinds)
            asked = lambda: list(itertools.islice(stream(request, timeout=seconds), 100))  # noqa: E731
        else:
            unary: Any = channel.unary_unary(path, **kinds)
            asked = lambda: unary(request, timeout=seconds)  # noqa: E731
        try:
            asked()
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            code, words = error.code(), str(error.details())
            hung = code is grpc.StatusCode.DEADLINE_EXCEEDED and words == "Deadline Exceeded"
            if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) or (hung and method.name not in FOR_EVER):
                return f"{method.name}: {code.name}: {words}\n{str(request)[:1500]}"
        else:
            self.taken[method.name] += 1
        return "" if self.bed.daemon_running else f"{method.name}: the daemon ended\n{str(request)[:1500]}"
