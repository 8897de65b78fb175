"""The addresses that a network's `host-local` plugin can give out: its ranges, and how many there are. Pure.

As the plugin reads them: `ranges` is a list of sets, of which a pod gets one address each; `subnet` and the keys
beside it are a set of one range, the older form. A range ends before the broadcast address of an IPv4 subnet, and
its gateway is not given out.

https://www.cni.dev/plugins/current/ipam/host-local/
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sandboxd.cni.conf import NetworkConfig, delegate_type

PLUGIN = "host-local"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Addresses of a subnet, from `first` to `last`, both included. The gateway is not given out."""

    subnet: Subnet
    first: Address
    last: Address
    gateway: Address

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    @property
    def size(self) -> int:
        """How many addresses can be given out."""
        return int(self.last) - int(self.first) + 1 - self.spans(self.gateway)

    def __contains__(self, address: Address) -> bool:
        """Whether the address can be given out of this range."""
        return address != self.gateway and self.spans(address)

    def spans(self, address: Address) -> bool:
        """Whether it is between the two; addresses of different families are not."""
        return address.version == self.first.version and int(self.first) <= int(address) <= int(self.last)


def ranges(config: NetworkConfig) -> list[Range]:
    """The ranges of a network; one that the plugin would refuse is left out."""
    found = []
    for plugin in config.plugins:
        if delegate_type(plugin) == PLUGIN:
            for entry in _entries(plugin["ipam"]):
                try:
                    found.append(_range(entry))
                except (ValueError, TypeError):
                    continue
    return list(dict.fromkeys(found))


def _entries(ipam: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    sets = ipam.get("ranges")
    if "subnet" in ipam:
        yield ipam
    for each in sets if isinstance(sets, list) else ():
        yield from (entry for entry in each if isinstance(entry, dict)) if isinstance(each, list) else ()


def _range(entry: Mapping[str, Any]) -> Range:
    """Raises ValueError or TypeError for what is no range."""
    subnet = ipaddress.ip_network(entry.get("subnet", ""), strict=False)
    if subnet.max_prefixlen - subnet.prefixlen < 2:
        raise ValueError(f"{subnet} is too small")
    after_last = 1 if subnet.version == 4 else 0
    first = _address(entry.get("rangeStart")) or subnet[1]
    last = _address(entry.get("rangeEnd")) or subnet[-1 - after_last]
    if first not in subnet or last not in subnet or int(last) < int(first):
        raise ValueError(f"{first} to {last} is no range of {subnet}")
    return Range(subnet=subnet, first=first, last=last, gateway=_address(entry.get("gateway")) or subnet[1])


def _address(text: Any) -> Address | None:
    return ipaddress.ip_address(text) if text else None
