"""GC of a network excludes its ADDs, DELs and CHECKs, which may overlap each other (CNI spec 1.1, "GC").

A waiting GC holds back later operations, so that a busy network cannot postpone it forever. It gives up soon, so that
one plugin that hangs in an ADD holds up neither the GC nor, behind it, the network's other pods: GC can be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandboxd.errors import Unavailable

PATIENCE_SECONDS = 2.0  # for which a GC holds back the network's other operations before it runs


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
        """Wait until nothing runs on `network`, and hold off everything that comes later.

        Raises Unavailable when what runs does not end soon.
        """
        async with self._at(network) as gate, gate.turn:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await gate.empty.wait()
            except TimeoutError:
                raise Unavailable(f"network {network} is in use by {gate.inside} operations; repeat the GC") from None
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
