"""What the plugin `portmap` does: rules for TCP ports of the host, and a sysctl for those of 127.0.0.1."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from sandboxd.cni.in_process import rules
from sandboxd.cni.in_process.netlink import Refused, Socket
from sandboxd.cni.in_process.ranges import Odd
from sandboxd.cni.in_process.supported import Portmap
from sandboxd.cni.in_process.words import Failed, of_os

IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def address_in(previous: Mapping[str, Any], ifname: str) -> IPInterface:
    """The pod's IPv4 address in the result of the plugin before. Raises Odd, with IPv6 too."""
    interfaces = previous.get("interfaces") or []
    found: list[IPInterface] = []
    for item in previous.get("ips") or []:
        index = item.get("interface")
        if index is not None and (interfaces[index].get("name") != ifname or not interfaces[index].get("sandbox")):
            continue
        found.append(ipaddress.ip_interface(item["address"]))
    if not found or any(each.version != 4 for each in found):
        raise Odd("port mappings and addresses of IPv6")
    return found[0]


def wanted(conf: Portmap, container: str, address: IPInterface) -> rules.Rules:
    """The rules of a pod."""
    mappings = [(each.host_port, each.container_port, each.host_ip) for each in conf.mappings]
    return rules.portmap(conf.network, container, address, mappings)


def let_loopback_through(address: IPInterface) -> None:
    """Let what is sent to 127.0.0.1 leave by the interface that leads to the pod, if any. Blocks; raises Failed."""
    with Socket() as kernel:
        try:
            name = kernel.link_at(kernel.way_to(address.ip)).name
        except Refused:
            return  # as the plugin: there is no way, as on a network whose bridge has no address
    try:
        with open(f"/proc/sys/net/ipv4/conf/{name}/route_localnet", "wb", buffering=0) as file:
            file.write(b"1")
    except OSError as exc:
        raise Failed(f"unable to enable route_localnet: {of_os(exc)}") from exc
