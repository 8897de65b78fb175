"""Interfaces and routes: what netlink tells of a network namespace. Pure.

The messages are pyroute2's, with its names for their attributes (rtnetlink(7)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

AF_INET = 2
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_IFA_F_DADFAILED = 0x8


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network interface, and what it is connected to. Indexes are of its own namespace, 0 for none."""

    name: str
    index: int
    kind: str = ""  # "veth", "bridge", …; "" for hardware
    mac: str = ""
    mtu: int = 0
    up: bool = True
    loopback: bool = False
    master: int = 0  # the bridge whose port it is
    peer: int = 0  # the other end of a veth pair, an index of the namespace that that is in
    hairpin: bool = False  # as a port of a bridge: it sends out what came in there
    addresses: tuple[str, ...] = ()  # "10.0.10.2/24"
    duplicates: tuple[str, ...] = ()  # IPv6 addresses that the kernel found to be another's too


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route of the main table."""

    destination: str  # "10.0.10.0/24"; of the default route "0.0.0.0/0" or "::/0"
    gateway: str = ""
    link: int = 0  # the index of the interface


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What netlink tells of a namespace."""

    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()


def link(message: Any, addresses: Sequence[Any]) -> Link:
    """The interface of an RTM_NEWLINK message, with what of the namespace's RTM_NEWADDR messages is its own."""
    own = [address for address in addresses if address["index"] == message["index"]]
    written = [f"{address.get_attr('IFA_LOCAL') or address.get_attr('IFA_ADDRESS')}" for address in own]
    failed = [bool((address.get_attr("IFA_FLAGS") or address["flags"]) & _IFA_F_DADFAILED) for address in own]
    return Link(
        name=message.get_attr("IFLA_IFNAME"),
        index=message["index"],
        kind=message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
        loopback=bool(message["flags"] & _IFF_LOOPBACK),
        master=message.get_attr("IFLA_MASTER") or 0,
        peer=message.get_attr("IFLA_LINK") or 0,
        hairpin=bool(message.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_MODE")),
        addresses=tuple(f"{text}/{address['prefixlen']}" for text, address in zip(written, own, strict=True)),
        duplicates=tuple(text for text, bad in zip(written, failed, strict=True) if bad),
    )


def route(message: Any) -> Route:
    """The route of an RTM_NEWROUTE message."""
    default = "0.0.0.0" if message["family"] == AF_INET else "::"
    return Route(
        destination=f"{message.get_attr('RTA_DST') or default}/{message['dst_len']}",
        gateway=message.get_attr("RTA_GATEWAY") or "",
        link=message.get_attr("RTA_OIF") or 0,
    )
