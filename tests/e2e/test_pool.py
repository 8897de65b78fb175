"""Pods that are prepared ahead: handed out whole, kept through restarts, and gone when nobody wants them any more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import Snapshot, assert_no_leaks, observe
from tests.pods import container_config, pod_config, pod_info, pod_status, remove_pod, run_container, run_pod
from tests.processes import until
from tests.testbed import DefaultNetwork, Testbed

pytestmark = pytest.mark.e2e


@dataclass(kw_only=True)
class Host:
    bed: Testbed
    network: DefaultNetwork
    before: Snapshot | None = None  # without any pod

    def pool(self) -> dict[str, Any]:
        """What the daemon tells of it."""
        answer = self.bed.runtime.Status(cri.StatusRequest(verbose=True), timeout=30)
        found: dict[str, Any] = json.loads(answer.info["pool"])
        return found

    def ready(self, number: int) -> list[str]:
        """The ids of what is prepared, once these are as many."""
        until(lambda: len(self.pool()["ready"]) == number, what=f"{number} pods are prepared")
        return list(self.pool()["ready"])

    def start(self, size: int, parent: str = "") -> None:
        """A daemon with a pool; before, one pod was there and is gone."""
        self.bed.start_daemon()
        self.bed.load_image("nginx")
        pod_id = run_pod(self.bed, pod_config(linux=cri.LinuxPodSandboxConfig(cgroup_parent=parent)))
        run_container(self.bed, pod_id, container_config("main", "nginx"))
        remove_pod(self.bed, pod_id)
        self.before = observe(self.bed)
        self.restart(size)

    def restart(self, size: int, *, kill: bool = False) -> None:
        (self.bed.kill_daemon if kill else self.bed.stop_daemon)()
        self.bed.config["pool"] = {"size": size}
        self.bed.relaunch_daemon()

    def pods(self) -> set[str]:
        return {each.id for each in self.bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items}

    def reserved(self) -> dict[str, str]:
        """Addresses that host-local has given out, and to which pod."""
        directory = self.bed.path(f"/var/lib/cni/networks/{self.network.name}")
        return {
            each.name: each.read_text().split()[0]
            for each in (directory.iterdir() if directory.is_dir() else ())
            if each.name[0].isdigit()
        }


@pytest.fixture
def host(containerd_bin: Path | None) -> Iterator[Host]:
    with Testbed(containerd_bin=containerd_bin) as bed:
        yield Host(bed=bed, network=bed.default_network())


def gone(host: Host) -> None:
    """Nothing is left of any pod."""
    host.restart(0)
    host.ready(0)
    assert not host.pods()
    until(lambda: not host.reserved(), what="all addresses are free")
    assert host.before is not None
    assert_no_leaks(host.bed, host.before)


def test_a_pod_that_was_prepared_is_the_pod_that_was_asked_for(host: Host) -> None:
    bed = host.bed
    host.start(1, f"{host.bed.cgroup_parent}/kube/pod1")
    (prepared,) = host.ready(1)
    assert not host.pods(), "nobody sees it before"
    config = pod_config(
        hostname="web-host",
        labels={"app": "web"},
        annotations={"note": "mine"},
        dns_config=cri.DNSConfig(servers=["192.0.2.53"], searches=["shop.example"]),
        linux=cri.LinuxPodSandboxConfig(cgroup_parent=f"{bed.cgroup_parent}/kube/pod1"),
    )

    pod_id = run_pod(bed, config)

    assert pod_id == prepared
    status = pod_status(bed, pod_id)
    assert (status.state, status.metadata, dict(status.labels)) == (
        cri.SANDBOX_READY,
        config.metadata,
        {"app": "web"},
    )
    run_container(bed, pod_id, container_config("main", "nginx"))
    assert bed.http_get(status.network.ip)[0] == 200
    info = pod_info(bed, pod_id)
    assert bed.run(["nsenter", f"--uts=/proc/{info['pid']}/ns/uts", "hostname"]).stdout == "web-host\n"
    assert host.reserved() == {
        status.network.ip: pod_id,
        **{ip: i for ip, i in host.reserved().items() if i != pod_id},
    }
    texts = {path.rsplit("/", 1)[1]: text for path, text in info["files"].items()}
    assert "web-host" in texts["hosts"] and status.network.ip in texts["hosts"]
    assert texts["resolv.conf"].split() == ["search", "shop.example", "nameserver", "192.0.2.53"]
    steps = [each["step"] for each in info["timeline"]]
    assert steps.index("pod.pool.fill") < steps.index("pod.pool.take")
    stored = bed.run(["ctr", "-a", "/run/sandboxd/containerd/containerd.sock", "-n", "sandboxd", "c", "info", pod_id])
    assert json.loads(stored.stdout)["Labels"]["io.kubernetes.pod.name"] == config.metadata.name
    (other,) = host.ready(1)
    assert other != pod_id
    remove_pod(bed, pod_id)
    gone(host)


def test_its_pause_container_is_below_the_cgroup_that_was_asked_for(host: Host) -> None:
    bed = host.bed
    parent = f"{bed.cgroup_parent}/kube/pod1"
    host.start(1, parent)
    host.ready(1)

    pod_id = run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(cgroup_parent=parent)))

    process = bed.proc / str(pod_info(bed, pod_id)["pid"]) / "cgroup"

    def moved() -> bool:
        lines = [line.split(":", 2)[2] for line in process.read_text().splitlines()]
        return {line for line in lines if bed.cgroup_parent in line} == {f"{parent}/{pod_id}"}

    until(moved, what="it was moved")
    devices = Path("/sys/fs/cgroup/devices", f"{parent}/{pod_id}".lstrip("/"), "devices.list")
    assert not devices.exists() or "a *:* rwm" not in devices.read_text()
    remove_pod(bed, pod_id)
    assert not [each for each in bed.cgroup_dirs() if each.name == pod_id]
    gone(host)


@pytest.mark.parametrize("kill", [False, True])
def test_what_is_prepared_outlives_the_daemon(host: Host, kill: bool) -> None:
    host.start(2)
    before = host.ready(2)

    host.restart(2, kill=kill)

    assert host.ready(2) == before
    assert run_pod(host.bed) in before
    remove_pod(host.bed, *host.pods())
    gone(host)


def test_a_changed_network_takes_new_pods_only(host: Host) -> None:
    bed = host.bed
    host.start(2)
    before = set(host.ready(2))
    conf = bed.path(host.network.file)
    document = json.loads(conf.read_text())
    next(each for each in document["plugins"] if each["type"] == "bridge")["mtu"] = 1400
    conf.write_text(json.dumps(document))

    until(lambda: len(now := set(host.pool()["ready"])) == 2 and not now & before, what="others are prepared")

    pod_id = run_pod(bed)
    assert pod_id not in before
    links = bed.run(["ip", "netns", "exec", f"sandboxd-{pod_id}", "ip", "link", "show", "eth0"]).stdout
    assert "mtu 1400" in links
    remove_pod(bed, pod_id)
    gone(host)


def test_without_a_network_what_was_prepared_is_given_up(host: Host) -> None:
    host.start(2)
    host.ready(2)
    conf = host.bed.path(host.network.file)
    text = conf.read_text()
    conf.unlink()

    host.ready(0)
    until(lambda: not host.reserved(), what="all addresses are free")
    conf.write_text(text)
    host.ready(2)
    gone(host)


def test_all_addresses_are_for_pods(host: Host) -> None:
    """The range has five addresses, the pool wants eight; every second pod cannot be served by it."""
    bed = host.bed
    conf = bed.path(host.network.file)
    document = json.loads(conf.read_text())
    ipam = next(each for each in document["plugins"] if each["type"] == "bridge")["ipam"]
    ipam["ranges"][0][0] |= {"rangeStart": "10.0.10.2", "rangeEnd": "10.0.10.6"}
    conf.write_text(json.dumps(document))
    host.start(8)
    until(lambda: host.pool()["trouble"], what="the range is used up")
    assert len(host.pool()["ready"]) == 5

    pods = [
        run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(sysctls=sysctls)))
        for sysctls in ({}, {"net.core.somaxconn": "128"}, {}, {"net.core.somaxconn": "128"}, {})
    ]

    assert host.pods() == set(pods)
    ips = {pod_status(bed, each).network.ip for each in pods}
    assert ips == {f"10.0.10.{number}" for number in range(2, 7)}
    for each in pods:
        remove_pod(bed, each)
    gone(host)


def test_a_pause_container_that_is_killed_is_replaced(host: Host) -> None:
    bed = host.bed
    host.start(1)
    (before,) = host.ready(1)
    tasks = bed.run(["ctr", "-a", "/run/sandboxd/containerd/containerd.sock", "-n", "sandboxd", "t", "ls"]).stdout
    pid = next(line.split()[1] for line in tasks.splitlines() if before in line)

    bed.run(["kill", "-9", pid])

    until(lambda: before not in host.pool()["ready"], what="it is removed")
    (after,) = host.ready(1)
    assert run_pod(bed) == after
    remove_pod(bed, after)
    gone(host)
