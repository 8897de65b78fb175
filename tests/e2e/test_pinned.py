"""Pods without a pause container: their namespaces are pinned, and they are pods like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.pods import (
    container_config,
    pod_config,
    pod_status,
    remove_pod,
    run_container,
    run_pod,
    shell,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

LIVES = "trap 'exit 7' TERM; while :; do sleep 0.1; done"
OWN_PIDS = cri.NamespaceOption(pid=cri.CONTAINER)
HANDLERS = {"pinned": {"sandbox_mode": "pinned"}}


def config(name: str = "", **linux: Any) -> cri.PodSandboxConfig:
    """A pod whose containers have pid namespaces of their own, as a kubelet's have."""
    security = cri.LinuxSandboxSecurityContext(namespace_options=OWN_PIDS)
    return pod_config(name, linux=cri.LinuxPodSandboxConfig(security_context=security, **linux))


def own_pids(container: cri.ContainerConfig) -> cri.ContainerConfig:
    container.linux.security_context.namespace_options.CopyFrom(OWN_PIDS)
    return container


@pytest.fixture(scope="module")
def bed(containerd_bin: Path | None) -> Iterator[Testbed]:
    """A bed with a handler whose pods are pinned."""
    with Testbed(containerd_bin=containerd_bin) as made:
        made.default_network()
        made.start_daemon(runtime={"handlers": HANDLERS, "cgroup_parent": made.cgroup_parent})
        for image in ("busybox", "nginx"):
            made.load_image(image)
        warm = run_pod(made, config(), handler="pinned")
        run_container(made, warm, own_pids(shell("true")))
        remove_pod(made, warm)
        yield made


def tasks(bed: Testbed) -> str:
    address = "/run/sandboxd/containerd/containerd.sock"
    return bed.run(["ctr", "--address", address, "--namespace", "sandboxd", "tasks", "list"]).stdout


def test_nginx_answers_at_the_address_of_a_pod_that_has_no_process_of_its_own(bed: Testbed) -> None:
    before = observe(bed)
    pod_id = run_pod(bed, config("web"), handler="pinned")

    status = pod_status(bed, pod_id)
    assert status.state == cri.SANDBOX_READY
    assert pod_id not in tasks(bed)
    run_container(bed, pod_id, own_pids(container_config("nginx", "nginx")))
    until(lambda: bed.http_get(status.network.ip)[0] == 200, what="nginx answers")

    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)
