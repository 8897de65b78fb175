"""Whether the machine lets a pod's packets through, and translates their addresses. Pure."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterator

from sandboxd.cni.strict_json import in_any_case
from sandboxd.insight.evidence import Check, PortAnswer, Seen, Severity
from sandboxd.insight.rulesets import Base, Outcome, Packet, follow

OK, INFO, WARNING, ERROR, UNKNOWN = Severity

# Addresses that are nobody's (RFC 5737, RFC 3849): where a packet goes that leaves the machine.
ELSEWHERE = {4: "203.0.113.1", 6: "2001:db8::1"}
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
CALLS_IPTABLES = {4: "net.bridge.bridge-nf-call-iptables", 6: "net.bridge.bridge-nf-call-ip6tables"}


def forwarding(seen: Seen) -> Iterator[Check]:
    if not _is_routed(seen):
        return
    for version in _versions(seen):
        name = FORWARDING[version]
        value = seen.sysctls.get(name)
        if value is None:
            yield Check(name="forwarding", severity=UNKNOWN, says=f"{name} cannot be read")
        elif value != "0":
            yield Check(name="forwarding", severity=OK, says=f"the machine forwards IPv{version}")
        else:
            yield Check(
                name="forwarding",
                severity=ERROR,
                says=f"the machine does not forward IPv{version}: pods reach nothing beyond the machine",
                evidence=f"{name} is 0",
                remedy="turn it on; a file in /etc/sysctl.d keeps it on after a reboot",
                commands=(f"sysctl -w {name}=1",),
            )


def forward_policy(seen: Seen) -> Iterator[Check]:
    if not _is_routed(seen):
        return
    through = _inner(seen)
    lost: dict[str, tuple[Base, str, Outcome]] = {}
    for direction, packet in _forwarded(seen, through):
        for base in _bases(seen, "forward", "filter", packet):
            outcome = follow(base, packet)
            if outcome.action == "drop" and not outcome.may("accept"):
                lost.setdefault(base.called, (base, direction, outcome))
    for base, direction, outcome in lost.values():
        yield Check(
            name="forward-policy",
            severity=ERROR,
            says=f"the packet filter drops packets {direction} the pod",
            evidence=outcome.rule,
            remedy=f"let the traffic of {through} through before that; a firewall's own configuration keeps it so",
            commands=_let_through(base, through),
        )
    if not lost:
        yield from _well(
            seen, "forward-policy", "no rule of the packet filter drops what the machine forwards for the pod"
        )


def bridge_netfilter(seen: Seen) -> Iterator[Check]:
    """Packets between pods pass the FORWARD chain only while bridges call iptables."""
    if seen.bridge is None or not seen.ips:
        return
    for version, ip in {ipaddress.ip_address(ip).version: ip for ip in reversed(seen.ips)}.items():
        if seen.sysctls.get(CALLS_IPTABLES[version]) != "1":
            continue
        neighbour = str(next(iter(_subnet(seen, ip))))
        packet = Packet(source=ip, destination=neighbour, iif=seen.bridge.name, oif=seen.bridge.name)
        for base in _bases(seen, "forward", "filter", packet):
            outcome = follow(base, packet)
            if base.backend != "nft" and outcome.action == "drop" and not outcome.may("accept"):
                yield Check(
                    name="bridge-netfilter",
                    severity=ERROR,
                    says="the packet filter drops packets between pods on the same bridge",
                    evidence=f"{CALLS_IPTABLES[version]} is 1, and {outcome.rule}",
                    remedy="let it through, or have bridges not call iptables (kube-proxy needs that they do)",
                    commands=(f"{base.backend} -I FORWARD -i {seen.bridge.name} -o {seen.bridge.name} -j ACCEPT",),
                )


def masquerade(seen: Seen) -> Iterator[Check]:
    plugin = next(
        (p for p in seen.plugins if p.get("type") in ("bridge", "ptp") and in_any_case(p, "ipMasq") is True), None
    )
    if plugin is None:
        return
    missing = []
    for ip in seen.ips:
        packet = Packet(source=ip, destination=ELSEWHERE[ipaddress.ip_address(ip).version], oif=_outer(seen))
        outcomes = [follow(base, packet) for base in _bases(seen, "postrouting", "nat", packet)]
        if not any(outcome.may("snat") for outcome in outcomes):
            missing.append(ip)
    if not missing:
        yield from _well(seen, "masquerade", "what the pod sends out is masqueraded, as configured")
        return
    if seen.filters.trouble or seen.filters.none:
        yield from _well(seen, "masquerade", "")
        return
    by_nft = in_any_case(plugin, "ipMasqBackend") == "nftables"
    yield Check(
        name="masquerade",
        severity=ERROR,
        says="the pod's packets leave the machine with an address that nobody else knows: no answer comes back",
        evidence=f"the network has ipMasq, and no rule for nat masquerades {', '.join(missing)}",
        remedy="remove the pod and run it again" if by_nft else "make the rules again, as the plugin does",
        commands=() if by_nft else tuple(each for ip in missing for each in _masquerading(seen, ip)),
    )


def host_ports(seen: Seen) -> Iterator[Check]:
    answers = {answer.port: answer for answer in seen.packets.ports}
    for port in seen.ports:
        missing = [
            ip
            for ip in seen.ips
            if _is_of(port.host_ip, ip)
            and not _leads(seen, port.protocol, port.number, port.host_ip, f"{ip}:{port.inside}")
        ]
        if missing and not (seen.filters.trouble or seen.filters.none):
            yield Check(
                name="host-port",
                severity=ERROR,
                says=f"host port {port} does not lead to the pod",
                evidence=f"no rule for nat, before routing, leads it to port {port.inside} of {', '.join(missing)}",
                remedy="remove the pod and run it again: what its network's port plugin made is gone",
            )
        elif missing:
            yield from _well(seen, "host-port", "")
        elif answer := answers.get(str(port)):
            yield _answered(answer, port.inside)
        else:
            yield Check(
                name="host-port", severity=OK, says=f"rules lead host port {port} to port {port.inside} of the pod"
            )


def _answered(answer: PortAnswer, inside: int) -> Check:
    through, direct = answer.through, answer.direct
    if through.answered:
        return Check(
            name="host-port",
            severity=OK,
            says=f"host port {answer.port} leads to the pod ({through.to}: {through.how})",
        )
    if not direct.answered:
        return Check(
            name="host-port",
            severity=INFO,
            says=f"rules lead host port {answer.port} to the pod, where nothing listens on port {inside}",
            evidence=f"{direct.to}: {direct.how}",
        )
    return Check(
        name="host-port",
        severity=ERROR,
        says=f"host port {answer.port} does not lead to the pod, though it listens and the rules are there",
        evidence=f"{through.to}: {through.how}; {direct.to}: {direct.how}",
        remedy="look for rules that drop or redirect it (`nft list ruleset`)",
    )


# --- rules ---------------------------------------------------------------------------------------------------------


def _leads(seen: Seen, protocol: str, number: int, host_ip: str, target: str) -> bool:
    """Whether a packet to the host port is, or may be, led to the pod."""
    ip = ipaddress.ip_address(target.rpartition(":")[0])
    wanted = {target, f"[{ip}]:{target.rpartition(':')[2]}"}
    source = ELSEWHERE[ip.version]
    destination = (
        host_ip if host_ip and not ipaddress.ip_address(host_ip).is_unspecified else own_address(seen, ip.version)
    )
    packet = Packet(
        source=source, destination=destination, iif=_outer(seen), protocol=protocol, port=number, local=True
    )
    outcomes = [follow(base, packet) for base in _bases(seen, "prerouting", "nat", packet)]
    return any(
        (each.action == "dnat" and each.target in wanted) or each.doubts & {"dnat", "any"} for each in outcomes
    )


def own_address(seen: Seen, version: int) -> str:
    """An address of the machine, where packets from elsewhere come in; a stand-in when none is known."""
    for link in (seen.uplink, seen.bridge):
        for address in link.addresses if link else ():
            ip = ipaddress.ip_interface(address).ip
            if ip.version == version and not ip.is_link_local:
                return str(ip)
    return {4: "192.0.2.1", 6: "2001:db8::2"}[version]


def _bases(seen: Seen, hook: str, type_: str, packet: Packet) -> list[Base]:
    version = ipaddress.ip_address(packet.source).version
    return [
        each for each in seen.filters.bases if (each.hook, each.type) == (hook, type_) and each.family in (0, version)
    ]


def _forwarded(seen: Seen, through: str) -> Iterator[tuple[str, Packet]]:
    for ip in seen.ips:
        elsewhere = ELSEWHERE[ipaddress.ip_address(ip).version]
        yield "from", Packet(source=ip, destination=elsewhere, iif=through, oif=_outer(seen))
        yield "to", Packet(source=elsewhere, destination=ip, iif=_outer(seen), oif=through, state="established")


def _let_through(base: Base, through: str) -> tuple[str, ...]:
    if base.backend == "nft":
        where = f"nft insert rule {base.table} {base.name}"
        return tuple(f"{where} {way}ifname {shlex.quote(through)} accept" for way in "io")
    return tuple(f"{base.backend} -I {base.name} -{way} {through} -j ACCEPT" for way in "io")


def _masquerading(seen: Seen, ip: str) -> Iterator[str]:
    version = ipaddress.ip_address(ip).version
    iptables = f"{'iptables' if version == 4 else 'ip6tables'} -t nat"
    comment = "-m comment --comment " + shlex.quote(f'name: "{seen.network}" id: "{seen.pod_id}"')
    yield f"{iptables} -N {seen.chain} 2>/dev/null || {iptables} -F {seen.chain}"
    yield f"{iptables} -A {seen.chain} -d {_subnet(seen, ip)} {comment} -j ACCEPT"
    yield f"{iptables} -A {seen.chain} ! -d {_MULTICAST[version]} {comment} -j MASQUERADE"
    yield f"{iptables} -A POSTROUTING -s {ip} {comment} -j {seen.chain}"


def _well(seen: Seen, name: str, says: str) -> Iterator[Check]:
    """That it is well, unless not all rules could be read."""
    if seen.filters.none:
        yield Check(
            name=name,
            severity=UNKNOWN,
            says="the packet filter's rules cannot be read: neither iptables-save nor nft is installed",
            remedy="install one of them",
        )
    elif seen.filters.trouble:
        yield Check(
            name=name,
            severity=UNKNOWN,
            says="not all rules of the packet filter could be read",
            evidence=seen.filters.trouble,
        )
    else:
        yield Check(name=name, severity=OK, says=says)


# --- of the pod ----------------------------------------------------------------------------------------------------


def _is_routed(seen: Seen) -> bool:
    """Whether the machine forwards for the pod: what goes out by macvlan and the like does not pass its stack."""
    return bool(seen.ips) and seen.link is not None and seen.link.kind == "veth" and bool(_inner(seen))


def _inner(seen: Seen) -> str:
    """The machine's interface on the pod's side."""
    link = seen.bridge or seen.peer
    return link.name if link else ""


def _outer(seen: Seen) -> str:
    return seen.uplink.name if seen.uplink else ""


def _versions(seen: Seen) -> list[int]:
    return sorted({ipaddress.ip_address(ip).version for ip in seen.ips})


def _is_of(host_ip: str, ip: str) -> bool:
    return not host_ip or ipaddress.ip_address(host_ip).version == ipaddress.ip_address(ip).version


def _subnet(seen: Seen, ip: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    found = (ipaddress.ip_interface(each.address) for each in seen.result.ips)
    return next((each.network for each in found if str(each.ip) == ip), ipaddress.ip_network(ip))
