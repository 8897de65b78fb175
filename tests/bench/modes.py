"""In which ways sandboxd can run pods, from what its configuration has. Pure.

A way that the configuration has no key for is not built, and is reported so.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REAL, DEFAULT, POOL, PINNED = "real plugins", "default", "warm pool", "pinned"
COLUMNS = (REAL, DEFAULT, POOL, PINNED)  # of the table of goals
UNRECORDED = "not recorded"  # as the defaults, without timelines: what recording costs

POOL_SIZE = 4  # sandboxes that are ready when a client asks for one

_PINNED = {"runtime": {"handlers": {"runc": {"sandbox_mode": "pinned"}}}}

Sections = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way; `sections` are what it adds to the configuration, None when it is not built."""

    name: str
    sections: Sections | None

    @property
    def built(self) -> bool:
        return self.sections is not None


def settings(printed: str) -> Mapping[str, Any]:
    """What `sandboxd config` printed, which is TOML."""
    return tomllib.loads(printed)


def detect(known: Mapping[str, Any]) -> Sequence[Mode]:
    """Every way, in the order of COLUMNS, and the one without recording."""

    def has(section: str, key: str) -> bool:
        return key in known.get(section, {})

    in_process, pool = has("network", "in_process"), has("pool", "size")
    pinned = "sandbox_mode" in known.get("runtime", {}).get("handlers", {}).get("runc", {})
    return (
        Mode(name=REAL, sections={"network": {"in_process": "never"}} if in_process else {}),
        Mode(name=DEFAULT, sections={} if in_process else None),
        Mode(name=POOL, sections={"pool": {"size": POOL_SIZE}} if pool else None),
        Mode(name=PINNED, sections=_PINNED if pinned else None),
        Mode(name=UNRECORDED, sections={"insight": {"timeline": False}} if has("insight", "timeline") else None),
    )


def main_mode(modes: Sequence[Mode]) -> Mode:
    """What a user gets who configures nothing."""
    return next(mode for mode in reversed(modes[:2]) if mode.built)
