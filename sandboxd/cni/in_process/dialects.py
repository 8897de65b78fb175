"""In what the versions of the plugins differ: we do as the one that is installed does. Pure.

Those up to 1.1 and those since, told apart by whether they speak version 1.1.0 of the spec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What one line of versions does."""

    name: str  # a version that does so
    file_mode: int  # of host-local's files
    inside_queue: int | None  # length of the queue of the pod's end of a pair, None for the kernel's default
    keeps_addresses: bool  # of IPv6, when the pod's end goes down
    sorted_keys: bool  # in results since 1.0.0; others have the spec's order, and `dns` although it is empty

    def printed(self, result: Mapping[str, Any]) -> bytes:
        """A result as it is printed."""
        shown = dict(result)
        is_sorted = self.sorted_keys and not str(shown.get("cniVersion", "")).startswith("0.")
        if is_sorted and not shown.get("dns"):
            shown.pop("dns", None)
        return json.dumps(shown, indent=4, sort_keys=is_sorted).encode()

    def pair_exists(self, ifname: str, host: str) -> str:
        """Why no pair is made: the pod has an interface of that name."""
        if self.sorted_keys:
            return f'container veth name ("{ifname}") peer provided ("{host}") already exists'
        return f"container veth name provided ({ifname}) already exists"

    def no_pair(self, ifname: str, host: str, words: str) -> str:
        """Why no pair is made: the kernel refused."""
        return f"failed to make veth pair: {words}"


OLD = Dialect(name="1.1.1", file_mode=0o644, inside_queue=0, keeps_addresses=False, sorted_keys=False)
NEW = Dialect(name="1.9.1", file_mode=0o600, inside_queue=None, keeps_addresses=True, sorted_keys=True)


def of(speaks: frozenset[str]) -> Dialect:
    """The dialect of plugins that speak these versions of the spec."""
    return NEW if "1.1.0" in speaks else OLD
