"""What is wrong with interfaces, addresses and routes, one thing at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sandboxd.insight import diagnose_links
from sandboxd.insight.evidence import Severity
from sandboxd.links import Route, View
from tests.unit.insight.seen import BRIDGE, ETH0, LO, NETNS, PLUGIN, UPLINK, VETH, findings, only, well

ROUTE = Route(destination="0.0.0.0/0", gateway="10.0.0.1", link=2)
IN = f"nsenter --net={NETNS} ip"


def inside(*links: Any, routes: tuple[Route, ...] = (ROUTE,)) -> dict[str, Any]:
    return {"inside": View(links=links, routes=routes)}


@pytest.mark.parametrize(
    ("changes", "name", "evidence", "commands"),
    [
        (inside(replace(LO, up=False), ETH0), "loopback", f"lo in {NETNS} is down", [f"{IN} link set lo up"]),
        (inside(LO, replace(ETH0, up=False)), "interface", "eth0 in", [f"{IN} link set eth0 up"]),
        (
            inside(LO, replace(ETH0, addresses=("10.0.0.9/24",))),
            "interface",
            "has 10.0.0.9/24",
            [f"{IN} address add 10.0.0.2/24 dev eth0"],
        ),
        (
            inside(LO, ETH0, routes=()),
            "default-route",
            "no route 0.0.0.0/0",
            [f"{IN} route add default via 10.0.0.1 dev eth0"],
        ),
        ({"peer": replace(VETH, up=False)}, "host-end", "veth1 on the machine is down", ["ip link set veth1 up"]),
        ({"bridge": replace(BRIDGE, name="br9")}, "host-end", "is br9", ["ip link set veth1 master br0"]),
        ({"bridge": replace(BRIDGE, up=False)}, "bridge", "br0 on the machine is down", ["ip link set br0 up"]),
        (
            {"bridge": replace(BRIDGE, addresses=())},
            "gateway-address",
            "br0 has no address",
            ["ip address add 10.0.0.1/24 dev br0"],
        ),
        (
            {"peer": replace(VETH, hairpin=False)},
            "hairpin",
            "hairpin of veth1 on br0 is off",
            ["ip link set veth1 type bridge_slave hairpin on"],
        ),
        (
            {"uplink": replace(UPLINK, mtu=1450), "bridge": replace(BRIDGE, mtu=1460)},
            "mtu",
            "1450 of up0",
            [f"{IN} link set eth0 mtu 1450"],
        ),
        ({"ways": {"10.0.0.2": "up0"}}, "way-back", "leads through up0", []),
        ({"ways": {"10.0.0.2": ""}}, "way-back", "leads nowhere", []),
    ],
)
def test_each_thing_is_found_with_its_evidence_and_commands(
    changes: dict[str, Any], name: str, evidence: str, commands: list[str]
) -> None:
    found = [check for check in findings(well(**changes)) if check.name == name]

    (check,) = found
    assert evidence in check.evidence
    assert list(check.commands) == commands
    assert check.remedy


def test_an_interface_that_is_gone_names_what_is_there() -> None:
    check = next(each for each in findings(well(**inside(LO))) if each.name == "interface")

    assert "there are lo" in check.evidence


def test_a_bridge_that_is_down_is_not_also_a_route_that_is_gone() -> None:
    assert only(well(bridge=replace(BRIDGE, up=False), ways={"10.0.0.2": "up0"})).name == "bridge"


def test_strict_reverse_path_filtering_makes_a_wrong_route_drop_what_comes_in() -> None:
    seen = well(ways={"10.0.0.2": "up0"})
    strict = replace(seen, sysctls={**seen.sysctls, "net.ipv4.conf.br0.rp_filter": "1"})

    assert "rp_filter drops" in only(strict).says
    assert "rp_filter" not in only(seen).says


def test_hairpin_is_asked_for_only_where_the_network_has_it() -> None:
    plugins = ({**PLUGIN, "hairpinMode": False},)

    assert findings(well(plugins=plugins, peer=replace(VETH, hairpin=False))) == []


def test_a_network_without_a_bridge_is_not_asked_for_one() -> None:
    macvlan = replace(ETH0, kind="macvlan")
    seen = well(plugins=({"type": "macvlan"},), peer=None, bridge=None, ways={}, **inside(LO, macvlan))

    assert findings(seen) == []


def test_an_end_in_another_namespace_could_not_be_looked_at() -> None:
    check = next(each for each in findings(well(peer=None, bridge=None)) if each.name == "host-end")

    assert check.severity is Severity.UNKNOWN


def test_gateways_are_those_of_addresses_and_default_routes() -> None:
    assert diagnose_links.gateways(well()) == ["10.0.0.1"]
