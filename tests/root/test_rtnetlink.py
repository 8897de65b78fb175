"""What the real kernel lists, told in the words of ip(8).

The network is that of a child in a namespace of its own (`unshare`), which is gone when the child ends.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys

import pytest

from sandboxd import rtnetlink

pytestmark = pytest.mark.root

MADE = """
ip link set lo up
ip link add sbx0 address 02:00:00:00:00:01 type bridge
ip address add 10.0.10.1/24 dev sbx0
ip -6 address add fd00::1/64 dev sbx0 nodad
ip link set sbx0 promisc on up
ip link add v0 address 02:00:00:00:00:02 mtu 1400 type veth peer name v1
ip link set v0 master sbx0 up
bridge link set dev v0 hairpin on
ip address add 10.9.9.1 peer 10.9.9.2/32 dev v1
ip link set v1 up
ip route add default via 10.0.10.2 metric 7
ip -6 route add default via fd00::2
ip route add 10.77.0.0/16 nexthop via 10.0.10.3 nexthop via 10.0.10.4
ip route add blackhole 10.66.0.0/16
ip route add 10.55.0.5 dev sbx0 table 100 src 10.0.10.1
ip rule add from 10.0.10.9 lookup 100 priority 500
ip neighbour add 10.0.10.7 lladdr 02:00:00:00:00:03 dev sbx0 nud permanent
tc qdisc add dev v1 root tbf rate 1mbit burst 32kbit latency 400ms
"""
WANTED = {
    "link sbx0": {"kind": "bridge", "mac": "02:00:00:00:00:01", "mtu": "1400", "state": "up", "promisc": "on"},
    "link v0": {
        "kind": "veth", "master": "sbx0", "mac": "02:00:00:00:00:02", "mtu": "1400", "state": "up", "hairpin": "on",
    },
    "address 10.0.10.1/24 dev sbx0": {},
    "address fd00::1/64 dev sbx0": {},
    "address 10.9.9.1/32 dev v1": {"peer": "10.9.9.2"},
    "address 127.0.0.1/8 dev lo": {"scope": "host"},
    "route default via 10.0.10.2 dev sbx0": {"metric": "7"},
    "route 10.0.10.0/24 dev sbx0": {"src": "10.0.10.1", "scope": "link"},
    "route 10.77.0.0/16 nexthop via 10.0.10.3 dev sbx0 nexthop via 10.0.10.4 dev sbx0": {},
    "route blackhole 10.66.0.0/16": {},
    "route 10.55.0.5 dev sbx0 table 100": {"src": "10.0.10.1", "scope": "link"},
    "route ::/0 via fd00::2 dev sbx0": {"metric": "1024"},
    "policy IPv4 500: from 10.0.10.9 lookup 100": {},
    "neighbour 10.0.10.7 dev sbx0": {"mac": "02:00:00:00:00:03"},
    "qdisc tbf dev v1": {},
}  # fmt: skip


def netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE)


def looked() -> None:
    """In the child: make the network, and print what is seen of it."""
    subprocess.run(["sh", "-e"], input=MADE, text=True, check=True)
    things = asyncio.run(rtnetlink.look(netlink(), "host"))
    print(json.dumps([[f"{each.kind} {each.name}", dict(each.fields), each.index, each.peer] for each in things]))


def test_what_there_is_is_told_as_ip_tells_it_and_what_the_kernel_derives_is_not() -> None:
    child = "from tests.root.test_rtnetlink import looked; looked()"
    printed = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", child], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    told = json.loads(printed)

    seen = {name: fields for name, fields, _, _ in told}
    assert {name: seen.get(name) for name in WANTED} == WANTED
    index, peer = ({name: number[at] for name, _, *number in told} for at in (0, 1))
    assert peer["link v0"] == index["link v1"] and peer["link v1"] == index["link v0"] and peer["link sbx0"] == 0
    # Nothing else: no local and no multicast routes, no policy of the kernel's own, no learnt neighbour.
    more = [name for name in seen if name not in WANTED and not name.startswith("link ")]
    assert [name for name in more if "fe80::" not in name] == [
        "address ::1/128 dev lo", "route 10.9.9.2 dev v1", "route fd00::/64 dev sbx0",
    ]  # fmt: skip
