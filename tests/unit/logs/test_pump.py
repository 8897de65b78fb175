"""FIFOs are read whatever happens to the log file, and nothing that can be written is lost."""

from __future__ import annotations

import fcntl
import os
import selectors
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sandboxd.logs.pump import PIPE_BYTES, ContainerPump
from tests.unit.logs.shim import Writer, descriptors, lines, read_all, read_until, redirect, texts
from tests.unit.logs.strangers import STRANGERS, Stranger

MakePump = Callable[..., ContainerPump]


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.data: list[tuple[str, bytes]] = []
        self.ends: list[str] = []

    def output(self, stream: str, data: bytes) -> None:
        self.data.append((stream, data))

    def ended(self, why: str) -> None:
        self.ends.append(why)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    made = Writer(tmp_path / "stdout")
    yield made
    made.end()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "pod" / "0.log"


@pytest.fixture
def ready() -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as selector:
        yield selector


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def pump(writer: Writer, log: Path, ready: selectors.BaseSelector, told: list[str]) -> Any:
    """Start a pump on `writer` and whatever else is given; it is closed at the end."""
    made: list[ContainerPump] = []

    def start(path: str | None = None, max_line: int = 100, fifos: Any = None, **options: Any) -> ContainerPump:
        streams = fifos or {"stdout": writer.path}
        to = str(log) if path is None else path
        made.append(ContainerPump("c", streams, to, max_line, ready, told.append, **options))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_output_is_written_to_the_log_as_it_comes(
    writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    running = pump()
    writer.write(b"one\ntwo\n")
    read_all(ready)
    assert texts(log) == [b"one", b"two"]
    writer.write(b"three\n")
    read_all(ready)

    assert lines(log) == [("stdout", b"one"), ("stdout", b"two"), ("stdout", b"three")]
    assert not running.ended


def test_what_was_written_before_the_pump_came_is_not_lost(
    writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    writer.write(b"early\n")
    pump()
    read_all(ready)

    assert texts(log) == [b"early"]


def test_the_pump_ends_when_the_last_writer_of_every_stream_is_gone(
    tmp_path: Path, writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    other, heard = Writer(tmp_path / "stderr"), Heard()
    running = pump(fifos={"stdout": writer.path, "stderr": other.path})
    running.listeners.add(heard)
    writer.write(b"out\n")
    other.write(b"no newline")
    other.end()
    read_all(ready)
    assert not running.ended and not heard.ends

    writer.end()
    read_all(ready)

    assert running.ended and heard.ends == [""]
    assert sorted(lines(log)) == [("stderr", b"no newline"), ("stdout", b"out")]


def test_more_than_a_pipe_holds_arrives_whole_and_in_order(
    writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    running = pump(max_line=16384)
    data = b"".join(b"%06d %s\n" % (i, b"x" * 200) for i in range(10_000))
    assert len(data) > PIPE_BYTES

    with ThreadPoolExecutor(1) as shim:
        written = shim.submit(writer.write_all, data, end=True)
        read_until(ready, lambda: running.ended)
        written.result(30)

    assert b"".join(text + b"\n" for text in texts(log)) == data


def test_a_pipe_holds_as_much_as_the_machine_allows(writer: Writer, pump: MakePump) -> None:
    pump()
    most = int(Path("/proc/sys/fs/pipe-max-size").read_text())

    assert fcntl.fcntl(writer.fd, fcntl.F_GETPIPE_SZ) == min(most, PIPE_BYTES)


def test_reopen_after_a_rename_loses_nothing(
    writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    running = pump()
    writer.write(b"one\n")
    read_all(ready)
    old = log.rename(log.with_suffix(".1"))
    writer.write(b"two\n")
    read_all(ready)
    assert not log.exists()
    writer.write(b"three, ")
    read_all(ready)
    running.reopen()
    writer.write(b"in two parts\n")
    read_all(ready)

    assert texts(old) == [b"one", b"two"]
    assert texts(log) == [b"three, in two parts"]


def test_a_reopen_that_fails_keeps_the_old_file(
    writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    running = pump()
    old = log.rename(log.with_suffix(".1"))
    log.mkdir()

    with pytest.raises(IsADirectoryError):
        running.reopen()

    writer.write(b"one\n")
    read_all(ready)
    assert texts(old) == [b"one"]


def test_a_full_disk_costs_lines_and_not_the_container(
    writer: Writer, pump: MakePump, ready: selectors.BaseSelector, told: list[str]
) -> None:
    running = pump()
    redirect(running._file._fd, "/dev/full")
    data = (b"x" * 4095 + b"\n") * 1000  # many times what a pipe holds: it blocks for ever unless somebody reads

    with ThreadPoolExecutor(1) as shim:
        written = shim.submit(writer.write_all, data, end=True)
        read_until(ready, lambda: running.ended)
        written.result(30)

    assert len(told) == 1 and "lines are lost" in told[0]


def test_a_removed_directory_costs_lines_only_until_the_next_reopen(
    writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    running = pump()
    log.unlink()
    log.parent.rmdir()
    writer.write(b"lost\n")
    read_all(ready)

    running.reopen()
    writer.write(b"kept\n")
    read_all(ready)

    assert texts(log) == [b"kept"]


def test_without_a_log_path_output_is_read_and_discarded(
    tmp_path: Path, writer: Writer, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    running = pump("")
    writer.write(b"x\n" * 1000)
    writer.end()
    read_all(ready)

    assert running.ended
    assert {path.name for path in tmp_path.iterdir()} == {"stdout"}


def test_a_fifo_without_a_writer_says_nothing_unless_its_writer_came_first(
    tmp_path: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    silent = str(tmp_path / "silent")
    os.mkfifo(silent)
    fresh = pump(fifos={"stdout": silent})
    read_all(ready)
    assert not fresh.ended
    fresh.check({"stderr"})
    assert not fresh.ended
    fresh.check({"stdout"})
    assert fresh.ended

    assert pump(fifos={"stdout": silent}, came_first={"stdout"}).ended


def test_of_an_abandoned_fifo_everything_is_read_and_then_its_end_is_seen(
    writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    fcntl.fcntl(writer.fd, fcntl.F_SETPIPE_SZ, 1 << 20)
    keeper = os.open(writer.path, os.O_RDONLY | os.O_NONBLOCK)
    data = (b"x" * 99 + b"\n") * 10_000
    writer.write(data)
    writer.end()

    assert pump(came_first={"stdout"}).ended
    assert len(texts(log)) == 10_000
    os.close(keeper)


def test_a_writer_that_came_first_and_is_still_there_goes_on(
    writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    writer.write(b"while nobody read\n")
    running = pump(came_first={"stdout"})
    assert texts(log) == [b"while nobody read"]
    assert not running.ended
    writer.end()
    read_all(ready)
    assert running.ended


def test_closing_writes_what_is_held_and_leaves_no_descriptor_open(
    writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    before, heard = descriptors(), Heard()
    running = pump()
    running.listeners.add(heard)
    writer.write(b"no newline")
    read_all(ready)

    running.close()
    running.close()

    assert texts(log) == [b"no newline"]
    assert running.ended and heard.ends == [""]
    assert descriptors() == before


@pytest.mark.parametrize("end", ["keep", "kill"])
def test_the_next_logger_goes_on_in_the_middle_of_a_line(
    tmp_path: Path, writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector, end: str
) -> None:
    first, heard = pump(), Heard()
    first.listeners.add(heard)
    writer.write(b"one\nhalf of ")
    read_all(ready)
    if end == "keep":
        first.keep()
        assert not heard.ends
    else:  # what a killed process does: its descriptors go, and nothing else happens
        for fd in first._streams:
            ready.unregister(fd)
            os.close(fd)
        first._streams.clear()
    writer.write(b"two\n")

    pump(came_first={"stdout"})

    assert texts(log) == [b"one", b"half of two"]
    assert (tmp_path / "stdout.held").read_bytes() == b""


def test_what_was_held_is_not_written_twice(
    tmp_path: Path, writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    pump()
    writer.write(b"half")
    read_all(ready)
    assert (tmp_path / "stdout.held").read_bytes() == b"half"
    writer.end()
    read_all(ready)

    assert texts(log) == [b"half"]
    assert (tmp_path / "stdout.held").read_bytes() == b""


def test_while_it_is_paused_nothing_is_read_and_nothing_is_lost(
    writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    running = pump()
    running.pause(True)
    running.pause(True)
    writer.write(b"one\n")
    read_all(ready)
    assert texts(log) == []
    running.pause(False)
    read_all(ready)
    assert texts(log) == [b"one"]
    running.pause(True)
    running.close()
    assert running.ended


def test_a_listener_gets_what_was_read_unchanged(
    writer: Writer, pump: MakePump, ready: selectors.BaseSelector
) -> None:
    running, heard = pump(), Heard()
    running.listeners.add(heard)
    writer.write(b"a\r\nb")
    read_all(ready)

    assert heard.data == [("stdout", b"a\r\nb")]


def test_a_pump_that_cannot_start_leaves_no_descriptor_open(tmp_path: Path, writer: Writer, pump: MakePump) -> None:
    before = descriptors()

    with pytest.raises(FileNotFoundError):
        pump(fifos={"stdout": writer.path, "stderr": str(tmp_path / "none")})
    with pytest.raises(IsADirectoryError):
        pump(str(tmp_path))

    assert descriptors() == before


def test_a_log_file_that_cannot_be_opened_does_not_keep_a_running_container_waiting(
    tmp_path: Path, writer: Writer, pump: MakePump, ready: selectors.BaseSelector, told: list[str]
) -> None:
    running = pump(str(tmp_path), must_write=False)
    writer.write(b"lost\n")
    writer.end()
    read_all(ready)

    assert running.ended and len(told) == 1


def test_a_container_without_streams_has_ended(log: Path, ready: selectors.BaseSelector, told: list[str]) -> None:
    running = ContainerPump("c", {}, str(log), 100, ready, told.append)

    assert running.ended
    running.close()


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_is_not_a_regular_file_is_no_beginning_of_a_line(
    writer: Writer, log: Path, pump: MakePump, ready: selectors.BaseSelector, stranger: Stranger
) -> None:
    with stranger.at(Path(f"{writer.path}.held")):
        running = pump()
        for text in (b"one, ", b"two\n", b"three"):
            writer.write(text)
            read_all(ready)
        running.close()

    assert texts(log) == [b"one, two", b"three"]
