"""Pods without a pause container: their namespaces are pinned, and they are pods like any other."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.pods import (
    container_config,
    container_status,
    create_container,
    exited,
    log_lines,
    pod_config,
    pod_info,
    pod_status,
    refused,
    remove_pod,
    run_container,
    run_pod,
    shell,
)
from tests.processes import until
from tests.streaming.clients import forwarded
from tests.streaming.remote import forwarder
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
        warm_up(made)
        yield made


def warm_up(bed: Testbed) -> None:
    """Have what the first pod and container make once and for all."""
    pod_id = run_pod(bed, config(), handler="pinned")
    run_container(bed, pod_id, own_pids(shell("true")))
    remove_pod(bed, pod_id)


def tasks(bed: Testbed) -> str:
    address = "/run/sandboxd/containerd/containerd.sock"
    return bed.run(["ctr", "--address", address, "--namespace", "sandboxd", "tasks", "list"]).stdout


def sandboxctl(bed: Testbed, *argv: str, check: bool = True) -> str:
    program = str(Path(sys.executable).parent / "sandboxctl")
    return bed.run([program, "--socket", str(bed.socket), *argv], check=check).stdout


def exec_sync(bed: Testbed, container_id: str, script: str) -> str:
    request = cri.ExecSyncRequest(container_id=container_id, cmd=["sh", "-c", script], timeout=60)
    answer = bed.runtime.ExecSync(request, timeout=60)
    assert answer.exit_code == 0, answer
    return str(answer.stdout.decode())


def nginx_answers(bed: Testbed, pod_id: str) -> bool:
    return bed.http_get(pod_status(bed, pod_id).network.ip)[0] == 200


def test_nginx_answers_at_the_address_of_a_pod_that_has_no_process_of_its_own(bed: Testbed) -> None:
    before = observe(bed)
    pod_id = run_pod(bed, config("web"), handler="pinned")

    assert pod_status(bed, pod_id).state == cri.SANDBOX_READY
    assert pod_id not in tasks(bed)
    run_container(bed, pod_id, own_pids(container_config("nginx", "nginx")))
    assert nginx_answers(bed, pod_id)

    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


async def test_its_ports_are_forwarded_before_and_while_it_has_processes(bed: Testbed) -> None:
    pod_id = run_pod(bed, config(), handler="pinned")
    request = b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"
    client = await forwarder(bed, pod_id)
    async with asyncio.timeout(60):
        error, _ = await forwarded(client, 80)
        assert b"Connection refused" in await client.all_of(error)
        run_container(bed, pod_id, own_pids(container_config("nginx", "nginx")))
        assert nginx_answers(bed, pod_id)
        _, data = await forwarded(client, 80, len(client.streams))
        await client.send(data, request)
        assert (await client.all_of(data)).startswith(b"HTTP/1.1 200 ")
    await client.close()
    remove_pod(bed, pod_id)


def test_its_containers_share_network_ipc_and_name_and_nothing_else(bed: Testbed) -> None:
    before = observe(bed)
    sysctls = {
        "kernel.shm_rmid_forced": "1",
        "kernel.msgmax": "4096",
        "kernel.sem": "100 200 300 400",
        "fs.mqueue.msg_max": "20",
        "kernel.domainname": "example",
        "net.ipv4.conf.eth0.forwarding": "1",
        "net/ipv4/tcp_syncookies": "0",
    }
    pod_id = run_pod(bed, config("shared", sysctls=sysctls), handler="pinned")
    one, two = (run_container(bed, pod_id, own_pids(shell(LIVES))) for _ in range(2))

    kinds = ("net", "ipc", "uts", "pid", "mnt")
    look = f"for kind in {' '.join(kinds)}; do readlink /proc/1/ns/$kind; done"
    inside = [dict(zip(kinds, exec_sync(bed, each, look).split(), strict=True)) for each in (one, two)]
    assert {kind for kind in kinds if inside[0][kind] == inside[1][kind]} == {"net", "ipc", "uts"}
    assert exec_sync(bed, one, "hostname; cat /etc/hostname; echo $HOSTNAME").split() == ["shared"] * 3
    for name, value in {**sysctls, "net.ipv4.ip_unprivileged_port_start": "0"}.items():
        file = f"/proc/sys/{name.replace('.', '/')}"
        assert exec_sync(bed, two, f"cat {file}").split() == value.split(), name
    exec_sync(bed, one, "echo from one > /dev/shm/note")
    assert exec_sync(bed, two, "cat /dev/shm/note") == "from one\n"
    assert "/proc/1/" in exec_sync(bed, one, "ls -d /proc/1/"), "pids are its own"
    assert Path("/proc/sys/kernel/msgmax").read_text().strip() != "4096", "the machine's are as they were"

    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_it_is_shown_as_what_it_is(bed: Testbed) -> None:
    pod_id = run_pod(bed, config("shown"), handler="pinned")
    container_id = run_container(bed, pod_id, own_pids(shell(LIVES)))

    info = pod_info(bed, pod_id)
    assert (info["pid"], info["state"]) == (0, "ready")
    assert set(info["pinnedNamespaces"]) == {"ipc", "uts"}
    assert info["runtimeSpec"]["hostname"] == "shown"
    told = sandboxctl(bed, "explain", "shown")
    assert "none: the namespaces are pinned" in told
    assert "The ipc and uts namespaces are created" in told
    stats = bed.runtime.PodSandboxStats(cri.PodSandboxStatsRequest(pod_sandbox_id=pod_id)).stats
    assert [each.attributes.id for each in stats.linux.containers] == [container_id]
    assert stats.linux.network.default_interface.name == "eth0"
    assert stats.linux.process.process_count.value > 0
    audited = json.loads(sandboxctl(bed, "audit", "-o", "json"))
    assert pod_id not in json.dumps(audited)

    remove_pod(bed, pod_id)


def test_what_it_cannot_hold_gets_a_pause_container_without_a_word(bed: Testbed) -> None:
    pod_id = run_pod(bed, pod_config(), handler="pinned")
    one = run_container(bed, pod_id, shell(LIVES))
    two = run_container(bed, pod_id, shell(LIVES))

    assert pod_info(bed, pod_id)["pid"] > 0
    pids = [exec_sync(bed, each, "readlink /proc/self/ns/pid") for each in (one, two)]
    assert pids[0] == pids[1], "they share the pids that they asked to share"
    remove_pod(bed, pod_id)

    pod_id = run_pod(bed, config(), handler="pinned")
    with pytest.raises(grpc.RpcError) as error:
        create_container(bed, pod_id, shell(LIVES))
    assert "has no pause container to hold one: use CONTAINER" in refused(error.value)[1]
    remove_pod(bed, pod_id)


def test_a_pod_in_the_machines_namespaces_is_one_too(bed: Testbed) -> None:
    before = observe(bed)
    on_host = cri.NamespaceOption(pid=cri.NODE, network=cri.NODE, ipc=cri.NODE)
    security = cri.LinuxSandboxSecurityContext(namespace_options=on_host)
    pod_id = run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(security_context=security)), handler="pinned")
    container = shell(LIVES)
    container.linux.security_context.namespace_options.CopyFrom(on_host)
    container_id = run_container(bed, pod_id, container)

    for kind in ("net", "ipc", "uts"):
        look = ["readlink", f"/proc/self/ns/{kind}"]
        assert exec_sync(bed, container_id, " ".join(look)) == bed.run(look).stdout

    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_it_outlives_the_end_of_any_of_its_containers(bed: Testbed) -> None:
    """The first container's shim serves the others too: it goes on without its first."""
    pod_id = run_pod(bed, config(), handler="pinned")
    first, second = (run_container(bed, pod_id, own_pids(shell(LIVES))) for _ in range(2))
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=first, timeout=20), timeout=60)
    assert container_status(bed, first).exit_code == 7
    bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=first), timeout=60)

    assert exec_sync(bed, second, "echo lives") == "lives\n"
    third = run_container(bed, pod_id, own_pids(shell("echo said; exit 3")))
    until(lambda: exited(bed, third), what="it has ended")
    assert (container_status(bed, third).exit_code, log_lines(bed, third)) == (3, ["said"])
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=second, timeout=20), timeout=60)
    assert pod_status(bed, pod_id).state == cri.SANDBOX_READY, "without any process"
    fourth = run_container(bed, pod_id, own_pids(shell(LIVES)))
    assert exec_sync(bed, fourth, "hostname").strip() == pod_status(bed, pod_id).metadata.name

    remove_pod(bed, pod_id)


@pytest.mark.parametrize("kill", [False, True])
def test_a_restart_keeps_it(bed: Testbed, kill: bool) -> None:
    before = observe(bed)
    empty = run_pod(bed, config(), handler="pinned")
    pod_id = run_pod(bed, config(), handler="pinned")
    container_id = run_container(bed, pod_id, own_pids(container_config("nginx", "nginx")))

    bed.restart_daemon(kill=kill)

    for each in (empty, pod_id):
        assert pod_status(bed, each).state == cri.SANDBOX_READY
    assert container_status(bed, container_id).state == cri.CONTAINER_RUNNING
    assert nginx_answers(bed, pod_id)
    assert nginx_answers_in_new_container(bed, empty)
    for each in (empty, pod_id):
        remove_pod(bed, each)
    assert_no_leaks(bed, before)


def nginx_answers_in_new_container(bed: Testbed, pod_id: str) -> bool:
    run_container(bed, pod_id, own_pids(container_config("nginx", "nginx")))
    return nginx_answers(bed, pod_id)


def test_what_others_unpinned_is_pinned_again_from_its_containers(bed: Testbed) -> None:
    pod_id = run_pod(bed, config("held"), handler="pinned")
    run_container(bed, pod_id, own_pids(shell(LIVES)))
    paths = pod_info(bed, pod_id)["pinnedNamespaces"]
    for path in paths.values():
        bed.run(["umount", path])

    later = run_container(bed, pod_id, own_pids(shell(LIVES)))

    assert exec_sync(bed, later, "hostname") == "held\n"
    remove_pod(bed, pod_id)


def test_without_anything_in_its_namespaces_it_is_no_longer_ready(bed: Testbed) -> None:
    before = observe(bed)
    pod_id = run_pod(bed, config(), handler="pinned")
    bed.run(["umount", pod_info(bed, pod_id)["pinnedNamespaces"]["uts"]])

    with pytest.raises(grpc.RpcError) as error:
        create_container(bed, pod_id, own_pids(shell(LIVES)))

    assert "no uts namespace to join" in refused(error.value)[1]
    assert pod_status(bed, pod_id).state == cri.SANDBOX_NOTREADY
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_another_configuration_keeps_the_pods_as_they_are_and_a_lost_ledger_brings_them_back(
    fresh_bed: StartBed,
) -> None:
    bed = fresh_bed(daemon=False)
    bed.start_daemon(runtime={"handlers": HANDLERS, "cgroup_parent": bed.cgroup_parent})
    for image in ("busybox", "nginx"):
        bed.load_image(image)
    warm_up(bed)
    before = observe(bed)
    pod_id = run_pod(bed, config("kept"), handler="pinned")
    container_id = run_container(bed, pod_id, own_pids(container_config("nginx", "nginx")))

    bed.stop_daemon()
    bed.run(["sh", "-c", "rm /var/lib/sandboxd/ledger.db*"])
    bed.start_daemon(runtime={"handlers": {"pinned": {}}, "cgroup_parent": bed.cgroup_parent})

    assert pod_status(bed, pod_id).state == cri.SANDBOX_READY
    assert container_status(bed, container_id).state == cri.CONTAINER_RUNNING
    assert pod_info(bed, pod_id)["pid"] == 0
    assert nginx_answers(bed, pod_id)
    later = run_container(bed, pod_id, own_pids(shell(LIVES)))
    assert exec_sync(bed, later, "hostname") == "kept\n"
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_what_is_left_of_one_that_nothing_knows_is_found_and_removed(fresh_bed: StartBed) -> None:
    bed = fresh_bed(daemon=False)
    bed.start_daemon(runtime={"handlers": HANDLERS, "cgroup_parent": bed.cgroup_parent})
    bed.load_image("busybox")
    warm_up(bed)
    before = observe(bed)
    pod_id = run_pod(bed, config(), handler="pinned")

    address = "/run/sandboxd/containerd/containerd.sock"
    bed.stop_daemon()
    bed.run(["sh", "-c", "rm /var/lib/sandboxd/ledger.db*"])
    bed.run(["ctr", "--address", address, "--namespace", "sandboxd", "containers", "delete", pod_id])
    bed.start_daemon(runtime={"handlers": HANDLERS, "cgroup_parent": bed.cgroup_parent})

    found = sandboxctl(bed, "audit", "-o", "json", check=False)
    assert pod_id in found
    sandboxctl(bed, "audit", "--repair", check=False)
    assert_no_leaks(bed, before)
