"""Room on the file systems that pods need: whether there is any, and some in reserve for their removal.

A node without room keeps its pods and lets them be stopped and removed; it takes no new ones, which would fail half
way. Status says so in a condition of its own: kubelet does nothing at all, not even remove pods, while `RuntimeReady`
is false, and removing pods is what makes room. Its own view of the disk (ImageFsInfo) makes it evict some.
"""

from __future__ import annotations

import asyncio
import os

from sandboxd.errors import Exhausted
from sandboxd.node import Node

LEAST_BYTES = 4 << 20  # free, for one more pod or container to be begun
LEAST_INODES = 64
LOOK_SECONDS = 5.0  # between attempts to write what waits, and to fill the reserve

_IPAM = "/var/lib/cni"  # where the host-local plugin keeps addresses unless it is told otherwise


def shortage(node: Node) -> str:
    """What there is no room for, "" when there is."""
    root = node.config.daemon.root
    others = (node.config.daemon.state, node.images.fs_info().directory, _IPAM)
    words: list[str] = []
    seen: set[int] = set()
    for place in (root, *filter(None, others)):
        device = _device(place)
        if device not in seen:
            seen.add(device)
            # What was given up for removals is for removals.
            words.append(lack(place, LEAST_BYTES + (node.machine.reserve.missing if place == root else 0)))
    return "; ".join(filter(None, (*words, node.ledger.commits.trouble)))


def _device(place: str) -> int:
    try:
        return os.stat(place).st_dev
    except OSError:
        return -1  # it is made when it is needed


def lack(directory: str, least: int = LEAST_BYTES) -> str:
    """What a file system lacks: `least` bytes, some inodes, being writable; "" when it has them, or is not there."""
    try:
        room = os.statvfs(directory)
    except OSError:
        return ""
    free = room.f_bfree * room.f_frsize  # root may use what is kept from others
    if room.f_flag & os.ST_RDONLY:
        return f"the file system of {directory} is read-only"
    if free < least:
        return f"the file system of {directory} is full: {free} bytes are free, {least} are needed"
    if room.f_files and room.f_ffree < LEAST_INODES:  # some file systems have no limit
        return f"the file system of {directory} is full: {room.f_ffree} inodes are free, {LEAST_INODES} are needed"
    return ""


def demand(node: Node) -> None:
    """Raise Exhausted if there is no room: nothing is begun that could not be finished."""
    node.ledger.commits.catch_up()  # what stood in the way may be over
    if words := shortage(node):
        raise Exhausted(f"{words}; pods can be removed, and images")


def make(node: Node) -> None:
    """Give up some of the reserve if there is no room, for something that is about to be removed."""
    if shortage(node):
        node.machine.reserve.give_up()


async def keep(node: Node) -> None:
    """Write what waits and fill the reserve, again and again."""
    while True:
        node.ledger.commits.catch_up()
        await asyncio.to_thread(node.machine.reserve.fill)
        await asyncio.sleep(LOOK_SECONDS)
