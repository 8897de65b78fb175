"""What the plugin `bridge` does to interfaces, addresses, routes and sysctls, in a few messages to the kernel.

    prepare   the bridge; a pair, whose one end is born in the pod; an address of each range
    connect   the pod's end gets its addresses, comes up and gets its routes; the bridge gets the gateways' addresses
    disconnect  the pod's end goes, and the host's with it

Everything here blocks and belongs into a thread that ends with it: one that fails stays in the pod's namespace.
Failures are in the plugin's words.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sandboxd import syscalls
from sandboxd.cni.in_process import netlink
from sandboxd.cni.in_process.dialects import Dialect
from sandboxd.cni.in_process.host_local import Cancelled, Store
from sandboxd.cni.in_process.netlink import IF_OPER_UP, IPAddress, IPInterface, Link, Refused, Socket
from sandboxd.cni.in_process.supported import Bridge, Route
from sandboxd.cni.in_process.words import Failed, of_os

_NAMES_TRIED = 10  # for the host's end of a pair
_UP_SECONDS = 2.55  # for the host's end to come up once the pod's is
_LOOK_SECONDS = 0.001, 0.05  # between two looks at it: the first, the longest
_SETTLE_SECONDS = 5.0  # for the pod's IPv6 addresses to be usable


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """Whose network it is."""

    container: str
    netns: str  # path
    ifname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What `prepare` has made and reserved."""

    bridge: Link
    host: Link
    addresses: tuple[IPInterface, ...]
    gateways: tuple[IPAddress, ...]  # of each address

    def routes(self, conf: Bridge) -> tuple[Route, ...]:
        """The pod's routes: the network's, and the default ones that the bridge is to be."""
        routes = list(conf.routes)
        for address, gateway in zip(self.addresses, self.gateways, strict=True):
            if conf.is_default_gateway:
                default = ipaddress.ip_network("0.0.0.0/0" if address.version == 4 else "::/0")
                routes.append(Route(destination=default, gateway=gateway))
        return tuple(routes)


def prepare(conf: Bridge, pod: Pod, dialect: Dialect, given_up: threading.Event) -> Prepared:
    """The bridge, the pair and the addresses. Raises Failed."""
    netns = _opened(pod.netns)
    try:
        with Socket() as kernel:
            bridge = _bridge(kernel, conf)
            host = _pair(kernel, conf, bridge, pod, netns, dialect)
    finally:
        os.close(netns)
    _sysctl(f"ipv6/conf/{host.name}/accept_ra", "0")
    given = Store(conf.data_dir, dialect.file_mode, given_up).reserve(conf.ranges, pod.container, pod.ifname)
    return Prepared(
        bridge=bridge,
        host=host,
        addresses=tuple(ipaddress.ip_interface((address, of.subnet.prefixlen)) for address, of in given),
        gateways=tuple(of.gateway for _, of in given),
    )


def _bridge(kernel: Socket, conf: Bridge) -> Link:
    """The bridge, made if need be, and up."""
    name = conf.bridge
    try:
        found = kernel.link(name)
        if found is None:
            kernel.send(netlink.new_bridge(name, conf.mtu), existing=(0,))
            found = kernel.link(name)
        if found is None:
            raise Failed(f'failed to create bridge "{name}": could not lookup "{name}": Link not found')
        if found.kind != "bridge":
            raise Failed(f'failed to create bridge "{name}": "{name}" already exists but is not a bridge')
        _sysctl(f"ipv6/conf/{name}/accept_ra", "0")
        if not found.up:
            kernel.send(netlink.set_up(found.index))
    except OSError as exc:
        raise Failed(f'failed to create bridge "{name}": could not add "{name}": {_words(exc)}') from exc
    return found


def _pair(kernel: Socket, conf: Bridge, bridge: Link, pod: Pod, netns: int, dialect: Dialect) -> Link:
    """The host's end of a new pair."""
    for _ in range(_NAMES_TRIED):
        name = f"veth{secrets.randbits(32):08x}"
        made = netlink.new_pair(name, bridge.index, pod.ifname, netns, conf.mtu, dialect.inside_queue)
        try:
            _, ((_, answer), *_) = kernel.send(made, netlink.get_link(name))
            host = netlink.link_from(answer)
            if conf.hairpin:
                kernel.send(netlink.set_hairpin(host.index))
            return host
        except Refused as exc:
            if exc.errno != errno.EEXIST:
                raise Failed(dialect.no_pair(pod.ifname, name, _words(exc))) from exc
            if kernel.link(name) is None:  # so it is the pod's end that is there already
                raise Failed(dialect.pair_exists(pod.ifname, name)) from exc
    raise Failed("failed to find a unique veth name")


def connect(
    conf: Bridge, pod: Pod, prepared: Prepared, dialect: Dialect, given_up: threading.Event
) -> tuple[Link, Link, Link]:
    """Connect the pod; the bridge, the host's end and the pod's end as they are then. Raises Failed."""
    with Socket() as host, _entered(pod.netns):
        inside = _configure(pod, prepared, prepared.routes(conf), dialect, given_up)
        port = _wait_until_up(host, prepared.host, given_up)
    with Socket() as host:
        if conf.is_gateway:
            for address, gateway in zip(prepared.addresses, prepared.gateways, strict=True):
                _gateway(host, prepared.bridge, ipaddress.ip_interface((gateway, address.network.prefixlen)))
                _forward(address.version)
        bridge = host.link(conf.bridge)
    if bridge is None:
        raise Failed(f'could not lookup "{conf.bridge}": Link not found')
    return bridge, port, inside


def _gateway(kernel: Socket, bridge: Link, address: IPInterface) -> None:
    """Give the bridge the gateway's address, and with it a MAC address that ports no longer change."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    for held in kernel.addresses(bridge.index, family):
        if held.address == address:
            return
        overlaps = held.address.ip in address.network or address.ip in held.address.network
        if address.version == 4 or overlaps:
            raise Failed(
                f'failed to set bridge addr: "{bridge.name}" already has an IP address different from {address}'
            )
    try:
        kernel.send(netlink.add_address(bridge.index, address), existing=(0,))
    except Refused as exc:
        raise Failed(
            f'failed to set bridge addr: could not add IP address to "{bridge.name}": {_words(exc)}'
        ) from exc
    try:
        kernel.send(netlink.set_mac(bridge.index, bridge.mac))
    except Refused as exc:
        raise Failed(f"failed to set bridge addr: could not set bridge's mac: {_words(exc)}") from exc


def _forward(version: int) -> None:
    path = "ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding"
    try:
        with open(f"/proc/sys/net/{path}", "r+b", buffering=0) as file:
            if file.read(2).strip() != b"1":
                file.seek(0)
                file.write(b"1")
    except OSError as exc:
        raise Failed(f"failed to enable forwarding: {of_os(exc)}") from exc


def _configure(
    pod: Pod, prepared: Prepared, routes: Sequence[Route], dialect: Dialect, given_up: threading.Event
) -> Link:
    """Within the pod: its end, once it has its addresses and routes."""
    name = pod.ifname
    # Before it comes up: the kernel looks at them then.
    _sysctl(f"ipv6/conf/{name}/accept_dad", "0")
    _sysctl(f"ipv4/conf/{name}/arp_notify", "1")
    if any(each.version == 6 for each in prepared.addresses):
        _sysctl(f"ipv6/conf/{name}/disable_ipv6", "0")
        if dialect.keeps_addresses:
            _sysctl(f"ipv6/conf/{name}/keep_addr_on_down", "1")
    with Socket() as kernel:
        link = kernel.link(name)
        if link is None:
            raise Failed(f'failed to lookup "{name}": Link not found')
        adding = [netlink.add_address(link.index, address) for address in prepared.addresses]
        messages = [*adding, netlink.set_up(link.index)]
        routing = _route_messages(link, prepared, routes)
        try:
            if any(each.version == 6 for each in prepared.addresses):
                kernel.send(*messages)
                _settle(kernel, link, given_up)
                messages = []
            if messages or routing:
                kernel.send(*messages, *routing)
        except Refused as exc:
            if exc.position < len(messages):
                raise Failed(f'failed to add IP addr to "{name}": {_words(exc)}') from exc
            route = routes[exc.position - len(messages)]
            raise Failed(
                f"failed to add route '{route.destination} via {_via(route, prepared)} dev {name}': {_words(exc)}"
            ) from exc
    return link


def _route_messages(link: Link, prepared: Prepared, routes: Sequence[Route]) -> list[bytes]:
    return [netlink.add_route(link.index, each.destination, _via(each, prepared)) for each in routes]


def _via(route: Route, prepared: Prepared) -> IPAddress:
    if route.gateway is not None:
        return route.gateway
    return next(each for each in prepared.gateways if each.version == route.destination.version)


def _settle(kernel: Socket, link: Link, given_up: threading.Event) -> None:
    """Wait until no IPv6 address of the interface is tentative."""
    wait, longest, waited = *_LOOK_SECONDS, 0.0
    while any(held.flags & netlink.IFA_F_TENTATIVE for held in kernel.addresses(link.index, socket.AF_INET6)):
        if waited > _SETTLE_SECONDS:
            raise Failed(f"link {link.name} still has tentative addresses after 5 seconds")
        _pause(given_up, wait)
        waited, wait = waited + wait, min(2 * wait, longest)


def _wait_until_up(kernel: Socket, port: Link, given_up: threading.Event) -> Link:
    """The host's end once it forwards; the pod's end is up."""
    wait, longest, waited = *_LOOK_SECONDS, 0.0
    while True:
        found = kernel.link(port.name)
        if found is None:
            raise Failed(f'failed to lookup "{port.name}": Link not found')
        if found.operstate == IF_OPER_UP:
            return found
        if waited > _UP_SECONDS:
            raise Failed("bridge port in error state: down")
        _pause(given_up, wait)
        waited, wait = waited + wait, min(2 * wait, longest)


def _pause(given_up: threading.Event, seconds: float) -> None:
    if given_up.wait(seconds):
        raise Cancelled


def disconnect(netns: str, ifname: str) -> None:
    """Remove the pod's end, and the host's with it. Idempotent; raises Failed."""
    try:
        with _entered(netns), Socket() as kernel:
            link = kernel.link(ifname)
            if link is not None:
                kernel.send(netlink.del_link(link.index))
    except _Gone:
        return
    except Refused as exc:
        if exc.errno != errno.ENODEV:
            raise Failed(f'failed to delete "{ifname}": {_words(exc)}') from exc


class _Gone(Failed):
    """There is nothing at the path of a namespace."""


def _opened(netns: str) -> int:
    """A descriptor of a namespace. Raises Failed when there is none at the path."""
    try:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise _Gone(f'failed to open netns "{netns}": failed to Statfs "{netns}": {_words(exc)}') from exc
    # All namespaces are files of the kernel's one nsfs.
    if os.fstat(fd).st_dev != os.stat("/proc/self/ns/net").st_dev:
        os.close(fd)
        raise Failed(f'failed to open netns "{netns}": unknown FS magic on "{netns}"')
    return fd


@contextmanager
def _entered(netns: str) -> Iterator[None]:
    """Be in a namespace meanwhile; the thread is one of its own, should it not come back."""
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        inside = _opened(netns)
        try:
            syscalls.setns(inside, syscalls.CLONE_NEWNET)
        finally:
            os.close(inside)
        yield
        syscalls.setns(outside, syscalls.CLONE_NEWNET)
    finally:
        os.close(outside)


def _sysctl(name: str, value: str) -> None:
    """Set a sysctl of the namespace that the thread is in, if this kernel has it."""
    try:
        with open(f"/proc/sys/net/{name}", "wb", buffering=0) as file:
            file.write(value.encode())
    except OSError:
        pass  # as the plugin: a kernel without IPv6 has none of it


def _words(error: OSError) -> str:
    return of_os(OSError(error.errno, ""))
