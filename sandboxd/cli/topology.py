"""Explain's answer → what the pod's network consists of, as far as it is recorded, for a drawing. Pure.

The parts come from the recorded executions: an ADD's configuration says what it was to make, its result what it
made. A part is there, or it was undone, or it was never made; so the network of a pod that failed shows how far it
got, and that of a pod under way what exists already.
"""

from __future__ import annotations

import enum
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandboxd.cli.plugin_results import ending, json_object
from sandboxd.pb.host.v1 import host_pb2 as host

_NAMESPACES = ("pod.netns.create", "pod.userns.create")
_MASTERS = ("macvlan", "ipvlan", "vlan", "bond", "host-device", "sriov")  # the pod's end hangs on a link of the host


class State(enum.Enum):
    """How a part is: the value is what the drawing says of it."""

    THERE = ""
    UNDONE = "undone"
    MISSING = "not made"
    UNDER_WAY = "under way"
    FAILED = "failed"
    OWED = "its DEL failed: owed"


@dataclass(frozen=True, slots=True)
class Part:
    """A thing with its name."""

    text: str
    state: State = State.THERE


@dataclass(slots=True, kw_only=True)
class Link:
    """What connects the pod with one network."""

    network: str
    kind: str  # the type of the plugin that makes the interface: "bridge"
    state: State
    inside: Part  # the pod's interface
    mac: str = ""
    addresses: list[str] = field(default_factory=list)  # with prefix length
    routes: list[str] = field(default_factory=list)  # "0.0.0.0/0 via 10.0.10.1"
    host_end: Part | None = None  # the veth's other end
    on: Part | None = None  # the bridge, or the host's interface that the pod's hangs on
    on_addresses: list[str] = field(default_factory=list)  # the bridge's, which are the pod's gateways
    rules: list[Part] = field(default_factory=list)  # host ports, masquerading, what else plugins set up
    trouble: str = ""  # why it is not whole


@dataclass(slots=True, kw_only=True)
class Topology:
    """The pod's network. `links` may be empty: nothing was attached, or `of_host`, which needs nothing."""

    namespace: State
    netns_path: str = ""
    inode: str = ""
    pid: int = 0
    of_host: bool = False
    links: list[Link] = field(default_factory=list)


def topology(answer: host.ExplainResponse) -> Topology | None:
    """The network of the pod, or of the attempt to make one; None when the answer has neither.

    A pod that exists has its own steps; of one that does not, the newest attempt to make it is drawn.
    """
    exists = bool(answer.pod_sandbox_id)
    running = [each for each in answer.operations if not each.duration]
    if exists:
        steps = [*answer.steps, *(step for each in running for step in each.steps)]
    else:
        attempt = next((each for each in (*running, *answer.operations) if each.operation == "RunPodSandbox"), None)
        if attempt is None:
            return None
        exists, steps = not attempt.duration, list(attempt.steps)
    waiting = [step for each in running for step in each.open]
    drawn = Topology(namespace=State.MISSING, netns_path=answer.netns_path, pid=answer.pid)
    created = [each for each in steps if each.name in _NAMESPACES]
    if created:
        drawn.netns_path = drawn.netns_path or created[-1].detail.get("path", "")
        drawn.namespace = State.FAILED if created[-1].error else State.THERE if exists else State.UNDONE
    elif answer.netns_inode:
        drawn.namespace = State.THERE  # of a very long timeline the first steps are dropped
    if answer.pod_sandbox_id and not answer.netns_inode and drawn.namespace is State.THERE and not running:
        drawn.namespace = State.UNDONE
    drawn.inode = str(answer.netns_inode or "") or (created[-1].detail.get("inode", "") if created else "")
    drawn.of_host = exists and not drawn.netns_path and not created and bool(answer.pod_sandbox_id)
    drawn.links = [*_links(steps, waiting, answer.attachments, exists=exists)]
    return drawn


def _links(
    steps: Iterable[host.Step], waiting: Sequence[host.Step], attachments: Iterable[host.Attachment], *, exists: bool
) -> Iterator[Link]:
    """A link for each interface that plugins were to make, in the order of their ADDs; then those only planned."""
    chains: dict[str, list[host.Step]] = {}
    released: dict[str, bool] = {}
    for step in sorted(steps, key=lambda each: each.started_at):
        ifname = step.plugin.env.get("CNI_IFNAME", "")
        if step.name == "cni.add" and step.HasField("plugin"):
            chain = chains.setdefault(ifname, [])
            if "prevResult" not in json_object(step.plugin.stdin):
                chain.clear()  # it was added anew
            chain.append(step)
            released[ifname] = False
        elif step.name == "cni.del" and not step.error and ifname in chains:
            released[ifname] = True
    known = {each.ifname: each for each in attachments}
    for ifname, chain in chains.items():
        owed = ifname in known and known[ifname].state == "owed"
        undone = not exists or (released[ifname] and not owed)
        state = State.OWED if owed else State.UNDONE if undone else State.THERE
        yield _link(ifname, chain, state, waiting)
    for ifname, each in known.items():
        if ifname not in chains:
            yield _recorded(each)
            chains[ifname] = []
    if not chains:
        for step in waiting:
            if step.name == "cni.add":
                inside = Part("eth0", State.MISSING)
                kind = step.detail.get("plugin", "")
                yield Link(network=step.detail.get("network", ""), kind=kind, state=State.UNDER_WAY, inside=inside)


def _recorded(attachment: host.Attachment) -> Link:
    """A network of which only the record is left: its executions are dropped, or did not begin."""
    result = json_object(attachment.result)
    plugins = _objects(json_object(attachment.config), "plugins")
    conf = plugins[0] if plugins else {}
    states = {"added": State.THERE, "owed": State.OWED, "adding": State.UNDER_WAY}
    state = states.get(attachment.state, State.MISSING)
    link = _made(attachment.ifname, attachment.network, conf, result, state)
    link.trouble = attachment.error
    return link


def _link(ifname: str, chain: Sequence[host.Step], state: State, waiting: Sequence[host.Step]) -> Link:
    """What the executions of one chain made; `state` is that of what was made."""
    first = json_object(chain[0].plugin.stdin)
    good = [each.plugin for each in chain if not _failed(each)]
    result = json_object(good[-1].stdout) if good else {}
    failed = next((each for each in chain if _failed(each)), None)
    link = _made(ifname, str(first.get("name", "")), first, result, state)
    for step in chain:
        link.rules += _rules(json_object(step.plugin.stdin), link, State.FAILED if _failed(step) else state)
    if failed is not None:
        link.state = State.FAILED
        plugin = failed.plugin
        how = ending(plugin) if plugin.exit_code or plugin.timed_out else "its answer was refused"
        link.trouble = f"{plugin.command} {posixpath.basename(plugin.binary)} failed: {how}"
        return link
    for step in waiting:
        if step.name == "cni.add" and step.detail.get("network") == link.network:
            link.state = State.UNDER_WAY
            link.trouble = f"ADD {step.detail.get('plugin', 'of a plugin')} is under way"
    return link


def _made(ifname: str, network: str, conf: Mapping[str, Any], result: Mapping[str, Any], state: State) -> Link:
    """The interfaces, addresses and routes of a result; without one, what the configuration would have made."""
    kind = str(conf.get("type", ""))
    made = state if result else State.MISSING
    interfaces = _objects(result, "interfaces")
    inside = [each for each in interfaces if each.get("sandbox")]
    own = next((each for each in inside if each.get("name") == ifname), inside[0] if inside else {})
    link = Link(network=network, kind=kind, state=state, inside=Part(ifname, made), mac=str(own.get("mac", "")))
    outside = [str(each.get("name", "")) for each in interfaces if not each.get("sandbox")]
    if kind == "bridge":
        bridge = str(conf.get("bridge", "cni0"))
        # Its DEL leaves the bridge, which other pods may use.
        link.on = Part(bridge, State.THERE if result else State.MISSING)
        link.host_end = Part(next((each for each in outside if each != bridge), "veth"), made)
    elif kind == "ptp":
        link.host_end = Part(next(iter(outside), "veth"), made)
    elif kind in _MASTERS:
        link.on = Part(str(conf.get("master") or conf.get("device") or "the default route's interface"))
    elif outside:
        link.host_end = Part(outside[-1], made)
    addresses = [*_addresses(result)]
    link.addresses = [str(each.get("address", "?")) for each in addresses]
    gateways = [str(each["gateway"]) for each in addresses if each.get("gateway")]
    if kind == "bridge" and (conf.get("isGateway") or conf.get("isDefaultGateway")):
        link.on_addresses = [*dict.fromkeys(gateways)]
    link.routes = [*_routes(result, gateways)]
    return link


def _routes(result: Mapping[str, Any], gateways: Sequence[str]) -> Iterator[str]:
    """The routes; one without a gateway of its own has that of the addresses, of its family."""
    for each in [*_objects(result, "routes"), *(one for ip in _old(result) for one in _objects(ip, "routes"))]:
        target = str(each.get("dst", "?"))
        same = [gateway for gateway in gateways if (":" in gateway) == (":" in target)]
        via = each.get("gw") or next(iter(same), "")
        name = {"0.0.0.0/0": "default", "::/0": "default"}.get(target, target)
        yield f"{name} via {via}" if via else name


def _rules(conf: Mapping[str, Any], link: Link, state: State) -> Iterator[Part]:
    """What a plugin sets up on the host besides interfaces, as its configuration says it."""
    runtime = conf.get("runtimeConfig")
    mappings = _objects(runtime, "portMappings") if isinstance(runtime, dict) else []
    for each in mappings:
        at = str(each.get("hostIP") or "")
        at = f"[{at}]" if ":" in at else at
        yield Part(f"{at}:{each.get('hostPort')}/{each.get('protocol', 'tcp')} → {each.get('containerPort')}", state)
    if conf.get("ipMasq"):
        yield Part("masquerade", state if link.addresses else State.MISSING)
    told = {
        "firewall": "firewall",
        "bandwidth": "bandwidth limit",
        "tuning": "sysctls",
        "vrf": "vrf",
        "sbr": "routes",
    }
    if str(conf.get("type")) in told:
        yield Part(told[str(conf.get("type"))], state)


def _addresses(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from _objects(result, "ips")
    yield from ({**each, "address": each["ip"]} for each in _old(result) if "ip" in each)


def _old(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of a result before version 0.3.0."""
    yield from (each for each in (result.get("ip4"), result.get("ip6")) if isinstance(each, dict))


def _objects(value: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    listed = value.get(key)
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _failed(step: host.Step) -> bool:
    plugin = step.plugin
    return bool(step.error or plugin.exit_code or plugin.timed_out)
