"""Measuring from files: a cgroup hierarchy and a /proc of paper."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.cgroups.kernel import Cgroups
from sandboxd.model import ContainerRecord, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import Places
from sandboxd.usage.measure import Gauge, net_dev
from sandboxd.usage.records import Interface, Processes

NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 806467727   34518    1    2    0     0          0         0  2627566   25227    3    4    0     0       0          0
eth0:1:       5       1    0    0    0     0          0         0        6       1    0    0    0     0       0          0
"""  # noqa: E501 - as the kernel writes it
ETH0 = Interface(
    name="eth0",
    rx_bytes=806467727,
    rx_packets=34518,
    rx_errors=1,
    rx_dropped=2,
    tx_bytes=2627566,
    tx_packets=25227,
    tx_errors=3,
    tx_dropped=4,
)
PLACES = Places(root="/r", state="/s", netns="/n", cgroup_driver="cgroupfs", cgroup_parent="/sandboxd")


def test_counters_of_interfaces_whatever_they_are_called() -> None:
    found = net_dev(NET_DEV)
    assert [interface.name for interface in found] == ["lo", "eth0", "eth0:1"]
    assert found[1] == ETH0


@given(st.text())
def test_no_text_can_make_the_parser_fail(text: str) -> None:
    net_dev("\n\n" + text)


class Paper:
    """A machine of files with one pod: pause, one container that runs and one that does not."""

    def __init__(self, root: Path, parent: str = "") -> None:
        self.root = root
        self.sandbox = SandboxRecord(
            id="s",
            config=cri.PodSandboxConfig(linux=cri.LinuxPodSandboxConfig(cgroup_parent=parent)),
            runtime_handler="",
            netns_path=str(root / "netns"),
            created_at=1,
            started_at=2,
            pid=10,
        )
        self.write("cgroup/cgroup.controllers", "memory\n")
        self.write("netns", "")
        self.write("proc/10/net/dev", NET_DEV)
        (root / "proc/10/ns").mkdir(parents=True)
        os.link(root / "netns", root / "proc/10/ns/net")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def cgroup(self, path: str, memory: int, *pids: int) -> None:
        self.write(f"cgroup/{path}/memory.current", f"{memory}\n")
        self.write(f"cgroup/{path}/cgroup.procs", "".join(f"{pid}\n" for pid in pids))

    @property
    def gauge(self) -> Gauge:
        return Gauge(Cgroups(str(self.root / "cgroup")), PLACES, str(self.root / "proc"))


def container(id_: str, **times: Any) -> ContainerRecord:
    return ContainerRecord(
        id=id_,
        sandbox_id="s",
        config=cri.ContainerConfig(),
        sandbox_name="",
        image_ref="",
        image_id="",
        log_path="",
        **{"created_at": 1, "started_at": 2, **times},
    )


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    machine = Paper(tmp_path)
    machine.cgroup("sandboxd/s", 100)
    machine.cgroup("sandboxd/s/s", 10, 10)
    machine.cgroup("sandboxd/s/c", 50, 20, 21)
    return machine


def memory(sample: Any) -> int:
    return int(sample.memory.usage)


def test_a_pod_alone_in_its_cgroup_is_that_cgroup(paper: Paper) -> None:
    (pod,) = paper.gauge.pods([(paper.sandbox, [container("c")])], [paper.sandbox])
    assert (memory(pod.sample), pod.processes, pod.cgroup) == (100, 3, "/sandboxd/s")
    assert [memory(each.sample) for each in pod.containers] == [50]
    assert [interface.name for interface in pod.interfaces or ()] == ["eth0", "eth0:1"]


def test_a_pod_that_shares_its_cgroup_is_the_sum_of_its_containers(tmp_path: Path) -> None:
    machine = Paper(tmp_path, parent="/shared")
    machine.cgroup("shared", 1000)
    machine.cgroup("shared/other", 500, 99)
    machine.cgroup("shared/s", 10, 10)
    machine.cgroup("shared/c", 50, 20, 21)
    other = SandboxRecord(
        id="t", config=machine.sandbox.config, runtime_handler="", netns_path="", created_at=1, started_at=2
    )
    (pod,) = machine.gauge.pods([(machine.sandbox, [container("c")])], [machine.sandbox, other])
    assert (memory(pod.sample), pod.processes) == (60, 3)


def test_a_container_that_does_not_run_is_not_measured_whatever_is_left_of_it(paper: Paper) -> None:
    assert paper.gauge.container(container("c", finished_at=3), paper.sandbox).sample is None
    assert paper.gauge.container(container("gone"), paper.sandbox).sample is None


def test_the_interfaces_of_a_pod_without_a_pause_container_are_seen_by_way_of_a_container(paper: Paper) -> None:
    os.rename(paper.root / "proc/10", paper.root / "proc/20")
    pinned = replace(paper.sandbox, pinned=True, pid=0)
    (pod,) = paper.gauge.pods([(pinned, [container("c", pid=20)])], [pinned])
    assert [interface.name for interface in pod.interfaces or ()] == ["eth0", "eth0:1"]
    (pod,) = paper.gauge.pods([(pinned, [])], [pinned])
    assert pod.interfaces == (), "none are seen while none runs"


def test_a_pid_that_changed_hands_does_not_lend_its_interfaces(paper: Paper) -> None:
    (paper.root / "proc/10/ns/net").unlink()
    paper.write("proc/10/ns/net", "")
    (pod,) = paper.gauge.pods([(paper.sandbox, [])], [paper.sandbox])
    assert pod.interfaces == ()


def test_what_processes_hold_is_summed_and_those_that_are_gone_hold_nothing(paper: Paper) -> None:
    for name, target in (("0", "/dev/null"), ("1", "socket:[7]"), ("2", "pipe:[8]")):
        (paper.root / "proc/20/fd").mkdir(parents=True, exist_ok=True)
        (paper.root / "proc/20/fd" / name).symlink_to(target)
    limits = "Limit                     Soft Limit           Hard Limit           Units     \n"
    paper.write("proc/20/limits", f"{limits}Max open files            1024    4096    files\n")
    measured = paper.gauge.container(container("c", pid=20), paper.sandbox)
    assert paper.gauge.processes(measured) == Processes(count=2, files=3, sockets=1, open_files_limit=1024)
    paper.write("proc/20/limits", f"{limits}Max open files            unlimited    unlimited    files\n")
    assert paper.gauge.processes(measured).open_files_limit is None


def test_each_pod_costs_the_same_number_of_reads_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Paper(tmp_path)
    pods = [replace(machine.sandbox, id=f"s{number}") for number in range(50)]
    for pod in pods:
        machine.cgroup(f"sandboxd/{pod.id}", 100)
        machine.cgroup(f"sandboxd/{pod.id}/{pod.id}", 10, 10)
        machine.cgroup(f"sandboxd/{pod.id}/c", 50, 20)
    opened: list[str] = []
    real = os.open

    def counting(path: str, *arguments: Any, **options: Any) -> int:
        opened.append(path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", counting)
    machine.gauge.pods([(pods[0], [container("c")])], pods)
    one = len(opened)
    opened.clear()
    measured = machine.gauge.pods([(pod, [container("c")]) for pod in pods], pods)
    assert [memory(pod.sample) for pod in measured] == [100] * 50
    assert len(opened) == 50 * one
    assert one <= 50, "two cgroups with some twenty files each, and the processes"
