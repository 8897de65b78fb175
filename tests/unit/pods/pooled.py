"""A node of fakes with a pool, and what is in it."""

from __future__ import annotations

from dataclasses import replace

from sandboxd.config import Pool
from sandboxd.model import SandboxRecord
from sandboxd.pods import pool, refill
from tests.fakes.bundle import Bundle


def with_pool(fakes: Bundle, size: int) -> None:
    """From now on the pool has this size, as after a restart with another configuration."""
    fakes.node = replace(fakes.node, config=replace(fakes.node.config, pool=Pool(size=size)))


async def filled(fakes: Bundle, size: int = 1) -> list[SandboxRecord]:
    """The pods of a pool of this size, once it is full, and nothing is under way any more."""
    with_pool(fakes, size)
    while await refill.turn(fakes.node, fakes.pause_image):
        pass
    await fakes.settled()
    return pool.prepared(fakes.node)
