"""Records that the ledger has lost are put back, from what containerd kept and from what is there.

The ledger's file can be deleted, overwritten or damaged, whole or in one row. What it told of is still there: the
processes, the namespaces, containerd's records. Each of these keeps what we told containerd when it was made
(`record_format`); the rest is read from where it is: addresses from the network namespace, states from the tasks.

This only puts back, in the state in which the last daemon would have left it. What has ended meanwhile, or never came
to be, the comparison finds and settles as after any restart; so it does with pods of an earlier boot. What cannot be
put back is logged and stays as it is: an earlier version's, a name that somebody else has by now. A container among
them goes with its pod, and an audit finds it before. Lost for good are timelines, and debts of pods that were
removed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog

from sandboxd import disclosure, places, record_format, steps
from sandboxd.cni import conf, convert, result
from sandboxd.containerd.records import Stored
from sandboxd.containerd.tasks import Task, TaskState
from sandboxd.errors import AlreadyExists, NotFound, SandboxdError
from sandboxd.links import Link
from sandboxd.machine import pins
from sandboxd.model import Attachment, AttachmentState, ContainerRecord, SandboxRecord, of_earlier_boot
from sandboxd.node import Node
from sandboxd.operations import hold

log = structlog.get_logger(__name__)

SECONDS = 10.0  # for each; what is in the way of one must not hold up the start
KEY = ("ADOPT", "")  # among the retries: failing while something could not be put back for the moment

T = TypeVar("T")

_RUNS = frozenset({TaskState.RUNNING, TaskState.PAUSED, TaskState.UNKNOWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What containerd has of us."""

    sandboxes: Mapping[str, Stored]
    containers: Mapping[str, Stored]
    tasks: Mapping[str, Task]

    def with_containers(self) -> frozenset[str]:
        """The pods that have containers."""
        return frozenset(stored.labels.get(places.SANDBOX_LABEL, "") for stored in self.containers.values())

    def pid(self, id_: str) -> int:
        """Its process, 0 when none runs."""
        return self.tasks[id_].pid if id_ in self.tasks and self.tasks[id_].state in _RUNS else 0


class _Refused(Exception):
    """Says why a record cannot be put back, now or ever."""


async def adopt(node: Node) -> None:
    """Put back what containerd has of this daemon and the ledger has not. Raises Unavailable.

    What fails for the moment is tried again with a later comparison.
    """
    # In this order: what is made meanwhile is in the ledger before it is in containerd.
    known = set(node.ledger.sandboxes) | set(node.ledger.containers)
    stored = await node.runtime.records.list()
    ours = {id_: record for id_, record in stored.items() if record.owner == node.places.owner}
    sandboxes = {id_: record for id_, record in ours.items() if record.labels.get(places.KIND_LABEL) == "sandbox"}
    found = _Found(
        sandboxes=sandboxes,
        containers={id_: record for id_, record in ours.items() if id_ not in sandboxes},
        tasks=await node.runtime.list() if ours.keys() - known else {},
    )
    outcomes = [await _attempted(node, stored, found) for stored in _in_turn(found, known)]
    outcomes += [await _attempted(node, stored, found) for stored in _without_attachment(node, found)]
    if all(outcomes):
        node.jobs.retries.succeeded(KEY)


def is_due(node: Node) -> bool:
    """Whether it is time to try again what failed."""
    return node.jobs.retries.failing(KEY) and node.jobs.retries.due(KEY)


def _in_turn(found: _Found, known: set[str]) -> Iterator[Stored]:
    """What is not known: pods before containers. Of two with one name the one that runs, or is newer, is first."""
    for kind in (found.sandboxes, found.containers):
        lost = [stored for id_, stored in kind.items() if id_ not in known]
        yield from sorted(lost, key=lambda stored: (not found.pid(stored.id), -stored.created_at))


def _without_attachment(node: Node, found: _Found) -> list[Stored]:
    """The pods that are known and lack their attachment: its row was damaged, or putting it back was cut off."""
    return [found.sandboxes[id_] for id_ in node.ledger.sandboxes if id_ in found.sandboxes and _lacks_one(node, id_)]


def _lacks_one(node: Node, sandbox_id: str) -> bool:
    """Whether a pod has no attachment, although it may owe a DEL: it has its namespace, or addresses from before a
    reboot."""
    record = node.ledger.sandboxes[sandbox_id]
    if not record.netns_path or node.ledger.attachments_of(sandbox_id):
        return False
    ended = of_earlier_boot(record, node.machine.boot) and not record.stopped_at
    return ended or node.netns.exists(record.netns_path)


async def _attempted(node: Node, stored: Stored, found: _Found) -> bool:
    """Put one back; False when that is to be tried again."""
    what = "pod" if stored.id in found.sandboxes else "container"
    owner = stored.id if what == "pod" else stored.labels.get(places.SANDBOX_LABEL, "")
    if what == "container":
        node.ledger.strays[stored.id] = owner  # until it is adopted
    try:
        with steps.operation("recover", sandbox_id=owner, container_id="" if what == "pod" else stored.id):
            async with asyncio.timeout(SECONDS), hold(node, owner):
                # It may have been removed since it was listed; now no operation is at work on it.
                await node.runtime.spec(stored.id)
                if what == "pod":
                    await _adopt_sandbox(node, stored, found)
                else:
                    await _adopt_container(node, stored, found)
        node.ledger.strays.pop(stored.id, None)
    except NotFound:
        node.ledger.strays.pop(stored.id, None)
    except (_Refused, AlreadyExists) as exc:
        log.warning(
            "what containerd has of us is unknown and cannot be adopted",
            kind=what,
            id=stored.id,
            reason=str(exc),
            next_step="`sandboxctl audit` shows and removes it",
        )
    except Exception as exc:
        expected = isinstance(exc, SandboxdError | OSError)
        words = str(exc) if expected else disclosure.sentence(exc)
        node.jobs.retries.failed(KEY, words)
        log.error(
            "what the ledger has lost could not be put back, this is tried again",
            kind=what,
            id=stored.id,
            error=words,
            exc_info=None if expected else exc,
        )
        return False
    return True


async def _adopt_sandbox(node: Node, stored: Stored, found: _Found) -> None:
    kept = _kept(record_format.kept_sandbox, stored)
    planned = kept.attachment
    record = node.ledger.sandboxes.get(stored.id)
    if record is not None and not _lacks_one(node, stored.id):
        return
    new = record is None
    record = record or _sandbox(node, kept.record, stored, found)
    inside = await _inside(node, record)
    if new:
        own = _addresses(inside, planned.ifname) if planned else []
        if planned and not own and _waits_for_its_network(node, record, found):
            record = replace(record, started_at=0)
        record = replace(record, ips=tuple(str(ipaddress.ip_interface(address).ip) for _, address in own))
        node.ledger.add_sandbox(record)
    with steps.step("pod.adopt", pod=record.name, ips=",".join(record.ips)) as step:
        if planned is not None:
            # Whatever has become of it, a DEL is due, and does no harm if there was one.
            answer = _result(planned, inside)
            node.ledger.put_attachment(replace(planned, state=AttachmentState.ADDED, result=answer))
            step.note(network=planned.network)
    log.warning(
        "a pod that the ledger had lost is adopted",
        sandbox=record.id,
        pod=record.name,
        ips=",".join(record.ips),
        lost="its record" if new else "its network attachment",
    )


def _sandbox(node: Node, kept: SandboxRecord, stored: Stored, found: _Found) -> SandboxRecord:
    """The pod's record as the last daemon had it, but for its addresses; the comparison finds what has changed."""
    pid = found.pid(stored.id)
    came_to_be = _came_to_be(node, kept, found)
    return replace(kept, pid=pid, started_at=_started_at(pid, stored) if came_to_be else 0)


async def _inside(node: Node, record: SandboxRecord) -> Sequence[Link]:
    """The interfaces in the pod's network namespace; none when it has none of its own, or no more."""
    if not record.netns_path or of_earlier_boot(record, node.machine.boot):
        return ()
    if not (await pins.restore(node, record) if record.pid else pins.intact(node, record)):
        return ()
    return await node.netns.interfaces(record.netns_path)


def _addresses(inside: Sequence[Link], ifname: str) -> list[tuple[int, str]]:
    """The pod's addresses, with prefix lengths, each with the index of its interface; not what the kernel gave it."""
    return [
        (index, address)
        for index, interface in enumerate(inside)
        for address in interface.addresses
        if interface.name == ifname and not ipaddress.ip_interface(address).is_link_local
    ]


def _result(planned: Attachment, inside: Sequence[Link]) -> bytes:
    """What the plugins answered, as far as it can be seen in the namespace; b"" when there is nothing to see.

    A DEL gets it. What is on the host's side is not in it: plugins find that by the pod's id, or by their peer.
    """
    others = [interface for interface in inside if interface.name != "lo"]
    if not others:
        return b""
    document = {
        "cniVersion": conf.SUPPORTED[-1],
        "interfaces": [
            {"name": interface.name, "mac": interface.mac, "sandbox": planned.netns_path} for interface in others
        ],
        "ips": [{"address": address, "interface": index} for index, address in _addresses(others, planned.ifname)],
    }
    read = result.parse_result(json.dumps(document).encode(), planned.network)
    version = conf.from_json(planned.config).cni_version
    return json.dumps(convert.in_version(read, version), separators=(",", ":")).encode()


def _came_to_be(node: Node, kept: SandboxRecord, found: _Found) -> bool:
    """Whether its RunPodSandbox succeeded: its pause container was started.

    One that was prepared was nobody's yet. Unless that runs, it cannot be seen; of a pod without one see
    `_waits_for_its_network`. A pod that ended, or was stopped, has containers, or its network namespace no more. One
    without a container that still has its namespace was being made; or else nobody can miss anything of it.
    """
    if kept.prepared_of:
        return False
    task = found.tasks.get(kept.id)
    if found.pid(kept.id) or kept.pinned or of_earlier_boot(kept, node.machine.boot):
        return True
    if task is not None and task.state is TaskState.CREATED:
        return False
    held = kept.netns_path and node.netns.exists(kept.netns_path)
    return not held or kept.id in found.with_containers()


def _waits_for_its_network(node: Node, record: SandboxRecord, found: _Found) -> bool:
    """Whether a pod without an address, and without a pause container, was being made: its plugins had not answered.

    What it has is there, and nothing was ever run in it.
    """
    return record.pinned and pins.intact(node, record) and record.id not in found.with_containers()


async def _adopt_container(node: Node, stored: Stored, found: _Found) -> None:
    record = _kept(record_format.kept_container, stored)
    sandbox = node.ledger.sandboxes.get(record.sandbox_id)
    if sandbox is None:
        raise _Refused(f"its pod {record.sandbox_id} is not known")
    task = found.tasks.get(stored.id)
    ran = task.state is not TaskState.CREATED if task is not None else _was_started(node, record)
    pid = found.pid(stored.id)
    started_at = _started_at(pid, stored) if ran else 0
    record = replace(record, created_at=stored.created_at, pid=pid, started_at=started_at)
    node.ledger.add_container(record)
    with steps.step("container.adopt", container=record.name):
        log.warning("a container that the ledger had lost is adopted", container=record.id, sandbox=sandbox.id)


def _was_started(node: Node, record: ContainerRecord) -> bool:
    """Whether a container that has no task was started once: what it writes to was made then."""
    return os.path.isdir(node.places.streams(record.id)) or bool(record.log_path and os.path.exists(record.log_path))


def _started_at(pid: int, stored: Stored) -> int:
    """When it was started, unix nanoseconds: since when its process runs, or else when its record was made."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        # The second field, in parentheses, is a name that may hold anything (proc_pid_stat(5)).
        since_boot = int(text.rpartition(")")[2].split()[19]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return stored.created_at
    age = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - since_boot
    return max(stored.created_at, time.time_ns() - age)


def _kept(read: Callable[[str, bytes], T], stored: Stored) -> T:
    try:
        return read(stored.id, stored.extension)
    except Exception as exc:
        raise _Refused(f"what was kept of it cannot be read: {disclosure.sentence(exc)}") from exc
