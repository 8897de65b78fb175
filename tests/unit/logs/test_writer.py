"""The log file holds whole entries, whatever becomes of the disk or of the process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxd.logs import writer as module
from sandboxd.logs.writer import LogWriter
from tests.unit.logs.shim import redirect
from tests.unit.logs.strangers import STRANGERS, Stranger

ENTRY = b"2026-11-24T16:00:00.000000000Z stdout F a text\n"

Make = Callable[..., LogWriter]


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def make(told: list[str]) -> Any:
    made: list[LogWriter] = []

    def open_one(path: Path | str, *, must_open: bool = True) -> LogWriter:
        made.append(LogWriter(str(path), 100, told.append, must_open=must_open))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


def test_entries_are_appended_to_what_is_there(tmp_path: Path, make: Make) -> None:
    log = tmp_path / "pod" / "0.log"
    make(log).write(ENTRY)
    make(log).write(ENTRY)

    assert log.read_bytes() == ENTRY * 2
    assert log.stat().st_mode & 0o777 == 0o640


def test_a_file_that_must_open_and_does_not_is_an_error(tmp_path: Path, make: Make, told: list[str]) -> None:
    with pytest.raises(IsADirectoryError):
        make(tmp_path)
    assert told == []


def test_a_file_that_cannot_be_opened_is_tried_again_and_reported_once(
    tmp_path: Path, make: Make, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    log = tmp_path / "0.log"
    log.mkdir()
    running = make(log, must_open=False)
    running.write(ENTRY)
    running.write(ENTRY)
    log.rmdir()
    running.write(ENTRY)

    assert log.read_bytes() == ENTRY
    assert len(told) == 1 and str(log) in told[0]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_is_not_a_regular_file_costs_lines_until_it_is_gone(
    tmp_path: Path, make: Make, told: list[str], monkeypatch: pytest.MonkeyPatch, stranger: Stranger
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    log = tmp_path / "0.log"
    with stranger.at(log) as words:
        running = make(log, must_open=False)
        for _ in range(100):
            running.write(ENTRY * 1000)  # more than a pipe holds
        with pytest.raises(OSError, match=words):
            make(log)
    running.write(ENTRY)

    assert log.read_bytes() == ENTRY
    assert len(told) == 1 and str(log) in told[0] and words in told[0]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_comes_in_place_of_the_file_keeps_the_lines_in_the_old_one(
    tmp_path: Path, make: Make, stranger: Stranger
) -> None:
    log, old = tmp_path / "0.log", tmp_path / "0.log.old"
    running = make(log)
    log.rename(old)
    with stranger.at(log) as words:
        with pytest.raises(OSError, match=words):
            running.reopen()
        running.write(ENTRY)

    assert old.read_bytes() == ENTRY


def test_the_directory_may_be_a_link(tmp_path: Path, make: Make) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "pods").symlink_to("real")
    make(tmp_path / "pods" / "pod" / "0.log").write(ENTRY)

    assert (tmp_path / "real" / "pod" / "0.log").read_bytes() == ENTRY


def test_between_two_attempts_to_open_there_is_a_pause(tmp_path: Path, make: Make) -> None:
    log = tmp_path / "0.log"
    log.mkdir()
    running = make(log, must_open=False)
    log.rmdir()
    running._retry_at = float("inf")
    running.write(ENTRY)

    assert not log.exists()


def test_a_full_disk_is_reported_once_per_stretch(tmp_path: Path, make: Make, told: list[str]) -> None:
    running = make(tmp_path / "0.log")
    redirect(running._fd, "/dev/full")
    assert running.write(ENTRY) == len(ENTRY), "so many bytes are lost"
    running.write(ENTRY)
    assert len(told) == 1 and "No space left" in told[0]

    redirect(running._fd, "/dev/null")
    assert running.write(ENTRY) == 0
    redirect(running._fd, "/dev/full")
    running.write(ENTRY)
    assert len(told) == 2


def test_a_short_write_is_finished(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    running = make(tmp_path / "0.log")
    write = os.write
    monkeypatch.setattr(module.os, "write", lambda fd, data: write(fd, data[:7]))  # type: ignore[attr-defined]
    running.write(ENTRY)

    assert (tmp_path / "0.log").read_bytes() == ENTRY


def test_the_part_of_an_entry_that_fitted_on_the_disk_is_taken_back(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = make(tmp_path / "0.log")
    write, room = os.write, [len(ENTRY) + 10]

    def on_a_small_disk(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        done = write(fd, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(module.os, "write", on_a_small_disk)  # type: ignore[attr-defined]
    assert running.write(ENTRY * 3) == len(ENTRY) * 2, "with the part that was taken back"
    monkeypatch.undo()
    assert (tmp_path / "0.log").read_bytes() == ENTRY
    running.write(ENTRY)

    assert (tmp_path / "0.log").read_bytes() == ENTRY * 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (ENTRY, ENTRY),
        (ENTRY + ENTRY[:-9], ENTRY),
        (ENTRY[:20], b""),
        (b"x" * 5000, b"x" * 5000 + b"\n"),  # far longer than any entry: not ours to cut
        (b"root:x:0:0\nlast line", b"root:x:0:0\nlast line\n"),  # no entry's beginning
    ],
    ids=["empty", "whole", "torn", "torn at once", "foreign", "foreign and short"],
)
def test_an_entry_that_a_killed_logger_left_half_is_cut_off(
    tmp_path: Path, make: Make, before: bytes, after: bytes
) -> None:
    log = tmp_path / "0.log"
    log.write_bytes(before)
    make(log).write(ENTRY)

    assert log.read_bytes() == after + ENTRY


def test_without_a_path_nothing_is_written(make: Make, told: list[str]) -> None:
    running = make("")
    running.write(ENTRY)
    running.reopen()

    assert told == []
