"""The rules that masquerade a pod's traffic, which a DEL may succeed without finding.

The plugins that make them, `bridge` and `ptp`, remove those for the addresses that are on the pod's interface, and
only while there is one. `bridge` deletes the interface, then runs its IPAM plugin, and removes the rules last: when
that is cut short, or the IPAM plugin fails, the next DEL finds no interface and succeeds, and the rules stay for
ever. The same happens when a process of the pod, or a person, has taken the address, the interface or the namespace
away.

An interface to put in its place would not do: with it, `bridge` fails for ever where the rules are gone. The rules
bear the pod's id; what of them is left after such a DEL is removed here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import structlog

from sandboxd import steps
from sandboxd.cni import conf, result
from sandboxd.cni.strict_json import in_any_case
from sandboxd.errors import SandboxdError
from sandboxd.machine import rules
from sandboxd.model import Attachment, AttachmentState, of_earlier_boot
from sandboxd.node import Node

log = structlog.get_logger(__name__)

_UNTRIED = frozenset({AttachmentState.ADDING, AttachmentState.ADDED})


async def is_doubtful(node: Node, attachment: Attachment) -> bool:
    """Whether the attachment's next DEL may miss such rules: it is not the first, or what it goes by is not there."""
    if not _masquerades(attachment) or of_earlier_boot(attachment, node.machine.boot):  # no rule outlives a boot
        return False
    if node.network.cni.deletes_in_process(attachment):  # which finds the rules by the pod's id
        return False
    if attachment.state not in _UNTRIED or not node.netns.exists(attachment.netns_path):
        return True
    try:
        inside = await node.netns.interfaces(attachment.netns_path)
    except SandboxdError:
        return True
    there = {
        str(address.ip)
        for each in inside
        for address in map(ipaddress.ip_interface, each.addresses)
        if each.name == attachment.ifname and not address.is_link_local
    }
    return not there or not there.issuperset(_given(attachment))


async def clear(attachment: Attachment) -> None:
    """Remove the rules that a DEL which succeeded has missed. Raises CleanupIncomplete."""
    if not _masquerades(attachment):
        return
    with steps.step("cni.rules", network=attachment.network) as step:
        removed = await rules.remove(attachment.network, attachment.sandbox_id)
        step.note(rules=removed)
    if removed:
        log.info(
            "rules for masquerading that the plugins' DEL did not find are removed",
            sandbox=attachment.sandbox_id,
            pod=attachment.pod,
            network=attachment.network,
        )


def _masquerades(attachment: Attachment) -> bool:
    """Whether a plugin makes such rules, by itself or by the one that it delegates to."""
    try:
        plugins = conf.from_json(attachment.config).plugins
    except SandboxdError:
        return False  # its DEL tells
    return any(
        in_any_case(each, "ipMasq") is True
        for plugin in plugins
        for each in (plugin, plugin.get("delegate"))
        if isinstance(each, Mapping)
    )


def _given(attachment: Attachment) -> tuple[str, ...]:
    """The addresses that ADD answered, or the last of its plugins that did."""
    if not attachment.result:
        return ()
    try:
        read = result.parse_result(attachment.result, attachment.network)
    except SandboxdError:
        return ()
    return result.pod_ips(read, attachment.ifname)
