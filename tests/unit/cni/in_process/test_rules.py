"""Lines for iptables-restore."""

from __future__ import annotations

import ipaddress

from sandboxd.cni.in_process import rules

POD = ipaddress.ip_interface("10.99.0.2/24")
ID = "abcdef0123456789"
COMMENT = r'-m comment --comment "name: \"net1\" id: \"abcdef0123456789\""'
CHAIN = "CNI-855d9496891571680775871b"  # as the plugin names it for this network and id


def test_a_pod_is_masqueraded_but_within_its_network() -> None:
    assert rules.masquerade("net1", ID, [POD]).quick().splitlines() == [
        "*nat",
        f"-N {CHAIN}",
        f"-A {CHAIN} -d 10.99.0.0/24 {COMMENT} -j ACCEPT",
        f"-A {CHAIN} ! -d 224.0.0.0/4 {COMMENT} -j MASQUERADE",
        f"-A POSTROUTING -s 10.99.0.2/32 {COMMENT} -j {CHAIN}",
        "COMMIT",
    ]


def test_what_is_there_is_not_made_again() -> None:
    wanted = rules.masquerade("net1", ID, [POD])
    made = [f":{CHAIN} - [0:0]", *wanted.own]

    assert wanted.thorough(made) == ""
    assert wanted.thorough(made[:-1]).splitlines() == ["*nat", wanted.own[-1], "COMMIT"]
    assert wanted.thorough([]) == wanted.quick()


def test_rules_are_removed_before_the_chain_that_they_lead_to() -> None:
    wanted = rules.masquerade("net1", ID, [POD])

    assert wanted.quick_removal().splitlines() == [
        "*nat",
        f"-D POSTROUTING -s 10.99.0.2/32 {COMMENT} -j {CHAIN}",
        f"-F {CHAIN}",
        f"-X {CHAIN}",
        "COMMIT",
    ]


def test_of_a_saved_table_only_the_chain_and_what_leads_to_it_are_removed() -> None:
    wanted = rules.masquerade("net1", ID, [POD])
    other = rules.masquerade("net1", "other", [ipaddress.ip_interface("10.99.0.3/24")])
    saved = [f":{CHAIN} - [0:0]", f":{other.chain} - [0:0]", *other.own, *wanted.own]

    assert rules.removal(saved, CHAIN) == wanted.quick_removal()
    assert rules.removal([wanted.own[-1]], CHAIN).splitlines() == [
        "*nat",
        f"-D POSTROUTING -s 10.99.0.2/32 {COMMENT} -j {CHAIN}",
        "COMMIT",
    ]
    assert rules.removal(other.own, CHAIN) == ""


def test_a_host_port_leads_to_the_pod() -> None:
    wanted = rules.portmap("net1", ID, POD, [(8080, 80, None), (53, 5353, ipaddress.ip_address("127.0.0.1"))])
    chain = "CNI-DN-855d94968915716807758"

    assert list(wanted.own) == [
        f"-A {chain} -s 10.99.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        f"-A {chain} -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        f"-A {chain} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.99.0.2:80",
        f"-A {chain} -s 10.99.0.0/24 -d 127.0.0.1/32 -p tcp -m tcp --dport 53 -j CNI-HOSTPORT-SETMARK",
        f"-A {chain} -s 127.0.0.1/32 -d 127.0.0.1/32 -p tcp -m tcp --dport 53 -j CNI-HOSTPORT-SETMARK",
        f"-A {chain} -d 127.0.0.1/32 -p tcp -m tcp --dport 53 -j DNAT --to-destination 10.99.0.2:5353",
        rf'-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"net1\" id: \"{ID}\"" '
        f"-m multiport --dports 8080,53 -j {chain}",
    ]


def test_the_quick_way_makes_sure_of_what_all_pods_share() -> None:
    """Were one of these gone, the pod's own rules would be reached by nothing."""
    wanted = rules.portmap("net1", ID, POD, [(8080, 80, None)])
    lines = wanted.quick().splitlines()

    assert [line for line in lines if line.startswith("-C ")] == [
        '-C CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" '
        "-j MARK --set-xmark 0x2000/0x2000",
        "-C CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
        '-C POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ',
        "-C PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        "-C OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
    ]


def test_the_first_pod_makes_what_all_share() -> None:
    lines = rules.portmap("net1", ID, POD, [(8080, 80, None)]).thorough([]).splitlines()

    assert lines[1:4] == ["-N CNI-HOSTPORT-SETMARK", "-N CNI-HOSTPORT-MASQ", "-N CNI-HOSTPORT-DNAT"]
    assert '-I POSTROUTING 1 -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ' in lines


def test_one_rule_has_fifteen_ports_at_most() -> None:
    wanted = rules.portmap("net1", ID, POD, [(port, port, None) for port in range(1, 18)])
    listed = [line.split("--dports ")[1].split()[0] for line in wanted.own if "--dports" in line]

    assert listed == ["1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "16,17"]
