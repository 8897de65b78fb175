"""A CRI and host server on a unix socket, over dicts, with CRI's promises as far as sandboxctl relies on them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.cri.v1 import api_pb2_grpc as cri_grpc
from sandboxd.pb.host.v1 import host_pb2 as host
from sandboxd.pb.host.v1 import host_pb2_grpc as host_grpc


def _identity(kind: str, number: int) -> str:
    return hashlib.sha256(f"{kind} {number}".encode()).hexdigest()


class FakeDaemon(cri_grpc.RuntimeServiceServicer, cri_grpc.ImageServiceServicer):
    """`fail` maps an RPC's name to the status that it answers with; `calls` are the names of those received."""

    def __init__(self) -> None:
        self.pods: dict[str, cri.PodSandboxStatus] = {}
        self.configs: dict[str, cri.PodSandboxConfig] = {}
        self.containers: dict[str, cri.ContainerStatus] = {}
        self.container_configs: dict[str, cri.ContainerConfig] = {}
        self.pod_of: dict[str, str] = {}
        self.images: dict[str, cri.Image] = {}
        self.logs: dict[str, list[host.LogLine]] = {}
        self.steps: list[host.Step] = []
        self.operations = host.ListOperationsResponse()
        self.attachments: list[host.Attachment] = []
        self.things: list[host.NetworkThing] = []
        self.debts: list[host.Debt] = []
        self.findings: list[host.AuditFinding] = []
        self.replayed = host.ReplayResponse()
        self.pod_stats: list[list[cri.PodSandboxStats]] = []  # of one look after the other
        self.events: list[cri.ContainerEventResponse] = []
        self.checks: list[host.DoctorCheck] = []
        self.info = {"config": json.dumps({"state": "/run/sandboxd", "workers": 2})}
        self.fail: dict[str, tuple[grpc.StatusCode, str]] = {}
        self.calls: list[str] = []
        self.requests: dict[str, Any] = {}
        self.loaded = b""
        self.remarks: list[str] = []  # of the archive that is loaded
        self.layers: list[host.LayerProgress] = []  # what PullImage tells
        self.archive: list[bytes] = []  # what SaveImage sends
        self.pull_stays = False  # after its layers, until the client goes away
        self.pull_ended = threading.Event()
        self._clock = 10**18

    @contextlib.contextmanager
    def serve(self, path: Path) -> Iterator[None]:
        server = grpc.server(ThreadPoolExecutor(max_workers=4))
        cri_grpc.add_RuntimeServiceServicer_to_server(self, server)
        cri_grpc.add_ImageServiceServicer_to_server(self, server)
        host_grpc.add_HostServicer_to_server(FakeHost(self), server)
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            yield
        finally:
            server.stop(grace=None).wait()

    # ---- Contents, for tests to arrange

    def add_image(self, *tags: str, digests: Iterable[str] = (), pinned: bool = False) -> str:
        digest = "sha256:" + _identity("image", len(self.images))
        self.images[digest] = cri.Image(
            id=digest, repo_tags=tags, repo_digests=digests, size=4_270_000, pinned=pinned
        )
        return digest

    def add_pod(self, name: str, namespace: str = "default", *, ready: bool = True, **labels: str) -> str:
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, namespace=namespace, uid=f"uid-{name}"),
            log_directory=f"/logs/{name}",
            labels=labels,
        )
        return self._add_pod(config, ready=ready)

    def add_container(
        self, pod_id: str, name: str, state: cri.ContainerState.ValueType = cri.CONTAINER_RUNNING
    ) -> str:
        config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name=name), image=cri.ImageSpec(image="busybox"))
        return self._add_container(pod_id, config, state)

    def _add_pod(self, config: cri.PodSandboxConfig, *, ready: bool = True, handler: str = "") -> str:
        number = len(self.calls) * 1000 + len(self.configs)
        identity = _identity("pod", number)
        network = config.linux.security_context.namespace_options.network
        status = cri.PodSandboxStatus(
            id=identity,
            metadata=config.metadata,
            state=cri.SANDBOX_READY if ready else cri.SANDBOX_NOTREADY,
            created_at=self._now(),
            network=cri.PodSandboxNetworkStatus(ip="" if network == cri.NODE else f"10.0.10.{len(self.configs) + 2}"),
            labels=config.labels,
            annotations=config.annotations,
            runtime_handler=handler,
        )
        status.linux.namespaces.options.network = network
        self.pods[identity] = status
        self.configs[identity] = config
        return identity

    def _add_container(self, pod_id: str, config: cri.ContainerConfig, state: cri.ContainerState.ValueType) -> str:
        identity = _identity("container", len(self.container_configs))
        self.containers[identity] = cri.ContainerStatus(
            id=identity,
            metadata=config.metadata,
            image=config.image,
            state=state,
            created_at=self._now(),
            labels=config.labels,
        )
        self.container_configs[identity] = config
        self.pod_of[identity] = pod_id
        return identity

    def _now(self) -> int:
        self._clock += 10**9
        return self._clock

    def _enter(self, name: str, request: Any, context: grpc.ServicerContext) -> None:
        self.calls.append(name)
        self.requests[name] = request
        if name in self.fail:
            context.abort(*self.fail[name])

    # ---- What goes on inside

    def ExecSync(self, request: cri.ExecSyncRequest, context: grpc.ServicerContext) -> cri.ExecSyncResponse:
        self._enter("ExecSync", request, context)
        words = " ".join(request.cmd).encode()
        return cri.ExecSyncResponse(stdout=b"ran " + words + b"\n", stderr=b"\xff\n", exit_code=len(request.cmd))

    def ListContainerStats(
        self, request: cri.ListContainerStatsRequest, context: grpc.ServicerContext
    ) -> cri.ListContainerStatsResponse:
        self._enter("ListContainerStats", request, context)
        answer = cri.ListContainerStatsResponse()
        for status in self.containers.values():
            each = answer.stats.add(attributes=cri.ContainerAttributes(id=status.id, metadata=status.metadata))
            each.writable_layer.used_bytes.value = 4096
            if status.state == cri.CONTAINER_RUNNING:
                each.cpu.usage_nano_cores.value = 125_000_000
                each.memory.working_set_bytes.value = 2_500_000
        return answer

    def ListPodSandboxStats(
        self, request: cri.ListPodSandboxStatsRequest, context: grpc.ServicerContext
    ) -> cri.ListPodSandboxStatsResponse:
        self._enter("ListPodSandboxStats", request, context)
        return cri.ListPodSandboxStatsResponse(stats=self.pod_stats.pop(0))

    def GetContainerEvents(
        self, request: cri.GetEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[cri.ContainerEventResponse]:
        self._enter("GetContainerEvents", request, context)
        yield from self.events

    # ---- RuntimeService

    def Version(self, request: cri.VersionRequest, context: grpc.ServicerContext) -> cri.VersionResponse:
        self._enter("Version", request, context)
        return cri.VersionResponse(
            version="0.1.0", runtime_name="sandboxd", runtime_version="9.8.7", runtime_api_version="v1"
        )

    def Status(self, request: cri.StatusRequest, context: grpc.ServicerContext) -> cri.StatusResponse:
        self._enter("Status", request, context)
        answer = cri.StatusResponse(info=self.info)
        answer.status.conditions.add(type="RuntimeReady", status=True)
        answer.status.conditions.add(type="NetworkReady", reason="NoConf", message="no conf in /etc/cni/net.d")
        return answer

    def RuntimeConfig(
        self, request: cri.RuntimeConfigRequest, context: grpc.ServicerContext
    ) -> cri.RuntimeConfigResponse:
        self._enter("RuntimeConfig", request, context)
        return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=cri.CGROUPFS))

    def RunPodSandbox(
        self, request: cri.RunPodSandboxRequest, context: grpc.ServicerContext
    ) -> cri.RunPodSandboxResponse:
        self._enter("RunPodSandbox", request, context)
        return cri.RunPodSandboxResponse(
            pod_sandbox_id=self._add_pod(request.config, handler=request.runtime_handler)
        )

    def StopPodSandbox(
        self, request: cri.StopPodSandboxRequest, context: grpc.ServicerContext
    ) -> cri.StopPodSandboxResponse:
        self._enter("StopPodSandbox", request, context)
        if request.pod_sandbox_id in self.pods:
            self.pods[request.pod_sandbox_id].state = cri.SANDBOX_NOTREADY
        return cri.StopPodSandboxResponse()

    def RemovePodSandbox(
        self, request: cri.RemovePodSandboxRequest, context: grpc.ServicerContext
    ) -> cri.RemovePodSandboxResponse:
        self._enter("RemovePodSandbox", request, context)
        self.pods.pop(request.pod_sandbox_id, None)
        for each in [each for each, pod in self.pod_of.items() if pod == request.pod_sandbox_id]:
            self.containers.pop(each, None)
        return cri.RemovePodSandboxResponse()

    def PodSandboxStatus(
        self, request: cri.PodSandboxStatusRequest, context: grpc.ServicerContext
    ) -> cri.PodSandboxStatusResponse:
        self._enter("PodSandboxStatus", request, context)
        if request.pod_sandbox_id not in self.pods:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no pod sandbox {request.pod_sandbox_id}")
        info = {}
        if request.verbose:
            config = json_format.MessageToDict(self.configs[request.pod_sandbox_id])
            info = {"info": json.dumps({"pid": 42, "config": config})}
        return cri.PodSandboxStatusResponse(status=self.pods[request.pod_sandbox_id], info=info)

    def ListPodSandbox(
        self, request: cri.ListPodSandboxRequest, context: grpc.ServicerContext
    ) -> cri.ListPodSandboxResponse:
        self._enter("ListPodSandbox", request, context)
        wanted = request.filter
        return cri.ListPodSandboxResponse(
            items=[
                cri.PodSandbox(
                    id=pod.id,
                    metadata=pod.metadata,
                    state=pod.state,
                    created_at=pod.created_at,
                    labels=pod.labels,
                    annotations=pod.annotations,
                    runtime_handler=pod.runtime_handler,
                )
                for pod in self.pods.values()
                if (not wanted.HasField("state") or wanted.state.state == pod.state)
                and wanted.label_selector.items() <= dict(pod.labels).items()
            ]
        )

    def CreateContainer(
        self, request: cri.CreateContainerRequest, context: grpc.ServicerContext
    ) -> cri.CreateContainerResponse:
        self._enter("CreateContainer", request, context)
        identity = self._add_container(request.pod_sandbox_id, request.config, cri.CONTAINER_CREATED)
        return cri.CreateContainerResponse(container_id=identity)

    def StartContainer(
        self, request: cri.StartContainerRequest, context: grpc.ServicerContext
    ) -> cri.StartContainerResponse:
        self._enter("StartContainer", request, context)
        self.containers[request.container_id].state = cri.CONTAINER_RUNNING
        return cri.StartContainerResponse()

    def StopContainer(
        self, request: cri.StopContainerRequest, context: grpc.ServicerContext
    ) -> cri.StopContainerResponse:
        self._enter("StopContainer", request, context)
        self.containers[request.container_id].state = cri.CONTAINER_EXITED
        return cri.StopContainerResponse()

    def RemoveContainer(
        self, request: cri.RemoveContainerRequest, context: grpc.ServicerContext
    ) -> cri.RemoveContainerResponse:
        self._enter("RemoveContainer", request, context)
        self.containers.pop(request.container_id, None)
        return cri.RemoveContainerResponse()

    def ContainerStatus(
        self, request: cri.ContainerStatusRequest, context: grpc.ServicerContext
    ) -> cri.ContainerStatusResponse:
        self._enter("ContainerStatus", request, context)
        if request.container_id not in self.containers:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no container {request.container_id}")
        info = {"info": json.dumps({"pid": 43})} if request.verbose else {}
        return cri.ContainerStatusResponse(status=self.containers[request.container_id], info=info)

    def ListContainers(
        self, request: cri.ListContainersRequest, context: grpc.ServicerContext
    ) -> cri.ListContainersResponse:
        self._enter("ListContainers", request, context)
        wanted = request.filter
        return cri.ListContainersResponse(
            containers=[
                cri.Container(
                    id=each.id,
                    pod_sandbox_id=self.pod_of[each.id],
                    metadata=each.metadata,
                    image=each.image,
                    state=each.state,
                    created_at=each.created_at,
                    labels=each.labels,
                )
                for each in self.containers.values()
                if (not wanted.HasField("state") or wanted.state.state == each.state)
                and wanted.pod_sandbox_id in ("", self.pod_of[each.id])
                and wanted.label_selector.items() <= dict(each.labels).items()
            ]
        )

    # ---- ImageService

    def _image(self, reference: str) -> cri.Image | None:
        for image in self.images.values():
            if reference == image.id or reference in image.repo_tags:
                return image
        return None

    def ListImages(self, request: cri.ListImagesRequest, context: grpc.ServicerContext) -> cri.ListImagesResponse:
        self._enter("ListImages", request, context)
        wanted = request.filter.image.image
        found = [self._image(wanted)] if wanted else [*self.images.values()]
        return cri.ListImagesResponse(images=[image for image in found if image is not None])

    def ImageStatus(self, request: cri.ImageStatusRequest, context: grpc.ServicerContext) -> cri.ImageStatusResponse:
        self._enter("ImageStatus", request, context)
        image = self._image(request.image.image)
        info = {"info": json.dumps({"chainID": "sha256:c"})} if request.verbose and image is not None else {}
        return cri.ImageStatusResponse(image=image, info=info)

    def RemoveImage(self, request: cri.RemoveImageRequest, context: grpc.ServicerContext) -> cri.RemoveImageResponse:
        self._enter("RemoveImage", request, context)
        image = self._image(request.image.image)
        if image is not None:
            del self.images[image.id]
        return cri.RemoveImageResponse()

    def ImageFsInfo(self, request: cri.ImageFsInfoRequest, context: grpc.ServicerContext) -> cri.ImageFsInfoResponse:
        self._enter("ImageFsInfo", request, context)
        used = cri.UInt64Value(value=10_000_000 * len(self.images))
        return cri.ImageFsInfoResponse(image_filesystems=[cri.FilesystemUsage(used_bytes=used)])


class FakeHost(host_grpc.HostServicer):
    """The host API of a fake daemon. Apart from it, because both have a PullImage."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    def LoadImage(
        self, request_iterator: Iterable[host.LoadImageRequest], context: grpc.ServicerContext
    ) -> Iterator[host.LoadImageResponse]:
        self._daemon._enter("LoadImage", None, context)
        self._daemon.loaded = b"".join(request.chunk for request in request_iterator)
        yield host.LoadImageResponse(progress=host.Progress(stage="unpack", done_bytes=1, total_bytes=2))
        yield host.LoadImageResponse(
            loaded=host.LoadedImage(
                names=["docker.io/library/web:1", "docker.io/library/web:latest"], image_id="sha256:1"
            )
        )
        remarks = self._daemon.remarks
        yield host.LoadImageResponse(loaded=host.LoadedImage(image_id="sha256:2", remarks=remarks))

    def ListOperations(
        self, request: host.ListOperationsRequest, context: grpc.ServicerContext
    ) -> host.ListOperationsResponse:
        self._daemon._enter("ListOperations", request, context)
        return self._daemon.operations

    def Explain(self, request: host.ExplainRequest, context: grpc.ServicerContext) -> host.ExplainResponse:
        self._daemon._enter("Explain", request, context)
        if request.reference:
            told = [*self._daemon.operations.running, *self._daemon.operations.failed]
            return host.ExplainResponse(operations=[each for each in told if request.reference in each.subject])
        return host.ExplainResponse(
            pod_sandbox_id=request.pod_sandbox_id,
            netns_path=f"/run/netns/{request.pod_sandbox_id}",
            netns_inode=4026532000,
            pid=42,
            steps=self._daemon.steps,
            attachments=self._daemon.attachments,
        )

    def PodNetwork(self, request: host.PodNetworkRequest, context: grpc.ServicerContext) -> host.PodNetworkResponse:
        self._daemon._enter("PodNetwork", request, context)
        return host.PodNetworkResponse(things=self._daemon.things)

    def ReadLogs(
        self, request: host.ReadLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[host.ReadLogsResponse]:
        self._daemon._enter("ReadLogs", request, context)
        for line in self._daemon.logs.get(request.container_id, []):
            yield host.ReadLogsResponse(lines=[line])

    def PullImage(
        self, request: host.PullImageRequest, context: grpc.ServicerContext
    ) -> Iterator[host.PullImageResponse]:
        context.add_callback(self._daemon.pull_ended.set)
        self._daemon._enter("PullImage", request, context)
        for layer in self._daemon.layers:
            yield host.PullImageResponse(layer=layer)
        if self._daemon.pull_stays:
            self._daemon.pull_ended.wait(20)
            return
        name = f"docker.io/library/{request.image}:latest"
        identity = self._daemon.add_image(request.image, name)
        yield host.PullImageResponse(image=host.PulledImage(name=name, image_id=identity, size=4_270_000))

    def SaveImage(
        self, request: host.SaveImageRequest, context: grpc.ServicerContext
    ) -> Iterator[host.SaveImageResponse]:
        self._daemon._enter("SaveImage", request, context)
        total = sum(map(len, self._daemon.archive))
        for chunk in self._daemon.archive:
            yield host.SaveImageResponse(chunk=chunk, total_bytes=total)
        if "SaveImage later" in self._daemon.fail:
            context.abort(*self._daemon.fail["SaveImage later"])

    def ListDebts(self, request: host.ListDebtsRequest, context: grpc.ServicerContext) -> host.ListDebtsResponse:
        self._daemon._enter("ListDebts", request, context)
        return host.ListDebtsResponse(debts=self._daemon.debts)

    def RetryDebt(self, request: host.RetryDebtRequest, context: grpc.ServicerContext) -> host.RetryDebtResponse:
        self._daemon._enter("RetryDebt", request, context)
        self._settle(request.pod_sandbox_id)
        return host.RetryDebtResponse()

    def ForgiveDebt(
        self, request: host.ForgiveDebtRequest, context: grpc.ServicerContext
    ) -> host.ForgiveDebtResponse:
        self._daemon._enter("ForgiveDebt", request, context)
        return host.ForgiveDebtResponse(forgiven=self._settle(request.pod_sandbox_id))

    def Audit(self, request: host.AuditRequest, context: grpc.ServicerContext) -> host.AuditResponse:
        self._daemon._enter("Audit", request, context)
        return host.AuditResponse(findings=self._daemon.findings)

    def Replay(self, request: host.ReplayRequest, context: grpc.ServicerContext) -> host.ReplayResponse:
        self._daemon._enter("Replay", request, context)
        return self._daemon.replayed

    def Doctor(self, request: host.DoctorRequest, context: grpc.ServicerContext) -> host.DoctorResponse:
        self._daemon._enter("Doctor", request, context)
        return host.DoctorResponse(checks=self._daemon.checks)

    def _settle(self, pod_id: str) -> list[host.Debt]:
        settled = [debt for debt in self._daemon.debts if debt.pod_sandbox_id == pod_id]
        self._daemon.debts = [debt for debt in self._daemon.debts if debt not in settled]
        return settled

    def Metrics(self, request: host.MetricsRequest, context: grpc.ServicerContext) -> host.MetricsResponse:
        self._daemon._enter("Metrics", request, context)
        return host.MetricsResponse(text="# HELP x y\nx_total 1.0\n")
