"""A look at a pod's network: everything that `diagnose` judges, read and asked at the same time, each within a limit.

It changes nothing and holds nothing: it runs beside whatever goes on with the pod.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sandboxd import netns
from sandboxd.cni import conf, result
from sandboxd.cni.in_process.rules import masquerade_chain
from sandboxd.errors import PluginFailed, SandboxdError, TimedOut
from sandboxd.insight import diagnose, pod_packets, rulesets_read
from sandboxd.insight.diagnose_filters import CALLS_IPTABLES, ELSEWHERE, FORWARDING
from sandboxd.insight.evidence import Check, Checked, Filters, Port, Seen, Severity
from sandboxd.links import Link
from sandboxd.machine import network_look, pins, rules
from sandboxd.model import Attachment, AttachmentState, SandboxRecord, SandboxState, subject_of
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri

SECONDS = 15.0  # for all of it
CHECK_SECONDS = 5.0  # for CNI CHECK of the whole chain


async def examined(node: Node, sandbox: SandboxRecord) -> list[Check]:
    """What is wrong with a pod's network, and what was looked at. Changes nothing; takes `SECONDS` at most."""
    try:
        async with asyncio.timeout(SECONDS):
            return await _examined(node, sandbox)
    except TimeoutError:
        words = f"the pod's network could not be looked at in {SECONDS:g} s"
    except (SandboxdError, OSError) as exc:
        words = f"the pod's network could not be looked at: {exc}"
    return [Check(name="network", severity=Severity.UNKNOWN, says=words, remedy="look at the daemon's log")]


async def _examined(node: Node, sandbox: SandboxRecord) -> list[Check]:
    if sandbox.state is not SandboxState.READY:
        return [
            Check(
                name="network",
                severity=Severity.UNKNOWN,
                says="the pod does not run: there is no network to look at",
                remedy="`sandboxctl explain` tells why",
            )
        ]
    if not sandbox.netns_path:
        says = "the pod is in the machine's network: `sandboxctl doctor` looks at that"
        return [Check(name="network", severity=Severity.INFO, says=says)]
    if not pins.intact(node, sandbox):
        return [
            Check(
                name="namespace",
                severity=Severity.ERROR,
                says="the pod's network namespace is not where it was pinned: nothing can join it",
                evidence=f"{sandbox.netns_path} is not the namespace with inode {sandbox.netns_inode}",
                remedy="put it back from a process of the pod, which the next request that needs it does too",
                commands=("sandboxctl audit --repair",),
            )
        ]
    attachments = [each for each in node.ledger.attachments_of(sandbox.id) if each.state is AttachmentState.ADDED]
    if not attachments:
        says = "the pod is attached to no network"
        return [Check(name="network", severity=Severity.ERROR, says=says, remedy="remove the pod and run it again")]
    looks = await asyncio.gather(*(look(node, sandbox, each) for each in attachments))
    return [check for seen in looks for check in diagnose.diagnose(seen)]


async def look(node: Node, sandbox: SandboxRecord, attachment: Attachment) -> Seen:
    """What is seen of a running pod and its network. Raises NotReady when its namespace cannot be read."""
    inside = await netns.view(sandbox.netns_path)
    config = conf.from_json(attachment.config)
    answer = result.parse_result(attachment.result, config.plugins[-1]["type"])
    ips = result.pod_ips(answer, attachment.ifname)
    link = next((each for each in inside.links if each.name == attachment.ifname), None)
    (peer, bridge, uplink, ways), filters = await asyncio.gather(_on_the_machine(link, ips), _filters())
    seen = Seen(
        pod_id=sandbox.id,
        netns_path=sandbox.netns_path,
        network=attachment.network,
        ifname=attachment.ifname,
        plugins=config.plugins,
        result=answer,
        ips=ips,
        inside=inside,
        peer=peer,
        bridge=bridge,
        uplink=uplink,
        ways=ways,
        sysctls=_sysctls(bridge or peer),
        chain=masquerade_chain(attachment.network, sandbox.id),
        filters=filters,
        resolv_conf=_resolv_conf(node, sandbox),
        ports=ports(sandbox.config),
        sharing=_sharing(node, sandbox, ips),
    )
    checked, packets = await asyncio.gather(_check(node, attachment), pod_packets.sent(node, seen))
    return replace(seen, checked=checked, packets=packets)


# --- netlink and files ---------------------------------------------------------------------------------------------


async def _on_the_machine(
    link: Link | None, ips: Sequence[str]
) -> tuple[Link | None, Link | None, Link | None, dict[str, str]]:
    """The other end of the pod's interface, its bridge, where packets leave the machine, and the ways to the pod."""
    ways = {ip: await netns.own_route(ip) for ip in ips}
    elsewhere = ELSEWHERE[ipaddress.ip_address(ips[0]).version] if ips else ELSEWHERE[4]
    out = await netns.own_route(elsewhere)
    wanted = {*ways.values(), out, link.peer if link else 0} - {0}
    found = {each.index: each for each in await netns.own_links(sorted(wanted))}
    peer = found.get(link.peer) if link and link.kind == "veth" else None
    if peer and peer.kind != "veth":  # an index of another namespace than the machine's
        peer = None
    masters = await netns.own_links([peer.master]) if peer and peer.master else []
    bridge = masters[0] if masters and masters[0].kind == "bridge" else None
    names = {ip: found[way].name if way in found else "" for ip, way in ways.items()}
    return peer, bridge, found.get(out), names


def _sysctls(link: Link | None) -> dict[str, str]:
    """Those of the machine that matter; what cannot be read is left out."""
    wanted = (*FORWARDING.values(), *CALLS_IPTABLES.values())
    names = {name: name.removeprefix("net.").replace(".", "/") for name in wanted}
    if link:
        # Of an interface and of all, the larger one holds (ip-sysctl, "rp_filter"); its name may have dots.
        both = [network_look.sysctl(f"ipv4/conf/{each}/rp_filter") or "0" for each in ("all", link.name)]
        strict = {f"net.ipv4.conf.{link.name}.rp_filter": max(both)}
    else:
        strict = {}
    read = {name: network_look.sysctl(path) for name, path in names.items()}
    return {**strict, **{name: value for name, value in read.items() if value is not None}}


def _resolv_conf(node: Node, sandbox: SandboxRecord) -> bytes | None:
    try:
        return (Path(node.places.pod_files(sandbox.id)) / "resolv.conf").read_bytes()
    except OSError:
        return None


async def _filters() -> Filters:
    listings = await rules.everything()
    troubles = [each.trouble for each in listings if each.trouble]
    try:
        bases = await asyncio.to_thread(rulesets_read.of_listings, listings)
    except ValueError as exc:
        bases, troubles = [], [*troubles, f"what nft prints cannot be read: {exc}"]
    return Filters(bases=bases, trouble="; ".join(troubles), none=all(each.missing for each in listings))


# --- the records ---------------------------------------------------------------------------------------------------


def ports(config: cri.PodSandboxConfig) -> list[Port]:
    """The host ports that lead to the pod, each once."""
    mapped = [mapping for mapping in config.port_mappings if mapping.host_port]
    return list(
        dict.fromkeys(
            Port(
                protocol=cri.Protocol.Name(mapping.protocol).lower(),
                number=mapping.host_port,
                inside=mapping.container_port,
                host_ip=mapping.host_ip,
            )
            for mapping in mapped
        )
    )


def _sharing(node: Node, sandbox: SandboxRecord, ips: Sequence[str]) -> dict[str, str]:
    """Which of the addresses records have of another running pod too, and of which."""
    return {
        ip: subject_of(other.config.metadata)
        for other in node.ledger.sandboxes.values()
        if other.id != sandbox.id and other.netns_path and other.state is SandboxState.READY
        for ip in other.ips
        if ip in ips
    }


# --- asking --------------------------------------------------------------------------------------------------------


async def _check(node: Node, attachment: Attachment) -> Checked:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return Checked(ran=await node.network.cni.check(attachment))
    except TimeoutError:
        return Checked(trouble=f"it did not end within {CHECK_SECONDS:g} s")
    except (PluginFailed, TimedOut) as exc:
        return Checked(ran=True, error=str(exc))
    except (SandboxdError, OSError) as exc:
        return Checked(trouble=str(exc))
