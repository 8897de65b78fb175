"""Host ports."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from sandboxd.cni.in_process import portmap
from sandboxd.cni.in_process.ranges import Odd
from sandboxd.cni.in_process.supported import Portmap, PortMapping

RESULT: dict[str, Any] = {
    "interfaces": [{"name": "cni0"}, {"name": "eth0"}, {"name": "eth0", "sandbox": "/run/netns/p"}],
    "ips": [{"interface": 0, "address": "10.0.0.1/24"}, {"interface": 2, "address": "10.0.0.2/24"}],
}


def test_ports_lead_to_the_address_of_the_pods_interface() -> None:
    """Not to the bridge's, nor to that of a host interface with the same name."""
    assert portmap.address_in(RESULT, "eth0") == ipaddress.ip_interface("10.0.0.2/24")


@pytest.mark.parametrize("address", ["fd00::2/64", ""])
def test_other_than_ipv4_is_the_plugins(address: str) -> None:
    with pytest.raises(Odd):
        portmap.address_in({"ips": [{"address": address}] if address else []}, "eth0")


def test_rules_are_those_of_the_mappings() -> None:
    conf = Portmap(network="net1", mappings=(PortMapping(host_port=8080, container_port=80, host_ip=None),))

    wanted = portmap.wanted(conf, "c1", ipaddress.ip_interface("10.0.0.2/24"))

    assert any(line.endswith("--dport 8080 -j DNAT --to-destination 10.0.0.2:80") for line in wanted.own)
