"""What is wrong with forwarding, masquerading and host ports, from rules as programs print them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.insight import diagnose
from sandboxd.insight.diagnose_filters import own_address
from sandboxd.insight.evidence import Filters, Packets, Port, PortAnswer, Severity
from sandboxd.insight.rulesets_read import of_nft
from tests.unit.insight.seen import CHAIN, NAT, PLUGIN, POD_ID, answer, filters, findings, only, well

PORT = Port(protocol="tcp", number=8080, inside=80)
DNAT = NAT.replace(
    "COMMIT",
    "-A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 -j DNAT --to-destination {}\nCOMMIT",
)


def filter_table(policy: str, *lines: str) -> str:
    rules = "".join(f"-A FORWARD {line}\n" for line in lines)
    return f"{NAT}*filter\n:FORWARD {policy} [0:0]\n{rules}COMMIT\n"


@pytest.mark.parametrize(("name", "version"), [("net.ipv4.ip_forward", 4)])
def test_forwarding_that_is_off_is_an_error_with_its_command(name: str, version: int) -> None:
    check = only(well(sysctls={name: "0"}))

    assert (check.name, check.evidence, check.commands) == ("forwarding", f"{name} is 0", (f"sysctl -w {name}=1",))
    assert f"IPv{version}" in check.says


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (filter_table("DROP"), "iptables-nft filter FORWARD policy drop"),
        (filter_table("ACCEPT", "-j DROP"), "-A FORWARD -j DROP"),
        (filter_table("ACCEPT", "-s 10.0.0.0/8 -j REJECT --reject-with icmp-port-unreachable"), "-s 10.0.0.0/8"),
        (filter_table("DROP", "-i br0 -j ACCEPT"), "policy drop"),  # nothing comes back
    ],
)
def test_rules_that_drop_are_named_with_a_way_through(text: str, rule: str) -> None:
    check = only(well(filters=filters(text)))

    assert check.name == "forward-policy"
    assert rule in check.evidence
    assert check.commands == ("iptables-nft -I FORWARD -i br0 -j ACCEPT", "iptables-nft -I FORWARD -o br0 -j ACCEPT")


@pytest.mark.parametrize(
    "lines",
    [
        ("-i br0 -j ACCEPT", "-o br0 -j ACCEPT"),
        ("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-s 10.0.0.2/32 -j ACCEPT"),
        ("-m set --match-set pods src -j ACCEPT", "-m mark --mark 0x1 -j ACCEPT"),  # they may be the pod's
        ("-i br+ -j ACCEPT", "! -i br0 -j ACCEPT"),
    ],
)
def test_rules_that_let_the_pod_through_before_are_well(lines: tuple[str, ...]) -> None:
    assert findings(well(filters=filters(filter_table("DROP", *lines)))) == []


def test_a_chain_of_nft_drops_although_iptables_accepts() -> None:
    chain = {"family": "inet", "table": "wall", "name": "fwd", "type": "filter", "hook": "forward", "policy": "drop"}
    bases = (*filters(NAT).bases, *of_nft(json.dumps({"nftables": [{"chain": chain}]})))
    check = only(well(filters=Filters(bases=bases)))

    assert check.commands == (
        "nft insert rule inet wall fwd iifname br0 accept",
        "nft insert rule inet wall fwd oifname br0 accept",
    )


def test_between_pods_iptables_counts_only_when_bridges_call_it() -> None:
    seen = well(filters=filters(filter_table("ACCEPT", "-i br0 -o br0 -j DROP")))
    calling = replace(seen, sysctls={**seen.sysctls, "net.bridge.bridge-nf-call-iptables": "1"})

    assert findings(seen) == []
    assert only(calling).name == "bridge-netfilter"


@pytest.mark.parametrize(
    "text",
    [
        "",
        NAT.replace("-A POSTROUTING", "-A INPUT"),
        NAT.replace("10.0.0.2/32", "10.0.0.7/32"),
        NAT.replace("-j MASQUERADE", "-j ACCEPT"),
    ],
)
def test_a_pod_that_nothing_masquerades_is_found_and_the_commands_make_the_plugins_rules(text: str) -> None:
    check = only(well(filters=filters(text)))

    assert check.name == "masquerade" and "10.0.0.2" in check.evidence
    comment = f"""-m comment --comment 'name: "pods" id: "{POD_ID}"'"""
    assert check.commands == (
        f"iptables -t nat -N {CHAIN} 2>/dev/null || iptables -t nat -F {CHAIN}",
        f"iptables -t nat -A {CHAIN} -d 10.0.0.0/24 {comment} -j ACCEPT",
        f"iptables -t nat -A {CHAIN} ! -d 224.0.0.0/4 {comment} -j MASQUERADE",
        f"iptables -t nat -A POSTROUTING -s 10.0.0.2 {comment} -j {CHAIN}",
    )


def test_a_network_without_masquerading_lacks_none() -> None:
    assert findings(well(filters=Filters(), plugins=({**PLUGIN, "ipMasq": False},))) == []


def test_masquerading_by_nft_has_no_command() -> None:
    check = only(well(filters=Filters(), plugins=({**PLUGIN, "ipMasqBackend": "nftables"},)))

    assert (check.commands, check.remedy) == ((), "remove the pod and run it again")


@pytest.mark.parametrize("unread", [Filters(trouble="nft: it hangs"), Filters(none=True)])
def test_what_cannot_be_read_is_not_missing(unread: Filters) -> None:
    seen = well(filters=unread, ports=(PORT,))

    assert {check.severity for check in findings(seen)} == {Severity.UNKNOWN}
    assert {check.name for check in findings(seen)} == {"forward-policy", "masquerade", "host-port"}


@pytest.mark.parametrize(("target", "leads"), [("10.0.0.2:80", True), ("10.0.0.9:80", False), ("10.0.0.2:81", False)])
def test_a_host_port_leads_to_the_pods_own_port(target: str, leads: bool) -> None:
    found = findings(well(filters=filters(DNAT.format(target)), ports=(PORT,)))

    assert ([check.name for check in found] == []) is leads
    if not leads:
        assert "port 80 of 10.0.0.2" in found[0].evidence


@pytest.mark.parametrize(
    ("through", "direct", "severity"),
    [(True, True, Severity.OK), (False, True, Severity.ERROR), (False, False, Severity.INFO)],
)
def test_a_connection_that_fails_counts_only_where_the_pod_itself_accepts_one(
    through: bool, direct: bool, severity: Severity
) -> None:
    asked = PortAnswer(
        port="8080/tcp",
        through=answer("198.51.100.1:8080", answered=through),
        direct=answer("10.0.0.2:80", answered=direct),
    )
    seen: dict[str, Any] = {"filters": filters(DNAT.format("10.0.0.2:80")), "ports": (PORT,)}
    packets = replace(well().packets, ports=(asked,))
    assert isinstance(packets, Packets)
    (check,) = [each for each in diagnose.diagnose(well(packets=packets, **seen)) if each.name == "host-port"]

    assert check.severity is severity


def test_packets_from_elsewhere_come_in_at_an_address_of_the_machine() -> None:
    assert own_address(well(), 4) == "198.51.100.1"
    assert own_address(well(uplink=None), 4) == "10.0.0.1"
    assert own_address(well(uplink=None, bridge=None), 6) == "2001:db8::2"
