"""What begins is written or refused; what ends is written as soon as it can be, in the order of what happened."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sandboxd.commits import Commits
from sandboxd.database import Connection, connect
from sandboxd.errors import Unavailable


@pytest.fixture
def db() -> Iterator[Connection]:
    with closing(connect(":memory:")) as opened:
        opened.execute("CREATE TABLE rows (id TEXT PRIMARY KEY, body TEXT)")
        yield opened


def put(id_: str, body: str) -> tuple[str, tuple[str, str]]:
    return "INSERT OR REPLACE INTO rows VALUES (?, ?)", (id_, body)


def writable(db: Connection, yes: bool) -> None:
    db.execute(f"PRAGMA query_only = {'OFF' if yes else 'ON'}")


def rows(db: Connection) -> list[tuple[str, str]]:
    return db.execute("SELECT id, body FROM rows ORDER BY id").fetchall()


def test_the_last_that_was_said_about_a_record_is_written_with_the_next_transaction(db: Connection) -> None:
    commits = Commits(db)
    writable(db, False)
    commits.late("a", put("a", "first"))
    commits.late("a", put("a", "second"))
    with pytest.raises(Unavailable):
        commits.now(put("b", "new"))
    commits.catch_up()
    assert commits.behind and commits.trouble and rows(db) == []

    writable(db, True)
    commits.now(put("b", "new"))
    assert rows(db) == [("a", "second"), ("b", "new")]
    assert not commits.behind and not commits.trouble


def test_what_waits_survives_a_transaction_that_fails_for_another_reason(db: Connection) -> None:
    commits = Commits(db)
    commits.now(put("taken", ""))
    writable(db, False)
    commits.late("a", put("a", "end"))
    writable(db, True)
    with pytest.raises(sqlite3.IntegrityError):
        commits.now(("INSERT INTO rows VALUES ('taken', '')", ()))
    assert commits.behind
    commits.catch_up()
    assert ("a", "end") in rows(db)


def test_the_reserve_is_for_what_ends_only(db: Connection) -> None:
    asked: list[str] = []

    def make_room() -> bool:
        asked.append("a slice")
        return False

    commits = Commits(db, make_room)
    writable(db, False)
    with pytest.raises(Unavailable):
        commits.now(put("a", ""))
    assert not asked
    commits.late("a", put("a", ""))
    assert asked


def test_a_file_that_somebody_has_locked_is_waited_for_once_and_nothing_is_given_up(tmp_path: Path) -> None:
    asked: list[str] = []

    def make_room() -> bool:
        asked.append("a slice")
        return True

    file = tmp_path / "db"
    with closing(connect(str(file))) as db, closing(sqlite3.connect(file)) as other:
        db.execute("PRAGMA busy_timeout = 10")
        db.execute("CREATE TABLE rows (id TEXT PRIMARY KEY, body TEXT)")
        other.execute("BEGIN IMMEDIATE")
        commits = Commits(db, make_room)
        with pytest.raises(Unavailable, match="locked"):
            commits.late("a", put("a", ""))
        assert not asked and not commits.behind
        other.rollback()
        commits.late("a", put("a", ""))
        assert rows(db) == [("a", "")]


def test_a_fault_that_is_over_is_forgotten_although_nothing_waits(db: Connection) -> None:
    commits = Commits(db)
    writable(db, False)
    with pytest.raises(Unavailable):
        commits.now(put("a", ""))
    commits.catch_up()
    assert commits.trouble and not commits.behind
    writable(db, True)
    commits.catch_up()
    assert not commits.trouble and rows(db) == []
