"""Requests side by side of a daemon in a bed, from clients of their own; the machine decides which comes first."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

import grpc
from hypothesis import strategies as st
from hypothesis.stateful import rule

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.faults.history import EXISTS, NOT_FOUND, NOT_READY, OK, Request
from tests.faults.racing import AT_ONCE, PODS, Race
from tests.testbed import Testbed

SECONDS = 240  # for one request on a machine that does much else
CODES = {
    grpc.StatusCode.NOT_FOUND: NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION: NOT_READY,
    grpc.StatusCode.ALREADY_EXISTS: EXISTS,
}
STATES = {cri.CONTAINER_CREATED: "CREATED", cri.CONTAINER_RUNNING: "RUNNING", cri.CONTAINER_EXITED: "EXITED"}


class SideBySide(Race):
    """Requests of the daemon in `bed`; `pulled` is an image of a registry, and `image_id` its id."""

    bed: Testbed
    pulled: str
    image_id: str

    def __init__(self) -> None:
        super().__init__()
        self.clients = ThreadPoolExecutor(AT_ONCE * len(PODS) + 1)
        self.open: dict[str, list[Future[None]]] = {pod: [] for pod in (*PODS, "images")}
        self.lock = threading.Lock()
        for left in self.bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:  # of an example that failed
            self.bed.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=left.id), timeout=SECONDS)

    def answered(self, pod: str, request: Request) -> None:
        with self.lock:
            super().answered(pod, request)

    @rule()
    def pull(self) -> None:
        """PullImage, which nothing here depends on, and which brings the containers' own layers again."""
        if not self.open["images"]:
            self.open["images"].append(self.clients.submit(self._pull))

    def _pull(self) -> None:
        request = cri.PullImageRequest(image=cri.ImageSpec(image=self.pulled))
        assert self.bed.images.PullImage(request, timeout=SECONDS).image_ref == self.image_id

    @rule(pod=st.sampled_from(PODS))
    def one_ends(self, pod: str) -> None:
        """The oldest request about the pod is answered."""
        for oldest in self.open[pod][:1]:
            self._take(pod, oldest)

    @rule()
    def everything_ends(self) -> None:
        for pod, requests in self.open.items():
            for request in tuple(requests):
                self._take(pod, request)

    def _take(self, pod: str, request: Future[None]) -> None:
        request.result(timeout=2 * SECONDS)
        self.open[pod].remove(request)

    def teardown(self) -> None:
        try:
            self.all_removed()
        finally:
            wait([request for requests in self.open.values() for request in requests], timeout=SECONDS)
            self.clients.shutdown()

    def look(self, pod: str) -> None:
        runtime = self.bed.runtime
        asked = time.monotonic_ns()
        found = [
            (each.id, each.state == cri.SANDBOX_READY)
            for each in runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=SECONDS).items
            if each.metadata.name == f"race-{pod}"
        ]
        between = time.monotonic_ns()
        assert len(found) <= 1, found
        target = found[0][0] if found else self.pod_id(pod)
        wanted = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=target))
        inside = frozenset(
            (each.id, STATES[each.state]) for each in runtime.ListContainers(wanted, timeout=SECONDS).containers
        )
        answered = time.monotonic_ns()
        shown = found[0] if found else None
        self.answered(pod, Request(verb="ListPods", asked=asked, answered=between, answer=shown))
        self.answered(
            pod, Request(verb="ListContainers", target=target, asked=between, answered=answered, answer=inside)
        )

    def send(self, pod: str, verb: str, target: str, name: str, variant: int) -> None:
        if len(self.open[pod]) >= AT_ONCE:
            self._take(pod, self.open[pod][0])
        self.open[pod].append(self.clients.submit(self._client, pod, verb, target, name, variant))

    def _client(self, pod: str, verb: str, target: str, name: str, variant: int) -> None:
        asked = time.monotonic_ns()
        try:
            answer = self._call(pod, verb, target, name, variant)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            answer = CODES.get(error.code()) or f"{error.code().name}: {error.details()}"
        request = Request(
            verb=verb,
            target=target,
            name=name,
            variant=variant,
            asked=asked,
            answered=time.monotonic_ns(),
            answer=answer,
        )
        self.answered(pod, request)

    def _call(self, pod: str, verb: str, target: str, name: str, variant: int) -> str:
        runtime = self.bed.runtime
        match verb:
            case "Run":
                run = cri.RunPodSandboxRequest(config=_pod(pod, variant))
                return str(runtime.RunPodSandbox(run, timeout=SECONDS).pod_sandbox_id)
            case "Create":
                create = cri.CreateContainerRequest(
                    pod_sandbox_id=target, config=_container(name, variant), sandbox_config=_pod(pod, 0)
                )
                return str(runtime.CreateContainer(create, timeout=SECONDS).container_id)
            case "Stop":
                runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=target), timeout=SECONDS)
            case "Remove":
                runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=target), timeout=SECONDS)
            case "Start":
                runtime.StartContainer(cri.StartContainerRequest(container_id=target), timeout=SECONDS)
            case "StopContainer":
                runtime.StopContainer(cri.StopContainerRequest(container_id=target, timeout=5), timeout=SECONDS)
            case "RemoveContainer":
                runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=target), timeout=SECONDS)
            case "Exec":
                echo = cri.ExecSyncRequest(container_id=target, cmd=["echo", "hi"])
                done = runtime.ExecSync(echo, timeout=SECONDS)
                assert done.exit_code or done.stdout == b"hi\n", done
                return "Exit" if done.exit_code else OK
        return OK


def _pod(pod: str, variant: int) -> cri.PodSandboxConfig:
    metadata = cri.PodSandboxMetadata(name=f"race-{pod}", namespace="default", uid=pod)
    return cri.PodSandboxConfig(metadata=metadata, annotations={"variant": str(variant)})


def _container(name: str, variant: int) -> cri.ContainerConfig:
    # A first process takes no signal that it does not handle, and the grace period would be waited for.
    script = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"
    return cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name),
        image=cri.ImageSpec(image="busybox"),
        command=["sh", "-c", script],
        annotations={"variant": str(variant)},
    )
