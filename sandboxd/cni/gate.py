"""GC of a network excludes its ADDs, DELs and CHECKs, which may overlap each other (CNI spec 1.1, "GC").

GC is waited for no longer than its plugins may run. A waiting GC holds back later operations, so that a busy
network cannot postpone it forever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gates:
    """One gate per network name, kept only while it is in use."""

    def __init__(self) -> None:
        self._gates: dict[str, _Gate] = {}

    @asynccontextmanager
    async def shared(self, network: str) -> AsyncIterator[None]:
        """Hold off GC of `network`."""
        async with self._at(network) as gate:
            async with gate.turn:  # a GC that waits or runs holds the turn
                gate.inside += 1
                gate.empty.clear()
            try:
                yield
            finally:
                gate.inside -= 1
                if not gate.inside:
                    gate.empty.set()

    @asynccontextmanager
    async def exclusive(self, network: str) -> AsyncIterator[None]:
        """Wait until nothing runs on `network`, and hold off everything that comes later."""
        async with self._at(network) as gate, gate.turn:
            await gate.empty.wait()
            yield

    @asynccontextmanager
    async def _at(self, network: str) -> AsyncIterator[_Gate]:
        gate = self._gates.setdefault(network, _Gate())
        gate.interested += 1
        try:
            yield gate
        finally:
            gate.interested -= 1
            if not gate.interested:
                del self._gates[network]


class _Gate:
    __slots__ = ("empty", "inside", "interested", "turn")

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.empty = asyncio.Event()
        self.empty.set()
        self.inside = 0
        self.interested = 0
