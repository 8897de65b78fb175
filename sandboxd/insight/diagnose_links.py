"""A pod's interfaces, addresses and routes, inside and on the machine. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from sandboxd.cni.strict_json import in_any_case
from sandboxd.insight.evidence import Check, Seen, Severity
from sandboxd.links import Link

OK, INFO, WARNING, ERROR, UNKNOWN = Severity


def loopback(seen: Seen) -> Iterator[Check]:
    lo = next((link for link in seen.inside.links if link.loopback), None)
    if lo is not None and lo.up:
        yield Check(name="loopback", severity=OK, says="the pod's loopback is up")
        return
    name = lo.name if lo else "lo"
    yield Check(
        name="loopback",
        severity=ERROR,
        says="the pod's loopback is down: what connects to localhost in the pod fails",
        evidence=f"{name} in {seen.netns_path} is down",
        remedy="set it up",
        commands=(seen.inside_command(f"ip link set {name} up"),),
    )


def interface(seen: Seen) -> Iterator[Check]:
    link = seen.link
    if link is None:
        there = ", ".join(each.name for each in seen.inside.links)
        yield Check(
            name="interface",
            severity=ERROR,
            says=f"the pod has no {seen.ifname}",
            evidence=f"in {seen.netns_path} there are {there}",
            remedy="remove the pod and run it again",
        )
        return
    if not link.up:
        yield Check(
            name="interface",
            severity=ERROR,
            says=f"the pod's {link.name} is down",
            evidence=f"{link.name} in {seen.netns_path} is down",
            remedy="set it up; routes that were lost with it are named below, when it is up",
            commands=(seen.inside_command(f"ip link set {link.name} up"),),
        )
    lost = [address for address in _result_addresses(seen) if not _has_address(link, address)]
    if lost:
        yield Check(
            name="interface",
            severity=ERROR,
            says=f"the pod's {link.name} has lost {', '.join(lost)}",
            evidence=f"{link.name} in {seen.netns_path} has {', '.join(link.addresses) or 'no address'}",
            remedy="add what is lost",
            commands=tuple(seen.inside_command(f"ip address add {each} dev {link.name}") for each in lost),
        )
    if link.up and not lost:
        yield Check(
            name="interface",
            severity=OK,
            says=f"the pod's {link.name} is up, with {', '.join(_result_addresses(seen)) or 'no address'}",
        )


def default_route(seen: Seen) -> Iterator[Check]:
    wanted = [(route.dst, route.gw) for route in seen.result.routes if ipaddress.ip_network(route.dst).prefixlen == 0]
    if not wanted:
        yield Check(name="default-route", severity=INFO, says="the network gives pods no default route")
    for destination, gateway in wanted:
        there = [r for r in seen.inside.routes if r.destination == destination]
        if there:
            via = ", ".join(f"via {route.gateway}" if route.gateway else "on the link" for route in there)
            says = f"the pod's default route leads {via}"
            yield Check(name="default-route", severity=OK, says=says)
            continue
        version = ipaddress.ip_network(destination).version
        via = gateway or next((gw for gw in gateways(seen) if ipaddress.ip_address(gw).version == version), "")
        command = f"ip {'-6 ' if version == 6 else ''}route add default via {via} dev {seen.ifname}"
        yield Check(
            name="default-route",
            severity=ERROR,
            says="the pod has no default route: it reaches nothing beyond its own network",
            evidence=f"no route {destination} in {seen.netns_path}; the network's result has one",
            remedy="add it",
            commands=(seen.inside_command(command),) if via else (),
        )


# --- on the machine ------------------------------------------------------------------------------------------------


def host_end(seen: Seen) -> Iterator[Check]:
    link, peer = seen.link, seen.peer
    if link is None or link.kind != "veth":
        return
    if peer is None:
        yield Check(
            name="host-end",
            severity=UNKNOWN,
            says=f"the other end of the pod's {link.name} is not in the machine's network namespace",
            evidence=f"it has index {link.peer}, which no interface of the machine has",
        )
        return
    if not peer.up:
        yield Check(
            name="host-end",
            severity=ERROR,
            says=f"the machine's end of the pod's {link.name}, {peer.name}, is down",
            evidence=f"{peer.name} on the machine is down",
            remedy="set it up",
            commands=(f"ip link set {peer.name} up",),
        )
    wanted = _bridge_name(seen)
    if wanted and (seen.bridge is None or seen.bridge.name != wanted):
        yield Check(
            name="host-end",
            severity=ERROR,
            says=f"{peer.name} is not a port of the bridge {wanted}",
            evidence=f"the master of {peer.name} is {seen.bridge.name if seen.bridge else 'none'}",
            remedy="make it one",
            commands=(f"ip link set {peer.name} master {wanted}",),
        )
    elif peer.up:
        on = f", on {seen.bridge.name}" if seen.bridge else ""
        yield Check(name="host-end", severity=OK, says=f"its other end, {peer.name}, is up{on}")


def bridge(seen: Seen) -> Iterator[Check]:
    found = seen.bridge
    if found is None:
        return
    if not found.up:
        yield Check(
            name="bridge",
            severity=ERROR,
            says=f"the bridge {found.name} is down: none of its pods has a network",
            evidence=f"{found.name} on the machine is down",
            remedy="set it up",
            commands=(f"ip link set {found.name} up",),
        )
    lost = _lost_gateways(seen, found)
    for address in lost:
        yield Check(
            name="gateway-address",
            severity=ERROR,
            says=f"the bridge {found.name} has no {address}, the gateway of its pods",
            evidence=f"{found.name} has {', '.join(found.addresses) or 'no address'}",
            remedy="add it",
            commands=(f"ip address add {address} dev {found.name}",),
        )
    if found.up and not lost:
        has = ", ".join(each for each in found.addresses if not each.startswith("fe80:"))
        yield Check(name="bridge", severity=OK, says=f"the bridge {found.name} is up, with {has or 'no address'}")


def hairpin(seen: Seen) -> Iterator[Check]:
    plugin = seen.plugin("bridge")
    if plugin is None or seen.peer is None or in_any_case(plugin, "hairpinMode") is not True:
        return
    if seen.peer.hairpin:
        yield Check(name="hairpin", severity=OK, says=f"hairpin is on at {seen.peer.name}, as configured")
        return
    yield Check(
        name="hairpin",
        severity=ERROR,
        says="hairpin is off, and the network has hairpinMode: the pod does not reach itself by its host ports",
        evidence=f"hairpin of {seen.peer.name} on {seen.bridge.name if seen.bridge else 'no bridge'} is off",
        remedy="turn it on",
        commands=(f"ip link set {seen.peer.name} type bridge_slave hairpin on",),
    )


def mtu(seen: Seen) -> Iterator[Check]:
    link = seen.link
    if link is None or not link.mtu:
        return
    smaller = [each for each in (seen.peer, seen.bridge, seen.uplink) if each and 0 < each.mtu < link.mtu]
    if not smaller:
        yield Check(name="mtu", severity=OK, says=f"no interface on the pod's way has a smaller MTU than {link.mtu}")
        return
    least = min(smaller, key=lambda each: each.mtu)
    yield Check(
        name="mtu",
        severity=WARNING,
        says=f"large packets of the pod do not fit through {least.name}: connections may be set up and then hang",
        evidence=f"MTU {link.mtu} of {link.name} in {seen.netns_path}, {least.mtu} of {least.name} on the machine",
        remedy="lower the pod's; and set \"mtu\" in the network's configuration, for the next pods",
        commands=(seen.inside_command(f"ip link set {link.name} mtu {least.mtu}"),),
    )


def way_back(seen: Seen) -> Iterator[Check]:
    through = seen.bridge or (seen.peer if seen.plugin("ptp") else None)
    if through is None:
        return
    if seen.bridge and (not seen.bridge.up or _lost_gateways(seen, seen.bridge)):
        return  # the route went with it
    lost = {ip: way for ip, way in seen.ways.items() if way != through.name}
    for ip, way in lost.items():
        strict = seen.sysctls.get(f"net.ipv4.conf.{through.name}.rp_filter") == "1"
        dropped = "; and rp_filter drops what comes from it" if strict and ":" not in ip else ""
        yield Check(
            name="way-back",
            severity=ERROR,
            says=f"the machine does not send to {ip} through {through.name}{dropped}",
            evidence=f"its route to {ip} leads {f'through {way}' if way else 'nowhere'}",
            remedy="remove or narrow the route that is in the way (`ip route`)",
        )
    if seen.ways and not lost:
        yield Check(name="way-back", severity=OK, says=f"the machine reaches the pod through {through.name}")


# --- of the record -------------------------------------------------------------------------------------------------


def gateways(seen: Seen) -> list[str]:
    """The gateways of the pod's addresses and default routes, each once."""
    routes = (r.gw for r in seen.result.routes if ipaddress.ip_network(r.dst).prefixlen == 0)
    return [*dict.fromkeys(each for each in (*(ip.gateway for ip in seen.result.ips), *routes) if each)]


def _result_addresses(seen: Seen) -> list[str]:
    return [ip.address for ip in seen.result.ips if str(ipaddress.ip_interface(ip.address).ip) in seen.ips]


def _lost_gateways(seen: Seen, bridge: Link) -> list[str]:
    return [
        f"{ip.gateway}/{ipaddress.ip_interface(ip.address).network.prefixlen}"
        for ip in seen.result.ips
        if ip.gateway and _is_gateway(seen) and ip.gateway not in _plain(bridge)
    ]


def _has_address(link: Link, address: str) -> bool:
    return str(ipaddress.ip_interface(address).ip) in _plain(link)


def _plain(link: Link) -> set[str]:
    return {str(ipaddress.ip_interface(each).ip) for each in link.addresses}


def _bridge_name(seen: Seen) -> str:
    plugin = seen.plugin("bridge")
    named = in_any_case(plugin, "bridge") if plugin else ""
    return (named if isinstance(named, str) and named else "cni0") if plugin else ""


def _is_gateway(seen: Seen) -> bool:
    plugin = seen.plugin("bridge") or {}
    return any(in_any_case(plugin, key) is True for key in ("isGateway", "isDefaultGateway"))
