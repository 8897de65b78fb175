"""Who holds the addresses of our networks: as a sentence that says what to do, when one has none left.

What nobody holds, and is taken nevertheless, is released.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import structlog

from sandboxd.cni import conf, reservations
from sandboxd.errors import SandboxdError
from sandboxd.model import Attachment, SandboxState
from sandboxd.node import Node

log = structlog.get_logger(__name__)

SHOWN = 5  # names in each group


async def told(node: Node, network: conf.NetworkConfig, newcomer: str) -> str:
    """The sentence. `newcomer` is the id of the pod that got no address."""
    mine = [each for each in node.ledger.attachments if each.network == network.name and each.sandbox_id != newcomer]
    known = {each.sandbox_id for each in mine} | {newcomer}
    strangers: dict[str, str] = {}
    where = await asyncio.to_thread(reservations.directories, network)
    for directory in where:
        held = await asyncio.to_thread(reservations.holders, directory)
        strangers |= {owner: directory for owner in held.values() if owner not in known}
    groups = [*_groups(node, mine)]
    if strangers:
        ids = sorted(owner[:12] for owner in strangers)
        groups.append(
            f"{_count(ids, 'container')} that sandboxd does not know ({_some(ids)}; see {', '.join(where)}: if it is"
            " no other runtime's, remove the files that name it)"
        )
    if not groups:
        return "widen its range, or ask its IPAM plugin: sandboxd knows of nothing that holds its addresses"
    return f"free some of its addresses, which are held by {', '.join(groups)}; or widen its range"


def directories(node: Node) -> list[str]:
    """Where addresses of the network in force, and of those that pods are attached to, are reserved."""
    configs = [node.network.conf.current().config]
    for attachment in node.ledger.attachments:
        try:
            configs.append(conf.from_json(attachment.config))
        except SandboxdError:
            continue  # its DEL tells
    found = [directory for config in configs if config for directory in reservations.directories(config)]
    return list(dict.fromkeys(found))


async def release_unowned(node: Node) -> None:
    """Release the addresses that are reserved for nobody. What cannot be released, an audit shows."""
    where = directories(node)
    found = await asyncio.to_thread(lambda: [path for each in where for path in reservations.unowned(each)])
    for path in found:
        try:
            if await reservations.release(path):
                log.warning("an address that was reserved for nobody is released", file=path)
        except SandboxdError as exc:
            log.warning("an address stays reserved for nobody", error=str(exc))
            return  # the others wait for the same lock


def _groups(node: Node, attachments: Sequence[Attachment]) -> Iterator[str]:
    ready, ended, owed, prepared = [], [], [], 0
    for each in attachments:
        record = node.ledger.sandboxes.get(each.sandbox_id)
        name = each.pod or each.sandbox_id[:12]
        if record is None or each.owes:
            owed.append(name)
        elif record.prepared_of:
            prepared += 1
        elif record.state is SandboxState.NOTREADY:
            ended.append(name)
        else:
            ready.append(name)
    if ready:
        yield f"{_count(ready, 'running pod')} ({_some(ready)})"
    if prepared:
        yield f"{prepared} prepared pod{'' if prepared == 1 else 's'} (pool.size)"
    if ended:
        yield f"{_count(ended, 'pod')} that ended and were not stopped ({_some(ended)}: remove them)"
    if owed:
        yield f"{_count(owed, 'pod')} whose DEL failed ({_some(owed)}: see `sandboxctl debts`)"


def _count(names: Sequence[str], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
