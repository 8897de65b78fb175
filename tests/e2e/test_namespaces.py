"""A pod's network namespace where plugins and people reach it: by its name, in a directory that is everybody's."""

from __future__ import annotations

import json

import pytest

from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.pods import pod_status, remove_pod, run_pod
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
