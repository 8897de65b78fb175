"""What the daemon sees of container output."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import structlog

from sandboxd.errors import NotReady
from sandboxd.logs.client import Logs, fifo_paths, make_fifos
from sandboxd.logs.reader import read


class Output:
    """A container's FIFOs with the shim's end of stdout open."""

    def __init__(self, base: Path) -> None:
        self.log = str(base / "0.log")
        self.fifos = make_fifos(str(base / "io"), ("stdout", "stderr"))
        self._ends = [os.open(path, os.O_RDWR) for path in self.fifos.values()]

    def write(self, data: bytes) -> None:
        os.write(self._ends[0], data)

    def end(self) -> None:
        while self._ends:
            os.close(self._ends.pop())


@pytest.fixture
def output(tmp_path: Path) -> Any:
    made = Output(tmp_path)
    yield made
    made.end()


@pytest.fixture
async def logs() -> AsyncIterator[Logs]:
    made = Logs(max_line_bytes=100)
    yield made
    made.close_all()


def test_fifos_are_made_once_and_found_again(tmp_path: Path) -> None:
    directory = str(tmp_path / "c" / "io")
    assert fifo_paths(directory) == {}

    made = make_fifos(directory, ("stdout", "stderr"))
    inodes = [os.stat(path).st_ino for path in made.values()]

    assert make_fifos(directory, ("stdout", "stderr")) == fifo_paths(directory) == made
    assert [os.stat(path).st_ino for path in made.values()] == inodes
    assert all(stat.S_ISFIFO(os.stat(path).st_mode) for path in made.values())
    assert [os.stat(path).st_mode & 0o777 for path in (directory, *made.values())] == [0o700, 0o600, 0o600]


def test_only_the_streams_that_were_wanted_are_found(tmp_path: Path) -> None:
    directory = str(tmp_path)
    make_fifos(directory, ("stdout",))

    assert fifo_paths(directory) == {"stdout": f"{directory}/stdout"}


async def test_a_dead_containers_output_is_drained_whole(logs: Logs, output: Output) -> None:
    logs.open("c", output.fifos, output.log)
    output.write(b"one\ntwo")
    output.end()

    await logs.drain("c", 30)

    content = Path(output.log).read_bytes()
    assert content.endswith(b"stdout P two\n")
    assert b"stdout F one\n" in content


async def test_output_that_does_not_end_is_cut_off_and_reported(logs: Logs, output: Output) -> None:
    logs.open("c", output.fifos, output.log)
    with structlog.testing.capture_logs() as logged:
        await logs.drain("c", 0.01)

    assert [entry["container"] for entry in logged] == ["c"]
    with pytest.raises(NotReady):
        logs.reopen("c")


async def test_opening_twice_opens_once(logs: Logs, output: Output) -> None:
    logs.open("c", output.fifos, output.log)
    before = set(os.listdir("/proc/self/fd"))
    logs.open("c", output.fifos, output.log)

    assert set(os.listdir("/proc/self/fd")) == before


async def test_what_cannot_be_opened_is_not_ready_and_nothing_stays(
    logs: Logs, output: Output, tmp_path: Path
) -> None:
    before = set(os.listdir("/proc/self/fd"))

    with pytest.raises(NotReady, match="the output of container c cannot be logged"):
        logs.open("c", output.fifos, str(tmp_path))
    with pytest.raises(NotReady, match="cannot be logged"):
        logs.open("c", {"stdout": str(tmp_path / "none")}, output.log)

    assert set(os.listdir("/proc/self/fd")) == before
    logs.open("c", output.fifos, output.log)


async def test_only_a_container_that_is_logged_can_be_reopened(logs: Logs, output: Output, tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="container c is not running"):
        logs.reopen("c")
    logs.open("c", output.fifos, output.log)
    os.unlink(output.log)

    logs.reopen("c")
    assert Path(output.log).exists()

    os.unlink(output.log)
    os.mkdir(output.log)
    with pytest.raises(NotReady, match="the log of container c cannot be reopened"):
        logs.reopen("c")


async def test_what_is_unknown_is_closed_and_drained_already(logs: Logs) -> None:
    logs.close("none")
    await logs.drain("none", 30)

    assert [change async for change in logs.changes("none")] == []


async def follow(logs: Logs, output: Output) -> AsyncIterator[bytes]:
    """The texts, one at a time, as ReadLogs of the host API gets them."""
    async with aclosing(read(output.log, tail=-1, since=0, changes=logs.changes("c"))) as batches:
        async for batch in batches:
            for entry in batch:
                yield entry.text


async def test_a_follower_sees_each_line_as_it_comes_until_the_end(logs: Logs, output: Output) -> None:
    logs.open("c", output.fifos, output.log)
    seen = follow(logs, output)
    async with asyncio.timeout(30):
        for text in (b"one", b"two", b"three"):
            output.write(text + b"\n")
            assert await anext(seen) == text
        output.write(b"rest")
        output.end()
        assert [text async for text in seen] == [b"rest"]


async def test_a_line_written_while_the_first_ones_were_being_sent_is_not_held_up(logs: Logs, output: Output) -> None:
    logs.open("c", output.fifos, output.log)
    changes = logs.changes("c")
    output.write(b"one\n")
    await anext(changes)
    seen = follow(logs, output)
    async with asyncio.timeout(30):
        assert await anext(seen) == b"one"
        output.write(b"two\n")
        await anext(changes)
        assert await anext(seen) == b"two"
    await changes.aclose()  # type: ignore[attr-defined]
    await seen.aclose()  # type: ignore[attr-defined]


async def test_a_follower_ends_when_logging_is_closed(logs: Logs, output: Output) -> None:
    logs.open("c", output.fifos, output.log)
    output.write(b"one\n")
    seen = follow(logs, output)
    async with asyncio.timeout(30):
        assert await anext(seen) == b"one"
        logs.close("c")
        assert [text async for text in seen] == []


async def test_a_follower_that_leaves_is_forgotten(logs: Logs, output: Output) -> None:
    logs.open("c", output.fifos, output.log)
    changes = logs.changes("c")
    output.write(b"one\n")
    await anext(changes)
    await changes.aclose()  # type: ignore[attr-defined]

    assert logs._pumps["c"]._waiting == set()
