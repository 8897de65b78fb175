"""A process is moved with its limits, in every hierarchy in which it was. The tree here is a fake one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.cgroups import moving

DEVICES = "c 1:3 rwm\nc 1:5 rwm\n"


def cgroup(root: Path, path: str, **files: str) -> Path:
    made = root / path
    made.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (made / name.replace("_", ".", 1)).write_text(text)
    return made


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    """A process 7 in /own/a; it is in no cgroup of ours in `perf`."""
    for name in ("cpu", "memory", "perf"):
        cgroup(tmp_path, name, cgroup_procs="")
        if name != "perf":
            cgroup(tmp_path, f"{name}/own/a", cgroup_procs="7\n")
    (tmp_path / "cpuacct").symlink_to("cpu")
    return tmp_path


def test_it_is_moved_wherever_it_was(v1: Path) -> None:
    assert moving.is_in(7, "/own/a", str(v1))
    moving.prepare("/own/a", "/kube/pod/a", str(v1))
    moving.move(7, "/own/a", "/kube/pod/a", str(v1))

    for name in ("cpu", "memory"):
        assert (v1 / name / "kube/pod/a/cgroup.procs").read_text() == "7\n"
    assert not (v1 / "perf/kube").exists()


def test_one_that_is_elsewhere_or_has_ended_is_left_alone(v1: Path) -> None:
    assert not moving.is_in(8, "/own/a", str(v1))
    assert not moving.is_in(7, "/gone/a", str(v1))
    moving.prepare("/own/a", "/kube/pod/a", str(v1))
    moving.move(8, "/own/a", "/kube/pod/a", str(v1))
    moving.move(7, "/gone/a", "/kube/pod/a", str(v1))

    assert not (v1 / "cpu/kube/pod/a/cgroup.procs").exists()


def test_it_may_use_the_same_devices_and_has_the_same_share(v1: Path) -> None:
    cgroup(v1, "cpu/own/a", cpu_shares="2\n")
    cgroup(v1, "cpu/kube/a", cpu_shares="1024\n")
    cgroup(v1, "devices/own/a", devices_list=DEVICES)
    cgroup(v1, "devices/kube/a", devices_list="a *:* rwm\n")

    moving.prepare("/own/a", "/kube/a", str(v1))

    assert (v1 / "cpu/kube/a/cpu.shares").read_text() == "2\n"
    assert (v1 / "devices/kube/a/devices.deny").read_text() == "a"
    assert (v1 / "devices/kube/a/devices.allow").read_text() == DEVICES.splitlines()[-1]


def test_what_has_the_same_devices_is_not_changed_again(v1: Path) -> None:
    for path in ("devices/own/a", "devices/kube/a"):
        cgroup(v1, path, devices_list=DEVICES)

    moving.prepare("/own/a", "/kube/a", str(v1))

    assert not (v1 / "devices/kube/a/devices.deny").exists()


def test_a_new_cgroup_has_the_processors_of_the_one_above(v1: Path) -> None:
    cgroup(v1, "cpuset", cpuset_cpus="0-3\n", cpuset_mems="0\n")
    cgroup(v1, "cpuset/own/a", cgroup_procs="7\n")
    cgroup(v1, "cpuset/kube", cpuset_cpus="0-1\n", cpuset_mems="0\n")
    cgroup(v1, "cpuset/kube/pod", cpuset_cpus="\n", cpuset_mems="\n")

    moving.prepare("/own/a", "/kube/pod", str(v1))

    assert (v1 / "cpuset/kube/pod/cpuset.cpus").read_text() == "0-1\n"
    assert (v1 / "cpuset/kube/cpuset.cpus").read_text() == "0-1\n"


def test_with_v2_there_is_one_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    cgroup(tmp_path, "own/a", cgroup_procs="7\n", cpu_weight="1\n")
    cgroup(tmp_path, "kube/a", cpu_weight="100\n")

    moving.prepare("/own/a", "/kube/a", str(tmp_path))
    moving.move(7, "/own/a", "/kube/a", str(tmp_path))

    assert (tmp_path / "kube/a/cgroup.procs").read_text() == "7\n"
    assert (tmp_path / "kube/a/cpu.weight").read_text() == "1\n"
