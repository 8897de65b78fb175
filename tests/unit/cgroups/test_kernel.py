"""Reading cgroups: directories as the kernel lays them out, in v1, v2 and with both."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.cgroups.kernel import Cgroups
from sandboxd.cgroups.sample import Device, HugePages, Stall
from sandboxd.errors import NotFound

PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total=3\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2\n"


def write(root: Path, files: dict[str, str]) -> Cgroups:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Cgroups(str(root))


V1 = {
    "cpuacct/pod/c/cpuacct.usage": "7\n",
    "cpu/pod/c/cpu.stat": "nr_periods 1\n",
    "memory/pod/c/memory.usage_in_bytes": "5\n",
    "memory/pod/c/memory.oom_control": "oom_kill 3\n",
    "pids/pod/c/pids.current": "4\n",
    "pids/pod/c/pids.max": "max\n",
    "blkio/pod/c/blkio.throttle.io_service_bytes": "8:0 Read 1\n",
    "blkio/pod/c/blkio.throttle.io_serviced": "8:0 Read 2\n",
    "hugetlb/pod/c/hugetlb.2MB.usage_in_bytes": "0\n",
    "hugetlb/pod/c/hugetlb.2MB.rsvd.usage_in_bytes": "0\n",
    "hugetlb/pod/c/hugetlb.2MB.max_usage_in_bytes": "2097152\n",
}
V2 = {
    "cgroup.controllers": "cpu memory io pids hugetlb\n",
    "pod/c/cpu.stat": "usage_usec 1\nnr_periods 1\n",
    "pod/c/memory.current": "5\n",
    "pod/c/memory.events": "oom_kill 3\n",
    "pod/c/pids.current": "4\n",
    "pod/c/pids.max": "100\n",
    "pod/c/io.stat": "8:0 rbytes=1 rios=2\n",
    "pod/c/cpu.pressure": PRESSURE,
    "pod/c/hugetlb.2MB.current": "4194304\n",
}


def test_v1_is_read_from_all_of_its_hierarchies(tmp_path: Path) -> None:
    sample = write(tmp_path, V1).sample("/pod/c")
    assert sample.cpu is not None and sample.memory is not None
    assert (sample.cpu.usage, sample.cpu.periods, sample.memory.usage, sample.tasks) == (7, 1, 5, 4)
    assert sample.tasks_limit is None
    assert sample.devices == (Device(major=8, minor=0, read_bytes=1, reads=2),)
    assert sample.cpu_pressure is None
    assert sample.hugepages == (HugePages(size="2MB", usage=0, peak=2097152),)


def test_v1_prefers_the_recursive_figures_of_devices(tmp_path: Path) -> None:
    name = "blkio/pod/c/blkio.throttle.io_service_bytes_recursive"
    (device,) = write(tmp_path, {**V1, name: "8:0 Read 50\n"}).sample("/pod/c").devices
    assert device.read_bytes == 50


def test_v2_is_read_from_one_directory(tmp_path: Path) -> None:
    sample = write(tmp_path, V2).sample("/pod/c")
    assert sample.cpu is not None and sample.memory is not None
    assert (sample.cpu.usage, sample.cpu.periods, sample.memory.usage, sample.tasks) == (1000, 1, 5, 4)
    assert sample.tasks_limit == 100
    assert sample.devices == (Device(major=8, minor=0, read_bytes=1, reads=2),)
    assert sample.cpu_pressure is not None and sample.cpu_pressure.some == Stall(total=3000)
    assert sample.memory_pressure is None
    assert sample.hugepages == (HugePages(size="2MB", usage=4194304),)


def test_beside_v1_a_v2_hierarchy_tells_the_pressure(tmp_path: Path) -> None:
    sample = write(tmp_path, {**V1, "unified/pod/c/memory.pressure": PRESSURE}).sample("/pod/c")
    assert sample.memory_pressure is not None and sample.memory_pressure.full == Stall(total=2000)


@pytest.mark.parametrize("files", [V1, V2], ids=["v1", "v2"])
def test_a_cgroup_that_is_gone_is_not_found(tmp_path: Path, files: dict[str, str]) -> None:
    cgroups = write(tmp_path, files)
    with pytest.raises(NotFound):
        cgroups.sample("/pod/gone")
    assert cgroups.oom_kills("/pod/gone") is None
    assert cgroups.processes("/pod/gone") == []
    assert not cgroups.exists("/pod/gone")
    assert cgroups.exists("/pod/c")


@pytest.mark.parametrize("files", [V1, V2], ids=["v1", "v2"])
def test_oom_kills_are_counted(tmp_path: Path, files: dict[str, str]) -> None:
    assert write(tmp_path, files).oom_kills("/pod/c") == 3


@pytest.mark.parametrize(("files", "top"), [(V1, "memory"), (V2, ".")], ids=["v1", "v2"])
def test_processes_are_those_of_the_whole_subtree(tmp_path: Path, files: dict[str, str], top: str) -> None:
    """A pid 0 is a process of another pid namespace, which has no number here."""
    cgroups = write(
        tmp_path,
        {
            **files,
            f"{top}/pod/cgroup.procs": "",
            f"{top}/pod/c/cgroup.procs": "10\n11\n0\n",
            f"{top}/pod/c/in/cgroup.procs": "12\n",
        },
    )
    assert sorted(cgroups.processes("/pod")) == [10, 11, 12]
