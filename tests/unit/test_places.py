"""Every name that an id gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandboxd import places
from sandboxd.errors import InvalidRequest
from sandboxd.model import SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import Places, slice_path


def places_of(driver: str, parent: str = "/sandboxd") -> Places:
    return Places(root="/r", state="/s", netns="/n", cgroup_driver=driver, cgroup_parent=parent)


def pod(id_: str, parent: str = "") -> SandboxRecord:
    config = cri.PodSandboxConfig(linux=cri.LinuxPodSandboxConfig(cgroup_parent=parent))
    return SandboxRecord(id=id_, config=config, runtime_handler="", netns_path="", created_at=1)


def test_the_mark_on_what_has_no_id_is_that_of_the_root_whatever_its_bytes() -> None:
    here, again, elsewhere = (replace(places_of("cgroupfs"), root=root) for root in ("/r", "/r", "/other\udcff"))

    assert here.owner == again.owner != elsewhere.owner
    assert len(here.owner) == 16 and here.owner.isalnum()


def test_every_directory_derives_from_the_two_roots_and_the_id() -> None:
    here = places_of("cgroupfs")

    assert here.ledger_file == "/r/ledger.db"
    assert here.lock_file == "/r/lock"
    assert here.sandbox("ab") == "/s/sandboxes/ab"
    assert here.shm("ab") == "/s/sandboxes/ab/shm"
    assert here.user_namespace("ab") == "/s/sandboxes/ab/userns"
    assert here.container("ab") == "/s/containers/ab"
    assert here.streams("ab") == "/s/containers/ab/io"
    assert here.execs("ab") == "/s/containers/ab/exec"
    assert here.pod_files("ab") == "/r/pod-files/ab"
    assert here.volumes("ab") == "/r/volumes/ab"
    assert here.checkpoint("ab") == "/r/checkpoints/ab"
    assert here.network_namespace("ab") == "/n/sandboxd-ab"
    assert here.image_mount("ab", "sha256:cd") == "/r/image-volumes/ab/cd"


def test_what_is_kept_for_an_id_is_in_a_closed_directory() -> None:
    here = places_of("cgroupfs")
    ids = (here.sandbox, here.container, here.pod_files, here.volumes, here.checkpoint, here.image_mounts, here.stage)

    assert {place("ab").rpartition("/")[0] for place in ids} | {here.uploads} == set(here.closed)


def test_an_images_mount_and_its_snapshot_have_the_same_name_with_and_without_the_algorithm() -> None:
    assert places.image_snapshot("ab", "sha256:cd") == places.image_snapshot("ab", "cd") == "ab-image-cd"


@pytest.mark.parametrize(
    ("driver", "parent", "expected"),
    [
        ("cgroupfs", "/sandboxd", "/sandboxd/id"),
        ("cgroupfs", "/a/b/", "/a/b/id"),
        ("cgroupfs", "/", "/id"),
        ("cgroupfs", "/test.slice", "/test.slice/id"),
        ("systemd", "/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:sandboxd:id"),
        ("systemd", "user.slice", "user.slice:sandboxd:id"),
    ],
)
def test_cgroups_path_speaks_the_drivers_language(driver: str, parent: str, expected: str) -> None:
    assert expected == places_of(driver).cgroups_path(pod("a", parent), "id")


def test_the_systemd_driver_needs_a_slice() -> None:
    with pytest.raises(InvalidRequest, match="cgroup_parent"):
        places_of("systemd").cgroups_path(pod("a", "/kubepods"), "id")


@pytest.mark.parametrize(
    ("driver", "configured", "asked", "expected"),
    [
        ("cgroupfs", "/sandboxd", "", "/sandboxd/a"),
        ("cgroupfs", "/sandboxd", "/pods", "/pods"),
        ("systemd", "/sandboxd", "", "sandboxd.slice"),
        ("systemd", "/my.slice", "", "/my.slice"),
        ("systemd", "/", "", "system.slice"),
    ],
)
def test_a_pod_without_a_cgroup_parent_gets_the_configured_one(
    driver: str, configured: str, asked: str, expected: str
) -> None:
    assert expected == places_of(driver, configured).requested_parent(pod("a", asked))


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
    assert places_of(driver).pod_cgroup(record) == above
    assert places_of(driver).is_own_cgroup(record, places_of(driver).crowded([record, pod("b")])) is own


@pytest.mark.parametrize(
    ("parent", "below"), [("", False), ("/sandboxd", True), ("sandboxd/", True), ("/", True), ("/sandboxd-2", False)]
)
def test_a_pods_own_cgroup_may_be_below_the_one_that_is_asked_for(parent: str, below: bool) -> None:
    """Without a parent it is the very one."""
    assert places_of("cgroupfs").is_below_requested(pod("a", parent)) is below


@pytest.mark.parametrize("driver", ["cgroupfs", "systemd"])
def test_a_cgroup_that_another_pod_is_in_as_well_is_not_a_pods_own(driver: str) -> None:
    record = pod("a", "/shared.slice")
    shared = places_of(driver).crowded([record, pod("b", "/shared.slice"), pod("c")])
    assert not places_of(driver).is_own_cgroup(record, shared)
    assert len(shared) == 1


@pytest.mark.parametrize("driver", ["cgroupfs", "systemd"])
@pytest.mark.parametrize("parent", ["/a.slice/a-b.slice", "a-b.slice"])
def test_a_member_is_where_the_runtime_puts_it(driver: str, parent: str) -> None:
    """The runtime is told "slice:prefix:name" and makes slice/prefix-name.scope of it."""
    asked = places_of(driver).cgroups_path(pod("a", parent), "c1")
    found = places_of(driver).cgroup(pod("a", parent), "c1")
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
