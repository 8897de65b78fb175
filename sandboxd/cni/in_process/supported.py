"""Which configurations of `bridge` and `portmap` can be done in-process: those whose every key is known here. Pure.

Anything else is the plugin's: a key that is not listed, a value of another type than the plugin takes, a
configuration that it would refuse. What is listed is what the differential tests compare.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandboxd.cni.in_process.ranges import Odd, RangeSet, sets
from sandboxd.cni.ranges import Address, Subnet
from sandboxd.cni.strict_json import load_object

PLUGINS = ("bridge", "portmap")
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")  # of the spec: those whose results have lists
NETWORKS = "/var/lib/cni/networks"  # where host-local keeps its files
_COMMON = frozenset({"cniVersion", "name", "type", "prevResult", "runtimeConfig"})
_MOST_MTU = 65535
# CNI_ARGS that the plugins do not read; IP and MAC they do.
_IDENTITY = frozenset(
    {"IgnoreUnknown", "K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route that the pod gets; `gateway` None is that of the pod's address."""

    destination: Subnet
    gateway: Address | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A `bridge` plugin's configuration, with its `host-local`."""

    cni_version: str
    network: str
    bridge: str
    is_gateway: bool
    is_default_gateway: bool
    masquerade: bool
    hairpin: bool
    mtu: int  # 0 is the kernel's default
    ranges: tuple[RangeSet, ...]
    routes: tuple[Route, ...]
    data_dir: str  # of the network's addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """A TCP port of the host that leads to one of the pod."""

    host_port: int
    container_port: int
    host_ip: Address | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Portmap:
    """A `portmap` plugin's configuration."""

    network: str
    mappings: tuple[PortMapping, ...]


def read(document: Mapping[str, Any], args: str) -> Bridge | Portmap:
    """The configuration that a plugin gets on stdin, with CNI_ARGS. Raises Odd, which says why it is the plugin's."""
    if document.get("cniVersion") not in VERSIONS:
        raise Odd("cniVersion")
    if {pair.partition("=")[0] for pair in args.split(";") if pair} - _IDENTITY:
        raise Odd("CNI_ARGS")
    match document.get("type"):
        case "bridge":
            return _bridge(document)
        case "portmap":
            return _portmap(document)
    raise Odd(f"plugin {document.get('type')}")


def why_not(stdin: bytes, args: str) -> str:
    """Why this execution is the plugin's; "" when it can be done in-process."""
    try:
        read(load_object(stdin), args)
    except Odd as exc:
        return str(exc)
    except ValueError:
        return "a configuration that cannot be read"
    return ""


def _bridge(document: Mapping[str, Any]) -> Bridge:
    flags = ("isGateway", "isDefaultGateway", "ipMasq", "hairpinMode", "forceAddress")
    _known(document, {*_COMMON, *flags, "bridge", "mtu", "ipam", "ipMasqBackend"})
    _typed(document, dict.fromkeys(flags, bool) | {"bridge": str, "ipam": dict, "name": str, "mtu": int})
    if document.get("forceAddress"):
        raise Odd("forceAddress")
    if document.get("ipMasqBackend", "iptables") != "iptables":
        raise Odd("ipMasqBackend")
    if document.get("runtimeConfig"):
        raise Odd("runtimeConfig." + min(document["runtimeConfig"]))
    bridge = document.get("bridge", "cni0")
    if not 1 <= len(bridge.encode()) <= 15 or not bridge.isprintable() or set(bridge) & set("/: %") or bridge in "..":
        raise Odd("bridge")
    mtu = document.get("mtu", 0)
    if mtu and not 1280 <= mtu <= _MOST_MTU:
        raise Odd("mtu")
    ipam = document.get("ipam", {})
    _known(ipam, {"type", "subnet", "rangeStart", "rangeEnd", "gateway", "ranges", "routes", "dataDir"}, "ipam.")
    _typed(ipam, {"routes": list, "dataDir": str}, "ipam.")
    if ipam.get("type") != "host-local":
        raise Odd("ipam.type")
    data_dir = ipam.get("dataDir", NETWORKS)
    if not data_dir.startswith("/") or ".." in data_dir.split("/"):
        raise Odd("ipam.dataDir")
    ranges = sets(ipam)
    routes = _routes(ipam.get("routes", []), ranges)
    if document.get("isDefaultGateway") and any(each.destination.prefixlen == 0 for each in routes):
        raise Odd("isDefaultGateway beside a default route")
    return Bridge(
        cni_version=document["cniVersion"],
        network=document["name"],
        bridge=bridge,
        is_gateway=document.get("isGateway", False) or document.get("isDefaultGateway", False),
        is_default_gateway=document.get("isDefaultGateway", False),
        masquerade=document.get("ipMasq", False),
        hairpin=document.get("hairpinMode", False),
        mtu=mtu,
        ranges=ranges,
        routes=routes,
        data_dir=f"{data_dir.rstrip('/')}/{document['name']}",
    )


def _routes(listed: Sequence[object], ranges: Sequence[RangeSet]) -> tuple[Route, ...]:
    families = {one[0].subnet.version for one in ranges}
    routes: list[Route] = []
    for item in listed:
        if not isinstance(item, dict) or set(item) - {"dst", "gw"}:
            raise Odd("ipam.routes")
        try:
            destination = ipaddress.ip_network(item["dst"])
            gateway = ipaddress.ip_address(item["gw"]) if "gw" in item else None
        except (KeyError, ValueError, TypeError) as exc:
            raise Odd("ipam.routes") from exc
        if item["dst"] != str(destination) or item.get("gw", str(gateway)) != str(gateway):
            raise Odd("ipam.routes")
        if destination.version not in families or (gateway and gateway.version != destination.version):
            raise Odd("ipam.routes of a family without addresses")
        if any(each.destination == destination for each in routes):
            raise Odd("ipam.routes to the same destination")
        routes.append(Route(destination=destination, gateway=gateway))
    return tuple(routes)


def _portmap(document: Mapping[str, Any]) -> Portmap:
    _known(document, {*_COMMON, "snat", "backend"})
    _typed(document, {"snat": bool, "name": str})
    if document.get("snat") is False:
        raise Odd("snat")
    if document.get("backend", "iptables") != "iptables":
        raise Odd("backend")
    runtime = document.get("runtimeConfig", {})
    _known(runtime, {"portMappings"}, "runtimeConfig.")
    mappings = []
    for item in runtime.get("portMappings", []):
        _known(item, {"hostPort", "containerPort", "protocol", "hostIP"}, "portMappings.")
        if item.get("protocol") != "tcp":
            # The plugins forget connections of UDP, each version in its way.
            raise Odd(f"portMappings of protocol {item.get('protocol')}")
        try:
            host_ip = ipaddress.ip_address(item["hostIP"]) if item.get("hostIP") else None
        except ValueError as exc:
            raise Odd("portMappings.hostIP") from exc
        if host_ip is not None and (host_ip.is_unspecified or host_ip.version != 4):
            raise Odd("portMappings.hostIP")
        ports = item["hostPort"], item["containerPort"]
        mappings.append(PortMapping(host_port=ports[0], container_port=ports[1], host_ip=host_ip))
    return Portmap(network=document["name"], mappings=tuple(mappings))


def _known(document: Mapping[str, Any], keys: set[str], where: str = "") -> None:
    if unknown := sorted(set(document) - keys):
        raise Odd(f"{where}{unknown[0]}")


def _typed(document: Mapping[str, Any], types: Mapping[str, type], where: str = "") -> None:
    for key, type_ in types.items():
        if key in document and type(document[key]) is not type_:
            raise Odd(f"{where}{key}")
