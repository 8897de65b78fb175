"""What work on images that was cut off has left in containerd: found, told from what others have, removed.

A daemon that dies leaves leases, and drafts of snapshots; what neither a name nor a lease leads to then, unfinished
transfers included, containerd collects. What this daemon could not remove while containerd was away is the same.

    import, unpack, save, changes    go: a repeat begins anew
    pull                             goes once its image has a name, or the pull gave it up; until then the next
                                     attempt goes on from it
    drafts                           go: a layer is unpacked from its beginning

Ours are known by their names and by the mark of our root directory; what work under way needs is left alone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from sandboxd.errors import NotFound, SandboxdError
from sandboxd.images.pull import LEASE_PREFIX, LEASES_KEY
from sandboxd.images.store import ImageStore
from sandboxd.jobs import Jobs

log = structlog.get_logger(__name__)

_OF_NO_USE = re.compile(r"sandboxd-(?:import|unpack|save|changes|collect)-[0-9a-f]+")


async def clear_forever(store: ImageStore, jobs: Jobs, every: float) -> None:
    """Clear now, and every `every` seconds. Raises Unavailable."""
    while True:
        await clear(store, jobs)
        await asyncio.sleep(every)


async def useless(store: ImageStore) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys of drafts and the leases that were left, and that nothing will go on from. Raises Unavailable."""
    leases = sorted(lease for lease in await store.leases.idle() if _OF_NO_USE.fullmatch(lease))
    return await store.snapshots.idle_drafts(), tuple(leases)


async def clear(store: ImageStore, jobs: Jobs) -> None:
    """Remove what was left. What cannot be removed is logged, and keeps nothing else. Raises Unavailable."""
    gone = 0
    for key in await store.snapshots.idle_drafts():
        with _alone(key):
            await store.snapshots.remove(key)
            gone += 1
    for lease in sorted(await store.leases.idle()):
        if _OF_NO_USE.fullmatch(lease) or lease in store.given_up:
            with _alone(lease):
                await store.leases.delete(lease)
                store.given_up.discard(lease)
                gone += 1
        elif lease.startswith(LEASE_PREFIX):
            with _alone(lease):
                gone += await _has_gone(store, jobs, lease)
    if gone:
        log.info("what work on images had left was removed", count=gone)
        await store.leases.collect()
        await store.refresh()


async def remove_image(store: ImageStore, jobs: Jobs, text: str) -> None:
    """RemoveImage: the image under all its names, and what a pull that was cut off after naming it still holds.

    Once the names are gone nothing tells such a pull from one to go on from. Idempotent.
    Raises InvalidRequest and Unavailable.
    """
    try:
        store.resolve(text)
    except NotFound:
        return
    for lease in sorted(await store.leases.idle()):
        if lease.startswith(LEASE_PREFIX):
            with _alone(lease):
                await _has_gone(store, jobs, lease)
    await store.remove(text)


async def _has_gone(store: ImageStore, jobs: Jobs, lease: str) -> bool:
    """Give up the lease of a pull that had named its image; whether it was one."""
    async with jobs.exclusive(LEASES_KEY):
        named = {image.target.digest for image in await store.images.list()}
        try:
            held = await store.leases.content(lease)
        except NotFound:
            return False
        if named.isdisjoint(held) or lease not in await store.leases.idle():
            return False
        await store.leases.delete(lease)
        return True


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """What goes wrong with one is logged and keeps no other from going."""
    try:
        yield
    except SandboxdError as exc:
        log.warning("what was left in containerd could not be removed, retrying later", name=name, error=str(exc))
