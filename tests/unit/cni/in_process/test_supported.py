"""Which configurations are done in-process."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from sandboxd.cni.in_process import supported
from sandboxd.cni.in_process.supported import Bridge, Portmap

IPAM = {"type": "host-local", "subnet": "10.99.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
BRIDGE = {"cniVersion": "1.0.0", "name": "pods", "type": "bridge", "ipam": IPAM}
PORTS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
PORTMAP = {"cniVersion": "1.0.0", "name": "pods", "type": "portmap"}


def test_a_bridge_has_the_plugins_defaults() -> None:
    conf = supported.read(BRIDGE, "")

    assert isinstance(conf, Bridge)
    assert (conf.bridge, conf.mtu, conf.data_dir) == ("cni0", 0, "/var/lib/cni/networks/pods")
    assert not (conf.is_gateway or conf.is_default_gateway or conf.masquerade or conf.hairpin)


def test_a_default_gateway_is_a_gateway() -> None:
    conf = supported.read({**BRIDGE, "isDefaultGateway": True, "ipam": {**IPAM, "routes": []}}, "")

    assert isinstance(conf, Bridge)
    assert conf.is_gateway


def test_host_ports_are_read() -> None:
    mappings = [*PORTS, {**PORTS[0], "hostPort": 81, "hostIP": "127.0.0.1"}]
    conf = supported.read({**PORTMAP, "snat": True, "runtimeConfig": {"portMappings": mappings}}, "")

    assert isinstance(conf, Portmap)
    assert [(each.host_port, each.container_port, each.host_ip) for each in conf.mappings] == [
        (8080, 80, None),
        (81, 80, ipaddress.ip_address("127.0.0.1")),
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": "macvlan"}, "plugin macvlan"),
        ({"cniVersion": "0.2.0"}, "cniVersion"),
        ({"vlan": 5}, "vlan"),
        ({"isgateway": True}, "isgateway"),
        ({"isGateway": "true"}, "isGateway"),
        ({"isGateway": None}, "isGateway"),
        ({"forceAddress": True}, "forceAddress"),
        ({"ipMasqBackend": "nftables"}, "ipMasqBackend"),
        ({"mtu": True}, "mtu"),
        ({"mtu": 100}, "mtu"),
        ({"bridge": ""}, "bridge"),
        ({"bridge": "a/b"}, "bridge"),
        ({"bridge": "sixteen-letters!"}, "bridge"),
        ({"runtimeConfig": {"ips": ["10.99.0.9"]}}, "runtimeConfig.ips"),
        ({"ipam": {}}, "ipam.type"),
        ({"ipam": {**IPAM, "type": "static"}}, "ipam.type"),
        ({"ipam": {**IPAM, "resolvConf": "/etc/resolv.conf"}}, "ipam.resolvConf"),
        ({"ipam": {**IPAM, "dataDir": "somewhere"}}, "ipam.dataDir"),
        ({"ipam": {**IPAM, "dataDir": "/a/../b"}}, "ipam.dataDir"),
        ({"ipam": {**IPAM, "routes": [{"dst": "0.0.0.0/0", "mtu": 1400}]}}, "ipam.routes"),
        ({"ipam": {**IPAM, "routes": [{"dst": "10.0.0.1/8"}]}}, "ipam.routes"),
        ({"ipam": {**IPAM, "routes": [{"dst": "::/0"}]}}, "ipam.routes of a family without addresses"),
        ({"ipam": {**IPAM, "routes": [{"dst": "0.0.0.0/0"}] * 2}}, "ipam.routes to the same destination"),
        ({"isDefaultGateway": True}, "isDefaultGateway beside a default route"),
        ({"args": {"cni": {"ips": ["10.99.0.9"]}}}, "args"),
    ],
)
def test_a_bridge_of_which_one_thing_is_not_known_is_the_plugins(changes: dict[str, Any], reason: str) -> None:
    assert supported.why_not(json.dumps({**BRIDGE, **changes}).encode(), "") == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"snat": False}, "snat"),
        ({"backend": "nftables"}, "backend"),
        ({"conditionsV4": []}, "conditionsV4"),
        ({"runtimeConfig": {"portMappings": [{**PORTS[0], "protocol": "udp"}]}}, "portMappings of protocol udp"),
        ({"runtimeConfig": {"portMappings": [{**PORTS[0], "hostIP": "0.0.0.0"}]}}, "portMappings.hostIP"),
        ({"runtimeConfig": {"portMappings": [{**PORTS[0], "hostIP": "::1"}]}}, "portMappings.hostIP"),
        ({"runtimeConfig": {"portMappings": [{**PORTS[0], "more": 1}]}}, "portMappings.more"),
    ],
)
def test_a_portmap_of_which_one_thing_is_not_known_is_the_plugins(changes: dict[str, Any], reason: str) -> None:
    assert supported.why_not(json.dumps({**PORTMAP, **changes}).encode(), "") == reason


def test_a_pods_identity_is_nothing_to_the_plugins_and_other_arguments_may_be() -> None:
    assert supported.why_not(json.dumps(BRIDGE).encode(), "IgnoreUnknown=1;K8S_POD_NAME=web") == ""
    assert supported.why_not(json.dumps(BRIDGE).encode(), "IgnoreUnknown=1;IP=10.99.0.9") == "CNI_ARGS"


def test_what_cannot_be_read_is_the_plugins() -> None:
    assert supported.why_not(b"{", "") == "a configuration that cannot be read"
