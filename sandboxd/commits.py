"""Transactions on the ledger's file, and what of them waits while the file cannot be written.

How things begin is written `now` or not at all: an effect needs its intent first. How they end may be written
`late`: while a disk is full pods must still be stopped and removed, and a daemon that dies meanwhile finds the
record of something that is gone, which teardown and the comparison take for done. What waits is written with the
next transaction, before anything else, so the file always holds a state that there once was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Hashable, Sequence

import structlog

from sandboxd.database import SCHEMA_VERSION, Connection
from sandboxd.errors import Unavailable

log = structlog.get_logger(__name__)

# Somebody else has a lock on the file, and may release it: waiting for that is not repeated for each statement.
_LOCKED = frozenset((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED))

Statement = tuple[str, Sequence[object]]

# Writes a page and changes nothing (https://www.sqlite.org/pragma.html#pragma_user_version).
_PROBE: Statement = (f"PRAGMA user_version = {SCHEMA_VERSION}", ())


class Commits:
    """The transactions of one connection."""

    def __init__(self, db: Connection, make_room: Callable[[], bool] = lambda: False) -> None:
        """`make_room` gives up some of what is reserved on the disk; whether there was anything left to give up."""
        self.db = db
        self._make_room = make_room
        self._late: dict[Hashable, tuple[Statement, ...]] = {}
        self.trouble = ""
        """Why the last transaction could not be written, "" when it was."""

    @property
    def behind(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._late)

    def use(self, db: Connection) -> None:
        """Go on with a new file, which holds everything: also what waited."""
        self.db = db
        self._late.clear()
        self.trouble = ""

    def now(self, *statements: Statement) -> None:
        """Raises Unavailable when it cannot be written, and sqlite3.IntegrityError; nothing has changed then."""
        try:
            self._write(statements)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as exc:
            raise Unavailable(f"the ledger cannot be written: {exc}") from exc

    def late(self, about: Hashable, *statements: Statement) -> None:
        """Write it now if that can be done, else with the next transaction that can.

        `statements` say all that is to be said `about` a record: they replace those that wait. Raises Unavailable
        when somebody else has locked the file.
        """
        before = self.trouble
        try:
            self._write_somehow(statements)
        except sqlite3.DatabaseError as exc:
            if _is_locked(exc):
                raise Unavailable(f"the ledger cannot be written: {exc}") from exc
            self._late[about] = statements
            if not before:
                log.error("the ledger cannot be written; what ends is noted as soon as it can be", error=str(exc))

    def catch_up(self) -> None:
        """After a transaction that could not be written, look whether that is over, and write what waits.

        Otherwise `trouble` says why not.
        """
        if not self.trouble:
            return
        try:
            self._write((_PROBE,))
        except sqlite3.DatabaseError:
            return
        log.info("the ledger is written again")

    def _write_somehow(self, statements: Sequence[Statement]) -> None:
        """Write, and use up the reserve for it."""
        while True:
            try:
                self._write(statements)
            except sqlite3.OperationalError as exc:
                if _is_locked(exc) or not self._make_room():
                    raise
            else:
                return

    def _write(self, statements: Sequence[Statement]) -> None:
        try:
            with self.db:
                for waiting in self._late.values():
                    self._execute(waiting)
                self._execute(statements)
        except sqlite3.OperationalError as exc:
            self.trouble = f"the ledger cannot be written: {exc}"
            raise
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as exc:
            self.db.damaged = True
            self.trouble = f"the ledger is damaged: {exc}"
            raise
        self._late.clear()
        self.trouble = ""

    def _execute(self, statements: Sequence[Statement]) -> None:
        for sql, values in statements:
            self.db.execute(sql, values)


def _is_locked(exc: sqlite3.DatabaseError) -> bool:
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF in _LOCKED
