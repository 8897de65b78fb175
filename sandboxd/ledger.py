"""What survives the daemon: one SQLite file with sandboxes, containers, attachments and timelines.

Rules:
1. Intent before effect: a record is added before anything exists outside the process, and removed only when
   nothing is left.
2. Unique names are UNIQUE constraints, so that a reservation cannot outlive or precede its record.
3. Reads come from memory. How things begin is committed before it is visible; how they end is visible at once, and
   committed as soon as that can be done (`commits`): a full disk keeps no pod from being stopped and removed.
4. A damaged row is moved to `quarantine` and reported; a damaged file is renamed and kept. Neither is fatal. A file
   that is intact but cannot be used (locked, unreadable, of a newer sandboxd) is fatal: starting without it would
   mean forgetting pods that run.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import structlog

from sandboxd import database, record_format
from sandboxd.commits import Commits, Statement
from sandboxd.errors import AlreadyExists, NotFound, Unavailable
from sandboxd.model import AnyRecord, Attachment, AttachmentState, ContainerRecord, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.steps import StepRecord, Story
from sandboxd.timelines import Limits, Timelines

log = structlog.get_logger(__name__)

# How a record ends: no field of one that begins. See `commits`.
_ENDING = frozenset(
    ("exit_code", "exited_at", "failure", "finished_at", "ips", "message", "pid", "reason", "stopped_at")
)
_ENDING_STATES = frozenset((AttachmentState.DELETING, AttachmentState.OWED))

Record = TypeVar("Record", SandboxRecord, ContainerRecord)

Listener = Callable[[AnyRecord | None, AnyRecord | None], None]
"""Called for a change with the record before (None when it is new) and after (None when it was removed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A row that could not be read when the daemon started."""

    kind: str
    id: str
    reason: str


class Ledger:
    """The daemon's memory. All methods are synchronous; none waits for anything but the local disk.

    What begins raises Unavailable when it cannot be written; nothing has changed then. What ends does only when
    somebody else has locked the file.
    """

    def __init__(
        self, path: str, make_room: Callable[[], bool] = lambda: False, limits: Limits | None = None
    ) -> None:
        """Open or create the database at `path` (":memory:" for tests) and read everything.

        `make_room` is of `Commits`, `limits` are those of failed operations. Raises NotReady when the file is intact
        but cannot be used.
        """
        self._path = path
        self._db, self.replaced = database.open_or_replace(path, make_room)
        self.commits = Commits(self._db, make_room)
        self._sandboxes = _Table(self._db, self.commits, SandboxRecord, cri.PodSandboxConfig.FromString)
        self._containers = _Table(self._db, self.commits, ContainerRecord, cri.ContainerConfig.FromString)
        self._attachments: dict[tuple[str, str, str], Attachment] = {}
        self._load_attachments()
        self._timelines = Timelines(self.commits, limits or Limits())
        self._listeners: list[Listener] = []
        self.strays: dict[str, str] = {}
        """Containers that containerd has of a pod and that are not known here, nor can be told of: id → the pod's id.
        They go with their pod."""

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` for every change of a sandbox or container, after it was committed.

        It is called in the middle of the operation that made the change: it must be short. Errors that it raises are
        logged and not propagated.
        """
        self._listeners.append(listener)

    def _announce(self, before: AnyRecord | None, after: AnyRecord | None) -> None:
        for listener in self._listeners:
            try:
                listener(before, after)
            except Exception:
                log.exception("a listener of the ledger failed")

    def close(self) -> None:
        """Write what waits, checkpoint and close the file."""
        self._timelines.write()
        self.commits.catch_up()
        self._db.close()

    def check(self) -> None:
        """Look whether the file is still ours and whole; if it is not, write another one from memory.

        Someone may delete, replace, truncate or overwrite it while it is open. SQLite does not notice: it goes on
        with a file that has no name any more, which would be lost with this process. Raises Unavailable when the new
        one cannot be written; the next check tries again.
        """
        if self._path == ":memory:" or not (wrong := self._db.wrong(self._path)):
            return
        try:
            aside = self._rewrite()
        except (sqlite3.Error, OSError) as exc:
            raise Unavailable(f"the ledger is lost ({wrong}) and cannot be written anew: {exc}") from exc
        log.error("the ledger was lost and is written anew from memory", file=self._path, was=wrong, kept_as=aside)

    def _rewrite(self) -> str:
        """Put a new file in the place of the present one; where what is there was moved to, "" if nothing is."""
        draft = f"{self._path}.new"
        database.unlink(draft)
        database.restrict(draft)
        with closing(database.connect(draft)) as new, new:
            for table in (self._sandboxes, self._containers):
                new.executemany(f"INSERT INTO {table.name} VALUES (?, ?, ?, ?)", map(_row, table.rows.values()))
            new.executemany("INSERT INTO attachments VALUES (?, ?, ?, ?)", map(_attachment_row, self.attachments))
            self._timelines.copy(new)
        with suppress(sqlite3.Error):  # it may want to write to what is no longer there
            self._db.close()
        aside = database.set_aside(self._path)
        os.replace(draft, self._path)
        self._db = database.connect(self._path)
        self.commits.use(self._db)
        return aside

    # Sandboxes

    @property
    def sandboxes(self) -> Mapping[str, SandboxRecord]:
        """Every sandbox by id."""
        return MappingProxyType(self._sandboxes.rows)

    def sandbox_named(self, name: str) -> SandboxRecord | None:
        """The sandbox that holds `name`."""
        return self._sandboxes.named(name)

    def add_sandbox(self, record: SandboxRecord) -> None:
        """Raises AlreadyExists when the id or the name is taken."""
        self._sandboxes.add(record)
        self._announce(None, record)

    def update_sandbox(self, sandbox_id: str, **changes: Any) -> SandboxRecord:
        """Replace fields; raises NotFound when the sandbox is gone."""
        before = self._sandboxes.rows.get(sandbox_id)
        after = self._sandboxes.update(sandbox_id, changes)
        self._announce(before, after)
        return after

    def hand_over(self, sandbox_id: str, attachments: Iterable[Attachment], **changes: Any) -> SandboxRecord:
        """`update_sandbox`, with a new name and its attachments, in one transaction.

        Raises AlreadyExists when the name is taken, NotFound; nothing has changed then.
        """
        before = self._sandboxes.rows.get(sandbox_id)
        attached = {(each.sandbox_id, each.network, each.ifname): each for each in attachments}
        after = self._sandboxes.update(sandbox_id, changes, *map(_put, attached.values()))
        self._attachments |= attached
        self._announce(before, after)
        return after

    def remove_sandbox(self, sandbox_id: str) -> None:
        """Forget the sandbox and its timeline. Its attachments stay until they are removed separately."""
        before = self._sandboxes.remove(sandbox_id, self._timelines.forget(sandbox_id))
        if before is not None:
            self._announce(before, None)

    # Containers

    @property
    def containers(self) -> Mapping[str, ContainerRecord]:
        """Every container by id."""
        return MappingProxyType(self._containers.rows)

    def container_named(self, name: str) -> ContainerRecord | None:
        """The container that holds `name`."""
        return self._containers.named(name)

    def containers_of(self, sandbox_id: str) -> list[ContainerRecord]:
        """The sandbox's containers, oldest first."""
        return [c for c in self._containers.rows.values() if c.sandbox_id == sandbox_id]

    def add_container(self, record: ContainerRecord) -> None:
        """Raises AlreadyExists when the id or the name is taken."""
        self._containers.add(record)
        self._announce(None, record)

    def update_container(self, container_id: str, **changes: Any) -> ContainerRecord:
        """Replace fields; raises NotFound when the container is gone."""
        before = self._containers.rows.get(container_id)
        after = self._containers.update(container_id, changes)
        self._announce(before, after)
        return after

    def remove_container(self, container_id: str) -> None:
        """Forget the container. Idempotent."""
        before = self._containers.remove(container_id)
        if before is not None:
            self._announce(before, None)

    # Attachments

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """Every attachment, debts of removed sandboxes included."""
        return tuple(self._attachments.values())

    def attachments_of(self, sandbox_id: str) -> list[Attachment]:
        """The sandbox's attachments, in the order of their creation."""
        return [a for a in self._attachments.values() if a.sandbox_id == sandbox_id]

    def put_attachment(self, attachment: Attachment) -> Attachment:
        """Add or replace an attachment."""
        key = (attachment.sandbox_id, attachment.network, attachment.ifname)
        put = _put(attachment)
        if attachment.state in _ENDING_STATES:
            self.commits.late(key, put)
        else:
            self.commits.now(put)
        self._attachments[key] = attachment
        return attachment

    def remove_attachment(self, attachment: Attachment) -> None:
        """Forget an attachment: its DEL succeeded, or no plugin ever ran."""
        key = (attachment.sandbox_id, attachment.network, attachment.ifname)
        self.commits.late(key, ("DELETE FROM attachments WHERE sandbox_id = ? AND network = ? AND ifname = ?", key))
        self._attachments.pop(key, None)

    def _load_attachments(self) -> None:
        rows = self._db.execute("SELECT rowid, sandbox_id, network, ifname, body FROM attachments").fetchall()
        for rowid, sandbox_id, network, ifname, body in rows:
            try:
                self._attachments[sandbox_id, network, ifname] = record_format.attachment(body)
            except Exception as exc:
                _quarantine(self._db, "attachments", rowid, sandbox_id, body, exc)

    # Timelines

    def append_step(self, record: StepRecord) -> None:
        """Add a step to its sandbox's timeline; steps of unknown sandboxes are not kept.

        Nor is one that cannot be written: what depends on the ledger says so.
        """
        if record.sandbox_id not in self._sandboxes.rows:
            return
        self._timelines.append(record)

    def timeline(self, sandbox_id: str) -> list[StepRecord]:
        """The sandbox's steps in the order in which they ended; a damaged one is left out."""
        return self._timelines.of(sandbox_id)

    def keep_story(self, story: Story) -> None:
        """Keep an operation that failed."""
        self._timelines.keep(story)

    @property
    def stories_kept(self) -> int:
        """How many failed operations are kept."""
        return self._timelines.kept

    def stories(self) -> list[Story]:
        """The failed operations that are kept, newest first."""
        return self._timelines.stories()

    # Damage

    def quarantined(self) -> list[Quarantined]:
        """The rows that could not be read."""
        rows = self._db.execute("SELECT kind, id, reason FROM quarantine ORDER BY seq")
        return [Quarantined(kind=kind, id=id_, reason=reason) for kind, id_, reason in rows]


class _Table(Generic[Record]):
    """Sandboxes or containers: rows in memory, written through."""

    def __init__(
        self, db: database.Connection, commits: Commits, kind: type[Record], parse: Callable[[bytes], Any]
    ) -> None:
        self._commits = commits
        self.name = name = "sandboxes" if kind is SandboxRecord else "containers"
        self.rows: dict[str, Record] = {}
        self._names: dict[str, str] = {}
        for rowid, id_, config, body in db.execute(f"SELECT rowid, id, config, body FROM {name}").fetchall():
            try:
                self._keep(record_format.record(kind, id_, parse(config), body))
            except Exception as exc:
                _quarantine(db, name, rowid, id_, f"{body}\n{config!r}", exc)

    def _keep(self, record: Record) -> None:
        self.rows[record.id] = record
        self._names[record.name] = record.id

    def named(self, name: str) -> Record | None:
        return self.rows.get(self._names.get(name, ""))

    def add(self, record: Record) -> None:
        self._named(record.name, (f"INSERT INTO {self.name} VALUES (?, ?, ?, ?)", _row(record)))
        self._keep(record)

    def update(self, id_: str, changes: Mapping[str, Any], *besides: Statement) -> Record:
        """Replace fields, and do what `besides` says in the same transaction."""
        if id_ not in self.rows:
            raise NotFound(f"{id_} is gone")
        before = self.rows[id_]
        record = replace(before, **changes)
        body: Statement = (f"UPDATE {self.name} SET body = ? WHERE id = ?", (record_format.body(record), id_))
        if changes.keys() <= _ENDING:
            self._commits.late((self.name, id_), body)
        elif "config" in changes:
            values = record.name, record.config.SerializeToString(), id_
            whole: Statement = (f"UPDATE {self.name} SET name = ?, config = ? WHERE id = ?", values)
            self._named(record.name, whole, body, *besides)
        else:
            self._commits.now(body, *besides)
        if before.name != record.name:
            self._names.pop(before.name, None)
        self._keep(record)
        return record

    def _named(self, name: str, *statements: Statement) -> None:
        try:
            self._commits.now(*statements)
        except sqlite3.IntegrityError as exc:
            raise AlreadyExists(f"the name {name} is in use") from exc

    def remove(self, id_: str, *besides: Statement) -> Record | None:
        """Delete the row, if there is one, and what `besides` says; what it was."""
        self._commits.late((self.name, id_), (f"DELETE FROM {self.name} WHERE id = ?", (id_,)), *besides)
        record = self.rows.pop(id_, None)
        if record is not None:
            self._names.pop(record.name, None)
        return record


def _row(record: AnyRecord) -> tuple[str, str, bytes, str]:
    return record.id, record.name, record.config.SerializeToString(), record_format.body(record)


def _attachment_row(attachment: Attachment) -> tuple[str, str, str, str]:
    key = attachment.sandbox_id, attachment.network, attachment.ifname
    return *key, record_format.attachment_text(attachment)


def _put(attachment: Attachment) -> Statement:
    return "INSERT OR REPLACE INTO attachments VALUES (?, ?, ?, ?)", _attachment_row(attachment)


def _quarantine(db: database.Connection, kind: str, rowid: int, id_: object, body: str, exc: Exception) -> None:
    reason = f"{type(exc).__name__}: {exc}"
    log.error("a record cannot be read and was quarantined", kind=kind, id=str(id_), reason=reason)
    row = (kind, str(id_), body, reason)
    try:
        with db:
            db.execute("INSERT INTO quarantine (kind, id, content, reason) VALUES (?, ?, ?, ?)", row)
            db.execute(f"DELETE FROM {kind} WHERE rowid = ?", (rowid,))
    except sqlite3.OperationalError as words:
        log.error(
            "it stays where it is, and is met again at the next start", kind=kind, id=str(id_), error=str(words)
        )
