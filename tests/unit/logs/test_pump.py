"""FIFOs are read whatever happens to the log file, and nothing that can be written is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from sandboxd.logs import pump as module
from sandboxd.logs.format import parse
from sandboxd.logs.pump import ContainerPump

MakePump = Callable[..., ContainerPump]


class Writer:
    """The shim's end of a FIFO: read and write, as it opens it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def write(self, data: bytes) -> None:
        assert os.write(self.fd, data) == len(data)

    def end(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    made = Writer(tmp_path / "stdout")
    yield made
    made.end()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "pod" / "0.log"


@pytest.fixture
async def pump(writer: Writer, log: Path) -> Any:
    """Start a pump on `writer` and whatever else is given; it is closed at the end."""
    made: list[ContainerPump] = []

    def start(path: str | None = None, resume: bool = False, max_line: int = 100, **fifos: str) -> ContainerPump:
        streams = {"stdout": writer.path, **fifos}
        made.append(ContainerPump("c", streams, str(log) if path is None else path, max_line, resume))
        return made[-1]

    yield start
    for one in made:
        one.close()


async def until(pump: ContainerPump, check: Callable[[], object]) -> None:
    """Wait, as long as it takes, for `check` to hold; it is tried again whenever the pump tells of more."""
    more = asyncio.Event()
    stop = pump.on_more(more.set)
    try:
        while not check():
            await more.wait()
            more.clear()
    finally:
        stop()


def lines(path: Path) -> list[tuple[str, bytes]]:
    """(stream, text) of every entry in the file; each line must be one."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        entry = parse(line)
        assert entry is not None, line
        found.append((entry.stream, entry.text))
    return found


async def test_output_is_written_to_the_log_as_it_comes(writer: Writer, log: Path, pump: MakePump) -> None:
    running = pump()

    writer.write(b"one\ntwo\n")
    await until(running, lambda: len(lines(log)) == 2)
    writer.write(b"three\n")
    await until(running, lambda: len(lines(log)) == 3)

    assert lines(log) == [("stdout", b"one"), ("stdout", b"two"), ("stdout", b"three")]
    assert not running.ended
    assert log.stat().st_mode & 0o777 == 0o640


async def test_what_was_written_before_the_pump_came_is_not_lost(writer: Writer, log: Path, pump: MakePump) -> None:
    writer.write(b"early\n")
    running = pump()
    await until(running, lambda: lines(log))

    assert lines(log) == [("stdout", b"early")]


async def test_the_pump_ends_when_the_last_writer_of_every_stream_is_gone(
    tmp_path: Path, writer: Writer, log: Path, pump: MakePump
) -> None:
    other = Writer(tmp_path / "stderr")
    running = pump(stderr=other.path)
    writer.write(b"out\n")
    other.write(b"no newline")
    other.end()
    await until(running, lambda: len(lines(log)) == 2)
    assert not running.ended
    assert await running.wait(0.001) is False

    writer.end()

    assert await running.wait(30) is True
    assert sorted(lines(log)) == [("stderr", b"no newline"), ("stdout", b"out")]


async def test_more_than_a_pipe_holds_arrives_whole_and_in_order(writer: Writer, log: Path, pump: MakePump) -> None:
    running = pump(max_line=16384)
    os.set_blocking(writer.fd, True)
    data = b"".join(b"%06d %s\n" % (i, b"x" * 200) for i in range(3000))

    def write() -> None:
        rest = data
        while rest:
            rest = rest[os.write(writer.fd, rest) :]
        writer.end()

    await asyncio.gather(asyncio.to_thread(write), running.wait(30))

    assert running.ended
    assert b"".join(text + b"\n" for _, text in lines(log)) == data


async def test_reopen_after_a_rename_loses_nothing(writer: Writer, log: Path, pump: MakePump) -> None:
    running = pump()
    writer.write(b"one\n")
    await until(running, lambda: lines(log))

    old = log.rename(log.with_suffix(".1"))
    writer.write(b"two\n")
    await until(running, lambda: len(lines(old)) == 2)
    assert not log.exists()
    writer.write(b"three, ")
    running.reopen()
    writer.write(b"in two parts\n")
    await until(running, lambda: lines(log))

    assert lines(old) == [("stdout", b"one"), ("stdout", b"two")]
    assert lines(log) == [("stdout", b"three, in two parts")]


async def test_a_reopen_that_fails_keeps_the_old_file(writer: Writer, log: Path, pump: MakePump) -> None:
    running = pump()
    old = log.rename(log.with_suffix(".1"))
    log.mkdir()

    with pytest.raises(IsADirectoryError):
        running.reopen()

    writer.write(b"one\n")
    await until(running, lambda: lines(old))


async def test_an_existing_log_is_continued(writer: Writer, log: Path, pump: MakePump) -> None:
    first = pump()
    writer.write(b"one\n")
    await until(first, lambda: lines(log))
    first.close()

    second = pump()
    writer.write(b"two\n")
    await until(second, lambda: len(lines(log)) == 2)

    assert lines(log) == [("stdout", b"one"), ("stdout", b"two")]


async def test_a_full_disk_costs_lines_and_not_the_container_and_is_reported_once(
    writer: Writer, pump: MakePump
) -> None:
    with structlog.testing.capture_logs() as logged:
        running = pump("/dev/full")
        os.set_blocking(writer.fd, True)

        def write() -> None:
            for _ in range(100):  # many times what a pipe holds: it blocks for ever unless somebody reads
                writer.write(b"x" * 4095 + b"\n")
            writer.end()

        await asyncio.gather(asyncio.to_thread(write), running.wait(30))

    assert running.ended
    assert [entry["event"] for entry in logged] == ["container log cannot be written, lines are lost"]


async def test_a_removed_directory_costs_lines_only_until_the_next_reopen(
    writer: Writer, log: Path, pump: MakePump
) -> None:
    running = pump()
    log.unlink()
    log.parent.rmdir()
    told = asyncio.Event()
    running.on_more(told.set)
    writer.write(b"lost\n")
    await told.wait()

    running.reopen()
    writer.write(b"kept\n")
    await until(running, lambda: lines(log))

    assert lines(log) == [("stdout", b"kept")]


async def test_a_short_write_is_finished(
    writer: Writer, log: Path, pump: MakePump, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = pump()
    write = os.write
    monkeypatch.setattr(module.os, "write", lambda fd, data: write(fd, data[:7]))  # type: ignore[attr-defined]
    running._write(b"2025-11-24T16:00:00Z stdout F a text of some length\n")
    monkeypatch.undo()

    assert lines(log) == [("stdout", b"a text of some length")]


async def test_without_a_log_path_output_is_read_and_discarded(
    tmp_path: Path, writer: Writer, pump: MakePump
) -> None:
    running = pump("")
    writer.write(b"x\n" * 1000)
    writer.end()

    assert await running.wait(30)
    assert {path.name for path in tmp_path.iterdir()} == {"stdout"}


async def test_a_fifo_without_a_writer_says_nothing_unless_the_pump_resumes(
    tmp_path: Path, log: Path, pump: MakePump
) -> None:
    silent = str(tmp_path / "silent")
    os.mkfifo(silent)

    fresh = ContainerPump("c", {"stdout": silent}, str(log), 100)
    await asyncio.sleep(0)
    waiting = fresh.ended
    fresh.close()
    resumed = ContainerPump("c", {"stdout": silent}, str(log), 100, resume=True)

    assert (waiting, resumed.ended) == (False, True)
    resumed.close()


async def test_resuming_on_a_fifo_with_a_writer_goes_on(writer: Writer, log: Path, pump: MakePump) -> None:
    writer.write(b"while nobody read\n")
    running = pump(resume=True)

    assert lines(log) == [("stdout", b"while nobody read")]
    assert not running.ended


async def test_closing_writes_what_is_held_and_leaves_no_descriptor_open(
    writer: Writer, log: Path, pump: MakePump
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    running = pump()
    writer.write(b"no newline")
    (fd,) = running._open
    running._readable(fd)
    told = asyncio.Event()
    running.on_more(told.set)

    running.close()
    running.close()

    assert lines(log) == [("stdout", b"no newline")]
    assert running.ended
    assert told.is_set()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_pump_that_cannot_start_leaves_no_descriptor_open(tmp_path: Path, writer: Writer, log: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))

    with pytest.raises(FileNotFoundError):
        ContainerPump("c", {"stdout": writer.path, "stderr": str(tmp_path / "none")}, str(log), 100)

    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_container_without_streams_has_ended(log: Path) -> None:
    running = ContainerPump("c", {}, str(log), 100)

    assert running.ended
    running.close()
