"""Messages of rtnetlink, packed by hand, and a socket that sends many of them at once.

pyroute2's message classes take milliseconds of processor time for one message and its answer; an ADD is a dozen of
them. Everything here blocks and belongs into a thread. A socket lives in the network namespace that its thread was
in when it was opened.

Sources: netlink(7), rtnetlink(7), linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _EXCL, _CREATE, _DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
_NESTED = 0x8000
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_PROTINFO, _IFLA_TXQLEN, _IFLA_OPERSTATE, _IFLA_LINKINFO = 12, 13, 16, 18
_IFLA_NET_NS_FD, _IFLA_EXT_MASK = 28, 29
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER, _BRPORT_MODE = 1, 2, 1, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_IFF_UP, IF_OPER_UP = 0x1, 6
_SKIP_STATS = 1 << 3  # IFLA_EXT_MASK: leave the counters out of the answer
IFA_F_TENTATIVE, IFA_F_DADFAILED = 0x40, 0x08
_TABLE_MAIN, _PROTO_BOOT, _UNICAST = 254, 3, 1
_SECONDS = 30.0  # for the kernel, which answers before the request returns
_BYTES = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface as the kernel describes it."""

    index: int
    name: str
    kind: str  # "bridge", "veth", …; "" when the kernel names none
    mac: str  # "" for none, as an empty bridge has
    mtu: int
    up: bool
    operstate: int
    master: int  # index of its bridge, 0 for none
    peer: int  # index of the other end of a pair, in the other end's namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An address of an interface."""

    index: int
    address: IPInterface
    flags: int


class Refused(OSError):
    """The kernel refused a message; `position` is which of those that were sent together."""

    def __init__(self, code: int, position: int) -> None:
        super().__init__(code, os.strerror(code))
        self.position = position


class Socket:
    """A rtnetlink socket of the calling thread's network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_SECONDS)
        self._number = 0

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def send(self, *messages: bytes, existing: Collection[int] = ()) -> list[list[tuple[int, bytes]]]:
        """Send all at once; for each message what the kernel answered, as (type, payload).

        The kernel goes on past a message that it refuses. Raises Refused for the first of those; what is made by
        the messages at the positions `existing` may be there already.
        """
        first = self._number + 1
        self._number += len(messages)
        self._socket.send(b"".join(_numbered(each, first + i) for i, each in enumerate(messages)))
        answers: list[list[tuple[int, bytes]]] = [[] for _ in messages]
        missing, refused = len(messages), None
        while missing:
            for kind, number, payload in _parts(self._socket.recv(_BYTES)):
                position = number - first
                if not 0 <= position < len(messages):
                    continue
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    missing -= 1
                    code = -struct.unpack_from("i", payload)[0] if len(payload) >= 4 else 0
                    if code == errno.EEXIST and position in existing:
                        code = 0
                    if code and (refused is None or position < refused.position):
                        refused = Refused(code, position)
                else:
                    answers[position].append((kind, payload))
        if refused is not None:
            raise refused
        return answers

    def link(self, name: str) -> Link | None:
        """The interface of that name, None if there is none."""
        try:
            ((answer, *_),) = self.send(get_link(name))
        except Refused as exc:
            if exc.errno == errno.ENODEV:
                return None
            raise
        return link_from(answer[1])

    def addresses(self, index: int, family: int = socket.AF_UNSPEC) -> list[Held]:
        """The addresses of an interface."""
        (answers,) = self.send(_message(RTM_GETADDR, _DUMP, struct.pack("=BBBBi", family, 0, 0, 0, 0)))
        held = [_address_from(payload) for _, payload in answers]
        return [each for each in held if each is not None and each.index == index]

    def way_to(self, address: IPAddress) -> int:
        """The index of the interface through which the kernel sends to `address`. Raises Refused."""
        body = struct.pack("=BBBBBBBBI", _family(address), address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
        ((answer, *_),) = self.send(_message(RTM_GETROUTE, _ACK, body + _attribute(_RTA_DST, address.packed)))
        attributes = dict(_attributes(answer[1][12:]))
        return int(struct.unpack("=i", attributes[_RTA_OIF])[0])

    def link_at(self, index: int) -> Link:
        """The interface with that index. Raises Refused."""
        mask = _attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATS))
        ((answer, *_),) = self.send(_message(RTM_GETLINK, _ACK, _ifinfo(index=index) + mask))
        return link_from(answer[1])


def get_link(name: str) -> bytes:
    """Ask for the interface of that name."""
    mask = _attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATS))
    return _message(RTM_GETLINK, _ACK, _ifinfo() + mask + _text(_IFLA_IFNAME, name))


def new_bridge(name: str, mtu: int) -> bytes:
    """Make a bridge; `mtu` 0 is the kernel's default."""
    attributes = _text(_IFLA_IFNAME, name) + _mtu(mtu) + _nested(_IFLA_LINKINFO, _kind("bridge"))
    return _message(RTM_NEWLINK, _ACK | _CREATE | _EXCL, _ifinfo() + attributes)


def new_pair(host: str, bridge: int, inside: str, netns: int, mtu: int, inside_queue: int | None) -> bytes:
    """Make a pair: `host` here, up and in the bridge; `inside` in the namespace `netns`, a descriptor, and down.

    `inside_queue` is the length of that end's queue, None for the kernel's default; the host's has none.
    """
    none = _attribute(_IFLA_TXQLEN, struct.pack("=I", 0))
    queue = b"" if inside_queue is None else _attribute(_IFLA_TXQLEN, struct.pack("=I", inside_queue))
    fd = _attribute(_IFLA_NET_NS_FD, struct.pack("=i", netns))
    peer = _nested(_VETH_INFO_PEER, _ifinfo(), _text(_IFLA_IFNAME, inside), queue, _mtu(mtu), fd)
    info = _nested(_IFLA_LINKINFO, _kind("veth"), _nested(_INFO_DATA, peer))
    master = _attribute(_IFLA_MASTER, struct.pack("=i", bridge))
    attributes = _text(_IFLA_IFNAME, host) + none + _mtu(mtu) + master + info
    return _message(RTM_NEWLINK, _ACK | _CREATE | _EXCL, _ifinfo(up=True) + attributes)


def set_up(index: int) -> bytes:
    """Bring an interface up."""
    return _message(RTM_NEWLINK, _ACK, _ifinfo(index=index, up=True))


def set_mac(index: int, mac: str) -> bytes:
    """Give an interface its MAC address, for good."""
    return _message(
        RTM_SETLINK, _ACK, _ifinfo(index=index) + _attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    )


def set_hairpin(index: int) -> bytes:
    """Let a bridge send back through this port what came in by it."""
    body = _ifinfo(index=index, family=socket.AF_BRIDGE)
    return _message(RTM_SETLINK, _ACK, body + _nested(_IFLA_PROTINFO | _NESTED, _attribute(_BRPORT_MODE, b"\1")))


def del_link(index: int) -> bytes:
    """Remove an interface, and the other end of a pair with it."""
    return _message(RTM_DELLINK, _ACK, _ifinfo(index=index))


def add_address(index: int, address: IPInterface) -> bytes:
    """Give an interface an address, with the broadcast address of its network if it is IPv4."""
    packed = address.ip.packed
    body = struct.pack("=BBBBi", _family(address), address.network.prefixlen, 0, 0, index)
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    if isinstance(address, ipaddress.IPv4Interface):
        body += _attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return _message(RTM_NEWADDR, _ACK | _CREATE | _EXCL, body)


def add_route(index: int, destination: IPNetwork, gateway: IPAddress) -> bytes:
    """A route through an interface, in the main table."""
    length = destination.prefixlen
    body = struct.pack("=BBBBBBBBI", _family(gateway), length, 0, 0, _TABLE_MAIN, _PROTO_BOOT, 0, _UNICAST, 0)
    body += _attribute(_RTA_DST, destination.network_address.packed)
    body += _attribute(_RTA_GATEWAY, gateway.packed) + _attribute(_RTA_OIF, struct.pack("=i", index))
    return _message(RTM_NEWROUTE, _ACK | _CREATE, body)


def link_from(payload: bytes) -> Link:
    """What an RTM_NEWLINK says."""
    index, flags = struct.unpack_from("=4xiI", payload)
    found = dict(_attributes(payload[16:]))
    info = dict(_attributes(found.get(_IFLA_LINKINFO, b"")))
    mac = found.get(_IFLA_ADDRESS, b"")
    return Link(
        index=index,
        name=_string(found.get(_IFLA_IFNAME, b"")),
        kind=_string(info.get(_INFO_KIND, b"")),
        mac=mac.hex(":") if any(mac) else "",
        mtu=_number(found.get(_IFLA_MTU)),
        up=bool(flags & _IFF_UP),
        operstate=found.get(_IFLA_OPERSTATE, b"\0")[0],
        master=_number(found.get(_IFLA_MASTER)),
        peer=_number(found.get(_IFLA_LINK)),
    )


def _address_from(payload: bytes) -> Held | None:
    family, length, flags, _, index = struct.unpack_from("=BBBBi", payload)
    found = dict(_attributes(payload[8:]))
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    address = ipaddress.ip_interface((packed, length))
    return Held(index=index, address=address, flags=_number(found.get(_IFA_FLAGS)) or flags)


def _ifinfo(*, index: int = 0, up: bool = False, family: int = 0) -> bytes:
    flag = _IFF_UP if up else 0
    return struct.pack("=BxHiII", family, 0, index, flag, flag)


def _kind(kind: str) -> bytes:
    return _attribute(_INFO_KIND, kind.encode())


def _mtu(mtu: int) -> bytes:
    return _attribute(_IFLA_MTU, struct.pack("=I", mtu)) if mtu else b""


def _family(address: IPAddress | IPInterface) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _nested(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind, b"".join(parts))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST, 0, 0) + body


def _numbered(message: bytes, number: int) -> bytes:
    return message[:8] + struct.pack("=I", number) + message[12:]


def _parts(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The messages in what was received: type, number, payload."""
    while len(data) >= 16:
        length, kind, _, number, _ = struct.unpack_from("=IHHII", data)
        if not 16 <= length <= len(data):
            return
        yield kind, number, data[16:length]
        data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if not 4 <= length <= len(data):
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _number(value: bytes | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value else 0
