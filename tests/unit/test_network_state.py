"""What differs between two moments of a network, and whose it is."""

from __future__ import annotations

import hashlib

import pytest

from sandboxd import network_state
from sandboxd.network_state import HOST, OF_NETWORK, OF_POD, POD, UNKNOWN, Marks, State, Thing

ID, OTHER = "a1" * 32, "b2" * 32
HASH = hashlib.sha512(f"pods{ID}".encode()).hexdigest()
ANOTHERS = hashlib.sha512(f"pods{OTHER}".encode()).hexdigest()
KNOWN = Marks(
    pod_id=ID,
    network="pods",
    addresses=frozenset({"10.0.10.2", "fd00::2"}),
    links=frozenset({"sbx0"}),
    own_links=frozenset({"veth1"}),
)


def thing(what: str, name: str, place: str = HOST, /, **fields: str) -> Thing:
    return Thing(place=place, kind=what, name=name, fields=fields)


def sysctl(name: str, value: str, place: str = HOST) -> Thing:
    return thing("sysctl", name, place, value=value)


def changes(before: list[Thing], after: list[Thing], known: Marks = KNOWN) -> list[tuple[str, str, str]]:
    """Sign, name and owner of each."""
    found = network_state.difference(network_state.state(before), network_state.state(after), known)
    return [
        ("+" if each.before is None else "-" if each.after is None else "~", each.name, each.belongs_to)
        for each in found
    ]


@pytest.mark.parametrize(
    ("subject", "owner"),
    [
        (thing("link", "anything", POD), OF_POD),
        (thing("link", "veth1", master="sbx0"), OF_POD),
        (thing("link", "veth10", master="sbx0"), UNKNOWN),  # another pod's, on the same bridge
        (thing("link", "sbx0", kind="bridge"), OF_NETWORK),
        (thing("link", "eth1"), UNKNOWN),
        (thing("address", "10.0.10.1/24 dev sbx0"), OF_NETWORK),
        (thing("address", "fe80::1/64 dev veth1", scope="link"), OF_POD),
        (thing("address", "fe80::1/64 dev veth9", scope="link"), UNKNOWN),
        (thing("route", "10.0.10.0/24 dev sbx0", src="10.0.10.1"), OF_NETWORK),
        (thing("route", "10.0.10.2 dev cali1"), OF_POD),
        (thing("route", "10.0.10.21 dev cali1"), UNKNOWN),
        (thing("route", "10.0.10.7/32 dev sbx0"), UNKNOWN),
        (thing("rule", f'iptables nat POSTROUTING --comment "id: \\"{ID}\\"" -j CNI-{HASH[:24]}'), OF_POD),
        (thing("rule", f'iptables nat POSTROUTING --comment "id: \\"{OTHER}\\"" -j X'), UNKNOWN),
        (thing("chain", f"iptables nat CNI-{HASH[:24]}"), OF_POD),
        (thing("chain", f"iptables nat CNI-DN-{HASH[:21]}"), OF_POD),
        (thing("chain", f"iptables nat CNI-DN-{ANOTHERS[:21]}"), UNKNOWN),
        (thing("rule", f"iptables nat CNI-DN-{ANOTHERS[:21]} -j CNI-HOSTPORT-SETMARK"), UNKNOWN),
        (thing("rule", "iptables nat X -p tcp -j DNAT --to-destination 10.0.10.2:80"), OF_POD),
        (thing("rule", "ip6tables nat X -p tcp -j DNAT --to-destination [fd00::2]:80"), OF_POD),
        (thing("rule", "ip6tables nat X -d fd00::2:1/128"), UNKNOWN),
        (thing("chain", "iptables nat CNI-HOSTPORT-DNAT"), OF_NETWORK),
        (thing("rule", "iptables nat OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"), OF_NETWORK),
        (thing("rule", "iptables filter CNI-FORWARD -d 10.0.10.9/32 -j ACCEPT"), UNKNOWN),
        (thing("rule", "iptables filter CNI-FORWARD -s 10.0.10.2/32 -j ACCEPT"), OF_POD),
        (thing("rule", "iptables nat CNI-HOSTPORT-X -s 127.0.0.1/32 -j CNI-HOSTPORT-SETMARK"), OF_NETWORK),
        (thing("chain", "nft inet cni_hostport prerouting"), OF_NETWORK),
        (thing("rule", "iptables filter INPUT -p tcp --dport 22 -j ACCEPT"), UNKNOWN),
        (sysctl("net.ipv4.ip_forward", "1"), OF_NETWORK),
        (sysctl("net.ipv4.conf.sbx0.route_localnet", "1"), OF_NETWORK),
        (sysctl("net.ipv4.conf.veth1.proxy_arp", "1"), OF_POD),
        (sysctl("net.ipv4.tcp_sack", "0"), UNKNOWN),
        (thing("file", "/var/lib/cni/networks/pods/10.0.10.9", content=f"{ID} eth0"), OF_POD),
        (thing("file", "/var/lib/cni/networks/pods/10.0.10.9", content=f"{OTHER} eth0"), UNKNOWN),
        (thing("file", "/var/lib/cni/networks/pods/last_reserved_ip.0", content="10.0.10.2"), OF_POD),
    ],
    ids=lambda value: f"{value.kind} {value.name[:40]}" if isinstance(value, Thing) else value or "unknown",
)
def test_a_thing_is_whose_mark_it_bears(subject: Thing, owner: str) -> None:
    assert network_state.whose(subject, KNOWN) == owner


def test_what_appeared_went_and_changed_is_told_the_pods_first() -> None:
    before = [thing("link", "veth1", state="down"), thing("rule", "iptables filter INPUT -j DROP")]
    after = [thing("link", "veth1", state="up"), thing("link", "sbx0"), thing("route", "default", POD)]

    assert changes(before, after) == [
        ("+", "default", OF_POD),
        ("~", "veth1", OF_POD),
        ("+", "sbx0", OF_NETWORK),
        ("-", "iptables filter INPUT -j DROP", UNKNOWN),
    ]


def test_what_stays_is_not_told() -> None:
    same = [thing("link", "veth1", state="up"), sysctl("net.ipv4.ip_forward", "1")]
    assert changes(same, same) == []


def test_a_rule_that_is_there_twice_is_two() -> None:
    rule = thing("rule", "iptables filter X -s 10.0.10.2/32 -j ACCEPT")
    assert changes([rule], [rule, rule]) == [("+", f"{rule.name} (again, 2)", OF_POD)]


def test_what_could_not_be_seen_has_not_changed() -> None:
    rule, link = thing("rule", "iptables nat X"), thing("link", "veth1")
    blind = network_state.state([link], {(HOST, "rule"): "iptables-save: no"})
    seen = network_state.state([rule])

    for before, after in ((seen, blind), (blind, seen)):
        assert [each.kind for each in network_state.difference(before, after, KNOWN)] == ["link"]


def test_a_built_in_chain_comes_with_its_table_and_changes_by_its_policy_only() -> None:
    accepts, drops = (thing("chain", "iptables filter FORWARD", policy=each) for each in ("ACCEPT", "DROP"))
    assert changes([], [accepts]) == changes([accepts], []) == []
    assert [each[0] for each in changes([accepts], [drops])] == ["~"]


def test_a_sysctl_of_a_new_link_has_changed_if_it_is_not_the_default() -> None:
    defaults = [sysctl("net.ipv4.conf.default.arp_notify", "0"), sysctl("net.ipv4.conf.default.rp_filter", "2")]
    new = [sysctl("net.ipv4.conf.veth1.arp_notify", "1"), sysctl("net.ipv4.conf.veth1.rp_filter", "2")]

    (found,) = network_state.difference(network_state.state(defaults), network_state.state([*defaults, *new]), KNOWN)

    assert (found.name, found.before, found.after) == (new[0].name, {"value": "0"}, {"value": "1"})
    assert found.belongs_to == OF_POD
    assert changes([*defaults, *new], defaults) == []  # they went with the link


def test_a_sysctl_that_comes_with_a_module_has_not_changed() -> None:
    assert changes([], [sysctl("net.bridge.bridge-nf-call-iptables", "1")]) == []


def test_forwarding_is_told_once_and_not_for_each_link() -> None:
    def forwarding(value: str) -> list[Thing]:
        names = ("ip_forward", "conf.all.forwarding", "conf.default.forwarding", "conf.sbx0.forwarding")
        return [sysctl(f"net.ipv4.{name}", value) for name in names] + [
            sysctl("net.ipv4.conf.all.accept_redirects", str(1 - int(value)))
        ]

    assert changes(forwarding("0"), forwarding("1")) == [("~", "net.ipv4.ip_forward", OF_NETWORK)]
    one = [sysctl("net.ipv4.conf.sbx0.forwarding", value) for value in "01"]
    assert changes(one[:1], one[1:]) == [("~", one[0].name, OF_NETWORK)]


def test_sysctls_that_the_pods_runtime_sets_are_not_a_plugins() -> None:
    name = "net.ipv4.ping_group_range"
    before, after = (network_state.state([sysctl(name, value, place) for place in (POD, HOST)]) for value in "10")
    found = network_state.difference(before, after, KNOWN, not_plugins={name})
    assert [each.place for each in found] == [HOST]


def veths(*, host_index: int = 7, peer: int = 2) -> State:
    """eth0 in the pod and its other end; with another index, or another peer, the host's link is somebody else's."""
    inside = Thing(place=POD, kind="link", name="eth0", fields={"kind": "veth"}, index=2, peer=7)
    outside = Thing(
        place=HOST, kind="link", name="vethx", fields={"kind": "veth", "master": "cni0"}, index=host_index, peer=peer
    )
    return network_state.state([
        inside, outside, thing("address", "10.0.10.5/24 dev eth0", POD), thing("address", "127.0.0.1/8 dev lo", POD),
        thing("address", "fe80::5/64 dev eth0", POD),
    ])  # fmt: skip


def test_the_ends_of_the_pods_veth_are_named_after_each_other_and_mark_the_pod() -> None:
    seen = veths()

    assert seen.things[POD, "link", "eth0"].fields["peer"] == "vethx"
    assert seen.things[HOST, "link", "vethx"].fields["peer"] == "eth0"
    known = network_state.marks(ID, "pods", ["sbx0"], network_state.state([]), seen)
    assert known == Marks(
        pod_id=ID,
        network="pods",
        addresses=frozenset({"10.0.10.5"}),
        links=frozenset({"sbx0", "cni0"}),
        own_links=frozenset({"vethx"}),
    )


@pytest.mark.parametrize("other", [{"host_index": 8}, {"peer": 3}], ids=["its index", "its peer"])
def test_a_link_of_the_host_that_is_not_the_other_end_is_not_the_pods(other: dict[str, int]) -> None:
    seen = veths(**other)
    assert "peer" not in seen.things[POD, "link", "eth0"].fields
    assert not network_state.marks(ID, "pods", [], seen).own_links


def test_what_there_is_now_is_the_pods_and_its_networks_and_no_sysctl_that_is_the_default() -> None:
    now = network_state.state([
        thing("link", "eth0", POD), thing("link", "sbx0"), thing("link", "veth9"),
        sysctl("net.ipv4.ip_forward", "1"), sysctl("net.ipv4.ip_forward", "0", POD),
        sysctl("net.ipv4.conf.default.arp_notify", "0", POD), sysctl("net.ipv4.conf.eth0.arp_notify", "1", POD),
        sysctl("net.ipv4.conf.lo.arp_notify", "1", POD), sysctl("net.core.somaxconn", "4096", POD),
    ])  # fmt: skip

    assert [(each.name, owner) for each, owner in network_state.present(now, KNOWN)] == [
        ("eth0", OF_POD),
        ("net.ipv4.conf.eth0.arp_notify", OF_POD),
        ("sbx0", OF_NETWORK),
        ("net.ipv4.ip_forward", OF_NETWORK),
    ]
