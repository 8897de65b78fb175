"""Where a pod's cgroups are follows from its configuration and its id."""

from __future__ import annotations

import pytest

from sandboxd.cgroups.places import crowded, is_own, member, pod_parent, slice_path
from sandboxd.model import SandboxRecord
from sandboxd.oci import linux
from sandboxd.pb.cri.v1 import api_pb2 as cri


def host(driver: str) -> linux.HostFacts:
    return linux.HostFacts(
        hostname="node",
        machine="x86_64",
        capabilities=frozenset(),
        oom_score_adj=0,
        can_lower_oom_score_adj=True,
        cgroup_v2=False,
        cgroup_driver=driver,
        cgroup_parent="/sandboxd",
    )


def pod(id_: str, parent: str = "") -> SandboxRecord:
    config = cri.PodSandboxConfig(linux=cri.LinuxPodSandboxConfig(cgroup_parent=parent))
    return SandboxRecord(id=id_, config=config, runtime_handler="", netns_path="", created_at=1)


@pytest.mark.parametrize(
    ("driver", "parent", "above", "own"),
    [
        ("cgroupfs", "", "/sandboxd/a", True),
        ("cgroupfs", "/kubepods/pod1", "/kubepods/pod1", True),
        ("cgroupfs", "kubepods/pod1/", "/kubepods/pod1", True),
        ("cgroupfs", "/", "/", False),
        ("systemd", "", "/sandboxd.slice", False),
        ("systemd", "/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice", True),
        ("systemd", "kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice", True),
    ],
)
def test_the_cgroup_above_a_pods_containers(driver: str, parent: str, above: str, own: bool) -> None:
    record = pod("a", parent)
    assert pod_parent(record, host(driver)) == above
    assert is_own(record, host(driver), crowded([record, pod("b")], host(driver))) is own


@pytest.mark.parametrize("driver", ["cgroupfs", "systemd"])
def test_a_cgroup_that_another_pod_is_in_as_well_is_not_a_pods_own(driver: str) -> None:
    record = pod("a", "/shared.slice")
    shared = crowded([record, pod("b", "/shared.slice"), pod("c")], host(driver))
    assert not is_own(record, host(driver), shared)
    assert len(shared) == 1


@pytest.mark.parametrize("driver", ["cgroupfs", "systemd"])
@pytest.mark.parametrize("parent", ["/a.slice/a-b.slice", "a-b.slice"])
def test_a_member_is_where_the_runtime_puts_it(driver: str, parent: str) -> None:
    """The runtime is told "slice:prefix:name" and makes slice/prefix-name.scope of it."""
    asked = linux.cgroups_path(driver, parent, "c1")
    found = member(pod_parent(pod("a", parent), host(driver)), "c1", driver)
    if driver == "systemd":
        unit, prefix, name = asked.split(":")
        assert found == f"{slice_path(unit)}/{prefix}-{name}.scope"
    else:
        assert found == asked


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.slice", "/a.slice"),
        ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
        ("/a.slice/a-b.slice/", "/a.slice/a-b.slice"),
        ("-.slice", "/"),
    ],
)
def test_the_dashes_of_a_slice_are_directories(name: str, path: str) -> None:
    assert slice_path(name) == path
