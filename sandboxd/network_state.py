"""What a network consists of at a moment, what differs between two moments, and whose the difference is. Pure.

A `Thing` is a link, an address, a route, a rule and so on, with a name in the words of ip(8), iptables(8), nft(8) and
sysctl(8). Plugins of other pods work on the host at the same time, so a difference there proves nothing by itself.
What bears a mark of the pod is the pod's: its id, its addresses, the host's ends of its veths, the chains that the
reference plugins name after network and id. What bears a mark of the network is shared by its pods: the bridge, the
plugins' common chains, forwarding. The rest happened meanwhile. In the pod's own namespace everything is the pod's.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sandboxd.steps import NetworkChange

POD, HOST = "pod", "host"  # the places
# The kinds, in the order in which people are told of them.
LINK, ADDRESS, ROUTE, POLICY, NEIGHBOUR, QDISC = "link", "address", "route", "policy", "neighbour", "qdisc"
CHAIN, RULE, SYSCTL, FILE = "chain", "rule", "sysctl", "file"
KINDS = (LINK, ADDRESS, ROUTE, POLICY, NEIGHBOUR, QDISC, CHAIN, RULE, SYSCTL, FILE)
OF_POD, OF_NETWORK, UNKNOWN = "pod", "network", ""  # whose a thing is

Key = tuple[str, str, str]

_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_OWN_CHAIN = re.compile(r"\bCNI-(?:[A-Z]+-)?([0-9a-f]{21,24})\b")  # a pod's: of bridge and ptp, of portmap
_COMMON = re.compile(r"\bCNI-[A-Z]+(?:-[A-Z]+)*\b(?!-)|\bcni_[a-z_]+")  # the plugins' chains and nft tables
_ONE_ADDRESS = re.compile(r"(?<![\w.:])([0-9a-fA-F.:]+)/(?:32|128)\b")
_OF_LINK = re.compile(r"(net\.ipv[46]\.(?:conf|neigh))\.([^.]+)\.(.+)")
_FORWARDING = {"net.ipv4.ip_forward": "net.ipv4", "net.ipv6.conf.all.forwarding": "net.ipv6"}
_NOT_LINKS = frozenset({"all", "default"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One thing of a network; the same at two moments when place, kind and name are."""

    place: str
    kind: str
    name: str
    fields: Mapping[str, str] = field(default_factory=dict)  # what else it says, in the order in which it is told
    index: int = 0  # of a link, in its namespace
    peer: int = 0  # of a veth, the index of its other end

    @property
    def key(self) -> Key:
        """What it is known by."""
        return self.place, self.kind, self.name


_NOTHING = Thing(place="", kind="", name="")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A network at a moment."""

    things: Mapping[Key, Thing]
    unseen: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (place, kind) → why it could not be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """By what the things of a pod and of its network are known on the host."""

    pod_id: str
    network: str
    addresses: frozenset[str] = frozenset()  # of the pod, without prefix length
    links: frozenset[str] = frozenset()  # of the network: its bridge
    own_links: frozenset[str] = frozenset()  # the host's ends of the pod's veths


def state(things: Iterable[Thing], unseen: Mapping[tuple[str, str], str] | None = None) -> State:
    """The things by their keys, the ends of the pod's veths named after each other; a repeated one is numbered."""
    by_key: dict[Key, Thing] = {}
    for thing in _paired(list(things)):
        number, numbered = 1, thing
        while numbered.key in by_key:
            number += 1
            numbered = replace(thing, name=f"{thing.name} (again, {number})")
        by_key[numbered.key] = numbered
    return State(things=by_key, unseen=unseen or {})


def _paired(things: Sequence[Thing]) -> Iterator[Thing]:
    hosts = {each.index: each for each in things if (each.place, each.kind) == (HOST, LINK)}
    ends: dict[int, Thing] = {}  # by the host's index
    for each in things:
        end = hosts.get(each.peer) if (each.place, each.kind) == (POD, LINK) and each.peer else None
        if end is not None and end.peer == each.index:
            ends[end.index] = each
    inside = {id(each): hosts[index] for index, each in ends.items()}
    for each in things:
        other = inside.get(id(each)) or (ends.get(each.index) if (each.place, each.kind) == (HOST, LINK) else None)
        yield replace(each, fields={**each.fields, "peer": other.name}) if other else each


def marks(pod_id: str, network: str, bridges: Iterable[str], *states: State) -> Marks:
    """The marks of a pod that was seen in these states; `bridges` are those that its configuration names."""
    things = [thing for each in states for thing in each.things.values()]
    inside = [each.name.split("/")[0] for each in things if (each.place, each.kind) == (POD, ADDRESS)]
    own = {each.name: each for each in things if (each.place, each.kind) == (HOST, LINK) and "peer" in each.fields}
    masters = {each.fields["master"] for each in own.values() if each.fields.get("master")}
    return Marks(
        pod_id=pod_id,
        network=network,
        addresses=frozenset(each for each in inside if _tells(each)),
        links=frozenset((*bridges, *masters)),
        own_links=frozenset(own),
    )


def _tells(address: str) -> bool:
    """Whether an address is one pod's on this host."""
    read = ipaddress.ip_address(address)
    return not read.is_link_local and not read.is_loopback


def chain_digest(network: str, pod_id: str) -> str:
    """What the names of a pod's own chains begin with, after the plugin's own letters: bridge's and portmap's."""
    return hashlib.sha512(f"{network}{pod_id}".encode()).hexdigest()


def whose(thing: Thing, known: Marks) -> str:
    """OF_POD, OF_NETWORK, or UNKNOWN: nothing says that it is either."""
    if thing.place == POD:
        return OF_POD
    text = " ".join((thing.name, *thing.fields.values()))
    digest = chain_digest(known.network, known.pod_id)
    ids, chains = set(_ID.findall(text)), _OWN_CHAIN.findall(text)
    if ids - {known.pod_id} or not all(digest.startswith(each) for each in chains):
        return UNKNOWN
    if ids or chains or _names(text, known.own_links) or _has_address(text, known.addresses):
        return OF_POD
    if any(_is_anothers(each) for each in _ONE_ADDRESS.findall(text)):
        return UNKNOWN
    if thing.kind == LINK:
        return OF_NETWORK if thing.name in known.links else UNKNOWN
    if _names(text, known.links) or thing.name in _FORWARDING:
        return OF_NETWORK
    return OF_NETWORK if thing.kind in (CHAIN, RULE) and _COMMON.search(text) else UNKNOWN


def _names(text: str, links: Iterable[str]) -> bool:
    return any(re.search(rf"(?<![\w-]){re.escape(each)}(?![\w-])", text) for each in links)


def _has_address(text: str, addresses: Iterable[str]) -> bool:
    for each in addresses:
        around = r"[\w:]" if ":" in each else r"[\w.]"
        if re.search(rf"(?<!{around}){re.escape(each)}(?!{around})", text):
            return True
    return False


def _is_anothers(address: str) -> bool:
    try:
        return _tells(address)
    except ValueError:
        return False


def difference(
    before: State, after: State, known: Marks, *, not_plugins: Collection[str] = frozenset()
) -> list[NetworkChange]:
    """What appeared, went or changed, the pod's first, then the network's, then what happened meanwhile.

    A kind that either moment could not see is left out. `not_plugins` are sysctls of the pod that its runtime sets.
    Of sysctls only values that changed count: those of a link that is new did if they are not the default, and what
    the kernel changes together with forwarding is told as forwarding.
    """
    blind = {*before.unseen, *after.unseen}
    changed = []
    for key in dict.fromkeys((*before.things, *after.things)):
        was, now = before.things.get(key), after.things.get(key)
        if key[:2] in blind or (was and now and was.fields == now.fields):
            continue
        if key[1] == SYSCTL:
            if key[0] == POD and key[2] in not_plugins:
                continue
            was = was or _default(after, now)
            if was is None or now is None or was.fields == now.fields:
                continue
        elif key[1] == CHAIN and (was is None or now is None) and "policy" in (was or now or _NOTHING).fields:
            continue  # it comes and goes with its table
        changed.append((was, now))
    told = [_change(was, now, known) for was, now in changed]
    return sorted((each for each in told if not _follows(each, told)), key=_order)


def _default(after: State, now: Thing | None) -> Thing | None:
    """What the kernel gave a new link."""
    match = _OF_LINK.fullmatch(now.name) if now else None
    if now is None or match is None or match[2] in _NOT_LINKS:
        return None
    return after.things.get((now.place, SYSCTL, f"{match[1]}.default.{match[3]}"))


def _change(was: Thing | None, now: Thing | None, known: Marks) -> NetworkChange:
    seen = [each for each in (was, now) if each is not None]
    found = {whose(replace(each, name=seen[-1].name), known) for each in seen}
    last = seen[-1]
    return NetworkChange(
        place=last.place,
        kind=last.kind,
        name=last.name,
        before=dict(was.fields) if was else None,
        after=dict(now.fields) if now else None,
        belongs_to=next((each for each in (OF_POD, OF_NETWORK) if each in found), UNKNOWN),
    )


def _follows(change: NetworkChange, told: Iterable[NetworkChange]) -> bool:
    """Whether it is what the kernel does when forwarding is switched (ip-sysctl: ip_forward, conf/all/forwarding)."""
    match = _OF_LINK.fullmatch(change.name) if change.kind == SYSCTL and change.name not in _FORWARDING else None
    if match is None:
        return False
    family = match[1].rpartition(".")[0]
    switched = any(_FORWARDING.get(each.name) == family and each.place == change.place for each in told)
    return switched and (match[3] == "forwarding" or (match[2], match[3]) == ("all", "accept_redirects"))


def _order(change: NetworkChange) -> tuple[int, int, int, str]:
    return (
        (OF_POD, OF_NETWORK, UNKNOWN).index(change.belongs_to),
        (POD, HOST).index(change.place),
        KINDS.index(change.kind),
        change.name,
    )


def present(now: State, known: Marks) -> list[tuple[Thing, str]]:
    """What there is of the pod and of its network, each with whose it is; the pod's first.

    Of sysctls: forwarding, and what of the pod's and the network's links is not the default.
    """
    found = []
    for thing in now.things.values():
        if thing.kind == SYSCTL and thing.name not in _FORWARDING:
            default = _default(now, thing)
            if default is None or default.fields == thing.fields or thing.name.split(".")[3] == "lo":
                continue
        owner = whose(thing, known)
        if owner != UNKNOWN and (thing.place == HOST or thing.name not in _FORWARDING):
            found.append((thing, owner))
    return sorted(found, key=lambda each: _order(_change(None, each[0], known)))
