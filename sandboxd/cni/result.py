"""Answers of plugins: a result in any version of the spec, and which versions a plugin speaks.

A result is read as libcni reads it, which is what plugins are tested with: keys in any case, null for nothing, no
demand that a version states its own form. What libcni refuses breaks the plugin's contract, and the pod's network is
unknown: that is `PluginFailed`, naming the part that is wrong, never a guess.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandboxd.cni.conf import SUPPORTED
from sandboxd.cni.strict_json import in_any_case, load_object, shown
from sandboxd.errors import PluginFailed

OUTPUT_LIMIT = 1 << 20
"""Bytes of stdout and of stderr that are kept of one execution."""

_REMEMBERED = 32  # results: of the pods that are being made or deleted, whose are read again and again
_KEYS = ("cniVersion", "interfaces", "ips", "routes", "dns", "ip4", "ip6")  # of a result, in any version


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An interface that a plugin created. `sandbox` is "" for one in the host's namespace."""

    name: str
    mac: str = ""
    sandbox: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address with its prefix length, such as "10.88.0.2/16". `interface` is an index, None when not given."""

    address: str
    gateway: str = ""
    interface: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route; `gw` is "" for the default of the address family."""

    dst: str
    gw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """The network's settings for name resolution."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of ADD.

    `raw` is what is passed on: what the plugin printed, with its version and without nulls. `remarks` say what is
    dubious in it, for people.
    """

    cni_version: str
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)
    raw: Mapping[str, Any]
    remarks: tuple[str, ...] = ()


class _Malformed(Exception):
    """Says which part of a result is wrong."""


def parse_result(data: bytes, plugin: str, *, version: str = SUPPORTED[0], command: str = "ADD") -> Result:
    """Read the result that `plugin` printed.

    A result that does not name its version has `version`, that of the request. Raises PluginFailed saying what is
    wrong.
    """
    try:
        return _result(data, version)
    except _Malformed as exc:
        raise PluginFailed(plugin=plugin, command=command, code=0, msg=f"malformed result: {exc}") from exc


def pod_ips(result: Result, ifname: str) -> tuple[str, ...]:
    """The pod's own addresses without prefix lengths, in the plugin's order, each once.

    They are those of the interface `ifname` and those that name no interface. A host interface may have the same
    name, so one inside a sandbox takes precedence.
    """
    named = {i for i, interface in enumerate(result.interfaces) if interface.name == ifname}
    inside = {i for i in named if result.interfaces[i].sandbox}
    own = inside or named
    addresses = [ip.address for ip in result.ips if ip.interface is None or ip.interface in own]
    return tuple(dict.fromkeys(_plain(address) for address in addresses))


def _plain(address: str) -> str:
    """The address without its prefix length, as every runtime writes it: "FD00:0::2/64" is "fd00::2"."""
    ip = ipaddress.ip_interface(address).ip
    return str(ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else str(ip)


def supported_versions(data: bytes, plugin: str) -> frozenset[str]:
    """The answer to VERSION (spec section 5, "Version"). Raises PluginFailed when it says nothing."""
    try:
        document = _document(data)
        listed = in_any_case(document, "supportedVersions")
        versions = frozenset(v for v in listed if isinstance(v, str)) if isinstance(listed, list) else frozenset()
        if not versions and in_any_case(document, "cniVersion") == "0.2.0":
            # The first with VERSION, whose answer had no list yet.
            versions = frozenset({"0.1.0", "0.2.0"})
        if not versions:
            raise _Malformed("supportedVersions: expected a list of versions")
    except _Malformed as exc:
        raise PluginFailed(plugin=plugin, command="VERSION", code=0, msg=f"malformed answer: {exc}") from exc
    return versions


def _document(data: bytes) -> dict[str, Any]:
    if len(data) >= OUTPUT_LIMIT:
        raise _Malformed(f"more than {OUTPUT_LIMIT} bytes on stdout")
    if data.strip() == b"null":
        return {}  # as libcni reads it
    try:
        return load_object(data)
    except ValueError as exc:
        seen = data[:200].decode(errors="replace").strip()
        raise _Malformed(f"{exc}: {seen}" if seen else "nothing was printed on stdout") from exc


@functools.lru_cache(maxsize=_REMEMBERED)
def _result(data: bytes, version: str) -> Result:
    document = {key: value for key, value in _canonical(_document(data)).items() if value is not None}
    stated = document.get("cniVersion")
    if not isinstance(stated, str) or not stated:
        stated = version
    if stated not in SUPPORTED:
        raise _Malformed(f"cniVersion {shown(stated)} is not one of {', '.join(SUPPORTED)}")
    routes: list[Route] = []
    remarks: list[str] = []
    interfaces: tuple[Interface, ...] = ()
    if stated in ("0.1.0", "0.2.0"):
        ips = _old_ips(document, routes)
    else:
        interfaces = tuple(_interface(item, f"interfaces[{i}]") for i, item in _items(document, "interfaces"))
        ips = [_ip(item, f"ips[{i}]", len(interfaces), remarks) for i, item in _items(document, "ips")]
        routes += _routes(document, "")
    return Result(
        cni_version=stated,
        interfaces=interfaces,
        ips=tuple(ips),
        routes=tuple(routes),
        dns=_dns(document.get("dns")),
        raw={**document, "cniVersion": stated},
        remarks=tuple(remarks),
    )


def _canonical(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same document with the spec's spelling of its keys: a plugin in any language may get it as prevResult."""
    spelling = {key.lower(): key for key in _KEYS if key not in document}
    return {spelling.get(key.lower(), key): value for key, value in document.items()}


def _old_ips(document: Mapping[str, Any], routes: list[Route]) -> list[Address]:
    """ip4 and ip6 of versions 0.1.0 and 0.2.0, which include their routes."""
    ips = []
    for key in ("ip4", "ip6"):
        item = document.get(key)
        if item is None:
            continue
        if not isinstance(item, dict):
            raise _Malformed(f"{key}: not an object")
        gateway = _gateway(in_any_case(item, "gateway"), f"{key}.gateway")
        ips.append(Address(address=_cidr(in_any_case(item, "ip"), f"{key}.ip"), gateway=gateway))
        routes += _routes(item, f"{key}.")
    return ips


def _items(document: Mapping[str, Any], key: str, where: str = "") -> Sequence[tuple[int, dict[str, Any]]]:
    # Plugins written in Go print null for a list, or an entry of it, that they never filled.
    items = in_any_case(document, key)
    if items is None:
        return ()
    if not isinstance(items, list) or not all(item is None or isinstance(item, dict) for item in items):
        raise _Malformed(f"{where}{key}: not a list of objects")
    return tuple((i, item or {}) for i, item in enumerate(items))


def _interface(item: Mapping[str, Any], where: str) -> Interface:
    return Interface(
        name=_text(item, "name", where), mac=_text(item, "mac", where), sandbox=_text(item, "sandbox", where)
    )


def _ip(item: Mapping[str, Any], where: str, interfaces: int, remarks: list[str]) -> Address:
    # Required from 0.3.0 to 0.4.0, `version` repeats what the address says; no runtime ever looked at it.
    index = in_any_case(item, "interface")
    if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
        raise _Malformed(f"{where}.interface: expected an index into interfaces, got {shown(index)}")
    if index is not None and not 0 <= index < interfaces:
        # Into a list that the plugin, or the one after it, left out.
        remarks.append(f"{where}.interface: {index} points to none of the {interfaces} interfaces")
        index = None
    return Address(
        address=_cidr(in_any_case(item, "address"), f"{where}.address"),
        gateway=_gateway(in_any_case(item, "gateway"), f"{where}.gateway"),
        interface=index,
    )


def _routes(item: Mapping[str, Any], where: str) -> list[Route]:
    routes = []
    for i, route in _items(item, "routes", where):
        at = f"{where}routes[{i}]"
        gw = _gateway(in_any_case(route, "gw"), f"{at}.gw")
        if "dst" in map(str.lower, route):
            routes.append(Route(dst=_cidr(in_any_case(route, "dst"), f"{at}.dst"), gw=gw))
    return routes


def _cidr(value: object, where: str) -> str:
    if not isinstance(value, str) or "/" not in value:
        raise _Malformed(f"{where}: expected an address with its prefix length, got {shown(value)}")
    try:
        ipaddress.ip_interface(value)
    except ValueError as exc:
        raise _Malformed(f"{where}: {exc}") from exc
    return value


def _gateway(value: object, where: str) -> str:
    if value is None or value == "":
        return ""
    try:
        if not isinstance(value, str):
            raise ValueError
        ipaddress.ip_address(value)
    except ValueError as exc:
        raise _Malformed(f"{where}: expected an IP address, got {shown(value)}") from exc
    return value


def _dns(item: object) -> Dns:
    if item is None:
        return Dns()
    if not isinstance(item, dict):
        raise _Malformed("dns: not an object")
    lists = {key: in_any_case(item, key) or [] for key in ("nameservers", "search", "options")}
    for key, values in lists.items():
        if not isinstance(values, list) or not all(value is None or isinstance(value, str) for value in values):
            raise _Malformed(f"dns.{key}: not a list of strings")
    return Dns(
        domain=_text(item, "domain", "dns"),
        **{key: tuple(value for value in values if value) for key, values in lists.items()},
    )


def _text(item: Mapping[str, Any], key: str, where: str) -> str:
    value = in_any_case(item, key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Malformed(f"{where}.{key}: expected a string, got {shown(value)}")
    return value
