"""Every name that an id gives."""

from __future__ import annotations

from sandboxd import places
from sandboxd.pb.cri.v1 import api_pb2 as cri

CONFIG = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web", namespace="shop", uid="u1"))


def test_labels_name_the_pod_for_ctr_and_nerdctl() -> None:
    labels = places.labels(CONFIG, "p1", kind="sandbox")

    assert labels["io.kubernetes.pod.name"] == "web"
    assert labels["io.kubernetes.pod.namespace"] == "shop"
    assert labels["io.kubernetes.pod.uid"] == "u1"
    assert labels["sandboxd.io/sandbox"] == "p1"
    assert "io.kubernetes.container.name" not in labels


def test_a_containers_labels_name_the_container_too() -> None:
    labels = places.labels(CONFIG, "p1", kind="container", container="app")

    assert labels["io.kubernetes.container.name"] == "app"
    assert labels["sandboxd.io/kind"] == "container"
