"""What is said of requests that are accepted as other runtimes accept them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandboxd.oci import dubious
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.oci.golden.cases import HOST

POD = cri.PodSandboxConfig(log_directory="/var/log/pods")
HUGE = [cri.HugepageLimit(page_size="2MB", limit=1 << 21), cri.HugepageLimit(page_size="1GB")]


def resources(**fields: object) -> cri.ContainerConfig:
    return cri.ContainerConfig(linux=cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(**fields)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "pod", "words"),
    [
        (cri.ContainerConfig(log_path="a.log"), cri.PodSandboxConfig(), "config.log_path: the sandbox has no"),
        (cri.ContainerConfig(log_path="/a.log"), POD, "config.log_path: '/a.log' is absolute, but taken below /var/"),
        (
            cri.ContainerConfig(mounts=[cri.Mount(container_path="srv", host_path="/a")]),
            POD,
            "config.mounts[0].container_path: 'srv' is relative, mounted at /srv",
        ),
        (
            cri.ContainerConfig(mounts=[cri.Mount(container_path=path, host_path="/a") for path in ("/a", "/a/")]),
            POD,
            "config.mounts: /a is mounted 2 times",
        ),
        (
            cri.ContainerConfig(devices=[cri.Device(container_path="dev/a", host_path="/dev/a")]),
            POD,
            "config.devices[0].container_path: 'dev/a' is relative, made at /dev/a",
        ),
        (resources(cpu_shares=1), POD, "config.linux.resources.cpu_shares: 1 is not within"),
        (resources(hugepage_limits=HUGE), POD, "config.linux.resources.hugepage_limits: 2MB: not limited"),
    ],
)
def test_each_dubious_field_is_named(config: cri.ContainerConfig, pod: cri.PodSandboxConfig, words: str) -> None:
    (said,) = dubious.container(config, pod, HOST)
    assert said.startswith(words)


def test_of_what_is_as_it_should_be_nothing_is_said() -> None:
    config = resources(cpu_shares=2, hugepage_limits=HUGE)
    config.log_path = "a.log"
    config.mounts.add(container_path="/a", host_path="/a")
    assert list(dubious.container(config, POD, replace(HOST, hugetlb_controller=True))) == []
    assert list(dubious.container(cri.ContainerConfig(), cri.PodSandboxConfig(), HOST)) == []
