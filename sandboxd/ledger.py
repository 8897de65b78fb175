"""What survives the daemon: one SQLite file with sandboxes, containers, attachments and timelines.

Rules:
1. Intent before effect: a record is added before anything exists outside the process, and removed only when
   nothing is left.
2. Unique names are UNIQUE constraints, so that a reservation cannot outlive or precede its record.
3. Reads come from memory; every change is committed before it is visible.
4. A damaged row is moved to `quarantine` and reported; a damaged file is renamed and kept. Neither is fatal. A file
   that is intact but cannot be used (locked, unreadable, of a newer sandboxd) is fatal: starting without it would
   mean forgetting pods that run.

WAL with synchronous=NORMAL: a crash of the process loses nothing; a crash of the machine can lose the last moments,
which `reconcile` repairs (https://www.sqlite.org/wal.html, "Performance Considerations").
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import structlog

from sandboxd import private, record_format
from sandboxd.errors import AlreadyExists, NotFound, NotReady
from sandboxd.model import AnyRecord, Attachment, ContainerRecord, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.steps import StepRecord, Story
from sandboxd.timelines import Limits, Timelines, committed

log = structlog.get_logger(__name__)

SCHEMA_VERSION = 1

# Primary result codes that are about the machine and not about the file (https://www.sqlite.org/rescode.html).
_CIRCUMSTANCES = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    )
)

_SCHEMA = """
CREATE TABLE sandboxes (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, config BLOB NOT NULL, body TEXT NOT NULL
) STRICT;
CREATE TABLE containers (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, config BLOB NOT NULL, body TEXT NOT NULL
) STRICT;
CREATE TABLE attachments (
    sandbox_id TEXT NOT NULL, network TEXT NOT NULL, ifname TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, network, ifname)
) STRICT;
CREATE TABLE quarantine (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, id TEXT NOT NULL, content TEXT NOT NULL, reason TEXT NOT NULL
) STRICT;
"""

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

    Changes raise Unavailable when they cannot be written; nothing has changed then.
    """

    def __init__(self, path: str, limits: Limits | None = None) -> None:
        """Open or create the database at `path` (":memory:" for tests) and read everything.

        `limits` are those of failed operations. Raises NotReady when the file is intact but cannot be used.
        """
        self._db, self.replaced = _open(path)
        self._sandboxes = _Table(self._db, "sandboxes", SandboxRecord, cri.PodSandboxConfig.FromString)
        self._containers = _Table(self._db, "containers", ContainerRecord, cri.ContainerConfig.FromString)
        self._attachments: dict[tuple[str, str, str], Attachment] = {}
        self._load_attachments()
        self._timelines = Timelines(self._db, limits or Limits())
        self._listeners: list[Listener] = []

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
        """Checkpoint and close the file."""
        self._db.close()

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

    def remove_sandbox(self, sandbox_id: str) -> None:
        """Forget the sandbox and its timeline. Its attachments stay until they are removed separately."""
        with committed(self._db):
            self._sandboxes.delete(sandbox_id)
            self._timelines.delete(sandbox_id)
        before = self._sandboxes.rows.get(sandbox_id)
        self._sandboxes.forget(sandbox_id)
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
        with committed(self._db):
            self._containers.delete(container_id)
        before = self._containers.rows.get(container_id)
        self._containers.forget(container_id)
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
        with committed(self._db):
            self._db.execute(
                "INSERT OR REPLACE INTO attachments VALUES (?, ?, ?, ?)",
                (*key, record_format.attachment_text(attachment)),
            )
        self._attachments[key] = attachment
        return attachment

    def remove_attachment(self, attachment: Attachment) -> None:
        """Forget an attachment: its DEL succeeded, or no plugin ever ran."""
        key = (attachment.sandbox_id, attachment.network, attachment.ifname)
        with committed(self._db):
            self._db.execute("DELETE FROM attachments WHERE sandbox_id = ? AND network = ? AND ifname = ?", key)
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
        """Add a step to its sandbox's timeline; steps of unknown sandboxes are not kept."""
        if record.sandbox_id not in self._sandboxes.rows:
            return
        self._timelines.append(record)

    def timeline(self, sandbox_id: str) -> list[StepRecord]:
        """The sandbox's steps in the order in which they ended; a damaged one is left out."""
        return self._timelines.of(sandbox_id)

    def keep_story(self, story: Story) -> None:
        """Keep an operation that failed."""
        self._timelines.keep(story)

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

    def __init__(self, db: sqlite3.Connection, name: str, kind: type[Record], parse: Callable[[bytes], Any]) -> None:
        self._db = db
        self._name = name
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
        try:
            with committed(self._db):
                self._db.execute(
                    f"INSERT INTO {self._name} VALUES (?, ?, ?, ?)",
                    (record.id, record.name, record.config.SerializeToString(), record_format.body(record)),
                )
        except sqlite3.IntegrityError as exc:
            raise AlreadyExists(f"the name {record.name} is in use") from exc
        self._keep(record)

    def update(self, id_: str, changes: Mapping[str, Any]) -> Record:
        if id_ not in self.rows:
            raise NotFound(f"{id_} is gone")
        record = replace(self.rows[id_], **changes)
        with committed(self._db):
            if "config" in changes:
                self._db.execute(
                    f"UPDATE {self._name} SET config = ? WHERE id = ?",
                    (record.config.SerializeToString(), id_),
                )
            self._db.execute(f"UPDATE {self._name} SET body = ? WHERE id = ?", (record_format.body(record), id_))
        self.rows[id_] = record
        return record

    def delete(self, id_: str) -> None:
        """Delete the row; `forget` follows once that is committed."""
        self._db.execute(f"DELETE FROM {self._name} WHERE id = ?", (id_,))

    def forget(self, id_: str) -> None:
        record = self.rows.pop(id_, None)
        if record is not None:
            self._names.pop(record.name, None)


def _open(path: str) -> tuple[sqlite3.Connection, str]:
    """The connection, and the new name of a damaged file ("" when there was none)."""
    aside = ""
    if path != ":memory:":
        _restrict(path)
    try:
        return _connect(path), aside
    except sqlite3.DatabaseError as exc:
        if getattr(exc, "sqlite_errorcode", 0) & 0xFF in _CIRCUMSTANCES:
            raise NotReady(f"the ledger {path} cannot be opened: {exc}") from exc
        aside = _free_name(f"{path}.damaged")
        log.error("the ledger is damaged, starting an empty one", file=path, kept_as=aside, error=str(exc))
        os.replace(path, aside)
        for extra in ("-wal", "-shm"):
            Path(path + extra).unlink(missing_ok=True)
        return _connect(path), aside


def _restrict(path: str) -> None:
    """Keep other users out of the database, which holds the containers' environment.

    SQLite creates its other two files with the mode of the first (https://www.sqlite.org/wal.html); the modes of
    those that an earlier sandboxd left are corrected as well. Raises NotReady.
    """
    try:
        private.make(str(Path(path).parent), private.CLOSED)
        os.close(private.opener(path, os.O_RDWR | os.O_CREAT))
        for other in (f"{path}-wal", f"{path}-shm"):
            if os.path.exists(other):
                os.close(private.opener(other, os.O_RDWR))
    except OSError as exc:
        raise NotReady(f"the ledger {path} cannot be opened: {exc.strerror or exc}") from exc


def _free_name(path: str) -> str:
    number = 1
    while os.path.exists(f"{path}-{number}"):
        number += 1
    return f"{path}-{number}"


def _connect(path: str) -> sqlite3.Connection:
    # One thread (the event loop's) uses the connection; the check would only forbid closing it elsewhere.
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        # Bytes that are not UTF-8 become escapes that JSON does not have: this damages one row, not the whole query.
        db.text_factory = lambda data: data.decode("utf-8", "backslashreplace")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise NotReady(
                f"the ledger {path} has schema version {version}, this sandboxd supports {SCHEMA_VERSION}:"
                " start the sandboxd that wrote it, or move the file away after removing its pods"
            )
        problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)
    except BaseException:
        db.close()
        raise
    return db


def _quarantine(db: sqlite3.Connection, kind: str, rowid: int, id_: object, body: str, exc: Exception) -> None:
    reason = f"{type(exc).__name__}: {exc}"
    log.error("a record cannot be read and was quarantined", kind=kind, id=str(id_), reason=reason)
    with committed(db):
        db.execute(
            "INSERT INTO quarantine (kind, id, content, reason) VALUES (?, ?, ?, ?)",
            (kind, str(id_), body, reason),
        )
        db.execute(f"DELETE FROM {kind} WHERE rowid = ?", (rowid,))
