"""What to repair, given the records and what containerd reports. Pure.

Level, not edge: this looks at the present state, not at what happened. Each repair can describe itself, for the log
and for people; `recover` gathers the observations and applies the repairs.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from dataclasses import dataclass

from sandboxd.model import (
    Attachment,
    ContainerRecord,
    ContainerState,
    SandboxRecord,
    SandboxState,
)

DEBT_FIRST_NS = 5_000_000_000  # nanoseconds from the first failed DEL to the next attempt; doubled each time
DEBT_MAX_NS = 300_000_000_000


class Action(enum.Enum):
    """What a repair does."""

    REMOVE_SANDBOX = "remove a pod whose creation was interrupted"
    SETTLE_SANDBOX = "record that a pod's pause container has ended"
    REMOVE_CONTAINER = "remove a container whose creation was interrupted"
    SETTLE_CONTAINER = "record how a container ended"
    CONFIRM_RUNNING = "record that a container runs whose start was interrupted"
    UNDO_START = "end a container whose start was interrupted"
    REOPEN_LOG = "go on logging a running container"
    PAY_DEBT = "delete a network attachment that a removed pod still owes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One thing to do, to one object."""

    action: Action
    id: str

    def describe(self) -> str:
        """A sentence for the log."""
        return f"{self.action.value}: {self.id}"


class Seen(enum.Enum):
    """What containerd knows of a task."""

    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


def reconcile(
    sandboxes: Mapping[str, SandboxRecord],
    containers: Mapping[str, ContainerRecord],
    attachments: tuple[Attachment, ...],
    tasks: Mapping[str, Seen],
    *,
    busy: Set[str] = frozenset(),
    starting_up: bool,
    now: int,
) -> list[Repair]:
    """The repairs, in order.

    `busy` are sandboxes with an operation in flight: they are left to it. Objects in creation belong to a dead
    daemon only while `starting_up`; later they are in flight. `now` is unix nanoseconds.
    """
    repairs = []
    for record in sandboxes.values():
        if record.id in busy:
            continue
        if record.state is SandboxState.CREATING:
            if starting_up:
                repairs.append(Repair(action=Action.REMOVE_SANDBOX, id=record.id))
        elif record.state is SandboxState.READY and tasks.get(record.id) is not Seen.RUNNING:
            repairs.append(Repair(action=Action.SETTLE_SANDBOX, id=record.id))
    doomed = {repair.id for repair in repairs if repair.action is Action.REMOVE_SANDBOX}
    for container in containers.values():
        if container.sandbox_id in busy or container.sandbox_id in doomed:
            continue
        action = _container_action(container, tasks.get(container.id), starting_up)
        if action is not None:
            repairs.append(Repair(action=action, id=container.id))
    owing = {a.sandbox_id for a in attachments if a.sandbox_id not in sandboxes and (starting_up or due(a, now))}
    repairs += [Repair(action=Action.PAY_DEBT, id=sandbox_id) for sandbox_id in sorted(owing - set(busy))]
    return repairs


def _container_action(container: ContainerRecord, task: Seen | None, starting_up: bool) -> Action | None:
    match container.state:
        case ContainerState.CREATING:
            return Action.REMOVE_CONTAINER if starting_up else None
        case ContainerState.RUNNING:
            if task is not Seen.RUNNING:
                return Action.SETTLE_CONTAINER
            return Action.REOPEN_LOG if starting_up else None
        case ContainerState.CREATED if starting_up and task is not None:
            # The daemon died inside StartContainer: what had not begun to run is undone, the client asks again.
            return Action.CONFIRM_RUNNING if task is not Seen.CREATED else Action.UNDO_START
        case _:
            return None


def due(attachment: Attachment, now: int) -> bool:
    """Whether an owed DEL should be tried again."""
    wait = min(DEBT_FIRST_NS << min(max(attachment.attempts - 1, 0), 16), DEBT_MAX_NS)
    return now >= attachment.tried_at + wait
