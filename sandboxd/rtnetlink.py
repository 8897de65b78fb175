"""The links, addresses, routes, policy rules, neighbours and queueing disciplines that the kernel lists. Read only.

They are told in the words of ip(8) and tc(8), as `network_state.Thing`s. Left out is what the kernel derives or
learns by itself: the table `local`, cached routes, neighbours that are not permanent, a link's first qdisc.

Sources: rtnetlink(7), netlink(7), linux/if_link.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from sandboxd.errors import NotReady
from sandboxd.network_state import ADDRESS, LINK, NEIGHBOUR, POLICY, QDISC, ROUTE, Thing

KINDS = (LINK, ADDRESS, ROUTE, POLICY, NEIGHBOUR, QDISC)

_UP, _PROMISC = 0x1, 0x100  # IFF_UP, IFF_PROMISC
_CLONED = 0x200  # RTM_F_CLONED
_PERMANENT = 0x80  # NUD_PERMANENT
_LOCAL, _MAIN = 255, 254
_TABLES = {255: "local", 254: "main", 253: "default"}
_SCOPES = {0: "", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_TYPES = {1: "", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable"}
_TYPES |= {8: "prohibit", 9: "throw", 10: "nat"}
_ACTIONS = {1: "", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}  # FR_ACT_*
_OF_THE_KERNEL = frozenset({"noqueue", "mq", "fq_codel", "pfifo_fast", "fq"})
_KERNELS_RULES = frozenset({0, 32766, 32767})  # priorities


async def look(sock: socket.socket, place: str) -> list[Thing]:
    """What is in the namespace that the netlink socket was opened in, which is closed; `place` is what it is called.

    The socket is of NETLINK_ROUTE and SOCK_DGRAM. Raises NotReady when the kernel refuses.
    """
    pyroute2 = await asyncio.to_thread(_pyroute2)
    try:
        async with pyroute2.AsyncIPRoute(fileno=sock.detach()) as ipr:
            links = [each async for each in await ipr.get_links()]
            addresses = [each async for each in await ipr.get_addr()]
            routes = [each async for each in await ipr.get_routes()]
            policies = [
                each
                for family in (socket.AF_INET, socket.AF_INET6)
                async for each in await ipr.get_rules(family=family)
            ]
            neighbours = [each async for each in await ipr.get_neighbours()]
            qdiscs = [each async for each in await ipr.get_qdiscs()]
    except (pyroute2.NetlinkError, OSError) as exc:
        raise NotReady(f"the network of the {place} cannot be read: {exc}") from exc
    names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in links}
    return [
        *(_link(each, names, place) for each in links),
        *(_address(each, names, place) for each in addresses),
        *(_route(each, names, place) for each in routes if _is_made(each)),
        *(_policy(each, place) for each in policies if each.get_attr("FRA_PRIORITY", 0) not in _KERNELS_RULES),
        *(_neighbour(each, names, place) for each in neighbours if each["state"] & _PERMANENT and _has_dst(each)),
        *(
            _qdisc(each, names, place)
            for each in qdiscs
            if each["index"] in names and each.get_attr("TCA_KIND") not in _OF_THE_KERNEL
        ),
    ]


def _pyroute2() -> Any:
    # Here and not above: only who asks for a look needs it, and it is a tenth of what starting the daemon takes.
    import pyroute2

    return pyroute2


def _link(link: Any, names: Mapping[int, str], place: str) -> Thing:
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    port = info.get_attr("IFLA_INFO_SLAVE_DATA") if info else None
    hairpin = port.get_attr("IFLA_BRPORT_MODE") if port is not None and hasattr(port, "get_attr") else None
    fields = {
        "kind": kind or ("loopback" if link["flags"] & 0x8 else ""),
        "master": names.get(link.get_attr("IFLA_MASTER") or 0, ""),
        "mac": link.get_attr("IFLA_ADDRESS") or "",
        "mtu": str(link.get_attr("IFLA_MTU") or ""),
        "state": "up" if link["flags"] & _UP else "down",
        "promisc": "on" if link["flags"] & _PROMISC else "",
        "hairpin": "on" if hairpin else "",
    }
    # For a veth it is the other end, for a VLAN or macvlan what it is on.
    peer = link.get_attr("IFLA_LINK") or 0
    return Thing(
        place=place,
        kind=LINK,
        name=names[link["index"]],
        fields=_said(fields),
        index=link["index"],
        peer=peer if kind == "veth" else 0,
    )


def _address(address: Any, names: Mapping[int, str], place: str) -> Thing:
    # For a point-to-point link IFA_ADDRESS is the other side's (rtnetlink(7)).
    own = address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
    peer = address.get_attr("IFA_ADDRESS")
    return Thing(
        place=place,
        kind=ADDRESS,
        name=f"{own}/{address['prefixlen']} dev {names.get(address['index'], address['index'])}",
        fields=_said({"peer": "" if peer == own else str(peer), "scope": _SCOPES.get(address["scope"], "")}),
    )


def _is_made(route: Any) -> bool:
    return _table(route) != _LOCAL and not route["flags"] & _CLONED


def _table(route: Any) -> int:
    return int(route.get_attr("RTA_TABLE") or route["table"])


def _route(route: Any, names: Mapping[int, str], place: str) -> Thing:
    dst = route.get_attr("RTA_DST")
    words = [_TYPES.get(route["type"], str(route["type"]))]
    # As ip(8) takes it; the family keeps the two default routes apart.
    words += [_prefix(dst, route["dst_len"]) if dst else "default" if route["family"] == socket.AF_INET else "::/0"]
    words += _next_hop(route, names)
    for hop in route.get_attr("RTA_MULTIPATH") or ():
        words += ["nexthop", *_next_hop(hop, names)]
    if _table(route) != _MAIN:
        words += ["table", _TABLES.get(_table(route), str(_table(route)))]
    fields = {
        "src": route.get_attr("RTA_PREFSRC") or "",
        "metric": str(route.get_attr("RTA_PRIORITY") or ""),
        "scope": _SCOPES.get(route["scope"], "") if route["family"] == socket.AF_INET else "",
        "mtu": str((metrics.get_attr("RTAX_MTU") if (metrics := route.get_attr("RTA_METRICS")) else "") or ""),
    }
    return Thing(place=place, kind=ROUTE, name=" ".join(filter(None, words)), fields=_said(fields))


def _prefix(address: str, length: int) -> str:
    """As ip(8) has it: one address is without a length."""
    return str(address) if length == (128 if ":" in address else 32) else f"{address}/{length}"


def _next_hop(hop: Any, names: Mapping[int, str]) -> Iterator[str]:
    gateway = hop.get_attr("RTA_GATEWAY") or (via.get("addr") if (via := hop.get_attr("RTA_VIA")) else None)
    if gateway:
        yield f"via {gateway}"
    index = hop.get_attr("RTA_OIF") or hop.get("oif", 0)
    if index:
        yield f"dev {names.get(index, index)}"


def _policy(rule: Any, place: str) -> Thing:
    sides = {"from": ("FRA_SRC", "src_len"), "to": ("FRA_DST", "dst_len")}
    words = [str(rule.get_attr("FRA_PRIORITY", 0)) + ":"]
    for word, (attribute, length) in sides.items():
        if value := rule.get_attr(attribute):
            words += [word, _prefix(value, rule[length])]
        elif word == "from":
            words += [word, "all"]
    for word, attribute in (("iif", "FRA_IIFNAME"), ("oif", "FRA_OIFNAME"), ("fwmark", "FRA_FWMARK")):
        if value := rule.get_attr(attribute):
            words += [word, hex(value) if isinstance(value, int) else str(value)]
    table = rule.get_attr("FRA_TABLE") or rule["table"]
    action = _ACTIONS.get(rule["action"], str(rule["action"]))
    words += [action] if action else ["lookup", _TABLES.get(table, str(table))]
    family = "IPv4" if rule["family"] == socket.AF_INET else "IPv6"
    return Thing(place=place, kind=POLICY, name=f"{family} {' '.join(words)}")


def _has_dst(neighbour: Any) -> bool:
    # The kernel lists the addresses that a link's own bridge table has, with none of IP.
    return neighbour["family"] in (socket.AF_INET, socket.AF_INET6) and bool(neighbour.get_attr("NDA_DST"))


def _neighbour(neighbour: Any, names: Mapping[int, str], place: str) -> Thing:
    return Thing(
        place=place,
        kind=NEIGHBOUR,
        name=f"{neighbour.get_attr('NDA_DST')} dev {names.get(neighbour['ifindex'], neighbour['ifindex'])}",
        fields=_said({"mac": neighbour.get_attr("NDA_LLADDR") or ""}),
    )


def _qdisc(qdisc: Any, names: Mapping[int, str], place: str) -> Thing:
    return Thing(place=place, kind=QDISC, name=f"{qdisc.get_attr('TCA_KIND')} dev {names[qdisc['index']]}")


def _said(fields: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in fields.items() if value}
