"""A ledger's file that is lost while the daemon runs: nothing of what it told is lost with it."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import structlog

from sandboxd import database
from sandboxd.errors import NotReady, Unavailable
from sandboxd.ledger import Ledger
from tests.unit.test_ledger import attachment, container, sandbox, step


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "root" / "ledger.db"


@pytest.fixture
def ledger(file: Path) -> Iterator[Ledger]:
    """One with a record of each kind, which has had something to write into its file and beside it."""
    opened = Ledger(str(file))
    opened.add_sandbox(sandbox("a"))
    opened.add_container(container("c", "a"))
    opened.put_attachment(attachment("a"))
    opened.append_step(step("a"))
    opened.check()
    yield opened
    opened.close()


def contents(ledger: Ledger) -> tuple[object, ...]:
    return dict(ledger.sandboxes), dict(ledger.containers), ledger.attachments


def deleted(file: Path) -> None:
    for path in (file, Path(f"{file}-wal"), Path(f"{file}-shm")):
        path.unlink()


def only_the_database_deleted(file: Path) -> None:
    file.unlink()


def only_the_log_deleted(file: Path) -> None:
    Path(f"{file}-wal").unlink()


def replaced(file: Path) -> None:
    file.with_name("other").write_bytes(b"somebody else's")
    os.replace(file.with_name("other"), file)


def restored_from_a_backup(file: Path) -> None:
    deleted(file)
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE other (a)")


def truncated(file: Path) -> None:
    os.truncate(file, 0)


def truncated_to_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


WAYS = (
    deleted,
    only_the_database_deleted,
    only_the_log_deleted,
    replaced,
    restored_from_a_backup,
    truncated,
    truncated_to_half,
)


@pytest.mark.parametrize("lost", WAYS, ids=lambda way: way.__name__)
def test_what_is_in_memory_is_written_anew(file: Path, ledger: Ledger, lost: Callable[[Path], None]) -> None:
    before = contents(ledger)
    lost(file)
    with structlog.testing.capture_logs() as logged:
        ledger.check()
        ledger.check()
    assert [line["event"] for line in logged if line["log_level"] == "error"] == [
        "the ledger was lost and is written anew from memory"
    ], "once"
    assert contents(ledger) == before
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    ledger.update_sandbox("a", pid=8)
    ledger.add_sandbox(sandbox("b"))
    ledger.close()

    again = Ledger(str(file))
    assert again.replaced == ""
    assert (set(again.sandboxes), again.sandboxes["a"].pid) == ({"a", "b"}, 8)
    assert (dict(again.containers), again.attachments) == before[1:]
    again.close()
    left = {path.name for path in file.parent.iterdir()}
    assert not left - {"ledger.db", "ledger.db.damaged-1"}


def test_timelines_go_along_while_the_lost_file_can_be_read(file: Path, ledger: Ledger) -> None:
    deleted(file)
    ledger.check()
    assert ledger.timeline("a") == [step("a")]


def test_what_is_found_in_its_place_is_kept(file: Path, ledger: Ledger) -> None:
    replaced(file)
    ledger.check()
    assert Path(f"{file}.damaged-1").read_bytes() == b"somebody else's"


def test_nothing_happens_to_a_file_that_is_whole(file: Path, ledger: Ledger) -> None:
    before = file.stat().st_ino
    for number in range(300):
        ledger.add_sandbox(sandbox(f"b{number}"))
        ledger.append_step(step(f"b{number}"))
        if number % 50 == 0:
            ledger.check()
    for number in range(300):
        ledger.remove_sandbox(f"b{number}")
    with structlog.testing.capture_logs() as logged:
        ledger.check()
    assert (file.stat().st_ino, logged) == (before, [])


def test_damage_that_sqlite_meets_is_unavailable_and_mended_by_the_next_check(file: Path, ledger: Ledger) -> None:
    before = contents(ledger)
    for number in range(300):  # more than SQLite keeps of the file
        ledger.append_step(step("a", str(number) * 500))
    ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger._db.execute("PRAGMA shrink_memory")
    size = file.stat().st_size
    with file.open("r+b") as raw:
        raw.write(b"\xff" * size)
    # As after a checkpoint by another process, which makes SQLite read the file again.
    ledger._db.execute("PRAGMA cache_size = 0")
    with structlog.testing.capture_logs():
        with pytest.raises(Unavailable, match="cannot be written"):
            for number in range(300):
                ledger.update_sandbox("a", started_at=number)
        assert ledger.timeline("a") == []
        ledger.check()
    assert contents(ledger)[1:] == before[1:]
    assert ledger.update_sandbox("a", pid=5).pid == 5


def test_one_that_cannot_be_written_anew_is_tried_again(
    file: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(ledger)
    deleted(file)

    def full(path: str) -> database.Connection:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(database, "connect", full)
        with pytest.raises(Unavailable, match="is full"):
            ledger.check()
    assert contents(ledger) == before
    ledger.add_sandbox(sandbox("b"))
    ledger.check()
    ledger.close()
    again = Ledger(str(file))
    assert set(again.sandboxes) == {"a", "b"}
    again.close()


def test_a_file_that_somebody_has_locked_costs_no_reserve(file: Path) -> None:
    asked: list[str] = []

    def make_room() -> bool:
        asked.append("a slice")
        return len(asked) < 3

    file.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE theirs (id)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(NotReady, match="locked"):
            database.open_or_replace(str(file), make_room)
    assert not asked
