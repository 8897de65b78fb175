"""What is there and nobody's, and what should be there and is not: things seen against the records. Pure.

A thing is named by an id, or by a mark. Whose it is:

    marked        it is below our directories, or carries our owner's mark
    by its id     something marked has the same id
    unclear       a sandboxd made it, by its name; another one may have (one with another root directory)
    a stranger's  a container record that is not ours has its id: it is not a finding at all

What is unclear is shown and left alone. Nothing is a finding whose id the ledger knows, or an operation holds; nor
what is a pod's that it knows, but for a container with a record of its own.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from sandboxd.model import ID_LENGTH, ContainerRecord, ContainerState, SandboxRecord, SandboxState


class Kind(enum.StrEnum):
    """What a thing is; the values are part of the host API."""

    ADDRESS = "address"  # a reservation of the IPAM plugin host-local
    BUNDLE = "bundle"  # a task's directory in containerd's state
    CGROUP = "cgroup"
    CONTAINER = "container"  # a record in containerd
    DIRECTORY = "directory"
    DRAFT = "draft"  # a snapshot that was to become a layer's
    FILES = "pod files"
    LEASE = "lease"
    MOUNT = "mount"
    NAMESPACE = "namespace"
    RESERVATION = "reservation"  # host-local's, of an address, that names nobody
    RULE = "iptables rule"  # of a plugin, which names the pod in its comment
    SHIM = "shim"
    SNAPSHOT = "snapshot"
    TASK = "task"
    TRANSFER = "transfer"  # a blob that was being written to containerd's store
    UPLOAD = "upload"  # an archive that a client sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """Something that was seen."""

    kind: Kind
    name: str  # its path, key or id
    id: str = ""  # of the pod or container that its name tells; of a staging directory only the head
    pod_id: str = ""  # of its pod, when that is known; a pod's own thing has its id here too
    pod: str = ""  # "namespace/name", when that is known
    uid: str = ""  # of the pod, which plugins may ask for
    since: int = 0  # unix nanoseconds, 0 when it does not say
    marked: bool = False  # it is ours, whatever its id
    ports: tuple[tuple[str, int], ...] = ()  # the host's that a port rule forwards: "tcp" and so on, number


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the things are held against."""

    sandboxes: Mapping[str, SandboxRecord] = field(default_factory=dict)
    containers: Mapping[str, ContainerRecord] = field(default_factory=dict)
    owing: Set[str] = frozenset()  # pods that the ledger knows by an attachment only
    busy: Set[str] = frozenset()  # ids that an operation holds or waits for
    quarantined: Set[str] = frozenset()  # ids of records that could not be read: they were ours
    strangers: Set[str] = frozenset()  # ids of containers that are not ours, and the snapshots that they use

    def knows(self, id_: str) -> bool:
        """Whether it is the id, or the head of one, of something that has a record or is being worked on."""
        if id_ in self.sandboxes or id_ in self.containers or id_ in self.owing or id_ in self.busy:
            return True
        everything = (self.sandboxes, self.containers, self.owing, self.busy)
        return len(id_) < ID_LENGTH and any(known.startswith(id_) for each in everything for known in each)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A thing that is nobody's, or that is missing."""

    kind: Kind
    name: str
    owner: str = ""  # the id of the pod, else of the container; "" for what has none
    pod: str = ""  # "namespace/name", "" when nothing says it
    since: int = 0  # unix nanoseconds, 0 when unknown
    why: str
    remedy: str  # what a repair does
    certain: bool = True  # it is ours
    missing: bool = False  # it should be there and is not

    @property
    def key(self) -> tuple[Kind, str]:
        """What tells it from others, from one look to the next."""
        return self.kind, self.name


UNCLEAR = "it may be another sandboxd's, or another runtime's"
_REMEDIES = {
    Kind.ADDRESS: "have the network's plugins delete it (DEL)",
    Kind.BUNDLE: "remove it",
    Kind.CGROUP: "end what runs in it and remove it",
    Kind.CONTAINER: "end its task and remove the record",
    Kind.DIRECTORY: "remove it with all that is in it",
    Kind.DRAFT: "remove it",
    Kind.FILES: "remove them",
    Kind.LEASE: "give it up and have containerd collect what only it held",
    Kind.MOUNT: "unmount it",
    Kind.NAMESPACE: "have the network's plugins delete the pod (DEL) and unpin it",
    Kind.RESERVATION: "remove it",
    Kind.RULE: "have the network's plugins delete it (DEL)",
    Kind.SHIM: "end it",
    Kind.SNAPSHOT: "remove it",
    Kind.TASK: "end and delete it",
    Kind.TRANSFER: "give it up",
    Kind.UPLOAD: "remove it",
}
_WITHOUT_ID = {
    Kind.DRAFT: "no work under way needs it",
    Kind.LEASE: "no work under way needs it",
    Kind.RESERVATION: "it names nobody: the power failed, or host-local was killed, before that was written",
    Kind.TRANSFER: "nothing is being pulled, and nothing will go on from it",
    Kind.UPLOAD: "no LoadImage under way reads it",
}


def residue(things: Sequence[Thing], known: Known) -> list[Finding]:
    """What is nobody's, in the order of `things`, and for a pod together."""
    owners = _owners(things, known)
    evident = set(known.quarantined)
    pods: dict[str, str] = {}
    for thing in things:
        owner = owners.get(thing.id, "")
        if thing.marked and thing.id and thing.id not in known.strangers:
            evident |= {thing.id, owner}
        if thing.pod and owner:
            pods[owner] = thing.pod
    found = []
    for thing in things:
        owner = owners.get(thing.id, "")
        if known.strangers & {thing.id, thing.name, owner}:
            continue
        if thing.id and (known.knows(thing.id) or known.knows(owner)):
            continue
        certain = thing.marked or bool({thing.id, owner} & evident)
        found.append(
            Finding(
                kind=thing.kind,
                name=thing.name,
                owner=owner,
                pod=pods.get(owner, ""),
                since=thing.since,
                why=_why(thing, certain=certain),
                remedy=_REMEDIES[thing.kind] if certain else "leave it alone",
                certain=certain,
            )
        )
    return found


def _owners(things: Sequence[Thing], known: Known) -> dict[str, str]:
    """The id of each thing → that of its pod, or of its container when the pod is unknown, or alone is known."""
    owners = {thing.id: thing.pod_id for thing in things if thing.id and thing.pod_id}
    lost = [id_ for id_, owner in owners.items() if owner in known.sandboxes and owner not in known.busy]
    owners |= {id_: id_ for id_ in lost}
    whole = {thing.id for thing in things if len(thing.id) == ID_LENGTH}
    for thing in things:
        if thing.id and thing.id not in owners:
            head_of = next((id_ for id_ in whole if id_.startswith(thing.id)), thing.id)
            owners[thing.id] = owners.get(head_of, head_of)
    return owners


def _why(thing: Thing, *, certain: bool) -> str:
    if not thing.id:
        return _WITHOUT_ID.get(thing.kind, "nothing needs it")
    nobody = "no record is of its pod or container"
    return nobody if certain else f"{nobody}, and nothing says that it is ours: {UNCLEAR}"


# --- the other direction ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """What was seen of what records say, by id."""

    containers: Set[str]  # records in containerd
    snapshots: Set[str]
    tasks: Set[str]  # that have not ended
    unpinned: Set[str] = frozenset()  # pods of which a namespace is not where it was pinned
    bare: Set[str] = frozenset()  # pods whose files are not all there


ON_USE = "it is put back when the pod is used next"


def missing(known: Known, there: There) -> list[Finding]:
    """What records say that there is, and there is not. Of what is being made or taken down nothing is said."""
    found = []
    for sandbox in known.sandboxes.values():
        if sandbox.state is not SandboxState.READY or sandbox.id in known.busy:
            continue
        pod = f"{sandbox.config.metadata.namespace}/{sandbox.config.metadata.name}"
        lacking = _lacking(sandbox.id, there, runs=not sandbox.pinned, rootfs=not sandbox.pinned)
        if sandbox.id in there.unpinned:
            lacking.append((Kind.NAMESPACE, sandbox.netns_path or sandbox.id, ON_USE))
        if sandbox.id in there.bare:
            lacking.append((Kind.FILES, sandbox.id, ON_USE))
        found += [_lost(kind, name, sandbox.id, pod, remedy) for kind, name, remedy in lacking]
    for container in known.containers.values():
        runs = container.state is ContainerState.RUNNING
        owner = known.sandboxes.get(container.sandbox_id)
        if owner is None or (not runs and container.state is not ContainerState.CREATED):
            continue
        if container.sandbox_id in known.busy or container.id in known.busy or f"settle:{container.id}" in known.busy:
            continue
        pod = f"{owner.config.metadata.namespace}/{owner.config.metadata.name}"
        lacking = _lacking(container.id, there, runs=runs)
        found += [_lost(kind, name, container.sandbox_id, pod, remedy) for kind, name, remedy in lacking]
    return found


def _lacking(id_: str, there: There, *, runs: bool, rootfs: bool = True) -> list[tuple[Kind, str, str]]:
    by_hand = "none: remove it, and make it again"
    lacking = []
    if id_ not in there.containers:
        lacking.append((Kind.CONTAINER, id_, by_hand))
    if rootfs and id_ not in there.snapshots:
        lacking.append((Kind.SNAPSHOT, id_, by_hand))
    if runs and id_ not in there.tasks:
        lacking.append((Kind.TASK, id_, "the comparison records that it has ended"))
    return lacking


def _lost(kind: Kind, name: str, owner: str, pod: str, remedy: str) -> Finding:
    why = "a record says that it is there"
    return Finding(kind=kind, name=name, owner=owner, pod=pod, why=why, remedy=remedy, missing=True)
