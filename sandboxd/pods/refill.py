"""The pool is kept as it should be: filled one by one while nothing else is done, and without what is out of date.

What prepared pods are made of can change while they wait: the network's configuration, its plugins, the pause image,
our own settings. Those of before are removed then, and all while there is no network. What cannot be prepared is
tried again with pauses that grow, and logged once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog

from sandboxd import disclosure
from sandboxd.cni.conf import NetworkConfig
from sandboxd.errors import SandboxdError
from sandboxd.machine import room
from sandboxd.model import ImageRecord, SandboxRecord, subject_of
from sandboxd.node import Node
from sandboxd.operations import Held, perform
from sandboxd.pods import eligible, network, pool
from sandboxd.pods.run import build
from sandboxd.pods.teardown import remove_abandoned, roll_back

log = structlog.get_logger(__name__)

VERB = "Prepare"  # the operation
LOOK_SECONDS = 5.0  # between two looks at what prepared pods are made of
# The pool has its turn when so many glances in a row saw nothing being made or ended, or none did for so long.
GLANCES, GLANCE_SECONDS, PATIENCE_SECONDS = 4, 0.05, 5.0

PauseOf = Callable[[], Awaitable[ImageRecord]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """What a prepared pod is made of."""

    network: NetworkConfig
    image: ImageRecord
    digest: str


def is_needed(node: Node) -> bool:
    """Whether there is to be a pool, or something is left of one."""
    return bool(node.config.pool.size) or any(each.prepared_of for each in node.ledger.sandboxes.values())


async def keep(node: Node, pause_image: PauseOf) -> None:
    """Keep the pool for ever."""
    seen: object = None
    while True:
        node.machine.stock.changed.clear()
        if (now := node.network.conf.current().config) != seen:
            node.jobs.retries.succeeded(pool.FILL)  # another network may work
            seen = now
        await quiet(node)
        while await turn(node, pause_image):
            await quiet(node)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await node.machine.stock.changed.wait()


async def turn(node: Node, pause_image: PauseOf) -> bool:
    """Remove what is out of date, and prepare one pod if one is missing; whether there may be more to do."""
    size = node.config.pool.size
    if node.runtime.trouble() or (size and not node.jobs.retries.due(pool.FILL)):
        return False
    try:
        kind = await _kind(node, pause_image) if size else None
    except SandboxdError as exc:
        _failed(node, exc)
        return False
    await _discard(node, kind.digest if kind else "", size)
    if kind is None:
        return False
    if len(pool.prepared(node)) >= size:
        node.machine.stock.trouble = ""
        return False
    return await _fill(node, kind)


async def quiet(node: Node) -> None:
    """Wait until nothing is made or ended. A look now and then sees enough: this is about who comes first."""
    load, clock = node.machine.load, asyncio.get_running_loop().time
    until, calm = clock() + PATIENCE_SECONDS, 0
    while calm < GLANCES and clock() < until:
        await asyncio.sleep(GLANCE_SECONDS)
        queues = (load.pods, load.containers, load.teardowns)
        calm = 0 if any(turns.taken_in_all + turns.waiting_in_all for turns in queues) else calm + 1


async def _kind(node: Node, pause_image: PauseOf) -> _Kind | None:
    """What a pod is prepared of now; None when pods are not to be prepared here. Raises what keeps them from it."""
    stock = node.machine.stock
    image = await pause_image()
    if not node.network.conf.current().config:
        stock.trouble = f"no usable network configuration in {node.config.network.conf_dir}"
        return None
    chosen = await network.choose(node)
    needed = pool.unfit(node) or await node.network.cni.needs_identity(chosen, node.config.network.plugin_dirs)
    if needed:
        if needed != stock.trouble:
            log.warning("no pods are prepared", network=chosen.name, reason=needed)
        stock.trouble = needed
        return None
    return _Kind(network=chosen, image=image, digest=pool.made_of(node, chosen, image))


async def _discard(node: Node, digest: str, size: int) -> None:
    """Remove what is not of this kind, not whole or too much. What cannot be removed the comparison tries again."""
    fit = [each for each in pool.prepared(node) if each.prepared_of == digest and pool.is_whole(node, each)]
    kept = {each.id for each in fit[:size]}
    for record in pool.prepared(node):
        if record.id not in kept:
            log.info("a prepared pod is removed: what pods are made of has changed", sandbox=record.id)
            try:
                await remove_abandoned(node, record.id)
            except SandboxdError as exc:
                log.warning("a prepared pod could not be removed", sandbox=record.id, error=str(exc))


async def _fill(node: Node, kind: _Kind) -> bool:
    """Prepare one; whether that succeeded."""
    sandbox_id = secrets.token_hex(32)
    config = eligible.template(sandbox_id, seccomp=node.machine.facts.seccomp)
    record = SandboxRecord(
        id=sandbox_id,
        config=config,
        runtime_handler="",
        netns_path=node.places.network_namespace(sandbox_id),
        created_at=time.time_ns(),
        boot=node.machine.boot,
        prepared_of=kind.digest,
    )
    try:
        room.demand(node)
        await perform(
            node,
            VERB,
            sandbox_id,
            lambda held: _prepare(held, record, kind),
            subject=subject_of(config.metadata),
            turns=node.machine.load.pods,
        )
    except Exception as exc:
        _failed(node, exc)
        return False
    node.jobs.retries.succeeded(pool.FILL)
    node.machine.stock.trouble = ""
    return True


async def _prepare(held: Held, record: SandboxRecord, kind: _Kind) -> None:
    held.node.ledger.add_sandbox(record)
    async with held.effect("pod.pool.fill", undo=partial(roll_back, held), pod=record.name):
        await build(held, record, kind.network, kind.image)


def _failed(node: Node, exc: Exception) -> None:
    words = disclosure.sentence(exc)
    news = node.jobs.retries.failed(pool.FILL, words)
    node.machine.stock.trouble = words
    (log.warning if news else log.debug)("a pod could not be prepared, this is tried again later", error=words)
