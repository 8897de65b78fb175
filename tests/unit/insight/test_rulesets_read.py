"""Rules as iptables-save and nft print them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxd.insight.rulesets import Base, Packet, follow
from sandboxd.insight.rulesets_read import of_iptables, of_listings, of_nft
from sandboxd.machine.rules import Listing

PORTMAP = """# Generated
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:CNI-DN-1 - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-DN-1 -s 10.0.10.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-1 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.10.2:80
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"n\\"" -m multiport --dports 8080,8081 -j CNI-DN-1
-A CNI-HOSTPORT-SETMARK -m comment --comment "mark -j DROP" -j MARK --set-xmark 0x2000/0x2000
COMMIT
*mangle
:FORWARD DROP [0:0]
COMMIT
"""
TO_HOST = Packet(source="203.0.113.1", destination="198.51.100.1", port=8080, local=True)
OUT = Packet(source="10.0.0.2", destination="203.0.113.1", iif="br0", oif="up0")


def nft(*expressions: dict[str, Any], chain: dict[str, Any] | None = None) -> list[Base]:
    """A chain of one rule for each expression list."""
    made = chain or {"name": "c", "hook": "forward", "type": "filter", "policy": "accept"}
    at = {"family": "inet", "table": "t"}
    rules = [{"rule": {**at, "chain": made["name"], "expr": [each]}} for each in expressions]
    return of_nft(json.dumps({"nftables": [{"metainfo": {}}, {"chain": {**at, **made}}, *rules]}))


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def test_portmaps_rules_lead_its_port_to_the_pod_and_no_other() -> None:
    prerouting, output = of_iptables("iptables-nft", 4, PORTMAP.splitlines())

    assert (prerouting.hook, output.hook) == ("prerouting", "output")
    outcome = follow(prerouting, TO_HOST)
    assert (outcome.action, outcome.target, outcome.doubts) == ("dnat", "10.0.10.2:80", frozenset())
    assert follow(
        prerouting, Packet(source="203.0.113.1", destination="198.51.100.1", port=9, local=True)
    ).action == ("accept")
    assert follow(output, TO_HOST).action == "accept"


@pytest.mark.parametrize(
    "line",
    [
        "-m mark --mark 0x1 -j DROP",
        "-m set ! --match-set a src -j DROP",
        "-m string --algo bm -j DROP",
        '-m comment --comment "unclosed -j DROP',
        "-j NFQUEUE --queue-num 1",
    ],
)
def test_what_iptables_asks_and_we_do_not_know_is_a_doubt(line: str) -> None:
    (base,) = of_iptables("iptables", 4, ["*filter", ":FORWARD ACCEPT [0:0]", f"-A FORWARD {line}", "COMMIT"])
    outcome = follow(base, OUT)

    assert outcome.action == "accept"
    assert outcome.may("drop")


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        (match(payload("ip", "saddr"), {"prefix": {"addr": "10.0.0.0", "len": 24}}), True),
        (match(payload("ip", "saddr"), "10.0.0.3"), False),
        (match(payload("ip", "saddr"), {"set": ["10.0.0.3", {"range": ["10.0.0.1", "10.0.0.2"]}]}), True),
        (match(payload("ip", "daddr"), "203.0.113.1", "!="), False),
        (match({"meta": {"key": "iifname"}}, "br*"), True),
        (match({"meta": {"key": "oifname"}}, {"set": ["up0", "up1"]}), True),
        (match({"meta": {"key": "l4proto"}}, "udp"), False),
        (match({"meta": {"key": "nfproto"}}, "ipv4"), True),
        (match({"ct": {"key": "state"}}, ["established", "related"], "in"), False),
        (match(payload("udp", "dport"), 53), False),
        (match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), False),
    ],
)
def test_what_nft_asks_for_is_compared(asked: dict[str, Any], fits: bool) -> None:
    at = {"family": "inet", "table": "t"}
    entries = [
        {"chain": {**at, "name": "c", "hook": "forward", "type": "filter"}},
        {"rule": {**at, "chain": "c", "expr": [asked, {"counter": {}}, {"drop": None}]}},
    ]
    (base,) = of_nft(json.dumps({"nftables": entries}))

    assert (follow(base, OUT).action == "drop") is fits
    assert follow(base, OUT).doubts == frozenset()


@pytest.mark.parametrize(
    "asked",
    [
        match(payload("ip", "saddr"), "@pods"),
        match({"meta": {"key": "mark"}}, 1),
        {"xt": {"type": "match", "name": "x"}},
    ],
)
def test_what_nft_asks_and_we_do_not_know_is_a_doubt(asked: dict[str, Any]) -> None:
    at = {"family": "ip", "table": "t"}
    entries = [
        {"chain": {**at, "name": "c", "hook": "forward", "type": "filter"}},
        {"rule": {**at, "chain": "c", "expr": [asked, {"drop": None}]}},
    ]
    (base,) = of_nft(json.dumps({"nftables": entries}))

    assert (follow(base, OUT).action, set(follow(base, OUT).doubts)) == ("accept", {"drop"})


@pytest.mark.parametrize(
    ("statement", "action", "target"),
    [
        ({"masquerade": None}, "snat", ""),
        ({"snat": {"addr": "198.51.100.1"}}, "snat", ""),
        ({"dnat": {"addr": "10.0.0.2", "port": 80}}, "dnat", "10.0.0.2:80"),
        ({"reject": {}}, "drop", ""),
        ({"accept": None}, "accept", ""),
    ],
)
def test_what_nft_does_with_a_packet(statement: dict[str, Any], action: str, target: str) -> None:
    (base,) = nft(statement)

    assert (follow(base, OUT).action, follow(base, OUT).target) == (action, target)


@pytest.mark.parametrize("statement", [{"vmap": {}}, {"dnat": {"addr": {"map": {}}}}, {"queue": None}])
def test_what_may_do_anything_does_nothing_for_certain(statement: dict[str, Any]) -> None:
    (base,) = nft(statement)

    assert follow(base, OUT).action == "accept"
    assert follow(base, OUT).may("drop")


def test_chains_of_nft_lead_to_each_other() -> None:
    at = {"family": "inet", "table": "t"}
    entries = [
        {"chain": {**at, "name": "c", "hook": "forward", "type": "filter"}},
        {"chain": {**at, "name": "inner"}},
        {"rule": {**at, "chain": "c", "expr": [{"jump": {"target": "inner"}}]}},
        {"rule": {**at, "chain": "inner", "expr": [{"drop": None}]}},
    ]
    (base,) = of_nft(json.dumps({"nftables": entries}))

    assert follow(base, OUT).action == "drop"


def test_tables_that_iptables_lists_are_not_counted_again_as_those_of_nft() -> None:
    table = {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "type": "filter"}
    other = {**table, "family": "inet", "table": "wall"}
    listings = [
        Listing(backend="iptables-nft", text="*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"),
        Listing(backend="ip6tables-legacy", text="*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"),
        Listing(backend="iptables-legacy", missing=True),
        Listing(backend="nft", text=json.dumps({"nftables": [{"chain": table}, {"chain": other}]})),
    ]

    found = [(base.called, base.family, base.policy) for base in of_listings(listings)]

    assert found == [
        ("iptables-nft filter FORWARD", 4, "drop"),
        ("ip6tables-legacy filter FORWARD", 6, "accept"),
        ("nft inet wall FORWARD", 0, "accept"),
    ]


def test_what_is_no_ruleset_is_refused() -> None:
    with pytest.raises(ValueError, match="no ruleset"):
        of_nft("{}")
