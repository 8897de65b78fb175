"""Requests that tests make, and the questions that they ask about what came of them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

import grpc

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.testbed import Testbed

# One directory for all: logs belong to the client that named their place, and outlive the pod.
LOGS = "/var/lib/pod-logs"

IDS = [cri.IDMapping(host_id=100000, container_id=0, length=65536)]  # of a user namespace


def pod_config(name: str = "", **changes: Any) -> cri.PodSandboxConfig:
    """A pod with a name of its own; `changes` are fields of PodSandboxConfig."""
    name = name or f"pod-{secrets.token_hex(4)}"
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, namespace="default", uid=secrets.token_hex(8)),
        hostname=name,
        log_directory=LOGS,
    )
    config.MergeFrom(cri.PodSandboxConfig(**changes))
    return config


def run_pod(bed: Testbed, config: cri.PodSandboxConfig | None = None, handler: str = "") -> str:
    """RunPodSandbox; returns the id."""
    request = cri.RunPodSandboxRequest(config=config or pod_config(), runtime_handler=handler)
    return str(bed.runtime.RunPodSandbox(request, timeout=120).pod_sandbox_id)


def remove_pod(bed: Testbed, pod_id: str) -> None:
    """StopPodSandbox and RemovePodSandbox."""
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=120)
    bed.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id), timeout=120)


def pod_status(bed: Testbed, pod_id: str) -> cri.PodSandboxStatus:
    """PodSandboxStatus."""
    return bed.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id)).status


def pod_info(bed: Testbed, pod_id: str) -> dict[str, Any]:
    """The verbose part of PodSandboxStatus."""
    answer = bed.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True))
    parsed: dict[str, Any] = json.loads(answer.info["info"])
    return parsed


def container_config(name: str, image: str, command: Sequence[str] = (), **changes: Any) -> cri.ContainerConfig:
    """A container; `changes` are fields of ContainerConfig."""
    return cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name),
        image=cri.ImageSpec(image=image),
        command=command,
        log_path=f"{name}-{secrets.token_hex(4)}.log",
        **changes,
    )


def shell(script: str, **changes: Any) -> cri.ContainerConfig:
    """A busybox container that runs a script, by a name of its own; `changes` are fields of ContainerConfig."""
    return container_config(f"sh-{secrets.token_hex(4)}", "busybox", ["sh", "-c", script], **changes)


def create_container(
    bed: Testbed, pod_id: str, config: cri.ContainerConfig, pod: cri.PodSandboxConfig | None = None
) -> str:
    """CreateContainer; returns the id."""
    request = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod)
    return str(bed.runtime.CreateContainer(request, timeout=120).container_id)


def start_container(bed: Testbed, container_id: str) -> None:
    """StartContainer."""
    bed.runtime.StartContainer(cri.StartContainerRequest(container_id=container_id), timeout=120)


def run_container(bed: Testbed, pod_id: str, config: cri.ContainerConfig) -> str:
    """Create and start; returns the id."""
    container_id = create_container(bed, pod_id, config)
    start_container(bed, container_id)
    return container_id


def container_status(bed: Testbed, container_id: str) -> cri.ContainerStatus:
    """ContainerStatus."""
    return bed.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container_id)).status


def container_info(bed: Testbed, container_id: str) -> dict[str, Any]:
    """The verbose part of ContainerStatus."""
    answer = bed.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container_id, verbose=True))
    parsed: dict[str, Any] = json.loads(answer.info["info"])
    return parsed


def exited(bed: Testbed, container_id: str) -> bool:
    """Whether the container is seen to have ended."""
    return container_status(bed, container_id).state == cri.CONTAINER_EXITED


def log_lines(bed: Testbed, container_id: str) -> list[str]:
    """The texts of the container's log entries."""
    path = bed.path(container_status(bed, container_id).log_path)
    return [line.split(" ", 3)[3] for line in path.read_text(encoding="utf-8").splitlines()]


def refused(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The code and the words of a failed call."""
    assert isinstance(error, grpc.Call)
    return error.code(), str(error.details())
