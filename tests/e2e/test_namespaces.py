"""A pod's network namespace where plugins and people reach it: by its name, in a directory that is everybody's."""

from __future__ import annotations

import json
from functools import partial

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.pods import (
    IDS,
    LOGS,
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
    start_container,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

# How many plugins that are shell scripts enter the pod: a link by the id, for `ip netns exec`.
IDIOM = """#!/bin/sh
conf=$(cat)
case $CNI_COMMAND in
VERSION)
    echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}' ;;
ADD)
    mkdir -p /var/run/netns
    ln -sfT "$CNI_NETNS" "/var/run/netns/$CNI_CONTAINERID" || exit 3
    {
        ip netns exec "$CNI_CONTAINERID" ip link add "$CNI_IFNAME" type veth peer name peer0
        ip netns exec "$CNI_CONTAINERID" ip address add 10.88.0.9/24 dev "$CNI_IFNAME"
        ip netns exec "$CNI_CONTAINERID" ip link set "$CNI_IFNAME" up
    } >&2 || exit 4
    echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "'"$CNI_NETNS"'"}],'
    echo '"ips": [{"address": "10.88.0.9/24", "interface": 0}]}' ;;
DEL)
    [ -z "$CNI_NETNS" ] || ip netns exec "$CNI_CONTAINERID" ip link del "$CNI_IFNAME" >&2 || exit 5
    CLEAN ;;
esac
"""
CLEANINGS = {
    "removes its link": 'rm -f "/var/run/netns/$CNI_CONTAINERID"',
    "leaves its link": ":",
    "deletes the namespace by its link": 'ip netns del "$CNI_CONTAINERID" >&2',
}


def install_shell_plugin(bed: Testbed, text: str) -> None:
    """The only network's only plugin is this script."""
    bed.write("/opt/cni/bin/idiom", text, mode=0o755)
    conf = {"cniVersion": "1.0.0", "name": "idiom", "plugins": [{"type": "idiom"}]}
    bed.write("/etc/cni/net.d/10-idiom.conflist", json.dumps(conf))


@pytest.mark.parametrize("cleaning", CLEANINGS)
def test_a_plugin_may_link_its_container_id_to_the_namespace(fresh_bed: StartBed, cleaning: str) -> None:
    bed = fresh_bed(network=False)
    install_shell_plugin(bed, IDIOM.replace("CLEAN", CLEANINGS[cleaning]))
    remove_pod(bed, run_pod(bed))
    before = observe(bed)

    pod_id = run_pod(bed)

    assert pod_status(bed, pod_id).network.ip == "10.88.0.9"
    assert (
        "10.88.0.9" in bed.run(["ip", "netns", "exec", f"sandboxd-{pod_id}", "ip", "address", "show", "eth0"]).stdout
    )
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


# What a person can do to the namespace at $1.
TAKEN_AWAY = {
    "deleted": 'ip netns del "$(basename "$1")"',
    "unmounted": 'umount "$1"',
    "unmounted and removed": 'umount "$1" && rm "$1"',
    "hidden by another": 'ip netns add other && mount --bind /run/netns/other "$1"',
    "replaced by another": 'ip netns del "$(basename "$1")" && ip netns add "$(basename "$1")"',
    "replaced by a link to another": 'umount "$1" && rm "$1" && ip netns add other && ln -s other "$1"',
    "gone with the directory": "umount -l /run/netns && rm -rf /run/netns",
}
SHOW = "ip -o address show dev eth0 | grep -o 'inet [0-9.]*'"


def take_away(bed: Testbed, pod_id: str, how: str) -> None:
    bed.run(["sh", "-ec", TAKEN_AWAY[how], "sh", f"/run/netns/sandboxd-{pod_id}"])


def restore_machine(bed: Testbed) -> None:
    """Take away what a person has left of their own."""
    bed.run(["sh", "-c", "ip netns del other 2>/dev/null; true"])


@pytest.fixture(scope="module")
def used(bed: Testbed) -> Testbed:
    """A bed in which everything is that is made once: by the first pod, by the first container, and by umount(8)."""
    remove_pod(bed, run_pod(bed))
    bed.run(["mkdir", "-p", "/run/mount", LOGS])
    return bed


@pytest.mark.parametrize("how", TAKEN_AWAY)
def test_a_pod_takes_containers_after_its_namespace_was(used: Testbed, images: tuple[str, ...], how: str) -> None:
    bed = used
    before = observe(bed)
    pod_id = run_pod(bed)
    created = create_container(bed, pod_id, shell(SHOW))
    ip = pod_status(bed, pod_id).network.ip
    take_away(bed, pod_id, how)

    start_container(bed, created)
    take_away(bed, pod_id, "deleted")
    container_id = run_container(bed, pod_id, shell(SHOW))

    for each in (created, container_id):
        until(partial(exited, bed, each), what="the container ends")
        assert log_lines(bed, each) == [f"inet {ip}"]
    assert pod_status(bed, pod_id).state == cri.SANDBOX_READY
    remove_pod(bed, pod_id)
    restore_machine(bed)
    assert_no_leaks(bed, before)


@pytest.mark.parametrize("how", TAKEN_AWAY)
def test_a_pod_is_removed_whole_after_its_namespace_was(used: Testbed, how: str) -> None:
    """DEL gets the pod's own namespace, from its process: what is in its place belongs to somebody else."""
    bed = used
    before = observe(bed)
    pod_id = run_pod(bed)
    take_away(bed, pod_id, how)

    remove_pod(bed, pod_id)

    restore_machine(bed)
    assert_no_leaks(bed, before)


def test_a_pod_with_a_user_namespace_takes_containers_after_both_were(bed: Testbed, images: tuple[str, ...]) -> None:
    options = cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.POD, uids=IDS, gids=IDS))
    context = cri.LinuxSandboxSecurityContext(namespace_options=options)
    pod_id = run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(security_context=context)))
    take_away(bed, pod_id, "deleted")
    bed.run(["umount", f"/run/sandboxd/sandboxes/{pod_id}/userns"])

    container_id = run_container(bed, pod_id, shell(f"{SHOW}; cat /proc/self/uid_map"))

    until(lambda: exited(bed, container_id), what="the container ends")
    address, ids = log_lines(bed, container_id)
    assert address == f"inet {pod_status(bed, pod_id).network.ip}"
    assert ids.split() == ["0", "100000", "65536"]
    remove_pod(bed, pod_id)


def test_where_no_process_is_left_the_pod_is_not_ready_and_has_no_address(fresh_bed: StartBed) -> None:
    bed = fresh_bed(network=False)
    bed.load_image("busybox")
    # Without masquerading: the plugin cannot take its rules back when there is no namespace to read the address from.
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]]}
    conf = {"cniVersion": "1.0.0", "name": "plain", "plugins": [{"type": "bridge", "bridge": "plain0", "ipam": ipam}]}
    bed.write("/etc/cni/net.d/10-plain.conflist", json.dumps(conf))
    remove_pod(bed, run_pod(bed))
    before = observe(bed)
    pod_id = run_pod(bed)
    take_away(bed, pod_id, "deleted")
    bed.run(["kill", "-KILL", str(pod_info(bed, pod_id)["pid"])])

    until(lambda: pod_status(bed, pod_id).state == cri.SANDBOX_NOTREADY, what="the pod is not ready")
    assert not pod_status(bed, pod_id).network.ip
    with pytest.raises(grpc.RpcError) as error:
        create_container(bed, pod_id, shell("true"))
    assert refused(error.value)[0] is grpc.StatusCode.FAILED_PRECONDITION
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_a_restarted_daemon_finds_what_was_taken_while_it_was_away(fresh_bed: StartBed) -> None:
    bed = fresh_bed()
    bed.load_image("busybox")
    pod_id = run_pod(bed)
    bed.stop_daemon()
    take_away(bed, pod_id, "unmounted")

    bed.relaunch_daemon()

    show = ["ip", "-netns", f"sandboxd-{pod_id}", "link"]
    until(lambda: "eth0" in bed.run(show, check=False).stdout, what="the namespace is pinned again")
    remove_pod(bed, pod_id)


# Slow enough for anything that does not wait for it: until the pause container exists, or for a while.
SLOW = """#!/bin/sh
conf=$(cat)
case $CNI_COMMAND in
VERSION)
    echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
ADD)
    for i in $(seq 15); do
        [ -e "/run/containerd/runc/sandboxd/$CNI_CONTAINERID/state.json" ] && break
        sleep 0.1
    done
    enter="ip netns exec $(basename "$CNI_NETNS")"
    {
        $enter ip link add "$CNI_IFNAME" type veth peer name peer0
        $enter sysctl -w "net.ipv6.conf.$CNI_IFNAME.disable_ipv6=0"
        $enter ip link set "$CNI_IFNAME" up
        $enter ip address add 10.88.0.9/24 dev "$CNI_IFNAME"
        $enter ip -6 address add fd00:9::9/64 dev "$CNI_IFNAME" nodad
    } >&2 || exit 4
    echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "'"$CNI_NETNS"'"}],'
    echo '"ips": [{"address": "10.88.0.9/24", "interface": 0}]}' ;;
esac
"""


def test_sysctls_of_the_network_are_set_after_a_slow_plugin(fresh_bed: StartBed) -> None:
    bed = fresh_bed(network=False)
    install_shell_plugin(bed, SLOW)
    for disabled in ("0", "1"):
        asked = cri.LinuxPodSandboxConfig(sysctls={"net.ipv6.conf.all.disable_ipv6": disabled})
        pod_id = run_pod(bed, pod_config(linux=asked))
        shown = bed.run(["ip", "-6", "-netns", f"sandboxd-{pod_id}", "address", "show", "dev", "eth0"]).stdout
        assert ("fd00:9::9" in shown) is (disabled == "0")
        remove_pod(bed, pod_id)
