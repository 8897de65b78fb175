"""What the daemon sees of container output, with a real logger."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import structlog

from sandboxd.errors import NotReady
from sandboxd.logs import wire
from sandboxd.logs.client import Logs, make_fifos
from sandboxd.logs.control import Control
from sandboxd.logs.process import LoggerPaths
from sandboxd.logs.reader import read
from sandboxd.supervised import Supervised
from tests.unit.logs.shim import Writer, descriptors, texts


class Output:
    """A container's FIFOs with the shim's ends open."""

    def __init__(self, base: Path) -> None:
        self.log = str(base / "0.log")
        self.fifos = make_fifos(str(base / "io"), ("stdout", "stderr"))
        self._ends = [Writer(path) for path in self.fifos.values()]

    def write(self, data: bytes) -> None:
        self._ends[0].write(data)

    def end(self) -> None:
        for one in self._ends:
            one.end()

    async def logged(self, logs: Logs, count: int) -> list[bytes]:
        """The texts, when there are so many."""
        changes = logs.changes("c")
        async with asyncio.timeout(30), aclosing(changes):
            async for _ in changes:
                if len(texts(self.log)) >= count:
                    break
        return texts(self.log)


@pytest.fixture
def output(tmp_path: Path) -> Any:
    made = Output(tmp_path)
    yield made
    made.end()


def daemon(places: LoggerPaths) -> Logs:
    return Logs(places=places, max_line_bytes=100, idle_seconds=30.0, env=dict(os.environ))


@pytest.fixture
async def logs(places: LoggerPaths) -> AsyncIterator[Logs]:
    made = daemon(places)
    yield made
    await made.leave()


def crash(logs: Logs) -> None:
    """What remains of a daemon that was killed: nothing but the logger."""
    assert logs._control is not None
    logs._control.close()
    logs._control = None
    for container_id in tuple(logs._opened):
        logs._forget(container_id)


async def kill(logs: Logs, places: LoggerPaths) -> None:
    """SIGKILL the logger; returns when the daemon has seen it."""
    assert logs._control is not None
    os.kill(places.process.pid(), signal.SIGKILL)
    await logs._control.lost.wait()


async def test_a_dead_containers_output_is_drained_whole(logs: Logs, output: Output) -> None:
    await logs.open("c", output.fifos, output.log)
    output.write(b"one\ntwo")
    output.end()

    await logs.drain("c", 30)

    content = Path(output.log).read_bytes()
    assert content.endswith(b"stdout P two\n")
    assert b"stdout F one\n" in content


async def test_output_that_does_not_end_is_cut_off_and_reported(logs: Logs, output: Output) -> None:
    await logs.open("c", output.fifos, output.log)
    with structlog.testing.capture_logs() as logged:
        await logs.drain("c", 0.01)

    assert [entry["container"] for entry in logged if entry["log_level"] == "warning"] == ["c"]
    with pytest.raises(NotReady):
        await logs.reopen("c")


async def test_what_cannot_be_opened_is_not_ready_and_nothing_stays(
    logs: Logs, output: Output, tmp_path: Path
) -> None:
    await logs.connect()
    before = descriptors()

    with pytest.raises(NotReady, match="the output of container c cannot be logged: there is a directory"):
        await logs.open("c", output.fifos, str(tmp_path))
    with pytest.raises(NotReady, match="cannot be logged"):
        await logs.open("c", {"stdout": str(tmp_path / "none")}, output.log)

    assert descriptors() == before
    await logs.open("c", output.fifos, output.log)
    await logs.open("c", output.fifos, output.log)


async def test_only_a_container_that_is_logged_can_be_reopened(logs: Logs, output: Output) -> None:
    with pytest.raises(NotReady, match="container c is not running"):
        await logs.reopen("c")
    await logs.open("c", output.fifos, output.log)
    os.unlink(output.log)

    await logs.reopen("c")
    assert Path(output.log).exists()

    os.unlink(output.log)
    os.mkdir(output.log)
    with pytest.raises(NotReady, match="the log of container c cannot be reopened: there is a directory"):
        await logs.reopen("c")


async def test_what_is_unknown_is_closed_and_drained_already(logs: Logs) -> None:
    await logs.close("none")
    await logs.drain("none", 30)

    assert [change async for change in logs.changes("none")] == []
    with pytest.raises(NotReady, match="container none is not running"):
        async with logs.output("none"):
            pass


async def test_a_killed_daemons_successor_goes_on_and_nobody_noticed(
    logs: Logs, output: Output, places: LoggerPaths
) -> None:
    await logs.open("c", output.fifos, output.log)
    output.write(b"one\nhalf of ")
    await output.logged(logs, 1)
    pid = places.process.pid()
    crash(logs)
    output.write(b"two\nthree\n")
    later = daemon(places)
    await later.open("c", output.fifos, output.log, resume=True)
    output.end()
    await later.drain("c", 30)

    assert texts(output.log) == [b"one", b"half of two", b"three"]
    assert places.process.pid() == pid
    await later.leave()


async def test_a_container_that_ended_while_no_daemon_was_there_is_drained(
    logs: Logs, output: Output, places: LoggerPaths
) -> None:
    await logs.open("c", output.fifos, output.log)
    crash(logs)
    output.write(b"last words\n")
    output.end()
    later = daemon(places)
    await later.open("c", output.fifos, output.log, resume=True)
    await later.drain("c", 30)

    assert texts(output.log) == [b"last words"]
    await later.leave()


async def test_a_killed_logger_is_started_again_and_loses_nothing_that_it_had_not_read(
    logs: Logs, output: Output, places: LoggerPaths
) -> None:
    await logs.open("c", output.fifos, output.log)
    output.write(b"one\nhalf of ")
    await output.logged(logs, 1)
    await kill(logs, places)
    output.write(b"two\n")
    output.end()
    await logs.drain("c", 30)

    assert texts(output.log) == [b"one", b"half of two"]


async def test_a_container_that_starts_while_the_logger_dies_is_logged(
    logs: Logs, tmp_path: Path, places: LoggerPaths
) -> None:
    """Its shim has not opened the FIFOs yet: they have no writer, and have not ended."""
    fifos = make_fifos(str(tmp_path / "io"), ("stdout",))
    log = str(tmp_path / "0.log")
    await logs.open("c", fifos, log)
    await kill(logs, places)
    await logs.connect()
    shim = Writer(fifos["stdout"])
    shim.write(b"one\n")
    shim.end()
    await logs.drain("c", 30)

    assert texts(log) == [b"one"]


async def test_a_stuck_logger_is_killed_and_replaced(
    logs: Logs, output: Output, places: LoggerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    await logs.open("c", output.fifos, output.log)
    pid = places.process.pid()
    crash(logs)
    os.kill(pid, signal.SIGSTOP)
    ended: list[bool] = []
    really_end = Supervised.end

    def end(stuck: Supervised, _: float) -> bool:
        monkeypatch.setattr("sandboxd.logs.client.HELLO_SECONDS", 30)  # the next one is not stuck
        ended.append(really_end(stuck, 0.01))
        return True

    monkeypatch.setattr("sandboxd.logs.client.HELLO_SECONDS", 0.05)
    monkeypatch.setattr(Supervised, "end", end)
    later = daemon(places)
    output.write(b"one\n")
    await later.open("c", output.fifos, output.log, resume=True)
    assert ended == [True]
    output.end()
    await later.drain("c", 30)

    assert texts(output.log) == [b"one"]
    assert places.process.pid() != pid
    await later.leave()


async def test_a_logger_of_another_version_is_replaced_without_losing_or_splitting_a_line(
    logs: Logs, output: Output, places: LoggerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    await logs.open("c", output.fifos, output.log)
    output.write(b"one\nhalf of ")
    await output.logged(logs, 1)
    pid = places.process.pid()
    crash(logs)
    call = Control.call

    async def aged(control: Control, op: str, **fields: Any) -> dict[str, Any]:
        answer = await call(control, op, **fields)
        return {**answer, "version": "0.0.1"} if op == "hello" and places.process.pid() == pid else answer

    monkeypatch.setattr(Control, "call", aged)
    later = daemon(places)
    output.write(b"two\n")
    await later.connect()
    assert places.process.pid() not in (0, pid)
    output.write(b"three\n")
    output.end()  # before the daemon has come to this container
    await later.open("c", output.fifos, output.log, resume=True)
    await later.drain("c", 30)

    assert texts(output.log) == [b"one", b"half of two", b"three"]
    await later.leave()


async def test_a_logger_that_stays_of_another_version_is_given_up(
    logs: Logs, places: LoggerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "PROTOCOL", wire.PROTOCOL + 1)
    with pytest.raises(NotReady, match=r"ends as soon as it is started; see .*logger\.log"):
        await logs.connect()


async def test_what_the_daemon_does_not_know_any_more_is_let_go(
    logs: Logs, output: Output, tmp_path: Path, places: LoggerPaths
) -> None:
    await logs.open("c", output.fifos, output.log)
    await logs.retain(["others"])

    with pytest.raises(NotReady, match="not being logged"):
        await logs.reopen("c")


async def test_the_logger_ends_with_a_daemon_that_leaves_it_nothing_to_log(logs: Logs, places: LoggerPaths) -> None:
    await logs.connect()
    assert places.process.pid()
    await logs.leave()
    await logs.leave()

    assert places.process.pid() == 0
    assert os.listdir(places.state) == ["logger.log"]


async def test_the_logger_stays_when_a_daemon_leaves_it_something_to_log(
    logs: Logs, output: Output, places: LoggerPaths
) -> None:
    await logs.open("c", output.fifos, output.log)
    before = places.process.pid()
    await logs.leave()
    output.write(b"one\n")

    assert places.process.pid() == before
    await logs.open("c", output.fifos, output.log, resume=True)
    output.end()
    await logs.drain("c", 30)
    assert texts(output.log) == [b"one"]


async def test_keeping_up_starts_it_again(logs: Logs, places: LoggerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxd.logs.client.STEADY_SECONDS", 0.0)
    await logs.connect()
    keeping = asyncio.gather(logs.keep_up())
    first = places.process.pid()
    await kill(logs, places)
    await logs.connect()

    assert places.process.pid() not in (0, first)
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping


async def test_keeping_up_asks_what_was_read(logs: Logs, output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxd.logs.client.COUNT_SECONDS", 0.01)
    assert not logs.connected
    await logs.open("c", output.fifos, output.log)
    assert logs.connected
    keeping = asyncio.gather(logs.keep_up())
    output.write(b"one\n")
    async with asyncio.timeout(30):
        while not logs.counted.read:  # noqa: ASYNC110 - a figure is looked at
            await asyncio.sleep(0.01)

    assert (logs.counted.read, logs.counted.lost) == (4, 0)
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping


async def test_keeping_up_leaves_one_that_ends_at_once_to_whoever_can_wait(
    logs: Logs, places: LoggerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandboxd.logs.client.STEADY_SECONDS", 1000.0)
    await logs.connect()
    keeping = asyncio.gather(logs.keep_up())
    await kill(logs, places)

    await keeping


async def follow(logs: Logs, output: Output) -> AsyncIterator[bytes]:
    """The texts, one at a time, as ReadLogs of the host API gets them."""
    async with aclosing(read(output.log, tail=-1, since=0, changes=logs.changes("c"))) as batches:
        async for batch in batches:
            for entry in batch:
                yield entry.text


@pytest.mark.parametrize("killed", [False, True], ids=["", "across the death of a logger"])
async def test_a_follower_sees_each_line_as_it_comes_until_the_end(
    logs: Logs, output: Output, places: LoggerPaths, killed: bool
) -> None:
    await logs.open("c", output.fifos, output.log)
    seen = follow(logs, output)
    async with asyncio.timeout(30):
        for text in (b"one", b"two", b"three"):
            output.write(text + b"\n")
            assert await anext(seen) == text
        if killed:
            await kill(logs, places)
        output.write(b"rest")
        output.end()
        assert [text async for text in seen] == [b"rest"]


async def test_a_follower_ends_when_logging_is_closed(logs: Logs, output: Output) -> None:
    await logs.open("c", output.fifos, output.log)
    output.write(b"one\n")
    seen = follow(logs, output)
    async with asyncio.timeout(30):
        assert await anext(seen) == b"one"
        await logs.close("c")
        assert [text async for text in seen] == []


@pytest.mark.parametrize("killed", [False, True], ids=["", "across the death of a logger"])
async def test_an_attached_client_gets_the_output_unchanged_from_then_on(
    logs: Logs, output: Output, places: LoggerPaths, killed: bool
) -> None:
    await logs.open("c", output.fifos, output.log)
    output.write(b"before\n")
    await output.logged(logs, 1)
    async with asyncio.timeout(30), logs.output("c") as chunks:
        output.write(b"\x1b[1m$ ")
        assert await anext(chunks) == ("stdout", b"\x1b[1m$ ")
        if killed:
            await kill(logs, places)
            await logs.connect()
        output._ends[1].write(b"e")
        if not killed:  # what comes while nobody is attached is missing
            assert await anext(chunks) == ("stderr", b"e")
        output.end()
        assert [chunk async for chunk in chunks] in ([], [("stderr", b"e")])


async def test_nothing_stays_open_when_all_is_done(logs: Logs, output: Output) -> None:
    before = descriptors()
    await logs.open("c", output.fifos, output.log)
    async with logs.output("c"):
        pass
    await output.logged(logs, 0)
    await logs.drain("c", 0.01)
    await logs.leave()
    await asyncio.sleep(0)

    assert descriptors() == before


async def test_a_pid_file_that_cannot_be_written_keeps_no_logger_from_running(
    places: LoggerPaths, output: Output
) -> None:
    os.mkdir(places.pid_file)
    logs = daemon(places)
    await logs.open("c", output.fifos, output.log)
    output.write(b"one\n")
    output.end()
    await logs.drain("c", 30)
    await logs.leave()

    assert texts(output.log) == [b"one"]
