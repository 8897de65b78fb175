"""A network configuration whose addresses the cluster assigns: from a template and pod CIDRs to a .conflist. Pure.

The template is an ordinary .conflist with placeholders for what is not known until then:

    "{{.PodCIDR}}"          the first CIDR                          "10.244.3.0/24"
    "{{.PodCIDRRanges}}"    `ranges` of host-local, for all CIDRs   [[{"subnet": "10.244.3.0/24"}], …]
    "{{.Routes}}"           a default route for each IP version     [{"dst": "0.0.0.0/0"}, …]

They are the names that containerd's templates use. Here each must be an entire JSON string; the control structures of
those templates (`{{range …}}`) are not JSON and are refused.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

from sandboxd.cni.conf import parse
from sandboxd.cni.strict_json import load_object
from sandboxd.errors import InvalidRequest

_MARK = "{{"


def cidrs(text: str) -> tuple[str, ...]:
    """The CIDRs in "10.244.3.0/24,fd00:3::/64"; raises InvalidRequest."""
    networks = []
    for part in (part.strip() for part in text.split(",")):
        try:
            if "/" not in part:
                raise ValueError("no prefix length")
            networks.append(str(ipaddress.ip_network(part)))
        except ValueError as exc:
            raise InvalidRequest(f"pod_cidr: {part!r} is not a network like 10.244.3.0/24: {exc}") from exc
    return tuple(networks)


def render(template: bytes, pod_cidrs: tuple[str, ...], source: str) -> bytes:
    """The configuration; raises InvalidRequest when the template or the result is not valid.

    `source` is the template's path, for messages.
    """
    try:
        document = load_object(template)
    except ValueError as exc:
        hint = "; each {{…}} must be an entire quoted string here" if _MARK.encode() in template else ""
        raise InvalidRequest(f"{source}: {exc}{hint}") from exc
    families = sorted({ipaddress.ip_network(cidr).version for cidr in pod_cidrs})
    values = {
        "{{.PodCIDR}}": pod_cidrs[0],
        "{{.PodCIDRRanges}}": [[{"subnet": cidr}] for cidr in pod_cidrs],
        "{{.Routes}}": [{"dst": "0.0.0.0/0" if version == 4 else "::/0"} for version in families],
    }
    rendered = json.dumps(_filled(document, values, source), indent=2).encode() + b"\n"
    parse(f"{source.removesuffix('.template')}.conflist", rendered)
    return rendered


def _filled(value: Any, values: Mapping[str, Any], source: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, values, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, values, source) for item in value]
    if isinstance(value, str) and _MARK in value:
        if value not in values:
            raise InvalidRequest(f"{source}: {value!r} is not a known placeholder; use one of {', '.join(values)}")
        return values[value]
    return value
