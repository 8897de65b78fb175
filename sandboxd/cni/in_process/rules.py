"""The rules of table nat that `bridge` (ipMasq) and `portmap` make, as lines for iptables-restore(8). Pure.

Rules are written as iptables-save(8) prints them, so that the two can be compared. There is a quick way and a
thorough one. The quick one assumes that the pod has no rules yet, or has all of them, and is one process: iptables
refuses the whole of it when that is not so. The thorough one reads what there is, and writes what differs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from sandboxd.network_state import chain_digest

IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

FAMILIES = {4: "iptables", 6: "ip6tables"}
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
_SETMARK, _MASQ, _DNAT = "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-DNAT"
_MOST_PORTS = 15  # of one rule: the limit of the match `multiport`

# What all pods with host ports share, in the order in which it is made.
_SHARED_CHAINS = (_SETMARK, _MASQ, _DNAT)
_SHARED = (
    f'-A {_SETMARK} -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000',
    f"-A {_MASQ} -m mark --mark 0x2000/0x2000 -j MASQUERADE",
    f'-I POSTROUTING 1 -m comment --comment "CNI portfwd requiring masquerade" -j {_MASQ}',
    f"-A PREROUTING -m addrtype --dst-type LOCAL -j {_DNAT}",
    f"-A OUTPUT -m addrtype --dst-type LOCAL -j {_DNAT}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of a pod in one family: `chain` is its own, `shared` whether it needs what pods share."""

    chain: str
    own: tuple[str, ...]  # "-A …"; in its own chain, and those that lead there
    shared: bool = False

    def quick(self) -> str:
        """Make them."""
        checks = [f"-C {_spec(rule)}" for rule in _SHARED] if self.shared else []
        return _script([*checks, f"-N {self.chain}", *self.own])

    def thorough(self, saved: Sequence[str]) -> str:
        """Make what of them is not in the saved table; "" when nothing is."""
        have = set(saved)
        chains = {line[1:].partition(" ")[0] for line in saved if line.startswith(":")}
        wanted_chains = (*(_SHARED_CHAINS if self.shared else ()), self.chain)
        lines = [f"-N {each}" for each in wanted_chains if each not in chains]
        shared = [rule for rule in _SHARED if f"-A {_spec(rule)}" not in have] if self.shared else []
        return _script([*lines, *shared, *(rule for rule in self.own if rule not in have)])

    def quick_removal(self) -> str:
        """Remove them."""
        outside = [f"-D {_spec(rule)}" for rule in self.own if not rule.startswith(f"-A {self.chain} ")]
        return _script([*outside, f"-F {self.chain}", f"-X {self.chain}"])


def removal(saved: Sequence[str], chain: str) -> str:
    """Remove what of a chain is in the saved table, and all that leads to it; "" when nothing is."""
    jumps = [f"-D {_spec(line)}" for line in saved if line.startswith("-A ") and line.endswith(f" -j {chain}")]
    own = [f"-F {chain}", f"-X {chain}"] if any(line.startswith(f":{chain} ") for line in saved) else []
    return _script([*jumps, *own])


def masquerade_chain(network: str, container: str) -> str:
    """The chain of `bridge` for a container."""
    return f"CNI-{chain_digest(network, container)[:24]}"


def masquerade(network: str, container: str, addresses: Sequence[IPInterface]) -> Rules:
    """A pod's traffic that leaves its network gets the host's address; its addresses are all of one family."""
    chain = masquerade_chain(network, container)
    comment = f'-m comment --comment "name: \\"{network}\\" id: \\"{container}\\""'
    own: list[str] = []
    for each in addresses:
        own += [
            f"-A {chain} -d {each.network} {comment} -j ACCEPT",
            f"-A {chain} ! -d {_MULTICAST[each.version]} {comment} -j MASQUERADE",
            f"-A POSTROUTING -s {_host(each.ip)} {comment} -j {chain}",
        ]
    return Rules(chain=chain, own=tuple(dict.fromkeys(own)))


def portmap_chain(network: str, container: str) -> str:
    """The chain of `portmap` for a container."""
    return f"CNI-DN-{chain_digest(network, container)[:21]}"


def portmap(
    network: str, container: str, address: IPInterface, mappings: Sequence[tuple[int, int, IPAddress | None]]
) -> Rules:
    """TCP ports of the host lead to the pod: (host port, port, address of the host or None for all)."""
    chain = portmap_chain(network, container)
    comment = f'-m comment --comment "dnat name: \\"{network}\\" id: \\"{container}\\""'
    own: list[str] = []
    ports: list[int] = []
    for host_port, port, host_ip in mappings:
        ports.append(host_port)
        to = f"-d {_host(host_ip)} " if host_ip is not None else ""
        match = f"-p tcp -m tcp --dport {host_port}"
        target = f"{address.ip}:{port}" if address.version == 4 else f"[{address.ip}]:{port}"
        own.append(f"-A {chain} -s {address.network} {to}{match} -j {_SETMARK}")
        if address.version == 4:
            own.append(f"-A {chain} -s 127.0.0.1/32 {to}{match} -j {_SETMARK}")
        own.append(f"-A {chain} {to}{match} -j DNAT --to-destination {target}")
    for start in range(0, len(ports), _MOST_PORTS):
        listed = ",".join(map(str, ports[start : start + _MOST_PORTS]))
        own.append(f"-A {_DNAT} -p tcp {comment} -m multiport --dports {listed} -j {chain}")
    return Rules(chain=chain, own=tuple(own), shared=True)


def _host(address: IPAddress) -> str:
    return f"{address}/{address.max_prefixlen}"


def _spec(rule: str) -> str:
    """The rule without its command: "CHAIN …"."""
    command, _, rest = rule.partition(" ")
    if command == "-I":
        chain, _, rest = rest.partition(" 1 ")
        return f"{chain} {rest}"
    return rest


def _script(lines: Sequence[str]) -> str:
    return "\n".join(("*nat", *lines, "COMMIT", "")) if lines else ""
