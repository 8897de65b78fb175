"""Results in another version of the spec: what a plugin prints in one, the next may have been asked for in another.

Plugins refuse a prevResult that is not in the version of their configuration, so a result that is not would leave a
pod whose DEL fails for ever. The forms: 0.1.0 and 0.2.0 have one address for each family, with its routes; 0.3.0 to
0.4.0 have lists, with the family in each address; 1.0.0 and later have lists without it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from sandboxd.cni.result import Result, parse_result

_OLDEST = ("0.1.0", "0.2.0")


def in_version(result: Result, version: str) -> Mapping[str, Any]:
    """The document of this result in a version: `raw` itself where that is it, with every key that both have."""
    if result.cni_version == version and not _is_bare(result):
        return result.raw
    if version in _OLDEST:
        return {**_without(result, "interfaces", "ips", "routes"), **_families(result), "cniVersion": version}
    document = _without(result, "ip4", "ip6")
    if result.cni_version in _OLDEST:
        document["ips"] = [_given(address=ip.address, gateway=ip.gateway) for ip in result.ips]
        document["routes"] = [_given(dst=route.dst, gw=route.gw) for route in result.routes]
    if "ips" in document:
        document["ips"] = [
            {**{key: value for key, value in item.items() if key != "version"}, **_family(ip.address, version)}
            for item, ip in zip(document["ips"], result.ips, strict=True)
        ]
    return {**document, "cniVersion": version}


def read(data: bytes, version: str) -> Mapping[str, Any]:
    """A recorded result in a version. Raises PluginFailed when it is damaged."""
    return in_version(parse_result(data, "recorded", version=version), version)


def _is_bare(result: Result) -> bool:
    """Whether an address lacks the family that its version has."""
    listed = result.raw.get("ips") if result.cni_version.startswith("0.") else None
    return any("version" not in item for item in listed or [])


def _without(result: Result, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in result.raw.items() if key not in keys}


def _family(address: str, version: str) -> dict[str, str]:
    return {"version": str(_number(address))} if version.startswith("0.") else {}


def _number(address: str) -> int:
    """4 or 6; an IPv4 address that is written as an IPv6 one is 4."""
    ip = ipaddress.ip_interface(address).ip
    return 4 if isinstance(ip, ipaddress.IPv4Address) or ip.ipv4_mapped else 6


def _families(result: Result) -> dict[str, Any]:
    """ip4 and ip6: the first address of each family, with the family's routes."""
    families: dict[str, Any] = {}
    for ip in result.ips:
        family = _number(ip.address)
        routes = [_given(dst=route.dst, gw=route.gw) for route in result.routes if _number(route.dst) == family]
        families.setdefault(f"ip{family}", _given(ip=ip.address, gateway=ip.gateway, routes=routes))
    return families


def _given(**keys: Any) -> dict[str, Any]:
    """The keys that have a value."""
    return {key: value for key, value in keys.items() if value}
