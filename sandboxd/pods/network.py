"""A sandbox's attachment to its network: ADD, DEL, and the debts of DELs that failed.

The attachment is in the ledger before the first plugin runs and leaves it after a DEL that succeeded. Everything
that a plugin is given comes from that record, so a DEL uses exactly what its ADD used, even if the configuration
directory has changed since.

A debt is an attachment of which the DEL of some plugins failed. It keeps its netns, and a retry runs those plugins
only. A plugin that was uninstalled is not waited for: its binary is gone, and the configuration in force does not
name it. One that only lacks its IPAM plugin does its own work without it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from sandboxd import disclosure, record_format, steps
from sandboxd.cni import conf, diagnosed, lookup, request, result
from sandboxd.errors import CleanupIncomplete, Exhausted, InvalidRequest, NotReady, SandboxdError
from sandboxd.model import Attachment, AttachmentState, Owed, SandboxRecord, of_earlier_boot
from sandboxd.node import Node
from sandboxd.operations import Held
from sandboxd.pods import boots, holders, masquerading, recording

log = structlog.get_logger(__name__)

IFNAME = "eth0"  # what CRI clients and Kubernetes expect


async def choose(node: Node) -> conf.NetworkConfig:
    """The network for a new pod: its plugins exist and a version has been negotiated.

    Raises NotReady saying why there is none. Nothing has been created when this fails.
    """
    choice = node.network.conf.current()
    with diagnosed.before_plugins(choice.config.name if choice.config else ""):
        if choice.config is None:
            seen = "; ".join(f"{problem.path}: {problem.text}" for problem in choice.problems)
            where = node.config.network.conf_dir
            raise NotReady(f"no usable network configuration in {where}" + (f" ({seen})" if seen else " (no files)"))
        prepared = await node.network.cni.prepare(choice.config, node.config.network.plugin_dirs)
        return replace(prepared, passed_over=choice.passed_over())


def planned(node: Node, sandbox: SandboxRecord, network: conf.NetworkConfig) -> Attachment:
    """The sandbox's attachment to the network, before any plugin runs. Raises InvalidRequest."""
    attachment = request.plan(
        network,
        sandbox.config,
        sandbox.id,
        sandbox.netns_path,
        node.config.network.plugin_dirs,
        ifname=IFNAME,
        cgroup_path=node.places.requested_parent(sandbox),
    )
    pod = f"{sandbox.config.metadata.namespace}/{sandbox.config.metadata.name}"
    return replace(attachment, pod=pod, boot=node.machine.boot)


def kept(node: Node, sandbox_id: str, network: conf.NetworkConfig | None) -> bytes:
    """What containerd is to keep of a pod that is being made: from it a lost ledger is rebuilt (`adopt`)."""
    record = node.ledger.sandboxes[sandbox_id]
    return record_format.keep_sandbox(record, planned(node, record, network) if network else None)


async def attach(held: Held, sandbox: SandboxRecord, network: conf.NetworkConfig) -> tuple[str, ...]:
    """ADD the sandbox to the network; return its addresses.

    On failure the attachment stays in the ledger, for teardown to DEL, with the last result that a plugin was given.
    """
    node = held.node
    await boots.released(node, network.name)
    adding = node.ledger.put_attachment(replace(planned(node, sandbox, network), state=AttachmentState.ADDING))

    def handed_on(given: bytes) -> None:
        nonlocal adding
        adding = node.ledger.put_attachment(replace(adding, result=given))

    with steps.step(
        "pod.network.attach",
        network=network.name,
        conf=network.source,
        passed_over=network.passed_over or None,
    ) as step:
        try:
            answer = await node.network.cni.add(adding, handed_on, recording.around(node, adding, "ADD"))
        except SandboxdError as exc:
            if isinstance(exc, Exhausted):
                remedy = await holders.told(node, network, sandbox.id)
                step.note(next=remedy)
                exc.add_note(f"next: {remedy}")
            node.ledger.put_attachment(replace(adding, error=disclosure.whole(exc)))
            raise
        node.ledger.put_attachment(replace(adding, state=AttachmentState.ADDED, result=answer))
        ips = result.pod_ips(result.parse_result(answer, network.plugins[-1]["type"]), IFNAME)
        step.note(ips=",".join(ips))
    return ips


async def assume(held: Held) -> None:
    """Let a pod that never came to be, and of which no attachment is known, owe a DEL if it may have had an ADD.

    The ledger's last commits are lost when the power fails, and what plugins have written may not be. The network is
    the one in force: a network that was changed as well leaves what an audit finds. In the same boot no commit is
    lost. Raises NotReady while the configuration is there and cannot be used.
    """
    node, sandbox = held.node, held.sandbox()
    if not sandbox.netns_path or node.ledger.attachments_of(sandbox.id):
        return
    if not of_earlier_boot(sandbox, node.machine.boot) or node.network.conf.current().empty:
        return
    network = await choose(node)
    try:
        assumed = planned(node, sandbox, network)
    except InvalidRequest as exc:
        log.warning("a pod was asked for that this network cannot have had", sandbox=sandbox.id, reason=str(exc))
        return
    node.ledger.put_attachment(replace(assumed, state=AttachmentState.ADDING, boot=sandbox.boot))


async def detach(held: Held) -> list[Attachment]:
    """DEL every attachment of the pod; return the debts: those whose DEL failed."""
    owed = []
    for attachment in reversed(held.node.ledger.attachments_of(held.sandbox_id)):
        debt = await _delete(held, attachment)
        if debt is not None:
            owed.append(debt)
    return owed


async def release(held: Held, netns_path: str) -> list[Attachment]:
    """DEL every attachment of the pod, then remove its netns if nothing is owed; return the debts.

    Raises CleanupIncomplete when the netns cannot be removed; what had been attached is then a debt, so that it is
    tried again even if the pod has been removed.
    """
    node = held.node
    before = node.ledger.attachments_of(held.sandbox_id)
    debts = await detach(held)
    paths = dict.fromkeys(path for path in (netns_path, *(each.netns_path for each in before)) if path)
    for path in () if debts else paths:
        try:
            with steps.step("pod.netns.remove", path=path):
                await node.netns.remove(path)
        except Exception as exc:
            for attachment in before:
                _owe(held, replace(attachment, state=AttachmentState.DELETING), (), exc)
            raise
    return debts


async def settle_debts(held: Held) -> None:
    """Retry the DELs that the pod owes; remove its netns when none is left.

    Raises CleanupIncomplete when one fails again.
    """
    owed = await release(held, held.node.places.network_namespace(held.sandbox_id))
    if owed:
        raise CleanupIncomplete("; ".join(debt.error for debt in owed))


async def _delete(held: Held, attachment: Attachment) -> Attachment | None:
    """DEL one attachment; the debt when that failed."""
    node = held.node
    if attachment.state is AttachmentState.PLANNED:
        node.ledger.remove_attachment(attachment)
        return None
    deleting = node.ledger.put_attachment(replace(attachment, state=AttachmentState.DELETING, kept=False))
    owed = deleting.owed
    with steps.operation("recover", sandbox_id=attachment.sandbox_id):
        try:
            with steps.step(
                "pod.network.detach", network=attachment.network, attempt=attachment.attempts + 1
            ) as step:
                doubtful = await masquerading.is_doubtful(node, attachment)
                findable = _findable(node, deleting)
                gone = _uninstalled(node, findable)
                without = gone & _delegates(findable)
                watched = recording.around(node, attachment, "DEL")
                failed = await node.network.cni.delete(findable, without=without, around=watched)
                owed = tuple(each for each in failed if each.missing not in gone)
                if lacked := without | (gone & {each.missing for each in failed}):
                    _tell(deleting, ", ".join(sorted(lacked)), step)
                if owed:
                    raise CleanupIncomplete("; ".join(each.error for each in owed))
                if doubtful or lacked:
                    await masquerading.clear(deleting)
        except Exception as exc:  # a bug here must not keep the pod from being removed
            return _owe(held, deleting, owed, exc)
    node.ledger.remove_attachment(deleting)
    return None


def _owe(held: Held, attachment: Attachment, owed: tuple[Owed, ...], exc: Exception) -> Attachment:
    """Keep an attachment that could not be deleted as a debt. It is logged once, not at each attempt."""
    error, now = disclosure.sentence(exc), time.time_ns()
    if error != attachment.error or not attachment.attempts:
        log.warning(
            "a network attachment could not be deleted; it is kept as a debt",
            sandbox=attachment.sandbox_id,
            pod=attachment.pod,
            network=attachment.network,
            error=error,
            next_step="`sandboxctl debts` shows, retries and forgives it",
            exc_info=None if isinstance(exc, SandboxdError) else exc,
        )
    return held.node.ledger.put_attachment(
        replace(
            attachment,
            state=AttachmentState.OWED,
            error=error,
            attempts=attachment.attempts + 1,
            tried_at=now,
            failed_at=attachment.failed_at or now,
            owed=owed,
            boot=held.node.machine.boot,
        )
    )


def _findable(node: Node, attachment: Attachment) -> Attachment:
    """The attachment, its plugins also looked for where they are now: an upgrade may have moved them."""
    recorded = attachment.plugin_path.split(":")
    moved = [directory for directory in node.config.network.plugin_dirs if directory not in recorded]
    return replace(attachment, plugin_path=":".join((*filter(None, recorded), *moved))) if moved else attachment


def _uninstalled(node: Node, attachment: Attachment) -> frozenset[str]:
    """What of its plugins and their IPAM plugins is gone and not named by the configuration in force.

    Nobody waits for those. A configuration that is broken, and not gone, says nothing about that.
    """
    choice = node.network.conf.current()
    if choice.config is None and not choice.empty:
        return frozenset()
    named = _types(choice.config.plugins) if choice.config else frozenset()
    directories = attachment.plugin_path.split(":")
    recorded = _types(_chain(attachment)) - named
    return frozenset(type_ for type_ in recorded if lookup.is_missing(type_, directories))


def _chain(attachment: Attachment) -> Sequence[Mapping[str, Any]]:
    """The plugins that it recorded; none where the record is damaged, which its DEL tells."""
    try:
        return conf.from_json(attachment.config).plugins
    except SandboxdError:
        return ()


def _types(chain: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(type_ for plugin in chain for type_ in (plugin["type"], conf.delegate_type(plugin)))


def _delegates(attachment: Attachment) -> set[str]:
    return {conf.delegate_type(plugin) for plugin in _chain(attachment)}


def _tell(attachment: Attachment, types: str, step: steps.Step) -> None:
    step.note(uninstalled=types)
    log.warning(
        "a CNI plugin was uninstalled before its DEL; what it made for the pod may be left",
        sandbox=attachment.sandbox_id,
        pod=attachment.pod,
        network=attachment.network,
        plugin=types,
    )
