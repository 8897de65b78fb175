"""Pods that ended because the machine was restarted, and the addresses that they had.

Nothing of such a pod runs, and its namespaces are gone. What its plugins keep on disk is not: the addresses that an
IPAM plugin has written down are taken until their DEL. The comparison runs these DELs, as those of debts, behind
readiness; a new pod of the same network waits for the first attempt at each, since its ADD may need one of them.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import structlog

from sandboxd import steps
from sandboxd.machine import pins
from sandboxd.model import Attachment, SandboxState, of_earlier_boot
from sandboxd.node import Node

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 10.0  # for the next of these DELs to end; one that hangs must not keep new pods waiting

ENDED = "the machine was restarted, and the pod ended with it"


def retire(node: Node) -> None:
    """Record that the pods of earlier boots have ended and have no address."""
    _know_our_own(node)
    for record in tuple(node.ledger.sandboxes.values()):
        if not of_earlier_boot(record, node.machine.boot) or not record.started_at:
            continue
        if record.state is SandboxState.READY or record.ips:
            node.ledger.update_sandbox(
                record.id,
                pid=0,
                ips=(),
                exited_at=record.exited_at or time.time_ns(),
                failure=record.failure or ("" if record.stopped_at else ENDED),
            )
            log.warning("a pod ended with an earlier boot of the machine", sandbox=record.id, pod=record.name)


def _know_our_own(node: Node) -> None:
    """Note the boot of pods that an earlier version of sandboxd made in this one: their namespaces are there."""
    for record in tuple(node.ledger.sandboxes.values()):
        if node.machine.boot and not record.boot and record.netns_path and pins.intact(node, record):
            node.ledger.update_sandbox(record.id, boot=node.machine.boot)
            for attachment in node.ledger.attachments_of(record.id):
                node.ledger.put_attachment(replace(attachment, boot=node.machine.boot))


async def released(node: Node, network: str) -> None:
    """Wait until each DEL that pods of earlier boots owe this network has been tried once.

    Those that are not being tried are not waited for, and a DEL that hangs only for a while.
    """
    left = _untried(node, network)
    if not left:
        return
    with steps.step("pod.network.wait", network=network, pods=len(left)) as step:
        clock = asyncio.get_running_loop().time
        until = clock() + PATIENCE_SECONDS
        while left:
            # Whoever runs such a DEL is a job: a repair, StopPodSandbox or RemovePodSandbox.
            await asyncio.wait(
                node.jobs.tasks(), timeout=max(0.0, until - clock()), return_when=asyncio.FIRST_COMPLETED
            )
            before, left = left, _untried(node, network)
            if len(left) < len(before):
                until = clock() + PATIENCE_SECONDS
            elif clock() >= until:
                step.note(not_released=len(left))
                log.warning(
                    "addresses of pods of an earlier boot are not released yet, a new pod no longer waits for them",
                    network=network,
                    pods=", ".join(attachment.pod for attachment in left),
                )
                return


def _untried(node: Node, network: str) -> list[Attachment]:
    """What pods of earlier boots still have of this network, of those whose first DEL is under way or next."""
    busy = node.jobs.held()
    return [
        attachment
        for attachment in node.ledger.attachments
        if attachment.network == network
        and attachment.sandbox_id in busy
        and of_earlier_boot(attachment, node.machine.boot)
    ]
