"""The in-process network is as that of the plugins: both make it, and what they leave is compared.

Each is also undone by the other. `make test-plugins` has all of them, and does the
same with configurations that are drawn by lot.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.root import plugin_runs
from tests.root.plugin_runs import DIRECTORIES, OURS, REAL, Run

pytestmark = pytest.mark.root

BRIDGE: dict[str, Any] = {"cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "cni9"}
PORTS = tuple({"hostPort": 9000 - i, "containerPort": 80 + i, "protocol": "tcp"} for i in range(17))
LOCAL = {"hostPort": 7, "containerPort": 8, "protocol": "tcp", "hostIP": "127.0.0.1"}


def host_local(**more: Any) -> dict[str, Any]:
    return {"type": "host-local", **more}


BOTH = [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd00:99::/64"}]]
RANGES = [
    {"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.10", "rangeEnd": "10.99.0.11", "gateway": "10.99.0.10"},
    {"subnet": "10.98.0.0/24", "rangeStart": "10.98.0.10", "rangeEnd": "10.98.0.10"},
]
CASES = {
    "the-story": Run(
        conf={
            **BRIDGE,
            "isGateway": True,
            "ipMasq": True,
            "ipam": host_local(subnet="10.99.0.0/24", routes=[{"dst": "0.0.0.0/0"}]),
        },
        ports=((), (*PORTS, LOCAL), (PORTS[0],)),
    ),
    "both-families": Run(
        conf={
            **BRIDGE,
            "cniVersion": "0.4.0",
            "isDefaultGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "mtu": 1400,
            "ipam": host_local(ranges=BOTH, routes=[{"dst": "192.168.0.0/16"}]),
        },
        ports=((), ()),
    ),
    "exhausted": Run(
        conf={**BRIDGE, "ipam": host_local(ranges=[RANGES])},
        ports=((), (), ()),
        before=("ip link add cni9 address 02:00:00:00:00:09 type bridge",),
    ),
    "no-way-to-the-pod": Run(
        conf={**BRIDGE, "ipam": host_local(subnet="10.99.0.0/24")},
        ports=(({"containerPort": 80, "protocol": "tcp", "hostPort": 8080},),),
        before=("ip link add cni9 address 02:00:00:00:00:09 type bridge",),
    ),
    "another-address": Run(
        conf={**BRIDGE, "isGateway": True, "ipam": host_local(subnet="10.99.0.0/24")},
        before=("ip link add cni9 type bridge; ip addr add 10.5.0.1/24 dev cni9",),
    ),
    "no-bridge": Run(
        conf={**BRIDGE, "isGateway": True, "ipam": host_local(subnet="10.99.0.0/24")},
        before=("ip link add cni9 type veth peer name other9",),
    ),
}


# The cases of `make test`; those in which an ADD fails take longer, and only `make test-plugins` has them.
QUICK = ("the-story", "both-families")


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.plugins) for name in CASES]
)
def test_it_is_as_the_plugins_make_it_and_undone_by_either(name: str, directory: str) -> None:
    case = replace(CASES[name], plugins=directory)

    theirs = plugin_runs.seen(replace(case, by=REAL))
    ours = plugin_runs.seen(replace(case, by=OURS))

    assert ours == theirs


@pytest.mark.parametrize("directory", DIRECTORIES[:1])
def test_pods_that_are_attached_at_once_by_both_get_an_address_each(directory: str) -> None:
    found = plugin_runs.child("at-once", directory)

    assert found["failed"] == []
    assert sorted(found["addresses"]) == found["reserved"]
    assert len(set(found["addresses"])) == 32
    assert found["locked"] == 0
    assert found["left"] == ["last_reserved_ip.0", "lock"]
    assert found["rules"] == []
