"""The machine is restarted: what is on disk stays, all else is gone, and the pods' addresses are free again."""

from __future__ import annotations

import copy
import json
import secrets
from typing import Any

import grpc
import pytest

from sandboxd import mountinfo
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.conftest import StartBed
from tests.pods import (
    container_config,
    container_status,
    pod_config,
    pod_status,
    refused,
    remove_pod,
    run_container,
    run_pod,
    start_container,
)
from tests.processes import processes_in, until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

BOOT_ID = "/etc/cni/boot-id"
WORK = "/var/lib/sandboxd/containerd/io.containerd.runtime.v2.task/sandboxd"  # of tasks, below containerd's root
ADDRESSES = 5  # of a /29, without the network, the gateway and the broadcast address
# What a reboot takes besides processes: mounts, what is on a tmpfs, links and rules.
REBOOT = r"""
while read -r mount; do umount -l "$mount"; done
find /run -mindepth 1 -delete
for link in $(ls /sys/class/net); do
    case $link in
    lo | up0 | up1) ;;
    *) ip link delete "$link" || [ ! -e "/sys/class/net/$link" ] ;; # with its other end, or its namespace
    esac
done
for table in nat filter; do iptables -t $table -F; iptables -t $table -X; done
"""


def reboot(bed: Testbed) -> None:
    """End everything in the bed but for what is on disk, and give it another boot id."""
    bed.run(["sh", "-c", "kill -9 -1"])  # all but the bed's first process and the shell
    until(lambda: not bed.daemon_running, what="the daemon ends")
    until(lambda: len(processes_in(bed.pid_namespace)) <= 1, what="all processes but the bed's first end")
    bed.run(["sh", "-eu", "-c", REBOOT], stdin="".join(f"{point}\n" for point in mounted(bed)))
    bed.write(BOOT_ID, f"{secrets.token_hex(16)}\n")
    bed.run(["mount", "--bind", BOOT_ID, "/proc/sys/kernel/random/boot_id"])


def mounted(bed: Testbed) -> list[str]:
    """What the bed has mounted below /run and /var/lib, the innermost first; not what the machine has there."""
    inherited = {mount.id for mount in mountinfo.parse(bed.inherited_mountinfo.encode())}
    own = [mount.point for mount in mountinfo.parse(bed.mountinfo.encode()) if mount.id not in inherited]
    return sorted((point for point in own if point.startswith(("/run/", "/var/lib/"))), reverse=True)


def small_network(bed: Testbed) -> None:
    conflist: dict[str, Any] = copy.deepcopy(dict(bed.default_network().conflist))
    conflist["plugins"][0]["ipam"] = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.0.10.0/29"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bed.write("/etc/cni/net.d/10-sandboxd.conflist", json.dumps(conflist))


def reserved(bed: Testbed) -> set[str]:
    """The addresses that host-local has given away."""
    return {path.name for path in bed.path("/var/lib/cni/networks/sandboxd").glob("10.*")}


def states(bed: Testbed) -> dict[str, int]:
    return {pod.id: pod.state for pod in bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items}


def test_pods_of_an_earlier_boot_have_ended_and_their_addresses_are_free_for_the_first_new_pod(
    fresh_bed: StartBed,
) -> None:
    bed = fresh_bed(daemon=False)
    small_network(bed)
    bed.start_daemon()
    bed.load_image("busybox")
    configs = [pod_config() for _ in range(ADDRESSES)]
    old = [run_pod(bed, config) for config in configs]
    sleeps = run_container(bed, old[0], container_config("sleeps", "busybox", ["sleep", "100000"]))
    with pytest.raises(grpc.RpcError) as full:
        run_pod(bed)
    assert refused(full.value)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    reboot(bed)
    assert len(reserved(bed)) == ADDRESSES
    bed.relaunch_daemon()

    assert states(bed) == dict.fromkeys(old, cri.SANDBOX_NOTREADY)
    assert not list(bed.path(WORK).iterdir()), "containerd has removed what it had of their tasks"
    new = run_pod(bed)  # at once: it needs one of the addresses
    assert pod_status(bed, new).state == cri.SANDBOX_READY
    assert not pod_status(bed, old[0]).network.ip
    ended = container_status(bed, sleeps)
    assert (ended.state, ended.exit_code, ended.reason) == (cri.CONTAINER_EXITED, 255, "Unknown")
    until(lambda: reserved(bed) == {pod_status(bed, new).network.ip}, what="all others are released")

    again = [run_pod(bed, config) for config in configs[:2]]  # the same configuration
    assert not set(again) & set(old)
    assert states(bed) == {
        **dict.fromkeys(old[2:], cri.SANDBOX_NOTREADY),
        **dict.fromkeys([new, *again], cri.SANDBOX_READY),
    }
    assert [run_pod(bed, config) for config in configs[:2]] == again
    start_container(bed, run_container(bed, again[0], container_config("sleeps", "busybox", ["sleep", "100000"])))

    bed.restart_daemon(kill=True)  # in the same boot: nothing has ended
    assert [states(bed)[pod_id] for pod_id in again] == [cri.SANDBOX_READY] * 2
    for pod_id in [new, *again, *old[2:]]:
        remove_pod(bed, pod_id)
    assert not reserved(bed) and not states(bed)
    assert not list(bed.path("/run/netns").iterdir())
    assert not [line for line in bed.mountinfo.splitlines() if any(pod_id in line for pod_id in old)]


def test_a_pod_without_a_pause_container_has_ended_too_and_is_made_anew(fresh_bed: StartBed) -> None:
    bed = fresh_bed(daemon=False)
    bed.default_network()
    bed.start_daemon(runtime={"handlers": {"pinned": {"sandbox_mode": "pinned"}}, "cgroup_parent": bed.cgroup_parent})
    config = pod_config()
    config.linux.security_context.namespace_options.pid = cri.CONTAINER
    old = run_pod(bed, config, handler="pinned")
    reboot(bed)
    bed.relaunch_daemon()

    assert states(bed) == {old: cri.SANDBOX_NOTREADY}
    new = run_pod(bed, config, handler="pinned")
    assert states(bed) == {new: cri.SANDBOX_READY}
    until(lambda: reserved(bed) == {pod_status(bed, new).network.ip}, what="the other's address is released")
    remove_pod(bed, new)
