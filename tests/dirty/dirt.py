"""What makes a machine dirty: the traces of the programs that the people who run it use besides."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.testbed import ROOT

PODS = 1000  # that have left logs
WEEK = 7 * 24 * 3600.0

# What podman 4 with CNI and others leave in CNI's directory, beside our own, whose name comes first.
_BRIDGE = {"type": "bridge", "isGateway": True, "ipMasq": True, "hairpinMode": True}


def _ranges(subnet: str) -> dict[str, object]:
    return {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}


CNI = {
    "87-podman-bridge.conflist": {
        "cniVersion": "0.4.0",
        "name": "podman",
        "plugins": [
            {**_BRIDGE, "bridge": "cni-podman0", "ipam": _ranges("10.88.0.0/16")},
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "firewall"},
            {"type": "tuning"},
        ],
    },
    "99-loopback.conf": {"cniVersion": "0.2.0", "name": "lo", "type": "loopback"},
    "docker.conflist": {
        "cniVersion": "0.4.0",
        "name": "docker",
        "plugins": [{**_BRIDGE, "bridge": "docker0", "ipam": _ranges("172.17.0.0/16")}, {"type": "firewall"}],
    },
    "nerdctl-bridge.conflist.bak": {"name": "half written"},
}

# Each is a script for `sh -eu`; the order is that of the machine's life.
SCRIPTS = {
    "an uplink with a default route": """
        ip link add up0 type veth peer name up1
        ip address add 198.51.100.1/24 dev up0
        ip link set up0 up; ip link set up1 up
        ip route add default via 198.51.100.2 dev up0
    """,
    "named network namespaces": """
        ip netns add blue
        ip netns add sandboxd
        ip netns exec blue ip link set lo up
    """,
    "podman's and docker's bridges": """
        ip link add cni-podman0 type bridge; ip address add 10.88.0.1/16 dev cni-podman0
        ip link add podman0 type bridge; ip address add 10.89.0.1/24 dev podman0
        ip link add docker0 type bridge; ip address add 172.17.0.1/16 dev docker0
        for bridge in cni-podman0 podman0 docker0; do ip link set "$bridge" up; done
        ip link add veth1 type veth peer name eth0 netns blue; ip link set veth1 master cni-podman0 up
        ip netns exec blue ip address add 10.88.0.2/16 dev eth0
    """,
    # Nothing that iptables cannot read: it would refuse the whole table, and with it every plugin that masquerades.
    "an ip nat table by nft": """
        nft add table ip nat
        nft add chain ip nat PREROUTING '{ type nat hook prerouting priority -100; }'
        nft add chain ip nat POSTROUTING '{ type nat hook postrouting priority 100; }'
        nft add chain ip nat DOCKER
        nft add rule ip nat POSTROUTING ip saddr 172.17.0.0/16 counter accept
        nft add table ip of_anna
        nft add chain ip of_anna postrouting '{ type nat hook postrouting priority 99; }'
        nft add rule ip of_anna postrouting ip saddr 172.17.0.0/16 oifname != docker0 counter masquerade
        nft add table inet firewalld
        nft add chain inet firewalld input '{ type filter hook input priority 10; policy accept; }'
    """,
    "rules by iptables": """
        iptables -t nat -N NETAVARK-1D8721804F16F
        iptables -t nat -A NETAVARK-1D8721804F16F -d 10.89.0.0/24 -j ACCEPT
        iptables -t nat -A POSTROUTING -s 10.89.0.0/24 -j NETAVARK-1D8721804F16F
        iptables -N DOCKER-USER
        iptables -A FORWARD -j DOCKER-USER
        iptables -A DOCKER-USER -j RETURN
        iptables -P FORWARD DROP
        iptables -I FORWARD -i sbx0 -j ACCEPT; iptables -I FORWARD -o sbx0 -j ACCEPT
    """,
}


def logs_of_pods() -> None:
    """Fill /var/log/pods with what long-gone pods have written."""
    then = time.time() - WEEK
    for i in range(PODS):
        directory = Path(f"/var/log/pods/default_web-{i}_{i:08x}-0000-4000-8000-000000000000/nginx")
        directory.mkdir(parents=True)
        for name in ("0.log", "0.log.20260101-000000.gz"):
            file = directory / name
            file.write_text("2026-01-01T00:00:00.000000000Z stdout F gone\n", encoding="utf-8")
            os.utime(file, (then, then))


def files_of_cni() -> None:
    """Podman's, docker's and our own."""
    directory = Path("/etc/cni/net.d")
    directory.mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "cni" / "10-sandboxd.conflist", directory)
    for name, content in CNI.items():
        (directory / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def home_of_another_user() -> None:
    """A home that belongs to neither root nor the tests, with settings in it."""
    home = Path("/var/tmp/home of änna")
    (home / ".docker").mkdir(parents=True)
    (home / ".docker" / "config.json").write_text('{"auths": {"registry.example": {"auth": "YTpi"}}}', "utf-8")
    (home / ".gitconfig").write_text("[user]\n\tname = Änna\n", encoding="utf-8")
    for path in (home / ".docker" / "config.json", home / ".docker", home / ".gitconfig", home):
        os.chown(path, 1000, 1000)
    home.chmod(0o700)


FILES: dict[str, Callable[[], None]] = {
    "logs of pods": logs_of_pods,
    "CNI files": files_of_cni,
    "another user's home": home_of_another_user,
}
