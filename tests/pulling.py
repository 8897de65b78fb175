"""A bed to pull in: on its loopback are Debian's docker-registry and a proxy that makes faults."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from deploy.images.synthetic import Shape, build
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.pods import refused
from tests.registry_server import FaultProxy, RegistryServer
from tests.testbed import Testbed

CERTS = "/etc/containerd/certs.d"
DOCKER_CONFIG = "/etc/sandboxd-test/docker.json"
PATIENT = {"docker_config": DOCKER_CONFIG}
QUICK = {**PATIENT, "progress_seconds": 6.0}  # tests that stop a pull in time must be faster
LAYER_BYTES = 900_000

Code = grpc.StatusCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """An image in the anonymous registry's storage."""

    repository: str
    manifest_digest: str
    layers: tuple[str, ...]
    config: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A bed with a daemon, a registry and a fault proxy before it."""

    bed: Testbed
    registry: RegistryServer
    proxy: FaultProxy

    def pull(self, name: str, auth: cri.AuthConfig | None = None, *, timeout: float = 60.0) -> str:
        """PullImage; returns the image id."""
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name), auth=auth)
        return str(self.bed.images.PullImage(request, timeout=timeout).image_ref)

    def refuses(self, name: str, code: Code, *words: str, auth: cri.AuthConfig | None = None) -> str:
        """PullImage fails with this code and these words, and nothing is left of it."""
        before = self.stored()
        with pytest.raises(grpc.RpcError) as caught:
            self.pull(name, auth)
        found, said = refused(caught.value)
        assert found is code, said
        for word in words:
            assert word in said
        assert self.status(name) is None
        assert self.stored() == before
        return said

    def status(self, name: str) -> cri.Image | None:
        answer = self.bed.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=name)))
        return answer.image if answer.HasField("image") else None

    def remove(self, name: str) -> None:
        self.bed.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)))

    def ctr(self, *arguments: str) -> list[str]:
        """Lines of containerd's own client."""
        socket = "/run/sandboxd/containerd/containerd.sock"
        return self.bed.run(["ctr", "-a", socket, "-n", "sandboxd", *arguments]).stdout.splitlines()

    def stored(self) -> dict[str, list[str]]:
        """Everything that a pull could leave in containerd."""
        return {
            "images": sorted(self.ctr("images", "ls", "-q")),
            "content": sorted(self.ctr("content", "ls", "-q")),
            "transfers": sorted(line.split()[0] for line in self.ctr("content", "active")[1:]),
            "snapshots": sorted(line.split()[0] for line in self.ctr("snapshots", "ls")[1:]),
            "leases": sorted(self.ctr("leases", "ls", "-q")),
        }

    def busybox(self, repository: str) -> str:
        """Publish busybox as REPOSITORY:v1; returns its name."""
        layout = self.bed.base / "layouts" / repository.replace("/", "-")
        with tarfile.open(self.bed.build_image("busybox")) as tar:
            tar.extractall(layout, filter="data")
        self.registry.storage.publish(layout, repository, "v1")
        return f"{self.registry.host}/{repository}:v1"

    def synthetic(
        self, repository: str, *, layers: int = 1, layer_bytes: int = LAYER_BYTES, **changes: Any
    ) -> Published:
        """Publish a synthetic image of its own content as REPOSITORY:v1."""
        layout = self.bed.base / "layouts" / repository.replace("/", "-")
        name = changes.pop("seed", repository)
        build(Shape(name=name, layers=layers, layer_bytes=layer_bytes, **changes), layout)
        digest = self.registry.storage.publish(layout, repository, "v1")
        manifest = json.loads(self.registry.storage.read(digest))
        return Published(
            repository=repository,
            manifest_digest=digest,
            layers=tuple(layer["digest"] for layer in manifest["layers"]),
            config=manifest["config"]["digest"],
        )


def hosts_toml(site: Site, directory: str, text: str) -> None:
    site.bed.write(f"{CERTS}/{directory}/hosts.toml", text)


def blob_requests(proxy: FaultProxy, digest: str) -> list[dict[str, Any]]:
    return [request for request in proxy.requests() if request["path"].endswith(digest)]
