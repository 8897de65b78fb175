"""A pod on a bridge of which all is well, for tests to break."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sandboxd.cni import result
from sandboxd.insight import diagnose
from sandboxd.insight.evidence import Answer, Check, Checked, Filters, Packets, Seen, Severity
from sandboxd.insight.rulesets_read import of_iptables
from sandboxd.links import Link, Route, View

NETNS = "/run/netns/pod"
POD_ID = "ab" * 32
CHAIN = "CNI-0123456789abcdef01234567"
RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "br0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": NETNS}],
    "ips": [{"interface": 2, "address": "10.0.0.2/24", "gateway": "10.0.0.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
}
NAT = f"""*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:{CHAIN} - [0:0]
-A POSTROUTING -s 10.0.0.2/32 -m comment --comment "name: \\"n\\" id: \\"i\\"" -j {CHAIN}
-A {CHAIN} -d 10.0.0.0/24 -j ACCEPT
-A {CHAIN} ! -d 224.0.0.0/4 -j MASQUERADE
COMMIT
"""
LO = Link(name="lo", index=1, loopback=True, addresses=("127.0.0.1/8",))
ETH0 = Link(name="eth0", index=2, kind="veth", mac="02:00:00:00:00:02", mtu=1500, peer=7, addresses=("10.0.0.2/24",))
VETH = Link(name="veth1", index=7, kind="veth", mtu=1500, peer=2, master=5, hairpin=True)
BRIDGE = Link(
    name="br0", index=5, kind="bridge", mac="02:00:00:00:00:05", mtu=1500, addresses=("10.0.0.1/24", "fe80::1/64")
)
UPLINK = Link(name="up0", index=3, mtu=1500, addresses=("198.51.100.1/24",))
PLUGIN = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "hairpinMode": True}


def well(**changes: Any) -> Seen:
    """What is seen of it; `changes` are fields of Seen."""
    seen = Seen(
        pod_id=POD_ID,
        netns_path=NETNS,
        network="pods",
        ifname="eth0",
        plugins=({**PLUGIN, "ipam": {"type": "host-local"}},),
        result=result.parse_result(json.dumps(RESULT).encode(), "bridge"),
        ips=("10.0.0.2",),
        inside=View(links=(LO, ETH0), routes=(Route(destination="0.0.0.0/0", gateway="10.0.0.1", link=2),)),
        peer=VETH,
        bridge=BRIDGE,
        uplink=UPLINK,
        ways={"10.0.0.2": "br0"},
        sysctls={"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"},
        chain=CHAIN,
        filters=filters(NAT),
        resolv_conf=b"nameserver 192.0.2.53\n",
        checked=Checked(ran=True),
        packets=Packets(
            gateways=(answer("10.0.0.1"),), neighbours=(answer("10.0.0.3"),), resolvers=(answer("192.0.2.53"),)
        ),
    )
    return replace(seen, **changes)


def answer(to: str, how: str = "in 0.1 ms", *, answered: bool = True, whose: str = "") -> Answer:
    return Answer(to=to, answered=answered, how=how, whose=whose)


def filters(text: str) -> Filters:
    """The rules that iptables-save prints as `text`."""
    return Filters(bases=of_iptables("iptables-nft", 4, text.splitlines()))


def findings(seen: Seen) -> list[Check]:
    """What is not well."""
    return [check for check in diagnose.diagnose(seen) if check.severity not in (Severity.OK, Severity.INFO)]


def only(seen: Seen) -> Check:
    """The one thing that is not well."""
    found: Sequence[Check] = findings(seen)
    assert len(found) == 1, found
    return found[0]
