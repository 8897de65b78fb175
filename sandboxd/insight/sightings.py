"""What a pod or a container could leave behind, as it is on this machine now: in containerd, in files, in the kernel.

Everything is listed and nothing is judged (`residue` does). A list that cannot be read is an error of the audit, for
what is not seen would count as gone.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from sandboxd import mounts, places
from sandboxd.cni import reservations
from sandboxd.containerd import shims
from sandboxd.containerd.client import OWNER_LABEL
from sandboxd.containerd.ingest import TRANSFER_PREFIX
from sandboxd.containerd.records import Stored
from sandboxd.containerd.snapshots import Kind as SnapshotKind
from sandboxd.containerd.snapshots import Snapshot
from sandboxd.containerd.tasks import Task, TaskState
from sandboxd.images import leftovers, uploads
from sandboxd.images.pull import LEASE_PREFIX
from sandboxd.images.store import ImageStore
from sandboxd.insight.residue import Kind, There, Thing
from sandboxd.machine import pins, pod_files, rules
from sandboxd.model import SandboxState
from sandboxd.node import Node
from sandboxd.pods import holders

_RULE_PORTS = re.compile(r"-p (tcp|udp|sctp) .*--d(?:estination-)?ports? ([0-9,]+)")
_RULE_ID = re.compile(r'id: \\?"([0-9a-f]{64})\\?"')
_SHORT_ID = re.compile(rf"[0-9a-f]{{{places.STAGE_DIGITS}}}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One look."""

    things: Sequence[Thing]
    there: There
    strangers: frozenset[str]


async def look(node: Node, store: ImageStore, bundles: str, *, thorough: bool) -> Sight:
    """Look once. `bundles` is the directory of containerd's task bundles; `thorough` also asks iptables, slowly.

    Raises Unavailable, and OSError of the machine.
    """
    records = await node.runtime.records.list()
    tasks = await node.runtime.list()
    snapshots = [each for each in await store.snapshots.list() if each.kind is not SnapshotKind.COMMITTED]
    ours = {each.id for each in records.values() if _can_be_ours(each, node.places.owner)}
    strangers = {
        name for each in records.values() if each.id not in ours for name in (each.id, each.snapshot_key) if name
    }
    things = [
        *_containers(records, ours, node.places.owner),
        *_tasks(tasks),
        *_bundles(bundles, tasks),
        *_snapshots(snapshots, node.places.owner),
        *await _of_images(node, store),
        *await _on_the_machine(node),
        *(await _port_rules() if thorough else ()),
    ]
    return Sight(
        things=things,
        there=_there(node, records, tasks, snapshots),
        strangers=frozenset(strangers),
    )


def _there(
    node: Node, records: Mapping[str, Stored], tasks: Mapping[str, Task], snapshots: Sequence[Snapshot]
) -> There:
    ready = [each for each in node.ledger.sandboxes.values() if each.state is SandboxState.READY]
    return There(
        containers=frozenset(records),
        snapshots=frozenset(each.name for each in snapshots),
        tasks=frozenset(id_ for id_, task in tasks.items() if task.state is not TaskState.STOPPED),
        unpinned=frozenset(each.id for each in ready if not pins.intact(node, each)),
        bare=frozenset(each.id for each in ready if pod_files.missing(node, each.id)),
    )


# --- containerd ------------------------------------------------------------------------------------------------


def _can_be_ours(record: Stored, owner: str) -> bool:
    """Whether this daemon can have made it: an earlier version marked nothing but the kind."""
    return record.owner == owner or (not record.owner and places.KIND_LABEL in record.labels)


def _containers(records: Mapping[str, Stored], ours: set[str], owner: str) -> Iterator[Thing]:
    for record in records.values():
        if record.id in ours:
            name, namespace = (record.labels.get(f"io.kubernetes.pod.{each}", "") for each in ("name", "namespace"))
            yield Thing(
                kind=Kind.CONTAINER,
                name=record.id,
                id=record.id,
                pod_id=record.labels.get(places.SANDBOX_LABEL, ""),
                pod=f"{namespace}/{name}" if name else "",
                uid=record.labels.get("io.kubernetes.pod.uid", ""),
                since=record.created_at,
                marked=record.owner == owner,
            )


def _tasks(tasks: Mapping[str, Task]) -> Iterator[Thing]:
    for task_id in tasks:
        if id_ := places.id_of_directory(task_id):
            yield Thing(kind=Kind.TASK, name=task_id, id=id_)


def _bundles(directory: str, tasks: Mapping[str, Task]) -> Iterator[Thing]:
    for entry, since in _entries(directory):
        if (id_ := places.id_of_directory(entry)) and id_ not in tasks:
            yield Thing(kind=Kind.BUNDLE, name=f"{directory}/{entry}", id=id_, since=since)


def _snapshots(snapshots: Sequence[Snapshot], owner: str) -> Iterator[Thing]:
    for each in snapshots:
        mark = each.labels.get(OWNER_LABEL, "")
        pod = places.id_of_image_snapshot(each.name)
        id_ = pod or places.id_of_directory(each.name)
        if id_ and mark in ("", owner):
            yield Thing(
                kind=Kind.SNAPSHOT,
                name=each.name,
                id=id_,
                pod_id=pod,
                since=each.created_at,
                marked=bool(mark),
            )


async def _of_images(node: Node, store: ImageStore) -> list[Thing]:
    drafts, leases = await leftovers.useless(store)
    found = [Thing(kind=Kind.DRAFT, name=name, marked=True) for name in drafts]
    found += [Thing(kind=Kind.LEASE, name=name, marked=True) for name in leases]
    # A pull that was cut off goes on from its transfers: they go with its lease.
    pulls = [lease for lease in await store.leases.ids() if lease.startswith(LEASE_PREFIX)]
    if not pulls and not any(isinstance(key, tuple) and key[0] == "PullImage" for key in node.jobs.in_flight()):
        found += [
            Thing(kind=Kind.TRANSFER, name=name, since=since, marked=True)
            for name, since in (await store.content.transfers()).items()
            if name.startswith(TRANSFER_PREFIX)
        ]
    return found


# --- the machine -----------------------------------------------------------------------------------------------


async def _on_the_machine(node: Node) -> list[Thing]:
    # What changes with the event loop is asked on it.
    networks = holders.directories(node)
    loading = {str(key[1]) for key in node.jobs.in_flight() if isinstance(key, tuple) and key[0] == "LoadImage"}

    def every() -> list[Thing]:
        return [
            *_directories(node),
            *_mounts(node),
            *_namespaces(node),
            *_cgroups(node),
            *_addresses(networks),
            *_uploads(node, loading),
            *_shims(node),
        ]

    return await asyncio.to_thread(every)


def _shims(node: Node) -> Iterator[Thing]:
    for group in shims.groups(node.config.containerd_socket, node.config.containerd.namespace):
        if id_ := places.id_of_directory(group):
            yield Thing(kind=Kind.SHIM, name=group, id=id_, pod_id=id_)


def _directories(node: Node) -> Iterator[Thing]:
    where = node.places
    for top in (*where.of_pods, *where.of_containers, where.stages):
        for entry, since in _entries(top):
            if id_ := _id_in(node, top, entry):
                pod_id = id_ if top in where.of_pods else ""
                yield Thing(
                    kind=Kind.DIRECTORY, name=f"{top}/{entry}", id=id_, pod_id=pod_id, since=since, marked=True
                )


def _mounts(node: Node) -> Iterator[Thing]:
    tops = (*node.places.of_pods, *node.places.of_containers, node.places.stages)
    for point in {mount.point for mount in mounts.listed()}:
        for top in tops:
            if point.startswith(f"{top}/"):
                id_ = _id_in(node, top, point[len(top) + 1 :].partition("/")[0])
                pod_id = id_ if top in node.places.of_pods else ""
                if id_:
                    yield Thing(kind=Kind.MOUNT, name=point, id=id_, pod_id=pod_id, marked=True)


def _id_in(node: Node, top: str, name: str) -> str:
    """The id, or the head of one, that an entry of one of our directories is named by; "" for a stranger's."""
    if top == node.places.stages:
        return name if _SHORT_ID.match(name) else ""
    return places.id_of_directory(name)


def _namespaces(node: Node) -> Iterator[Thing]:
    for entry, since in _entries(node.places.netns):
        if id_ := places.id_of_namespace(entry):
            yield Thing(kind=Kind.NAMESPACE, name=f"{node.places.netns}/{entry}", id=id_, pod_id=id_, since=since)


def _cgroups(node: Node) -> Iterator[Thing]:
    cgroups, where = node.machine.cgroups, node.places
    for name, since in cgroups.children(where.cgroup_parent).items():
        if id_ := places.id_of_directory(name):
            yield Thing(kind=Kind.CGROUP, name=where.own_cgroup(id_), id=id_, pod_id=id_, since=since)
        elif id_ := places.id_of_scope(name):
            yield Thing(kind=Kind.CGROUP, name=f"{where.cgroup_parent}/{name}", id=id_, since=since)


def _addresses(directories: Sequence[str]) -> Iterator[Thing]:
    for directory in directories:
        for address, id_ in reservations.holders(directory).items():
            if places.id_of_directory(id_):
                yield Thing(kind=Kind.ADDRESS, name=f"{directory}/{address}", id=id_, pod_id=id_)
        for path in reservations.unowned(directory):
            yield Thing(kind=Kind.RESERVATION, name=path, marked=True)


async def _port_rules() -> list[Thing]:
    found: dict[str, Thing] = {}
    for family in rules.FAMILIES:
        for line in await rules.saved(family):
            if (match := _RULE_ID.search(line)) and line.startswith("-A "):
                chain = line.split(" ")[1]
                name = f"{family} nat {chain} {match[1]}"
                ports = found[name].ports if name in found else ()
                if says := _RULE_PORTS.search(line):
                    ports += tuple((says[1], int(port)) for port in says[2].split(",") if port)
                found[name] = Thing(kind=Kind.RULE, name=name, id=match[1], pod_id=match[1], ports=ports)
    return [*found.values()]


def _uploads(node: Node, loading: Set[str]) -> Iterator[Thing]:
    opened = _open_files()
    for path in uploads.left(node.places.uploads):
        if str(path) not in loading and str(path) not in opened:
            yield Thing(kind=Kind.UPLOAD, name=str(path), marked=True)


def _open_files() -> set[str]:
    """What this process has open: an archive that is being received."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return found


def _entries(directory: str) -> list[tuple[str, int]]:
    """The names in a directory that may not be there, and when each was changed last."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    found.append((entry.name, entry.stat(follow_symlinks=False).st_mtime_ns))
                except FileNotFoundError:
                    continue
    except FileNotFoundError:
        return []
    return sorted(found)
