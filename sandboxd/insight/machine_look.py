"""What doctor says of the machine: what pods need of it, what there is, and what is left of it.

It builds on the checks of `sandboxd check`, which need no daemon, and asks what a running one can.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping

from sandboxd.cni import conf, ranges, reservations
from sandboxd.cni.conf import NetworkConfig
from sandboxd.config import Config
from sandboxd.errors import InvalidRequest, SandboxdError
from sandboxd.insight import doctor
from sandboxd.insight.evidence import Check, Severity
from sandboxd.machine import network_look, programs, rules
from sandboxd.node import Node
from sandboxd.pods import debts

OK, INFO, WARNING, ERROR, UNKNOWN = Severity

SECONDS = 15.0  # for all of it
ASK_SECONDS = 5.0  # for one program
MOST_PLUGINS = 64  # of a directory
FEW_LEFT, FEW = 0.1, 8  # of a range, and addresses
MANY = 1 << 32  # addresses, of which nobody counts what is left


async def examined(node: Node, containerd_version: Callable[[], Awaitable[str]]) -> list[Check]:
    """What this machine lacks for pods, and what was looked at. Changes nothing; takes `SECONDS` at most.

    `containerd_version` asks containerd, and raises when it does not answer.
    """
    parts = await asyncio.gather(
        _within("configuration", asyncio.to_thread(_of_configuration, node.config)),
        _within("versions", _versions(node, containerd_version)),
        _within("kernel", asyncio.to_thread(lambda: [*_kernel(), *_forwarding()])),
        _within("packet-filter", _packet_filter()),
        _within("plugins", _plugins(node)),
        _within("network-files", asyncio.to_thread(_choice, node)),
        _within("addresses", asyncio.to_thread(lambda: [*_ranges(_networks(node))])),
    )
    return [*(check for part in parts for check in part), *_debts(node)]


async def _within(name: str, looking: Awaitable[list[Check]]) -> list[Check]:
    """What a look finds, or that it took too long: the others are told all the same."""
    try:
        async with asyncio.timeout(SECONDS):
            return await looking
    except TimeoutError:
        return [Check(name=name, severity=UNKNOWN, says=f"could not be looked at in {SECONDS:g} s")]


def _of_configuration(config: Config) -> list[Check]:
    """What `sandboxd check` says."""
    return [
        Check(
            name=finding.what.replace(" ", "-"),
            severity=OK if finding.ok else ERROR,
            says=finding.words,
            remedy=finding.remedy,
        )
        for finding in doctor.examine(config)
        if finding.what != "network configuration"  # told with its file
    ]


# --- versions and kernel -------------------------------------------------------------------------------------------


async def _versions(node: Node, containerd_version: Callable[[], Awaitable[str]]) -> list[Check]:
    found = []
    try:
        async with asyncio.timeout(ASK_SECONDS):
            says = f"containerd {await containerd_version()}"
        found.append(Check(name="containerd-version", severity=OK, says=says))
    except (SandboxdError, TimeoutError) as exc:
        words = str(exc) or f"no answer in {ASK_SECONDS:g} s"
        where = node.config.containerd_socket
        says = f"containerd does not answer: {words}"
        found.append(Check(name="containerd-version", severity=ERROR, says=says, evidence=where))
    for name, handler in sorted(node.config.runtime.handlers.items()):
        binary = handler.binary or ("runc" if handler.type == "io.containerd.runc.v2" else "")
        if binary:
            answer = await _first_line(binary, "--version")
            severity = UNKNOWN if answer is None else OK
            says = f"handler {name}: {answer or f'{binary} does not tell its version'}"
            found.append(Check(name="runtime-version", severity=severity, says=says))
    return found


async def _first_line(*command: str) -> str | None:
    try:
        status, output, _ = await programs.ask(command, ASK_SECONDS)
    except (OSError, TimeoutError):
        return None
    lines = output.decode("utf-8", "replace").splitlines()
    return lines[0] if lines and not status else None


def _kernel() -> Iterator[Check]:
    says = f"Linux {os.uname().release}"
    lacking = [kind for kind in ("net", "mnt", "pid", "ipc", "uts", "user", "cgroup") if not _has_namespace(kind)]
    if lacking:
        says = f"{says} has no {', '.join(lacking)} namespaces"
        yield Check(name="kernel", severity=ERROR, says=says, evidence="/proc/self/ns", remedy="use another kernel")
    else:
        yield Check(name="kernel", severity=OK, says=f"{says}, with all namespaces that pods need")
    values = {name: network_look.sysctl(f"bridge/bridge-nf-call-{name}") for name in ("iptables", "ip6tables")}
    if values["iptables"] is None:
        says = "br_netfilter is not loaded: traffic between pods on a bridge does not pass iptables"
        remedy = "kube-proxy needs it: modprobe br_netfilter"
        yield Check(name="br-netfilter", severity=INFO, says=says, evidence="/proc/sys/net/bridge", remedy=remedy)
    else:
        evidence = ", ".join(f"net.bridge.bridge-nf-call-{name} is {value}" for name, value in values.items())
        says = "br_netfilter is loaded"
        yield Check(name="br-netfilter", severity=INFO, says=says, evidence=evidence)


def _has_namespace(kind: str) -> bool:
    return os.path.exists(f"/proc/self/ns/{kind}")


def _forwarding() -> Iterator[Check]:
    if network_look.sysctl("ipv4/ip_forward") == "0":
        # The plugin bridge turns it on with the first pod.
        yield Check(
            name="forwarding",
            severity=WARNING,
            says="the machine does not forward IPv4: pods reach nothing beyond it",
            evidence="net.ipv4.ip_forward is 0",
            remedy="turn it on, or let a network whose bridge is a gateway do so with its first pod",
            commands=("sysctl -w net.ipv4.ip_forward=1",),
        )
    else:
        yield Check(name="forwarding", severity=OK, says="the machine forwards IPv4")


async def _packet_filter() -> list[Check]:
    listings, default = await asyncio.gather(rules.everything(), _first_line("iptables", "--version"))
    found = []
    used = [each.backend for each in listings if any(line.startswith("-A ") for line in each.text.splitlines())]
    both = {backend.rpartition("-")[2] for backend in used}
    says = f"iptables is {default}" if default else "there is no iptables"
    if {"nft", "legacy"} <= both:
        found.append(
            Check(
                name="packet-filter",
                severity=WARNING,
                says=f"{says}; both of its backends have rules: what one accepts, the other may drop",
                evidence=f"rules of {', '.join(used)}",
                remedy="have all programs use one backend (`update-alternatives --config iptables`), then reboot",
            )
        )
    elif default:
        found.append(
            Check(name="packet-filter", severity=OK, says=says, evidence=f"rules of {', '.join(used) or 'none'}")
        )
    else:
        remedy = "a network with ipMasq or host ports may need it; on Debian: apt-get install iptables"
        found.append(Check(name="packet-filter", severity=INFO, says=says, remedy=remedy))
    for each in listings:
        if each.trouble:
            says = f"the rules of {each.backend} cannot be read"
            found.append(Check(name="packet-filter", severity=UNKNOWN, says=says, evidence=each.trouble))
    return found


# --- networks ------------------------------------------------------------------------------------------------------


async def _plugins(node: Node) -> list[Check]:
    """The plugins that are installed, together where they are in one directory and speak the same versions."""
    groups: dict[tuple[str, str], list[str]] = {}
    for directory in node.config.network.plugin_dirs:
        names = await asyncio.to_thread(_executables, directory)
        speaks = await asyncio.gather(*(_speaks(node, f"{directory}/{name}") for name in names))
        for name, versions in zip(names, speaks, strict=True):
            groups.setdefault((directory, versions), []).append(name)
    return [
        Check(
            name="plugins",
            severity=INFO if versions else UNKNOWN,
            says=f"{', '.join(names)}: {f'CNI {versions}' if versions else 'cannot be executed'}",
            evidence=directory,
        )
        for (directory, versions), names in groups.items()
    ]


async def _speaks(node: Node, binary: str) -> str:
    try:
        speaks = await node.network.cni.version(binary)
    except SandboxdError:
        return ""
    known = [version for version in conf.SUPPORTED if version in speaks]
    return f"{known[0]} to {known[-1]}" if len(known) > 1 else ", ".join(known or sorted(speaks))


def _executables(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            found = sorted(each.name for each in entries if each.is_file() and os.access(each.path, os.X_OK))
    except OSError:
        return []
    return found[:MOST_PLUGINS]


def _choice(node: Node) -> list[Check]:
    """Every file of the configuration directory, and why it is in force or not."""
    choice = node.network.conf.current()
    found = [
        Check(name="conf-file", severity=INFO if each in choice.others else WARNING, says=str(each), remedy=remedy)
        for each, remedy in (
            *((each, "correct or remove it") for each in choice.problems if not choice.empty),
            *((each, "") for each in choice.others),
        )
    ]
    if choice.config is not None:
        says = f"{choice.config.source} is in force: network {choice.config.name!r}, the first that is valid, by name"
        return [Check(name="conf-file", severity=OK, says=says), *found]
    return found  # that there is none, the check `network` says


def _networks(node: Node) -> dict[str, NetworkConfig]:
    """The network in force, and those that pods are attached to, by what matters of them here."""
    configs = [node.network.conf.current().config]
    for attachment in node.ledger.attachments:
        try:
            configs.append(conf.from_json(attachment.config))
        except InvalidRequest:
            continue  # its DEL tells
    return {f"{config.name} {config.plugins}": config for config in configs if config is not None}


def _ranges(networks: Mapping[str, NetworkConfig]) -> Iterator[Check]:
    """How many addresses are left in each range of host-local."""
    told: set[tuple[str, ranges.Range]] = set()
    for config in networks.values():
        held = [address for each in reservations.directories(config) for address in reservations.addresses(each)]
        for range_ in ranges.ranges(config):
            if (config.name, range_) not in told:
                told.add((config.name, range_))
                yield _left(config.name, range_, sum(address in range_ for address in held))


def _left(network: str, range_: ranges.Range, used: int) -> Check:
    left = max(0, range_.size - used)
    words = f"{left} of {range_.size}" if range_.size < MANY else "more than 4 billion"
    says = f"network {network!r}: {words} addresses are left"
    evidence = f"{range_.subnet}, {range_}, {used} reserved"
    if left > range_.size * FEW_LEFT or left > FEW:
        return Check(name="addresses", severity=OK, says=says, evidence=evidence)
    remedy = "remove pods, widen the range, or see `sandboxctl debts` and `sandboxctl audit` for what nobody uses"
    severity = WARNING if left else ERROR
    return Check(name="addresses", severity=severity, says=says, evidence=evidence, remedy=remedy)


def _debts(node: Node) -> Iterator[Check]:
    owed = debts.listed(node)
    if not owed:
        yield Check(name="debts", severity=OK, says="no network is owed a DEL")
        return
    pods = ", ".join(dict.fromkeys(each.attachment.pod or each.attachment.sandbox_id[:12] for each in owed[:5]))
    yield Check(
        name="debts",
        severity=WARNING,
        says=f"{len(owed)} DELs are owed, of {pods}{' and others' if len(owed) > 5 else ''}",
        evidence=owed[0].attachment.error,
        remedy="`sandboxctl debts` shows them; `debts retry` tries again, `debts forgive` gives them up",
    )
