"""A sandbox's attachment to its network: ADD, DEL, and the debts of DELs that failed.

The attachment is in the ledger before the first plugin runs and leaves it after a DEL that succeeded. Everything
that a plugin is given comes from that record, so a DEL uses exactly what its ADD used, even if the configuration
directory has changed since.
"""

from __future__ import annotations

import time
from dataclasses import replace

import structlog

from sandboxd import disclosure, steps
from sandboxd.cni import conf, request, result
from sandboxd.errors import CleanupIncomplete, NotReady, SandboxdError
from sandboxd.model import Attachment, AttachmentState, SandboxRecord
from sandboxd.node import Node
from sandboxd.operations import Held

log = structlog.get_logger(__name__)

IFNAME = "eth0"  # what CRI clients and Kubernetes expect


async def choose(node: Node) -> conf.NetworkConfig:
    """The network for a new pod: its plugins exist and a version has been negotiated.

    Raises NotReady saying why there is none. Nothing has been created when this fails.
    """
    choice = node.network.conf.current()
    if choice.config is None:
        seen = "; ".join(f"{problem.path}: {problem.text}" for problem in choice.problems)
        where = node.config.network.conf_dir
        raise NotReady(f"no usable network configuration in {where}" + (f" ({seen})" if seen else " (no files)"))
    return await node.network.cni.prepare(choice.config, node.config.network.plugin_dirs)


async def attach(held: Held, sandbox: SandboxRecord, network: conf.NetworkConfig) -> tuple[str, ...]:
    """ADD the sandbox to the network; return its addresses.

    On failure the attachment stays in the ledger, for teardown to DEL.
    """
    node = held.node
    planned = request.plan(
        network,
        sandbox.config,
        sandbox.id,
        sandbox.netns_path,
        node.config.network.plugin_dirs,
        ifname=IFNAME,
        cgroup_path=node.places.requested_parent(sandbox),
    )
    adding = node.ledger.put_attachment(replace(planned, state=AttachmentState.ADDING))
    with steps.step("pod.network.attach", network=network.name, conf=network.source) as step:
        try:
            answer = await node.network.cni.add(adding)
        except SandboxdError as exc:
            node.ledger.put_attachment(replace(adding, error=str(exc)))
            raise
        node.ledger.put_attachment(replace(adding, state=AttachmentState.ADDED, result=answer))
        ips = result.pod_ips(result.parse_result(answer, network.plugins[-1]["type"]), IFNAME)
        step.note(ips=",".join(ips))
    return ips


async def detach(held: Held) -> list[Attachment]:
    """DEL every attachment of the pod; return the debts: those whose DEL failed."""
    owed = []
    for attachment in reversed(held.node.ledger.attachments_of(held.sandbox_id)):
        debt = await _delete(held, attachment)
        if debt is not None:
            owed.append(debt)
    return owed


async def settle_debts(held: Held) -> None:
    """Retry the DELs of a pod that has been removed; remove its netns when none is left.

    Raises CleanupIncomplete when one fails again.
    """
    node = held.node
    owed = await detach(held)
    if owed:
        raise CleanupIncomplete("; ".join(debt.error for debt in owed))
    with steps.step("pod.netns.remove"):
        await node.netns.remove(node.places.network_namespace(held.sandbox_id))


async def _delete(held: Held, attachment: Attachment) -> Attachment | None:
    """DEL one attachment; the debt when that failed."""
    node = held.node
    if attachment.state is AttachmentState.PLANNED:
        node.ledger.remove_attachment(attachment)
        return None
    deleting = node.ledger.put_attachment(replace(attachment, state=AttachmentState.DELETING))
    with steps.operation("recover", sandbox_id=attachment.sandbox_id):
        try:
            with steps.step("pod.network.detach", network=attachment.network, attempt=attachment.attempts + 1):
                await node.network.cni.delete(deleting)
        except Exception as exc:  # a bug here must not keep the pod from being removed
            log.warning(
                "a network attachment could not be deleted; it is kept as a debt",
                sandbox=attachment.sandbox_id,
                network=attachment.network,
                error=disclosure.sentence(exc),
                exc_info=None if isinstance(exc, SandboxdError) else exc,
            )
            return node.ledger.put_attachment(
                replace(
                    deleting,
                    state=AttachmentState.OWED,
                    error=disclosure.sentence(exc),
                    attempts=attachment.attempts + 1,
                    tried_at=time.time_ns(),
                )
            )
    node.ledger.remove_attachment(deleting)
    return None
