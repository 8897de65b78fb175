"""What packet filters do with a packet. Pure; `rulesets_read` reads the rules.

A rule is followed as far as it is understood. What asks for something else of a packet (a mark, a set, an extension)
may match or not: what would then come of the packet is a doubt, and nobody is told that a packet is lost, or not
translated, while there is one that says otherwise.

Sources: iptables(8), iptables-extensions(8), nft(8).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

MOST_JUMPS = 64  # from chain to chain; the kernel refuses loops


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """A packet at a hook. An interface "" is not known."""

    source: str
    destination: str
    iif: str = ""
    oif: str = ""
    protocol: str = "tcp"
    port: int = 0  # of the destination
    state: str = "new"  # of its connection
    local: bool = False  # the destination is the machine's


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: what it asks of a packet, and what it does with it."""

    text: str
    wants: tuple[tuple[str, tuple[str, ...], bool], ...] = ()  # key, values, negated
    vague: bool = False  # it asks for something else besides
    action: str = ""  # "accept" "drop" "return" "jump" "goto" "snat" "dnat"; "any" is one of them; "" goes on
    target: str = ""  # the chain of a jump; the address and port of a dnat


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A chain that the kernel calls, with all that it can lead to."""

    backend: str  # "iptables-nft", "ip6tables-legacy", "nft": the command that changes it
    family: int  # 4, 6; 0 for both
    table: str  # "filter"; of nft "inet filter"
    name: str
    hook: str
    type: str  # "filter" or "nat"
    policy: str  # "accept" or "drop"
    chains: Mapping[str, Sequence[Rule]] = field(default_factory=dict)

    @property
    def called(self) -> str:
        """For people."""
        return f"{self.backend} {self.table} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What comes of a packet in a chain, and by which rule."""

    action: str
    rule: str
    target: str = ""
    doubts: frozenset[str] = frozenset()  # what a rule before it, which is not understood, may do with it

    def may(self, *actions: str) -> bool:
        """Whether one of these is, or may be, what happens."""
        return bool({self.action, *self.doubts} & {*actions, "any"})


def follow(base: Base, packet: Packet) -> Outcome:
    """What the chain does with the packet."""
    doubts: set[str] = set()
    found = _follow(base, base.name, packet, doubts, MOST_JUMPS)
    if found is None or found.action == "return":
        found = Outcome(action=base.policy, rule=f"{base.called} policy {base.policy}")
    return replace(found, doubts=frozenset(doubts))


def _follow(base: Base, chain: str, packet: Packet, doubts: set[str], jumps: int) -> Outcome | None:
    for rule in base.chains.get(chain, ()):
        fits = _fits(rule, packet)
        if fits is False or not rule.action:
            continue
        if rule.action in ("jump", "goto"):
            if not jumps:
                doubts.add("any")
                continue
            inner: set[str] = set()
            found = _follow(base, rule.target, packet, inner, jumps - 1)
            doubts |= inner
            if found is None and rule.action == "goto" and fits:
                return Outcome(action="return", rule=rule.text)
        else:
            found = Outcome(action=rule.action, rule=f"{base.called}: {rule.text}", target=rule.target)
        if found is None or (found.action == "return" and rule.action == "jump"):
            continue
        if fits and found.action != "any":
            return found
        doubts.add("any" if found.action == "return" else found.action)
    return None


def _fits(rule: Rule, packet: Packet) -> bool | None:
    """Whether the rule matches; None when that cannot be said."""
    known = [_has(packet, key, values, negated) for key, values, negated in rule.wants]
    if False in known:
        return False
    return None if rule.vague or None in known else True


def _has(packet: Packet, key: str, values: Sequence[str], negated: bool) -> bool | None:
    if key in ("iif", "oif"):
        name = getattr(packet, key)
        if not name:
            return None
        found = any(name.startswith(each[:-1]) if each[-1:] in ("+", "*") else name == each for each in values)
    elif key in ("source", "destination"):
        address = ipaddress.ip_address(getattr(packet, key))
        found = any(_within(address, each) for each in values)
    elif key == "port":
        found = any(_spans(each, packet.port) for each in values)
    elif key == "type":
        found = packet.local and "local" in map(str.lower, values)
    elif key == "family":
        found = str(ipaddress.ip_address(packet.source).version) in values
    else:
        found = str(getattr(packet, key)) in map(str.lower, values) or (key == "protocol" and "all" in values)
    return found is not negated


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, text: str) -> bool:
    first, dash, last = text.partition("-")
    if dash:
        low, high = ipaddress.ip_address(first), ipaddress.ip_address(last)
        return low.version == high.version == address.version and int(low) <= int(address) <= int(high)
    return address in ipaddress.ip_network(text, strict=False)


def _spans(text: str, port: int) -> bool:
    first, _, last = text.replace("-", ":").partition(":")
    return first.isdigit() and int(first) <= port <= int(last or first)
