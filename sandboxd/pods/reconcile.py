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
    AttachmentState,
    ContainerRecord,
    ContainerState,
    SandboxRecord,
    SandboxState,
    of_earlier_boot,
)


class Action(enum.Enum):
    """What a repair does."""

    REMOVE_SANDBOX = "remove a pod whose creation was interrupted or could not be undone"
    SETTLE_SANDBOX = "record that a pod's pause container has ended"
    REMOVE_CONTAINER = "remove a container whose creation was interrupted"
    SETTLE_CONTAINER = "record how a container ended"
    CONFIRM_RUNNING = "record that a container runs whose start was interrupted"
    UNDO_START = "end a container whose start was interrupted"
    FREE_TASK = "free what the task of an ended container still holds"
    FREE_PAUSE = "free what the ended pause container of a pod still holds"
    REOPEN_LOG = "go on logging a running container"
    PAY_DEBT = "delete a network attachment of a pod that was stopped, removed, or ended by a reboot"


PROMPT = frozenset({Action.SETTLE_SANDBOX, Action.SETTLE_CONTAINER, Action.CONFIRM_RUNNING, Action.REOPEN_LOG})
"""Those that make records true, and take a moment. The others run plugins, or end what may not end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One thing to do, to one object."""

    action: Action
    id: str

    @property
    def key(self) -> tuple[str, str]:
        """Its name among the retries."""
        return self.action.name, self.id

    @property
    def job(self) -> tuple[str, str, str]:
        """Its name among the jobs."""
        return "repair", *self.key

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
    boot: str = "",
    starting_up: bool,
) -> list[Repair]:
    """The repairs, in order.

    `busy` are sandboxes with an operation in flight: they are left to it. What is being made and not busy was left by
    a daemon that died, or by an operation that could not undo it. A pod that never came to be is nobody's: its id was
    given to no client. So is a prepared one, but that is kept while it runs. `boot` is the machine's present one:
    pods of another hold addresses that they cannot use.
    """
    repairs = []
    for record in sandboxes.values():
        if record.id in busy:
            continue
        if record.state is SandboxState.PREPARED and tasks.get(record.id) is Seen.RUNNING:
            continue
        if not record.started_at:
            repairs.append(Repair(action=Action.REMOVE_SANDBOX, id=record.id))
        elif record.pinned:
            continue  # no task of its own; whether its namespaces are there is looked at by `ending.unpinned`
        elif record.state is SandboxState.READY and tasks.get(record.id) is not Seen.RUNNING:
            repairs.append(Repair(action=Action.SETTLE_SANDBOX, id=record.id))
        elif tasks.get(record.id) is Seen.STOPPED:
            # What ended was not freed, or was not seen to end since the pod had failed before.
            what = Action.FREE_PAUSE if record.exited_at else Action.SETTLE_SANDBOX
            repairs.append(Repair(action=what, id=record.id))
    doomed = {repair.id for repair in repairs if repair.action is Action.REMOVE_SANDBOX}
    for container in containers.values():
        if container.sandbox_id in busy or container.sandbox_id in doomed:
            continue
        action = _container_action(container, tasks.get(container.id), starting_up)
        if action is not None:
            repairs.append(Repair(action=action, id=container.id))
    owing = {
        attachment.sandbox_id
        for attachment in attachments
        if attachment.state in _OWED
        or (attachment.sandbox_id not in sandboxes and not attachment.kept)
        or of_earlier_boot(attachment, boot)
    }
    repairs += [Repair(action=Action.PAY_DEBT, id=sandbox_id) for sandbox_id in sorted(owing - doomed - set(busy))]
    return repairs


# A DEL in progress of a pod that is not busy was cut off.
_OWED = frozenset({AttachmentState.OWED, AttachmentState.DELETING})


def _container_action(container: ContainerRecord, task: Seen | None, starting_up: bool) -> Action | None:
    match container.state:
        case ContainerState.CREATING:
            return Action.REMOVE_CONTAINER
        case ContainerState.RUNNING:
            if task is not Seen.RUNNING:
                return Action.SETTLE_CONTAINER
            return Action.REOPEN_LOG if starting_up else None
        case ContainerState.EXITED if task is not None:
            # Its end was recorded, and then it could not be freed.
            return Action.FREE_TASK
        case ContainerState.CREATED if task is not None:
            # StartContainer was cut off: what had not begun to run is undone, the client asks again.
            return Action.CONFIRM_RUNNING if task is not Seen.CREATED else Action.UNDO_START
        case _:
            return None
