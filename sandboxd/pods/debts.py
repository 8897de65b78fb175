"""DELs that failed: listed, tried again, forgiven.

A debt is paid by the comparison, with pauses that grow, or at once when an operator asks. What can never be paid,
since its plugin refuses the recorded configuration or is lost, an operator forgives.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog

from sandboxd import disclosure, steps
from sandboxd.errors import NotFound
from sandboxd.model import Attachment, AttachmentState
from sandboxd.node import Node
from sandboxd.operations import Held, hold, perform
from sandboxd.pods import network
from sandboxd.pods.reconcile import Action, Repair

log = structlog.get_logger(__name__)

REPLAY = "Replay"  # the verb of `pods.replay`, whose attachments have no pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Debt:
    """An attachment that is owed, and when it is tried again."""

    attachment: Attachment
    next_at: int  # unix nanoseconds; 0 while it is being tried


def listed(node: Node) -> list[Debt]:
    """Every debt, the oldest first."""
    now = time.time_ns()
    found = []
    for attachment in node.ledger.attachments:
        if is_debt(node, attachment):
            trying = attachment.state is AttachmentState.DELETING
            wait = node.jobs.retries.wait(repair(attachment.sandbox_id).key)
            found.append(Debt(attachment=attachment, next_at=0 if trying else now + int(wait * 1e9)))
    return sorted(found, key=lambda debt: debt.attachment.failed_at)


def failed(node: Node) -> list[Attachment]:
    """What is owed because its DEL failed, the oldest first: without what a replay was asked to keep."""
    return [debt.attachment for debt in listed(node) if not debt.attachment.kept]


def is_debt(node: Node, attachment: Attachment) -> bool:
    """Whether a DEL of it failed, or its pod has gone without one. A replay that has not ended owes nothing yet."""
    if attachment.owes or attachment.sandbox_id in node.ledger.sandboxes:
        return attachment.owes
    return (REPLAY, attachment.sandbox_id) not in node.jobs.in_flight()


def repair(sandbox_id: str) -> Repair:
    """What pays the debts of a pod."""
    return Repair(action=Action.PAY_DEBT, id=sandbox_id)


async def pay(node: Node, sandbox_id: str) -> None:
    """Try again what the pod owes, once nothing else is done to it. Raises CleanupIncomplete when it fails again."""
    async with hold(node, sandbox_id) as held:
        await _pay(held)


async def retry(node: Node, sandbox_id: str) -> None:
    """`pay`, as an operator's request: in place of an attempt of the comparison's that is under way.

    Raises NotFound when the pod owes nothing.
    """
    _owing(node, sandbox_id)
    node.jobs.interrupt(repair(sandbox_id).job)
    key = repair(sandbox_id).key
    try:
        await perform(node, "RetryDebt", sandbox_id, _pay)
    except Exception as exc:
        node.jobs.retries.failed(key, disclosure.sentence(exc))
        raise
    node.jobs.retries.succeeded(key)


async def forgive(node: Node, sandbox_id: str) -> list[Attachment]:
    """Give up what the pod owes: remove its netns, then the record of the debt. Returns what was forgiven.

    What the plugins keep outside of the netns, such as addresses and rules, may be left. Raises NotFound when the pod
    owes nothing, CleanupIncomplete when the netns cannot be removed; nothing is forgiven then.
    """
    _owing(node, sandbox_id)
    node.jobs.interrupt(repair(sandbox_id).job)
    return await perform(node, "ForgiveDebt", sandbox_id, _forgive)


async def _pay(held: Held) -> None:
    node, sandbox_id = held.node, held.sandbox_id
    owing = node.ledger.attachments_of(sandbox_id)
    if not owing:
        return
    async with node.jobs.retries.lane(owing[0].network):
        await network.settle_debts(held)
    log.info("network debt paid", sandbox=sandbox_id, pod=owing[0].pod)


async def _forgive(held: Held) -> list[Attachment]:
    node = held.node
    owing = _owing(node, held.sandbox_id)
    for path in dict.fromkeys(attachment.netns_path for attachment in owing):
        with steps.step("pod.netns.remove", path=path):
            await node.netns.remove(path)
    for attachment in owing:
        node.ledger.remove_attachment(attachment)
        log.warning(
            "a network debt was forgiven; what its plugins made outside of the pod's namespace may be left, such as "
            "addresses and rules",
            sandbox=attachment.sandbox_id,
            pod=attachment.pod,
            network=attachment.network,
            plugins=", ".join(each.plugin for each in attachment.owed),
            error=attachment.error,
        )
    node.jobs.retries.succeeded(repair(held.sandbox_id).key)
    return owing


def _owing(node: Node, sandbox_id: str) -> list[Attachment]:
    owing = [each for each in node.ledger.attachments_of(sandbox_id) if is_debt(node, each)]
    if not owing:
        raise NotFound(f"pod {sandbox_id} owes no network anything; `sandboxctl debts` lists those that do")
    return owing
