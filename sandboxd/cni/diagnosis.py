"""What the words of a failed CNI operation mean: the kind of failure, its cause, and what to do about it.

The reference plugins report nearly everything with code 999, so it is their words that tell. The words of a rule are
those that a plugin has printed; where a rule has been seen with another version or plugin, it says so. Words that no
rule knows mean `other`, and are left to speak for themselves: a wrong cause is worse than none.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandboxd.cni.failures import EXHAUSTED

_WORDS_READ = 4000  # characters: a plugin can print a megabyte

# Every kind there is, and what it means: a label of metrics, so kinds are added and not renamed.
KINDS: Mapping[str, str] = {
    "address_taken": "the address that the pod asks for is not free, or not one of the network's",
    "addresses_exhausted": "the network has no free address",
    "bad_range": "the configuration of the IPAM plugin makes no sense",
    "bad_result": "the plugin succeeded, and its result is malformed",
    "bridge_address": "the bridge has another address than the configuration says",
    "bridge_mac": "the bridge is left over from a failed first ADD",
    "capability": "the pod asks for what no plugin of the network offers",
    "chain": "the plugin is at the wrong place in the chain",
    "changed": "CHECK found that the network is not as ADD left it",
    "crash": "the plugin crashed, or was killed",
    "delegate_missing": "the binary of an IPAM plugin is missing",
    "disk": "a file cannot be written: the disk is full or read-only",
    "hang": "the plugin did not end within its time",
    "host_netns": "the network namespace is the host's own",
    "interface_exists": "the pod has an interface of that name already",
    "iptables": "iptables, or what it needs of the kernel, is missing",
    "link_missing": "the host has no interface of that name",
    "namespace_gone": "the pod's network namespace is gone",
    "no_address": "the chain gave the pod no address",
    "no_network": "no network is configured",
    "not_a_bridge": "an interface that is not a bridge has the bridge's name",
    "not_ready": "the plugin, or a service that it needs, cannot serve now",
    "other": "the plugin's words are all that is known",
    "permission": "the plugin may not do what it has to",
    "plugin_missing": "the binary of a plugin is missing, or cannot be executed",
    "port_taken": "the host port is taken",
    "rules_gone": "somebody has removed the pod's iptables rules",
    "silent": "the plugin failed and said nothing",
    "sysctl": "the kernel has no such sysctl",
    "version": "the plugin does not speak the configuration's version",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What is known of a failure. `words` is the error's message."""

    plugin: str
    command: str
    words: str
    code: int = 0  # of the plugin's error object
    exit_code: int = 0  # negative: killed by that signal
    timed_out: bool = False
    panicked: bool = False  # it is a Go program, and printed a stack
    conf: Mapping[str, Any] = field(default_factory=dict)  # the plugin's, from its stdin


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """`kind` is one of KINDS. `cause` and `remedy` are sentences without a full stop; "" where nothing is certain."""

    kind: str
    cause: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """The named groups of `words` can be used in the sentences, as can `plugin`, `command`, `network`, `bridge`."""

    kind: str
    words: re.Pattern[str]
    cause: str = ""
    remedy: str = ""
    commands: tuple[str, ...] = ()  # by default any
    plugins: tuple[str, ...] = ()


def diagnose(failure: Failure) -> Diagnosis:
    """What the failure means; `other` without a cause where that is not known."""
    if failure.timed_out:
        return Diagnosis(
            kind="hang",
            cause="it was at work, or waiting for a lock, a service or the network, when its time was over",
            remedy="see in its output what it waits for; network.plugin_seconds is its time",
        )
    if ended := _by_ending(failure):
        return ended
    words = failure.words[:_WORDS_READ]
    for rule in _RULES:
        if rule.commands and failure.command not in rule.commands:
            continue
        if rule.plugins and failure.plugin not in rule.plugins:
            continue
        if found := rule.words.search(words):
            named = _Names(_names(failure) | {key: value or "" for key, value in found.groupdict().items()})
            return Diagnosis(kind=rule.kind, cause=rule.cause.format_map(named), remedy=rule.remedy.format_map(named))
    return _by_code(failure) or Diagnosis(kind="other")


class _Names(dict[str, str]):
    """A name that a configuration lacks is told as such."""

    def __missing__(self, key: str) -> str:
        return f"the {key}"


def _names(failure: Failure) -> dict[str, str]:
    conf = failure.conf
    known = {"plugin": failure.plugin, "command": failure.command, "bridge": conf.get("bridge") or "cni0"}
    known |= {key: conf[key] for key in ("name", "master", "device") if key in conf}
    return {key: value for key, value in known.items() if isinstance(value, str)}


def _by_code(failure: Failure) -> Diagnosis | None:
    """What the codes of the spec say ("Error", table)."""
    match failure.code:
        case 1:
            return Diagnosis(
                kind="version",
                cause="the plugin, or its IPAM plugin, does not speak the cniVersion of the configuration",
                remedy="set cniVersion to one that it speaks, or update it",
            )
        case 11 | 50 | 51:
            return Diagnosis(
                kind="not_ready",
                cause="the plugin says that it cannot serve now",
                remedy=f"try again; if that goes on, see the log of what {failure.plugin} depends on",
            )
    return None


def _by_ending(failure: Failure) -> Diagnosis | None:
    if failure.panicked:
        return Diagnosis(
            kind="crash",
            cause=f"{failure.plugin} crashed, with exit status {failure.exit_code}",
            remedy="update the plugin; its authors need what it printed, which `sandboxctl explain` shows",
        )
    if failure.exit_code < 0 and failure.code == 0:
        killed = -failure.exit_code == signal.SIGKILL
        return Diagnosis(
            kind="crash",
            cause=f"{failure.plugin} was killed, by {_signal(-failure.exit_code)}"
            if killed
            else f"{failure.plugin} crashed, with {_signal(-failure.exit_code)}",
            remedy="see the kernel's log (dmesg): it may have been out of memory"
            if killed
            else "see the kernel's log (dmesg), and install or update the plugin",
        )
    return None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _rule(
    kind: str,
    words: str,
    cause: str = "",
    remedy: str = "",
    *,
    commands: tuple[str, ...] = (),
    plugins: tuple[str, ...] = (),
) -> _Rule:
    pattern = re.compile(words, re.IGNORECASE)
    return _Rule(kind=kind, words=pattern, cause=cause, remedy=remedy, commands=commands, plugins=plugins)


# The first that knows the words decides.
_RULES = (
    # What sandboxd itself says has its cause and its next step already.
    _rule("plugin_missing", r'^CNI plugin "[^"]*" \(network .*(?:was not found; looked in|is not executable)'),
    _rule("plugin_missing", r"^CNI plugin \S+ cannot be (?:read|executed): "),
    _rule("version", r'^CNI plugin "[^"]*" \(\S+\) speaks .*; network "'),
    _rule("no_network", r"^no usable network configuration in "),
    _rule("port_taken", r"^host port .* is held by pod "),
    _rule("capability", r"^annotation \S+: no plugin of network .* has the capability "),
    _rule("host_netns", r"is the host's own network namespace; plugins would change the host"),
    _rule("bad_result", r"(?:failed on|:) .*malformed (?:result|answer): ", remedy="update {plugin}, or mend it"),
    _rule(
        "no_address",
        r"returned no address for ",
        "no plugin of the chain gave the pod an address, or one dropped it from the result",
        'give a plugin of the chain an "ipam", and let the last one pass on prevResult',
    ),
    # The namespace.
    _rule(
        "namespace_gone",
        r"is not a live network namespace|(?:failed to Statfs|unknown FS magic on) \"",
        "somebody unmounted or removed the pod's network namespace while its network was set up",
        "create the pod again; `findmnt -t nsfs` lists the namespaces that are there",
    ),
    # Addresses: host-local, and others as `failures` names them.
    _rule(
        "address_taken",
        r"requested IP address (?P<address>\S+) is not available in range set (?P<range>.+?)(?: \(CNI error|$)",
        "{address} is held by another container, or is no address of {range}",
        "ask for another address, or remove what holds it: see /var/lib/cni/networks/{name}",
    ),
    _rule(
        "address_taken",
        r"failed to allocate all requested IPs: (?P<address>.+?)(?: \(CNI error|$)",
        "no range of the network has {address}",
        "ask for an address of the network's ranges",
    ),
    _rule("addresses_exhausted", EXHAUSTED, "every address of the network is given out", commands=("ADD",)),
    _rule(
        "bad_range",
        r"invalid range set \d+: |range set \d+ overlaps with|invalid CIDR address: |no IP ranges specified"
        r"|expected to be in CIDR notation",
        'what "ipam" of network {name} says is not a range of addresses that can be given out',
        'correct "ipam" in the configuration file; a range is {{"subnet": "10.88.0.0/16"}}',
    ),
    # Bridges.
    _rule(
        "bridge_address",
        r'"(?P<its>[^"]+)" already has an IP address different from (?P<address>[^\s;]+)',
        "{its} was made for another subnet: by an earlier configuration, or by another network with the same bridge",
        'give the network a "bridge" of its own; or, when no pod uses {its} any more: ip link delete {its}',
    ),
    _rule(
        "bridge_mac",
        r"could not set bridge's mac: invalid argument",
        "{bridge} is an empty bridge that an earlier ADD left when it failed; it has no MAC address",
        "create the pod again, which now succeeds; or remove the bridge first: ip link delete {bridge}",
    ),
    _rule(
        "not_a_bridge",
        r'"(?P<its>[^"]+)" already exists but is not a bridge',
        "the host has an interface {its} of another kind",
        'give the network another name in "bridge", or remove the interface',
    ),
    # Newer plugins say which peer; older ones let the kernel speak.
    _rule(
        "interface_exists",
        r"container veth name .*already exists|failed to make veth pair: file exists",
        "an earlier plugin of the chain has made this interface, or an ADD was repeated without its DEL",
        "let one plugin of the chain only make the pod's interface; if it does, create the pod again",
    ),
    _rule(
        "link_missing",
        r"Link not found|no such network interface",
        'the interface that the configuration names as "master" or "device" is not on this host',
        "see `ip link` for those that are, and correct the configuration",
        plugins=("macvlan", "ipvlan", "vlan", "host-device"),
    ),
    # Other programs, and the kernel.
    _rule(
        "iptables",
        r'exec: "(?P<program>ip6?tables[^"]*)": executable file not found',
        "{plugin} needs {program}, which is not in its PATH",
        "install it (on Debian: apt-get install iptables), or set network.plugin_path",
    ),
    _rule(
        "iptables",
        r"can't initialize ip6?tables table [^:]*: (?!Permission)"
        r"|Could not fetch rule set generation id: (?!Permission)|Table does not exist|Failed to initialize nft",
        "the kernel lacks what this iptables needs",
        "load its modules (nf_tables, or iptable_nat for iptables-legacy), or choose the other backend with"
        " `update-alternatives --config iptables`",
    ),
    _rule(
        "rules_gone",
        r"ip6?tables .*(?:Chain '[^']+' does not exist|No chain/target/match by that name)",
        "the pod's rules were removed by somebody else, or its ADD had not made them yet",
        "nothing needs to be done: the next DEL succeeds, and sandboxd tries it again",
        commands=("DEL",),
    ),
    _rule(
        "delegate_missing",
        r'failed to find plugin "(?P<delegate>[^"]+)" in path \[(?P<dirs>[^\]]*)\]',
        'the binary of "{delegate}", which {plugin} runs, is in none of {dirs}',
        "install it there (on Debian the usual ones are in containernetworking-plugins), or correct its type",
    ),
    _rule(
        "not_ready",
        r"error dialing DHCP daemon: ",
        "the daemon of the dhcp plugin does not run",
        "start it: `dhcp daemon`, from the directory of the plugins",
    ),
    _rule(
        "port_taken",
        r"address already in use",
        "a process of this machine has the port",
        "`ss -lntup` says which; choose another port, or stop it",
    ),
    _rule(
        "sysctl",
        r"open /proc/sys/(?P<path>\S+): no such file or directory",
        "the kernel has no {path}, or not in a pod's namespace",
        'correct "sysctl" in the configuration, or load the module that has it',
    ),
    _rule(
        "disk",
        r"no space left on device|disk quota exceeded|read-only file system",
        "a file system that the plugin writes to, such as that of /var/lib/cni, is full or read-only",
        "make room there or remount it, and create the pod again",
        commands=("ADD",),
    ),
    _rule(
        "permission",
        r"operation not permitted|permission denied",
        "{plugin} lacks a capability such as CAP_NET_ADMIN or CAP_SYS_ADMIN, or a security module denies it",
        "run sandboxd as root with these capabilities; see the kernel's log (dmesg) for denials",
    ),
    # The chain, and CHECK.
    _rule(
        "chain",
        r"must be called as (?:a )?chained plugin|required prevResult missing",
        "{plugin} works on the interface that an earlier plugin of the chain has made, and there is none",
        "put it behind such a plugin, as bridge, in the list of plugins",
    ),
    _rule(
        "changed",
        r"Failed to match addr |Interface name \S+ not found|expected .* not found|missing .* route",
        "somebody has changed the pod's interface since its ADD",
        "remove the pod and create it again",
        commands=("CHECK",),
    ),
    _rule(
        "silent",
        r"exited with status (?P<status>\d+) and said nothing",
        "",
        "run it by hand, with the environment and the input that `sandboxctl explain` shows",
    ),
)
