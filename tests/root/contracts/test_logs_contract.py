"""What operations rely on of the logger's client: the same with a logger and with the fake of it.

Neither needs root.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandboxd.errors import NotReady
from sandboxd.logs import client as real
from sandboxd.logs import process
from sandboxd.logs.client import make_fifos
from sandboxd.logs.format import parse
from sandboxd.node import Logs
from tests.fakes import logs as fake
from tests.fakes.points import Points

SECONDS = 30.0


class Shim:
    """A container's FIFOs, with the ends open that its shim has open."""

    def __init__(self, directory: Path) -> None:
        self.log = str(directory / "logs" / "0.log")
        self.fifos = make_fifos(str(directory / "io"), ("stdout", "stderr"))
        self._fds = {stream: os.open(path, os.O_RDWR | os.O_NONBLOCK) for stream, path in self.fifos.items()}

    def write(self, stream: str, data: bytes) -> None:
        os.write(self._fds[stream], data)

    def end(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def logged(self) -> dict[str, list[bytes]]:
        """The texts of each stream."""
        found: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        for line in Path(self.log).read_bytes().splitlines():
            entry = parse(line)
            assert entry is not None
            found[entry.stream].append(entry.text)
        return found


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    return Shim(tmp_path)


class Contract:
    """The rules."""

    async def test_what_was_written_is_in_the_log_once_it_is_drained(self, logs: Logs, shim: Shim) -> None:
        await logs.open("c", shim.fifos, shim.log)
        await logs.open("c", shim.fifos, f"{shim.log}/not/a/directory")
        shim.write("stdout", b"one\ntwo\n")
        shim.write("stderr", b"three\n")
        shim.end()
        for _ in range(2):
            await logs.drain("c", SECONDS)
        assert shim.logged() == {"stdout": [b"one", b"two"], "stderr": [b"three"]}

    async def test_a_container_without_a_log_is_read_all_the_same(self, logs: Logs, shim: Shim) -> None:
        await logs.open("c", shim.fifos, "")
        shim.write("stdout", b"one\n")
        shim.end()
        await logs.drain("c", SECONDS)
        assert not os.path.exists(shim.log)

    async def test_what_cannot_be_opened_is_refused_and_nothing_is_logged(self, logs: Logs, shim: Shim) -> None:
        Path(shim.log).mkdir(parents=True)
        with pytest.raises(NotReady, match="container c cannot be logged"):
            await logs.open("c", shim.fifos, shim.log)
        with pytest.raises(NotReady, match="container c cannot be logged"):
            await logs.open("c", {"stdout": f"{shim.log}/missing"}, "")
        with pytest.raises(NotReady):
            await logs.reopen("c")
        await logs.open("c", shim.fifos, "")
        shim.end()
        await logs.drain("c", SECONDS)

    async def test_a_log_that_is_moved_away_is_written_anew_when_it_is_reopened(self, logs: Logs, shim: Shim) -> None:
        await logs.open("c", shim.fifos, shim.log)
        os.rename(shim.log, f"{shim.log}.1")
        await logs.reopen("c")
        shim.write("stdout", b"one\n")
        shim.end()
        await logs.drain("c", SECONDS)
        assert shim.logged()["stdout"] == [b"one"]
        assert Path(f"{shim.log}.1").read_bytes() == b""

    async def test_a_log_that_cannot_be_opened_costs_lines_where_it_is_resumed(self, logs: Logs, shim: Shim) -> None:
        Path(shim.log).mkdir(parents=True)
        await logs.open("c", shim.fifos, shim.log, resume=True)
        shim.end()
        await logs.drain("c", SECONDS)

    async def test_what_is_not_logged_can_be_drained_and_closed_and_nothing_else(self, logs: Logs) -> None:
        await logs.drain("c", SECONDS)
        await logs.close("c")
        with pytest.raises(NotReady):
            await logs.reopen("c")
        with pytest.raises(NotReady):
            async with logs.output("c"):
                raise AssertionError("unreachable")

    async def test_after_a_close_nothing_is_logged(self, logs: Logs, shim: Shim) -> None:
        await logs.open("c", shim.fifos, shim.log)
        for _ in range(2):
            await logs.close("c")
        with pytest.raises(NotReady):
            await logs.reopen("c")
        shim.end()

    async def test_what_is_not_retained_is_forgotten_by_the_logger(self, logs: Logs, shim: Shim) -> None:
        await logs.open("c", shim.fifos, shim.log)
        await logs.retain({"c", "unknown"})
        await logs.reopen("c")
        await logs.retain(())
        with pytest.raises(NotReady):
            await logs.reopen("c")
        shim.end()


class TestFake(Contract):
    """The fake of it."""

    @pytest.fixture
    async def logs(self) -> AsyncIterator[Logs]:
        made = fake.Logs(Points())
        yield made
        await made.leave()


class TestLogger(Contract):
    """The real thing."""

    @pytest.fixture
    async def logs(self, tmp_path: Path) -> AsyncIterator[Logs]:
        places = process.LoggerPaths(state=str(tmp_path / "state"))
        os.mkdir(places.state)
        made = real.Logs(places=places, max_line_bytes=16384, idle_seconds=30.0, env=dict(os.environ))
        yield made
        await made.leave()
        places.process.end(10)
