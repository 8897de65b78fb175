"""The addresses that `host-local` gives out, and in which order. Pure.

A network has range sets; a pod gets one address of each. A set is one or more ranges, each a part of a subnet. The
next address is the one after the last that was given, the sets' ranges in a circle, gateways left out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sandboxd.cni.ranges import Address, Range

RangeSet = tuple[Range, ...]


class Odd(Exception):
    """A configuration that is left to the plugin, which knows whether it is an error; says which part."""


def sets(ipam: Mapping[str, Any]) -> tuple[RangeSet, ...]:
    """The range sets of an `ipam` object. Raises Odd."""
    listed = ipam.get("ranges", [])
    if not isinstance(listed, list) or not all(isinstance(each, list) and each for each in listed):
        raise Odd("ipam.ranges")
    own = {key: ipam[key] for key in ("subnet", "rangeStart", "rangeEnd", "gateway") if key in ipam}
    found = [tuple(map(_range, each)) for each in ([[own]] if own else []) + listed]
    if not found:
        raise Odd("ipam without a range")
    everywhere = [each for one in found for each in one]
    for one in found:
        if len({each.subnet.version for each in one}) != 1:
            raise Odd("ipam.ranges of both families in a set")
    for i, each in enumerate(everywhere):
        if any(each.spans(other.first) or other.spans(each.first) for other in everywhere[i + 1 :]):
            raise Odd("ipam.ranges that overlap")
    if len(found) > 2 or len({one[0].subnet.version for one in found}) != len(found):
        raise Odd("several ipam.ranges of one family")
    return tuple(found)


def _range(item: object) -> Range:
    if not isinstance(item, dict) or set(item) - {"subnet", "rangeStart", "rangeEnd", "gateway"}:
        raise Odd("ipam.ranges")
    try:
        if not all(isinstance(value, str) and "%" not in value for value in item.values()):
            raise ValueError
        if item["subnet"] != str(subnet := ipaddress.ip_network(item["subnet"])):
            raise ValueError
        usual = int(subnet.network_address) + 1
        end = int(subnet.broadcast_address) - (1 if subnet.version == 4 else 0)
        of = type(subnet.network_address)
        given = {key: of(item[key]) for key in ("rangeStart", "rangeEnd", "gateway") if key in item}
    except (KeyError, ValueError) as exc:
        raise Odd("ipam.ranges") from exc
    found = Range(
        subnet=subnet,
        first=given.get("rangeStart", of(usual)),
        last=given.get("rangeEnd", of(end)),
        gateway=given.get("gateway", of(usual)),
    )
    if subnet.prefixlen > subnet.max_prefixlen - 2 or not usual <= int(found.first) <= int(found.last) <= end:
        raise Odd("ipam.ranges")
    if found.gateway not in subnet:
        raise Odd("ipam gateway outside of its subnet")
    return found


def candidates(one: RangeSet, last: Address | None) -> Iterator[tuple[Address, Range]]:
    """Every address of the set that a pod may get, in the order in which they are tried.

    `last` is the one that was given out last, None when that is not known.
    """
    at = next((i for i, each in enumerate(one) if last is not None and each.spans(last)), None)
    if at is None or last is None:
        order: Sequence[tuple[Range, int, int]] = [(each, int(each.first), int(each.last)) for each in one]
    else:
        middle = int(last)
        order = [
            (one[at], middle + 1, int(one[at].last)),
            *((each, int(each.first), int(each.last)) for each in (*one[at + 1 :], *one[:at])),
            (one[at], int(one[at].first), middle),
        ]
    for each, low, high in order:
        of = type(each.first)
        for number in range(low, high + 1):
            if number != int(each.gateway):
                yield of(number), each


def shown(one: RangeSet) -> str:
    """The set as the plugin's messages have it."""
    return ",".join(map(str, one))
