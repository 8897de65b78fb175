"""The ledger's SQLite file: opened, put aside when it is damaged, watched for what others do to it.

WAL with synchronous=NORMAL: a crash of the process loses nothing; a crash of the machine can lose the last moments,
which `reconcile` repairs (https://www.sqlite.org/wal.html, "Performance Considerations").
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import structlog

from sandboxd import private
from sandboxd.errors import NotReady

log = structlog.get_logger(__name__)

SCHEMA_VERSION = 1

# Primary result codes that are about the machine and not about the file (https://www.sqlite.org/rescode.html).
_NO_ROOM = frozenset((sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR))  # or for another reason
_CIRCUMSTANCES = _NO_ROOM | {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}

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

# Tables that the schema's first version may lack; who does not know them does not look.
_ADDED = """
CREATE TABLE IF NOT EXISTS steps (
    seq INTEGER PRIMARY KEY, sandbox_id TEXT NOT NULL, body TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS steps_by_sandbox ON steps (sandbox_id, seq);
CREATE TABLE IF NOT EXISTS stories (
    seq INTEGER PRIMARY KEY, operation TEXT NOT NULL, subject TEXT NOT NULL, ended_at INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
"""


class Connection(sqlite3.Connection):
    """A connection that knows which files it has open."""

    damaged = False  # SQLite has found so
    opened: dict[str, tuple[int, int]]  # path -> the file that was there when it was first looked at
    size = 0  # bytes of the database when it was last looked at: without a VACUUM it never shrinks

    def wrong(self, path: str) -> str:
        """What is wrong with the database at `path`, "" when it is the one that is open and nothing is known.

        Nothing is opened for that: closing any descriptor of the file would drop SQLite's locks on it
        (https://www.sqlite.org/howtocorrupt.html, section 2.2).
        """
        if self.damaged:
            return "it is damaged"
        for name in (path, f"{path}-wal"):
            try:
                status = os.stat(name)
            except OSError:
                if name in self.opened:
                    return f"{os.path.basename(name)} is gone"
                continue
            if self.opened.setdefault(name, (status.st_dev, status.st_ino)) != (status.st_dev, status.st_ino):
                return f"another file is at {os.path.basename(name)}"
            if name == path:
                if status.st_size < self.size:
                    return "it was truncated"
                self.size = status.st_size
        return ""


def open_or_replace(path: str, make_room: Callable[[], bool] = lambda: False) -> tuple[Connection, str]:
    """The connection, and the new name of a damaged file ("" when there was none). `make_room` is of `Commits`."""
    aside = ""
    if path != ":memory:":
        restrict(path)
    try:
        return connect(path), aside
    except sqlite3.DatabaseError as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code in _CIRCUMSTANCES:
            if code in _NO_ROOM and make_room():
                return open_or_replace(path, make_room)
            raise NotReady(f"the ledger {path} cannot be opened: {exc}") from exc
        aside = set_aside(path)
        log.error("the ledger is damaged, starting an empty one", file=path, kept_as=aside, error=str(exc))
        return connect(path), aside


def set_aside(path: str) -> str:
    """Make room for a new database: move the file away; its new name, "" when there is none."""
    aside = _free_name(f"{path}.damaged") if os.path.exists(path) else ""
    if aside:
        os.replace(path, aside)
    unlink(path)
    return aside


def unlink(path: str) -> None:
    """Remove a database with what belongs to it. Idempotent."""
    for name in (path, f"{path}-wal", f"{path}-shm"):
        Path(name).unlink(missing_ok=True)


def restrict(path: str) -> None:
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


def connect(path: str) -> Connection:
    """Open or create the database. Raises NotReady for another schema's, sqlite3.DatabaseError for a damaged one."""
    # One thread (the event loop's) uses the connection; the check would only forbid closing it elsewhere.
    db = sqlite3.connect(path, check_same_thread=False, factory=Connection)
    db.opened = {}
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
        db.executescript(_ADDED)
        problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)
        db.wrong(path)  # which files they are
    except BaseException:
        db.close()
        raise
    return db
