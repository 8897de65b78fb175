"""What a pod asks of its network, before the pod is made: will it lead anywhere?

Plugins do what they can and are silent about the rest: a host port on a network without a plugin for it, or one that
another pod has already, would be reported as published. What is certain to be wrong is refused. What other runtimes
run all the same, and some networks serve without declaring it, is a warning: in the log, in the pod's timeline and in
its verbose status.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sandboxd.cni import diagnosed, request
from sandboxd.cni.conf import NetworkConfig
from sandboxd.errors import Exhausted, NotReady
from sandboxd.model import Attachment, AttachmentState, SandboxRecord, SandboxState
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri

_WORDS = {
    "portMappings": "the pod's host ports may lead nowhere",
    "bandwidth": "the pod's bandwidth is not limited",
}
_OWN = {"ips": request.IPS, "mac": request.MAC}
_KINDS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "udp": (socket.SOCK_DGRAM, 0),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
_FIRST_DYNAMIC, _LAST_DYNAMIC = 49152, 65535  # RFC 6335: assigned to nobody
SCTP = "/proc/net/sctp"  # there while the kernel's module is


def check(node: Node, config: cri.PodSandboxConfig, network: NetworkConfig) -> tuple[str, ...]:
    """What of the request is dubious on this network, a sentence each.

    Raises NotReady for a host port that another running pod has, and for an address that no plugin can give.
    """
    with diagnosed.before_plugins(network.name):
        return _dubious(node, config, network)


def _dubious(node: Node, config: cri.PodSandboxConfig, network: NetworkConfig) -> tuple[str, ...]:
    missing = request.unserved(network, config)
    for capability, annotation in _OWN.items():
        if capability in missing:
            raise NotReady(
                f'annotation {annotation}: no plugin of network "{network.name}" ({network.source}) has the'
                f' capability "{capability}", so the pod would get another one; declare it at the plugin that has it'
            )
    warnings = [
        f'no plugin of network "{network.name}" ({network.source}) has the capability "{name}": {_WORDS[name]}'
        for name in missing
    ]
    if "portMappings" not in missing:
        for asked in request.port_mappings(config.port_mappings):
            warnings += _about(node, config, asked)
    return tuple(warnings)


def free_port(node: Node, asked: Sequence[Mapping[str, Any]], taken: frozenset[int] = frozenset()) -> int:
    """A port of the host in place of that of these mappings, which no pod and no process has; none of `taken`.

    Raises Exhausted when there seems to be none.
    """
    published = [other for _, other in _published(node)]
    for port in random.sample(range(_FIRST_DYNAMIC, _LAST_DYNAMIC + 1), 200):
        instead = [{**each, "hostPort": port} for each in asked]
        if port in taken or any(_overlap(each, other) for each in instead for other in published):
            continue
        if not any(bound(each) == errno.EADDRINUSE for each in instead):
            return port
    raise Exhausted("no port of the host seems to be free")


def on_host(config: cri.PodSandboxConfig) -> tuple[str, ...]:
    """A warning for each host port that is to lead to another port of the host: nothing does that."""
    return tuple(
        f"{_shown(asked)} does not lead to port {asked['containerPort']}: the pod is in the host's network, where"
        " nothing maps ports; listen on the host port"
        for asked in request.port_mappings(config.port_mappings)
        if asked["hostPort"] != asked["containerPort"]
    )


def of_no_family(config: cri.PodSandboxConfig, ips: Sequence[str]) -> tuple[str, ...]:
    """A warning for each host port at an address of a family that the pod has none of: nothing leads from there."""
    families = {ipaddress.ip_address(ip).version for ip in ips}
    return tuple(
        f"{_shown(asked)} leads nowhere: the pod has no IPv{ipaddress.ip_address(asked['hostIP']).version} address"
        for asked in request.port_mappings(config.port_mappings)
        if asked.get("hostIP") and ipaddress.ip_address(asked["hostIP"]).version not in families
    )


def _about(node: Node, config: cri.PodSandboxConfig, asked: Mapping[str, Any]) -> Iterator[str]:
    """The warnings about one host port. Raises NotReady when another pod that runs has it."""
    for sandbox_id, other in _published(node):
        if not _overlap(asked, other):
            continue
        holder = node.ledger.sandboxes.get(sandbox_id)
        if holder is None:
            yield f"{_shown(asked)} may lead to a pod that was removed ({sandbox_id}), whose network owes a DEL"
        elif holder.stopped_at:
            yield f"{_shown(asked)} may lead to pod {holder.name} ({holder.id}), whose network owes a DEL"
        elif _runs_on(node, holder, config):
            raise NotReady(f"{_shown(asked)} is held by pod {holder.name} ({holder.id}); choose another or remove it")
        else:
            yield f"{_shown(asked)} leads to pod {holder.name} ({holder.id}) until that is stopped"
    match bound(asked):
        case errno.EADDRINUSE:
            yield f"a process of this machine has {_shown(asked)} too: who is reached there depends on the plugin"
        case errno.EADDRNOTAVAIL:
            yield f"{_shown(asked)} leads nowhere until this machine has that address"


def _published(node: Node) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each host port that a plugin was given, or is about to be, with the id of its pod."""
    attached = set()
    for attachment in node.ledger.attachments:
        attached.add(attachment.sandbox_id)
        yield from ((attachment.sandbox_id, entry) for entry in _given(attachment))
    for record in node.ledger.sandboxes.values():
        if record.state is SandboxState.CREATING and record.netns_path and record.id not in attached:
            yield from ((record.id, entry) for entry in request.port_mappings(record.config.port_mappings))


def _given(attachment: Attachment) -> list[Mapping[str, Any]]:
    if attachment.state is AttachmentState.PLANNED:
        return []
    try:
        owing = {owed.position for owed in attachment.owed}
        plugins = [
            plugin
            for position, plugin in enumerate(json.loads(attachment.config)["plugins"])
            if not owing or position in owing  # the others have done their DEL
        ]
        if not any((plugin.get("capabilities") or {}).get("portMappings") for plugin in plugins):
            return []
        return list(json.loads(attachment.capability_args).get("portMappings", ()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # a damaged record holds up no other pod


def _runs_on(node: Node, holder: SandboxRecord, config: cri.PodSandboxConfig) -> bool:
    """Whether the pod goes on holding its ports: not if it has ended or ends, nor as the new one's predecessor."""
    if holder.state is SandboxState.NOTREADY:
        return False
    ending = {("StopPodSandbox", holder.id), ("RemovePodSandbox", holder.id)}
    own, new = holder.config.metadata, config.metadata
    return (own.namespace, own.name) != (new.namespace, new.name) and not ending & set(node.jobs.in_flight())


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether some packet is for both."""
    if (one["protocol"], one["hostPort"]) != (other["protocol"], other["hostPort"]):
        return False
    if not one.get("hostIP") or not other.get("hostIP"):
        return True
    here, there = ipaddress.ip_address(one["hostIP"]), ipaddress.ip_address(other["hostIP"])
    return here.version == there.version and (here == there or here.is_unspecified or there.is_unspecified)


def bound(asked: Mapping[str, Any]) -> int:
    """Why we could not bind the host port: EADDRINUSE, EADDRNOTAVAIL; 0 if we could, or if it says nothing."""
    host_ip = asked.get("hostIP", "")
    kind, protocol = _KINDS[asked["protocol"]]
    if asked["protocol"] == "sctp" and not os.path.exists(SCTP):
        return 0  # the first socket would load the kernel's module, which pods have no business with
    for address in [host_ip] if host_ip else ["0.0.0.0", "::"]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, kind, protocol) as sock:
                if kind == socket.SOCK_STREAM:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections are not in the way
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address, asked["hostPort"]))
        except OSError as exc:
            # Anything else says nothing, such as no IPv6 on this machine.
            if exc.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                return exc.errno
    return 0


def _shown(asked: Mapping[str, Any]) -> str:
    at = f" at {asked['hostIP']}" if asked.get("hostIP") else ""
    return f"host port {asked['hostPort']}/{asked['protocol']}{at}"
