"""Real packets for a pod: to its gateway, its neighbours, its name servers and its host ports, all at once."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import replace

from sandboxd.errors import NotReady
from sandboxd.insight import probes
from sandboxd.insight.diagnose_filters import own_address
from sandboxd.insight.diagnose_links import gateways
from sandboxd.insight.evidence import Answer, Packets, Port, PortAnswer, Seen
from sandboxd.links import Link
from sandboxd.model import AttachmentState, SandboxRecord, SandboxState, subject_of
from sandboxd.node import Node
from sandboxd.oci import files

MOST_ASKED = 3  # other pods, and name servers: resolvers use three (resolv.conf(5))
MOST_PORTS = 16


async def sent(node: Node, seen: Seen) -> Packets:
    """What came of them. Takes twice `probes.SECONDS` at most, and changes nothing."""
    path, link = seen.netns_path, seen.link
    others = [(other.ips[0], subject_of(other.config.metadata)) for other in _others(node, seen) if other.ips]
    servers = [each for each in files.name_servers(seen.resolv_conf or b"") if _is_address(each)]
    owners, ways, neighbours, resolvers, through = await asyncio.gather(
        _owners(seen, link),
        asyncio.gather(*(_gateway(seen, link, gateway) for gateway in gateways(seen))),
        asyncio.gather(*(probes.ping(path, ip, whose=whose) for ip, whose in others[-MOST_ASKED:])),
        asyncio.gather(*(probes.resolve(path, server) for server in servers[:MOST_ASKED])),
        asyncio.gather(*(_port(seen, port) for port in seen.ports[:MOST_PORTS] if port.protocol == "tcp")),
    )
    return Packets(
        owners=owners,
        gateways=ways,
        neighbours=neighbours,
        resolvers=resolvers,
        ports=[answer for answer in through if answer],
    )


async def _owners(seen: Seen, link: Link | None) -> list[str]:
    """Who else answers for the pod's IPv4 addresses. The kernel itself asks for IPv6 ones."""
    found = set[str]().union(*await asyncio.gather(*(_macs(seen, link, ip) for ip in seen.ips)))
    # A bridge or router that answers for others does so for all (proxy ARP); it is not an owner.
    known = {each.mac for each in (seen.peer, seen.bridge) if each}
    return sorted(found - known)


async def _macs(seen: Seen, link: Link | None, address: str, *, sender: str = "0.0.0.0") -> set[str]:
    """Who answers ARP for an IPv4 address on the pod's interface."""
    if link is None or not link.mac or not link.up or ":" in address:
        return set()
    try:
        return await probes.arp(seen.netns_path, link.name, link.mac, address, sender=sender)
    except NotReady:  # the interface is gone by now
        return set()


async def _gateway(seen: Seen, link: Link | None, gateway: str) -> Answer:
    """Whether the gateway answers, by ICMP or else by ARP: a firewall may drop the one only."""
    answer, macs = await asyncio.gather(
        probes.ping(seen.netns_path, gateway),
        _macs(seen, link, gateway, sender=next((ip for ip in seen.ips if ":" not in ip), "0.0.0.0")),
    )
    if macs and not answer.answered:
        return replace(answer, answered=True, how=f"to ARP, as {', '.join(sorted(macs))}, and not to ICMP")
    return answer


async def _port(seen: Seen, port: Port) -> PortAnswer | None:
    """A connection through the host port, and one to the pod itself."""
    ip = next((ip for ip in seen.ips if not port.host_ip or (":" in ip) == (":" in port.host_ip)), "")
    if not ip:
        return None
    own = port.host_ip if port.host_ip and not ipaddress.ip_address(port.host_ip).is_unspecified else ""
    address = own or own_address(seen, ipaddress.ip_address(ip).version)
    through, direct = await asyncio.gather(probes.connect(address, port.number), probes.connect(ip, port.inside))
    return PortAnswer(port=str(port), through=through, direct=direct)


def _is_address(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_unspecified and "%" not in text
    except ValueError:
        return False


def _others(node: Node, seen: Seen) -> list[SandboxRecord]:
    """The other running pods on the pod's network, in its subnet: a network may have had another one before."""
    sandboxes = node.ledger.sandboxes
    subnets = [ipaddress.ip_interface(each.address).network for each in seen.result.ips]
    routed = any(each.num_addresses == 1 for each in subnets)  # each pod has a subnet of its own
    return [
        sandboxes[each.sandbox_id]
        for each in node.ledger.attachments
        if each.network == seen.network
        and each.state is AttachmentState.ADDED
        and each.sandbox_id != seen.pod_id
        and each.sandbox_id in sandboxes
        and sandboxes[each.sandbox_id].state is SandboxState.READY
        and any(routed or _is_in(ip, subnets) for ip in sandboxes[each.sandbox_id].ips[:1])
    ]


def _is_in(ip: str, subnets: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    return any(ipaddress.ip_address(ip) in subnet for subnet in subnets)
