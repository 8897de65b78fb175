"""The requests that the matrices interrupt: what each is about, how it is made, how what came of it is removed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar, TypeVar

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.faults.bench import Bench
from tests.pods import (
    container_status,
    create_container,
    log_lines,
    pod_config,
    pod_status,
    remove_pod,
    run_container,
    run_pod,
    shell,
    start_container,
)
from tests.processes import until
from tests.pulling import Site
from tests.registry_server import start_proxy, start_registry
from tests.root.holdings import pack, save
from tests.testbed import Testbed

T = TypeVar("T")
OpenVerb = Callable[[ExitStack], "Verb"]
# It ends at once when it is asked to: the grace period is not what is tried here.
OBEYS = 'trap "exit 3" TERM; echo ready; while :; do sleep 0.2; done'
PINNED_HANDLER = {"pinned": {"sandbox_mode": "pinned"}}
TIMEOUT = 120  # seconds, of a client


class Verb(ABC):
    """One kind of request, on one bench. `about` is whatever `prepare` returns."""

    name: ClassVar[str]  # the RPC's
    pinned: ClassVar[bool] = False  # its pods have no pause container

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.bed = bench.bed

    @abstractmethod
    def prepare(self) -> Any:
        """Make what the request needs."""

    @abstractmethod
    def ask(self, about: Any) -> None:
        """Make the request, and see that what it promises is so. Repeating it is no error."""

    @abstractmethod
    def finish(self, about: Any) -> None:
        """Remove everything that came of it."""

    def all_or_nothing(self, about: Any) -> None:  # noqa: B027 - most leave something to be repeated
        """See that the request has been done or undone, before it is repeated: it failed, and the fault is gone."""

    def is_final(self, about: Any) -> bool:
        """Whether the request failed for good, as it may."""
        return False

    def obedient(self, pod_id: str) -> str:
        """A container that runs, and is where it obeys."""
        config = shell(OBEYS)
        config.linux.security_context.namespace_options.pid = cri.CONTAINER if self.pinned else cri.POD
        container_id = run_container(self.bed, pod_id, config)
        until(lambda: log_lines(self.bed, container_id) == ["ready"], what="the container is ready")
        return container_id

    def pod(self) -> cri.PodSandboxConfig:
        """A pod with a host port."""
        config = pod_config(port_mappings=[cri.PortMapping(container_port=80, host_port=8080)])
        config.linux.security_context.namespace_options.pid = cri.CONTAINER if self.pinned else cri.POD
        return config

    def run(self, config: cri.PodSandboxConfig) -> str:
        """RunPodSandbox; the id."""
        return run_pod(self.bed, config, handler="pinned" if self.pinned else "")

    def remove_container(self, container_id: str) -> None:
        """RemoveContainer."""
        request = cri.RemoveContainerRequest(container_id=container_id)
        self.bed.runtime.RemoveContainer(request, timeout=TIMEOUT)


class RunPod(Verb):
    name = "RunPodSandbox"

    def prepare(self) -> cri.PodSandboxConfig:
        return self.pod()

    def ask(self, about: cri.PodSandboxConfig) -> None:
        status = pod_status(self.bed, self.run(about))
        assert status.state == cri.SANDBOX_READY and status.network.ip

    def all_or_nothing(self, about: cri.PodSandboxConfig) -> None:
        until(lambda: all(pod.state == cri.SANDBOX_READY for pod in self._made(about)), what="what failed is undone")
        if not self._made(about):
            self.bench.check(thorough=False)

    def finish(self, about: cri.PodSandboxConfig) -> None:
        for pod in self._made(about):
            remove_pod(self.bed, pod.id)

    def _made(self, about: cri.PodSandboxConfig) -> list[cri.PodSandbox]:
        pods = self.bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=TIMEOUT).items
        return [pod for pod in pods if pod.metadata == about.metadata]


class _OfPod(Verb):
    """About a pod with a host port, and a container that runs in it."""

    def prepare(self) -> str:
        pod_id = self.run(self.pod())
        self.obedient(pod_id)
        return pod_id

    def finish(self, about: str) -> None:
        remove_pod(self.bed, about)


class StopPod(_OfPod):
    name = "StopPodSandbox"

    def ask(self, about: str) -> None:
        self.bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=about), timeout=TIMEOUT)
        assert pod_status(self.bed, about).state == cri.SANDBOX_NOTREADY


class RemovePod(_OfPod):
    name = "RemovePodSandbox"

    def ask(self, about: str) -> None:
        self.bed.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=about), timeout=TIMEOUT)
        pods = self.bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=TIMEOUT).items
        assert about not in [pod.id for pod in pods]


class RunPinnedPod(RunPod):
    pinned = True


class StopPinnedPod(StopPod):
    pinned = True


class RemovePinnedPod(RemovePod):
    pinned = True


class CreateContainer(Verb):
    name = "CreateContainer"

    def prepare(self) -> cri.ContainerConfig:
        return shell(OBEYS)

    def ask(self, about: cri.ContainerConfig) -> None:
        created = create_container(self.bed, self.bench.pod, about)
        assert container_status(self.bed, created).state == cri.CONTAINER_CREATED

    def all_or_nothing(self, about: cri.ContainerConfig) -> None:
        if not self._made(about):
            self.bench.check(thorough=False)

    def finish(self, about: cri.ContainerConfig) -> None:
        for container in self._made(about):
            self.remove_container(container.id)

    def _made(self, about: cri.ContainerConfig) -> list[cri.Container]:
        containers = self.bed.runtime.ListContainers(cri.ListContainersRequest(), timeout=TIMEOUT).containers
        return [container for container in containers if container.metadata == about.metadata]


class StartContainer(Verb):
    name = "StartContainer"

    def prepare(self) -> str:
        return create_container(self.bed, self.bench.pod, shell(OBEYS))

    def ask(self, about: str) -> None:
        start_container(self.bed, about)
        assert container_status(self.bed, about).state == cri.CONTAINER_RUNNING

    def is_final(self, about: str) -> bool:
        # A start that the runtime refused ends the container, which says why: the client makes another.
        status = container_status(self.bed, about)
        return (status.state, status.reason) == (cri.CONTAINER_EXITED, "StartError")

    def finish(self, about: str) -> None:
        self.remove_container(about)


class StopContainer(Verb):
    name = "StopContainer"

    def prepare(self) -> str:
        return self.obedient(self.bench.pod)

    def ask(self, about: str) -> None:
        self.bed.runtime.StopContainer(cri.StopContainerRequest(container_id=about, timeout=30), timeout=TIMEOUT)
        status = container_status(self.bed, about)
        assert (status.state, status.exit_code) == (cri.CONTAINER_EXITED, 3), status

    def finish(self, about: str) -> None:
        self.remove_container(about)


class ExecSync(Verb):
    name = "ExecSync"

    def prepare(self) -> str:
        return self.obedient(self.bench.pod)

    def ask(self, about: str) -> None:
        command = ["sh", "-c", "echo out; echo err >&2; exit 7"]
        request = cri.ExecSyncRequest(container_id=about, cmd=command, timeout=60)
        answer = self.bed.runtime.ExecSync(request, timeout=TIMEOUT)
        assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 7)

    def finish(self, about: str) -> None:
        self.remove_container(about)


class _OfImage(Verb):
    """About an image with two layers of its own, named `about`."""

    def finish(self, about: Any) -> None:
        request = cri.RemoveImageRequest(image=cri.ImageSpec(image=self.image(about)))
        self.bed.images.RemoveImage(request, timeout=TIMEOUT)

    def check(self, name: str) -> None:
        answer = self.bed.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=name)), timeout=TIMEOUT)
        assert answer.HasField("image")

    def image(self, about: Any) -> str:
        return str(about)


class PullImage(_OfImage):
    name = "PullImage"

    def __init__(self, bench: Bench, site: Site) -> None:
        super().__init__(bench)
        self._site = site
        site.synthetic("matrix/pulled", layers=2, layer_bytes=300_000)

    def prepare(self) -> str:
        return f"{self._site.registry.host}/matrix/pulled:v1"

    def ask(self, about: str) -> None:
        self._site.pull(about, timeout=TIMEOUT)
        self.check(about)


class LoadImage(_OfImage):
    name = "LoadImage"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        layers = [pack({"first": b"1" * 100_000}), pack({"second": b"2" * 100_000})]
        self._archive = save(bench.bed.base / "loaded.tar", ("matrix/loaded:v1", layers))

    def prepare(self) -> str:
        return "docker.io/matrix/loaded:v1"

    def ask(self, about: str) -> None:
        self.bed.load_archive(self._archive, timeout=TIMEOUT)
        self.check(about)


def opener(kind: type[Verb], **sections: Any) -> OpenVerb:
    """How to make a bed of its own for this kind of request, with a daemon of this configuration."""

    if kind.pinned:
        sections = {**sections, "runtime": {**sections.get("runtime", {}), "handlers": PINNED_HANDLER}}

    def opened(stack: ExitStack) -> Verb:
        bed = stack.enter_context(Testbed())
        bed.default_network()
        if kind is PullImage:
            # A name server that refuses at once, where the machine's own is out of reach and waited for.
            bed.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
            registry = start_registry(bed, 5000)
            proxy = start_proxy(bed, 5001, registry.host)
            site = Site(bed=bed, registry=registry, proxy=proxy)
            return PullImage(Bench(bed, images=True, **sections), site)
        return kind(Bench(bed, images=kind is LoadImage, **sections))

    return opened


def recorded(verb: Verb) -> list[tuple[str, int]]:
    """Name and occurrence of every point that the request passes, in the order in which they were reached."""
    about = verb.prepare()
    verb.bench.arms.clear()
    verb.ask(about)
    verb.finish(about)  # what the request does after its answer has been done by then
    return [point.identity for point in verb.bench.points(verb.name)]
