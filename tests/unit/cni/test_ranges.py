"""The ranges of host-local, as the plugin reads them."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from sandboxd.cni.conf import NetworkConfig, from_json
from sandboxd.cni.ranges import ranges

SUBNET = {"subnet": "10.1.2.0/24"}


def network(**ipam: Any) -> NetworkConfig:
    plugins = [{"type": "bridge", "ipam": {"type": "host-local"} | ipam}, {"type": "portmap"}]
    return from_json(json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": plugins}).encode())


@pytest.mark.parametrize(
    ("ipam", "expected"),
    [
        ({"subnet": "10.1.2.0/24"}, [("10.1.2.1-10.1.2.254", 253)]),
        ({"subnet": "10.1.2.9/24"}, [("10.1.2.1-10.1.2.254", 253)]),
        ({"subnet": "10.1.2.0/24", "gateway": "10.1.2.254"}, [("10.1.2.1-10.1.2.254", 253)]),
        (
            {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10", "rangeEnd": "10.1.2.19"},
            [("10.1.2.10-10.1.2.19", 10)],
        ),
        ({"ranges": [[{"subnet": "10.1.2.0/29"}]]}, [("10.1.2.1-10.1.2.6", 5)]),
        (
            {"ranges": [[{"subnet": "10.1.2.0/29"}, {"subnet": "10.1.3.0/30"}], [{"subnet": "fd00::/125"}]]},
            [("10.1.2.1-10.1.2.6", 5), ("10.1.3.1-10.1.3.2", 1), ("fd00::1-fd00::7", 6)],
        ),
        ({"subnet": "fd00::/64"}, [("fd00::1-fd00::ffff:ffff:ffff:ffff", 2**64 - 2)]),
        (
            {"subnet": "10.1.2.0/24", "ranges": [[{"subnet": "10.1.3.0/30"}]]},
            [("10.1.2.1-10.1.2.254", 253), ("10.1.3.1-10.1.3.2", 1)],
        ),
    ],
)
def test_the_addresses_of_a_range_are_those_that_the_plugin_gives(
    ipam: dict[str, Any], expected: list[tuple[str, int]]
) -> None:
    assert [(str(each), each.size) for each in ranges(network(**ipam))] == expected


@pytest.mark.parametrize(
    "ipam",
    [
        {},
        {"subnet": "junk"},
        {"subnet": 7},
        {"subnet": ["10.1.2.0/24"]},
        {"subnet": "10.1.2.0/31"},
        {"subnet": "10.1.2.0/24", "rangeStart": "10.9.9.9"},
        {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8"},
        {"subnet": "10.1.2.0/24", "rangeStart": "fd00::1"},
        {"subnet": "10.1.2.0/24", "gateway": "junk"},
        {"ranges": "junk"},
        {"ranges": ["junk", [7, {}]]},
    ],
)
def test_what_is_no_range_is_left_out(ipam: dict[str, Any]) -> None:
    assert ranges(network(**ipam)) == []


def test_the_gateway_and_what_is_outside_is_not_in_a_range() -> None:
    (each,) = ranges(network(subnet="10.1.2.0/29"))
    inside = [host for host in range(8) if ipaddress.ip_address(f"10.1.2.{host}") in each]
    assert inside == [2, 3, 4, 5, 6]
    assert ipaddress.ip_address("fd00::1") not in each


def test_other_ipam_plugins_have_no_ranges_that_we_know() -> None:
    config = {
        "cniVersion": "1.0.0",
        "name": "n",
        "plugins": [{"type": "x", "ipam": {"type": "dhcp", "subnet": "10.0.0.0/8"}}],
    }
    assert ranges(from_json(json.dumps(config).encode())) == []
