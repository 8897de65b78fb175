"""A look at the network of the host and of one pod: all that CNI plugins are known to change. Read only.

Links, addresses, routes and the like come from the kernel by netlink, rules from iptables-save and nft, sysctls from
/proc/sys/net, and what IPAM keeps from host-local's files. It takes a tenth of a second and six processes or more, so
it is done where somebody asks for it: for a pod whose changes are recorded, and for `explain --changes`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sandboxd import netns, rtnetlink
from sandboxd.cni import conf, reservations
from sandboxd.cni.strict_json import in_any_case
from sandboxd.errors import SandboxdError
from sandboxd.machine import programs, rule_lists
from sandboxd.machine.rules import FAMILIES
from sandboxd.model import Attachment
from sandboxd.network_state import CHAIN, FILE, HOST, LINK, POD, RULE, SYSCTL, Marks, State, Thing, marks, state

_SECONDS = 10.0  # for one program
_MOST_BYTES = 1 << 26  # of what it prints; the tables of 2,000 pods have 1.5 MB
_SYSCTLS = "/proc/sys/net"
_PER_LINK = frozenset({"ipv4/conf", "ipv4/neigh", "ipv6/conf", "ipv6/neigh"})
# Counters, secrets, what only acts when it is written, and what follows the link's own MTU.
_NOT_VALUES = frozenset({"nf_conntrack_count", "stable_secret", "tcp_fastopen_key", "flush", "mtu"})
_SYSCTL_BYTES = 1024
_BRIDGE = "cni0"  # of the plugin `bridge` where its configuration names none

Kinds = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whose network is looked at."""

    pod_id: str
    network: str
    netns_path: str
    bridges: frozenset[str]  # that the configuration names
    directories: tuple[str, ...]  # of host-local

    @classmethod
    def of(cls, attachment: Attachment) -> Subject:
        """The pod and the network of an attachment; of one whose record is damaged, what is known of it."""
        try:
            config = conf.from_json(attachment.config)
            bridges, directories = frozenset(_bridges(config.plugins)), tuple(reservations.directories(config))
        except SandboxdError:
            bridges, directories = frozenset(), ()
        return cls(
            pod_id=attachment.sandbox_id,
            network=attachment.network,
            netns_path=attachment.netns_path,
            bridges=bridges,
            directories=directories,
        )

    def marks(self, *states: State) -> Marks:
        """By what its things are known in these states."""
        return marks(self.pod_id, self.network, self.bridges, *states)


def _bridges(plugins: Iterable[Mapping[str, object]]) -> Iterator[str]:
    for plugin in plugins:
        for each in (plugin, plugin.get("delegate")):
            if isinstance(each, Mapping):
                name = in_any_case(each, "bridge")
                if isinstance(name, str) and name:
                    yield name
                elif each.get("type") == "bridge":
                    yield _BRIDGE


async def look(subject: Subject) -> State:
    """What there is. A part that cannot be read is in `unseen` with the reason; nothing is raised for it."""
    unseen: dict[tuple[str, str], str] = {}
    places: list[tuple[str, str]] = [(HOST, "")]
    if subject.netns_path and netns.exists(subject.netns_path):
        places.append((POD, subject.netns_path))

    async def seen(place: str, kinds: Kinds, reading: Awaitable[Sequence[Thing]]) -> Sequence[Thing]:
        try:
            return await reading
        except (SandboxdError, OSError, TimeoutError, _NotRead) as exc:
            unseen.update({(place, kind): str(exc) or type(exc).__name__ for kind in kinds})
            return ()

    parts = await asyncio.gather(
        *(seen(place, rtnetlink.KINDS, _links(place, path)) for place, path in places),
        *(seen(place, (CHAIN, RULE), _rules(place, path)) for place, path in places),
        seen(HOST, (FILE,), asyncio.to_thread(_files, subject.directories)),
    )
    things = [thing for part in parts for thing in part]
    bare = state(things, unseen)  # to know the pod's veths by
    for place, path in places:
        read = functools.partial(_sysctls, place, _with_sysctls(bare, place, subject.marks(bare)))
        things += await seen(place, (SYSCTL,), _in_place(path, read))
    return state(things, unseen)


class _NotRead(Exception):
    """A program did not say what was asked; the text is why."""


async def _in_place(path: str, call: Callable[[], list[Thing]]) -> list[Thing]:
    return await (netns.inside(path, call) if path else asyncio.to_thread(call))


async def _links(place: str, path: str) -> list[Thing]:
    kind = socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE
    return await rtnetlink.look(await netns.open_socket(path, *kind) if path else socket.socket(*kind), place)


# --- rules -----------------------------------------------------------------------------------------------------


async def _rules(place: str, path: str) -> list[Thing]:
    enter = ("nsenter", f"--net={path}", "--") if path else ()
    *saved, ruleset = await asyncio.gather(
        *(_printed((*enter, f"{family}-save")) for family in FAMILIES),
        _printed((*enter, "nft", "--stateless", "list", "ruleset")),
    )
    things: list[Thing] = []
    without: set[tuple[str, str]] = set()
    for family, text in zip(FAMILIES, saved, strict=True):
        things += rule_lists.saved(text, family, place)
        without |= rule_lists.kept_in_nft(text, family)
    return [*things, *rule_lists.ruleset(ruleset, place, without=without)]


async def _printed(argv: Sequence[str]) -> str:
    """What a program prints; "" where it is not installed, for then no plugin has used it either."""
    try:
        status, output, words = await programs.ask(argv, _SECONDS, most=_MOST_BYTES)
    except FileNotFoundError:
        return ""
    if status == 127:  # nsenter's for a program that is not there
        return ""
    if status or len(output) >= _MOST_BYTES:
        said = words.decode("utf-8", "replace").strip() or "it prints too much"
        raise _NotRead(f"{argv[-1] if len(argv) < 4 else ' '.join(argv[-4:])}: {said}")
    return output.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode("utf-8")


# --- sysctls ---------------------------------------------------------------------------------------------------


def _with_sysctls(seen: State, place: str, known: Marks) -> frozenset[str]:
    """The links whose sysctls are read: all but the veths of other pods, of which there may be thousands."""
    links = [each for each in seen.things.values() if (each.place, each.kind) == (place, LINK)]
    return frozenset(
        each.name
        for each in links
        if place == POD or each.fields.get("kind") != "veth" or each.name in known.own_links
    ) | {"all", "default"}


def _sysctls(place: str, links: Collection[str]) -> list[Thing]:
    """Those of the namespace that the calling thread is in (/proc/sys/net shows each reader its own). Blocks."""
    found, directories = [], [""]
    while directories:
        below = directories.pop()
        try:
            with os.scandir(os.path.join(_SYSCTLS, below)) as entries:
                listed = [(each.name, each.is_dir(follow_symlinks=False)) for each in entries]
        except FileNotFoundError:  # a link that has gone
            continue
        for name, is_directory in listed:
            path = f"{below}/{name}" if below else name
            if is_directory:
                directories += [path] if below not in _PER_LINK or name in links else []
            elif name not in _NOT_VALUES and (value := _value(os.path.join(_SYSCTLS, path))) is not None:
                found.append(Thing(place=place, kind=SYSCTL, name=sysctl_name(path), fields={"value": value}))
    return found


def sysctl_name(path: str) -> str:
    """The name of a file below /proc/sys/net; a dot in an interface's name is a slash then (sysctl(8))."""
    return "net." + path.translate({ord("/"): ".", ord("."): "/"})


def sysctl(name: str) -> str | None:
    """The value of a sysctl of this namespace, by its path below /proc/sys/net; None when it cannot be read."""
    return _value(os.path.join(_SYSCTLS, name))


def _value(path: str) -> str | None:
    try:
        if not os.stat(path).st_mode & stat.S_IRUSR:
            return None
        with open(path, "rb", buffering=0) as file:
            return " ".join(file.read(_SYSCTL_BYTES).decode("utf-8", "replace").split())
    except OSError:
        return None  # it has no value yet, or its link has gone


# --- files -----------------------------------------------------------------------------------------------------


def _files(directories: Sequence[str]) -> list[Thing]:
    """What host-local keeps: who has which address, and the last that it gave. Blocks."""
    found = []
    for directory in directories:
        for path, words in reservations.kept(directory):
            found.append(Thing(place=HOST, kind=FILE, name=path, fields={"content": words}))
    return found
