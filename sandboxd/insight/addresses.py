"""How many addresses of the network in force are given out, and how many are left, by range.

`host-local` keeps a file for each. They are looked at in a thread, now and then, and only after a directory has
changed: a figure is read without a wait, and is at most `LOOK_SECONDS` old. What other IPAM plugins give is theirs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sandboxd.cni import ranges, reservations
from sandboxd.cni.conf import NetworkConfig
from sandboxd.cni.ranges import Address

LOOK_SECONDS = 5.0
SETTLED_NS = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Of one range."""

    network: str
    range: str  # "first-last"
    used: int
    left: int


class Addresses:
    """The use of the network that `current` gives, None without one."""

    def __init__(self, current: Callable[[], NetworkConfig | None]) -> None:
        self._current = current
        self._seen: object = None
        self.use: Sequence[Use] = ()

    async def watch(self) -> None:
        """Look, again and again."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Bring `use` up to date."""
        config = self._current()
        self.use = await asyncio.to_thread(self._counted, config) if config else ()

    def _counted(self, config: NetworkConfig) -> Sequence[Use]:
        directories = reservations.directories(config)
        times = [_changed_at(directory) for directory in directories]
        if (config, *times) == self._seen:
            return self.use
        taken = [address for directory in directories for address in reservations.addresses(directory)]
        counted = [_use(config.name, each, taken) for each in ranges.ranges(config)]
        # Taken before the directories were read, so that a change meanwhile is seen the next time: unless it comes
        # within the tick of the kernel's clock in which there was one before.
        settled = time.time_ns() - max(times, default=0) > SETTLED_NS
        self._seen = (config, *times) if settled else None
        return counted


def _use(network: str, range_: ranges.Range, taken: Sequence[Address]) -> Use:
    used = sum(address in range_ for address in taken)
    return Use(network=network, range=str(range_), used=used, left=max(0, range_.size - used))


def _changed_at(directory: str) -> int:
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return 0
