"""Logs are read back: the last lines, lines since a time, lines as they come, and across rotation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import NotReady
from sandboxd.logs import reader as module
from sandboxd.logs.format import Entry, timestamp
from sandboxd.logs.reader import BATCH_ENTRIES, READ_BYTES, Last, LogFile, read
from tests.unit.logs.strangers import STRANGERS, Stranger


def entry(line: str, at: int = 0) -> Entry:
    """ "o" or "e" for the stream, "P" or "F", then the text: "oF hello"."""
    return Entry(at, {"o": "stdout", "e": "stderr"}[line[0]], line[1] == "P", line[3:].encode())


def write(path: Path, *lines: str, at: int = 0) -> None:
    with path.open("ab") as file:
        for made in (entry(line) for line in lines):
            tag = "P" if made.partial else "F"
            file.write(timestamp(at) + f" {made.stream} {tag} ".encode() + made.text + b"\n")


async def texts(
    path: Path, *, tail: int = -1, since: int = 0, changes: AsyncIterator[None] | None = None
) -> list[str]:
    batches = read(str(path), tail=tail, since=since, changes=changes)
    return [one.text.decode() async for batch in batches for one in batch]


def last(entries: list[Entry], tail: int) -> list[Entry]:
    keeping = Last(tail)
    for one in entries:
        keeping.add(one)
    return keeping.kept()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "0.log"


@pytest.mark.parametrize(
    ("lines", "tail", "expected"),
    [
        ("oF a|oF b|oF c", 0, ""),
        ("oF a|oF b|oF c", 1, "c"),
        ("oF a|oF b|oF c", 2, "b c"),
        ("oF a|oF b|oF c", 9, "a b c"),
        ("", 3, ""),
        ("oF a|oP b|oP c|oF d", 1, "b c d"),
        ("oP a|oF b|oF c", 1, "c"),
        ("oP a|oF b|oF c", 2, "a b c"),
        ("oF a|oP b", 1, "a b"),
        ("oF a|oF b|oP c", 1, "b c"),
        ("oF a|oP b", 0, ""),
        ("oP a|eF x|oF b", 1, "a b"),
        ("oP a|eF x|oF b", 2, "a x b"),
        ("oP a|eP x|oF b|eF y", 1, "x y"),
        ("eF w|oP a|eF x|eF y", 1, "a y"),
    ],
)
def test_the_last_lines_are_whole_lines(lines: str, tail: int, expected: str) -> None:
    entries = [entry(line) for line in lines.split("|") if line]

    assert " ".join(one.text.decode() for one in last(entries, tail)) == expected


async def test_what_is_older_is_left_out_before_the_last_lines_are_counted(log: Path) -> None:
    for at, line in ((1, "oF a"), (5, "oF b"), (6, "oF c"), (7, "oF d")):
        write(log, line, at=at)

    assert await texts(log, tail=-1, since=6) == ["c", "d"]
    assert await texts(log, tail=1, since=5) == ["d"]
    assert await texts(log, tail=9, since=8) == []


async def test_others_have_their_turn_while_a_long_log_is_searched_for_its_last_lines(log: Path) -> None:
    write(log, *(f"oF {i}" for i in range(20 * BATCH_ENTRIES)))
    batches = read(str(log), tail=1, since=0, changes=None)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while turns < 10:
            turns += 1
            await asyncio.sleep(0)

    async def search() -> int:
        return len([batch async for batch in batches]) and turns

    _, seen = await asyncio.gather(others(), search())

    assert seen == 10


@given(
    st.lists(st.tuples(st.sampled_from("oe"), st.sampled_from("PF")), max_size=30),
    st.integers(0, 10),
)
def test_the_last_lines_keep_the_files_order_and_their_number(marks: list[tuple[str, str]], tail: int) -> None:
    numbers = count()
    entries = [entry(f"{stream}{tag} {next(numbers)}") for stream, tag in marks]

    kept = [int(one.text) for one in last(entries, tail)]

    assert kept == sorted(kept)
    full = [int(one.text) for one in entries if not one.partial]
    assert [number for number in kept if number in full] == full[len(full) - min(tail, len(full)) :]


async def test_a_missing_log_is_empty(log: Path) -> None:
    assert await texts(log) == []


async def test_what_is_no_entry_is_skipped(log: Path) -> None:
    write(log, "oF a")
    with log.open("ab") as file:
        file.write(b"rubbish\n\n0000-01-01T00:00:00Z stdout F never\n")
    write(log, "oF b")

    assert await texts(log) == ["a", "b"]


async def test_a_large_log_comes_in_batches(log: Path) -> None:
    write(log, *(f"oF {i}" for i in range(BATCH_ENTRIES + 1)))

    assert [len(batch) async for batch in read(str(log), tail=-1, since=0, changes=None)] == [BATCH_ENTRIES, 1]


async def test_an_entry_written_in_two_pieces_is_one(log: Path) -> None:
    write(log, "oF a")
    file = LogFile(str(log))
    assert [one.text for one in file.more() if one] == [b"a"]
    with log.open("ab") as half:
        half.write(timestamp(0) + b" stdout F he")
    assert [one for one in file.more() if one] == []
    with log.open("ab") as half:
        half.write(b"llo\n")

    assert [one.text for one in file.more() if one] == [b"hello"]
    file.close()


async def test_a_rotated_log_is_followed_to_the_new_file_and_nothing_is_lost(log: Path) -> None:
    write(log, "oF a")
    file = LogFile(str(log))
    assert [one.text for one in file.more() if one] == [b"a"]

    write(log, "oF b")
    old = log.rename(log.with_suffix(".1"))
    assert [one.text for one in file.more() if one] == [b"b"]
    write(old, "oF c")
    assert [one.text for one in file.more() if one] == [b"c"]
    write(old, "oF d")
    write(log, "oF e")
    assert [one.text for one in file.more() if one] == [b"d", b"e"]
    write(log, "oF f")
    assert [one.text for one in file.more() if one] == [b"f"]
    file.close()


async def test_half_an_entry_at_the_end_of_the_old_file_does_not_spoil_the_new_one(log: Path) -> None:
    write(log, "oF a")
    with log.open("ab") as half:
        half.write(timestamp(0) + b" stdout F to")
    file = LogFile(str(log))
    assert [one.text for one in file.more() if one] == [b"a"]
    log.rename(log.with_suffix(".1"))
    write(log, "oF b")

    assert [one.text for one in file.more() if one] == [b"b"]
    file.close()


async def test_following_goes_on_with_each_change_until_they_end(log: Path) -> None:
    write(log, "oF a", "oF b")

    async def changes() -> AsyncIterator[None]:
        write(log, "oF c")
        yield
        yield
        write(log, "oF d")
        yield
        write(log, "oF e")

    assert await texts(log, tail=1, changes=changes()) == ["b", "c", "d", "e"]


async def test_following_with_no_lines_wanted_shows_only_what_is_new(log: Path) -> None:
    write(log, "oF a")

    async def changes() -> AsyncIterator[None]:
        write(log, "oF b")
        yield

    assert await texts(log, tail=0, changes=changes()) == ["b"]


async def test_a_reader_that_leaves_early_closes_the_file(log: Path) -> None:
    write(log, "oF a")
    closed = asyncio.Event()

    async def changes() -> AsyncIterator[None]:
        try:
            while True:
                yield
        finally:
            closed.set()

    endless = changes()
    batches = read(str(log), tail=-1, since=0, changes=endless)
    async with aclosing(batches):
        async for _ in batches:
            break
    await endless.aclose()  # type: ignore[attr-defined]

    assert not [fd for fd in Path("/proc/self/fd").iterdir() if fd.exists() and fd.readlink() == log]


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_what_is_not_a_regular_file_is_not_read(log: Path, stranger: Stranger) -> None:
    with stranger.at(log) as words, pytest.raises(NotReady, match=words) as refused:
        await texts(log)

    assert str(log) in str(refused.value)


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_a_follower_does_not_go_on_with_what_came_in_place_of_the_file(log: Path, stranger: Stranger) -> None:
    write(log, "oF a")
    got: list[str] = []

    async def changes() -> AsyncIterator[None]:
        log.unlink()
        with stranger.at(log):
            yield

    with pytest.raises(NotReady):
        async for batch in read(str(log), tail=-1, since=0, changes=changes()):
            got += [one.text.decode() for one in batch]

    assert got == ["a"]


async def test_a_line_that_is_no_entry_for_its_length_is_skipped_and_not_kept(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 2 * READ_BYTES)
    write(log, "oF a")
    with log.open("ab") as file:
        file.write(timestamp(0) + b" stdout F " + b"x" * 8 * READ_BYTES)
    reading = LogFile(str(log))
    most = 0
    for _ in reading.more():
        most = max(most, sum(map(len, reading._held)))
    with log.open("ab") as file:
        file.write(b"\n")
    write(log, "oF b")

    assert 0 < most <= 2 * READ_BYTES
    assert [one.text for one in reading.more() if one is not None] == [b"b"]
    reading.close()
    assert await texts(log) == ["a", "b"]


async def test_others_have_their_turn_while_a_file_without_lines_is_read(log: Path) -> None:
    with log.open("wb") as file:
        file.truncate(4 * BATCH_ENTRIES * READ_BYTES)  # sparse
    batches = read(str(log), tail=-1, since=0, changes=None)
    first = asyncio.ensure_future(anext(batches, None))
    await asyncio.sleep(0)

    assert not first.done()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("lines", ["oP", "oP eP", "oF", "oF eP"])
@pytest.mark.parametrize("tail", [1, 10**9])
def test_the_last_lines_take_bounded_memory_and_lose_the_oldest(
    monkeypatch: pytest.MonkeyPatch, lines: str, tail: int
) -> None:
    monkeypatch.setattr(module, "MAX_TAIL_BYTES", 10 * (module.ENTRY_BYTES + 10))
    keeping = Last(tail)
    kinds = lines.split()
    most = 0
    for i in range(1000):
        keeping.add(entry(f"{kinds[i % len(kinds)]} {i:010}"))
        most = max(most, len(keeping.kept()))

    kept = [int(one.text) for one in keeping.kept()]
    assert kept[-1] == 999 and most <= 10
    assert len(kept) == 10 or tail == 1


def test_a_line_that_ends_after_very_long_is_kept_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TAIL_BYTES", 10 * (module.ENTRY_BYTES + 10))
    lines = [entry(f"oP {i:010}") for i in range(1000)] + [entry(f"oF {1000:010}")]

    assert last(lines, 1) == last(lines, 5) == lines[-10:]
