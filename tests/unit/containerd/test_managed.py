"""The private containerd: what it is told, how it is recognised, and that only ours is touched."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.containerd import managed
from sandboxd.containerd.client import Containerd, Version
from sandboxd.containerd.managed import ManagedPaths, configuration, ensure_running
from sandboxd.errors import NotReady, TimedOut, Unavailable

_PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20).map("/".__add__)


@pytest.fixture
def places(tmp_path: Path) -> ManagedPaths:
    return ManagedPaths(root=f"{tmp_path}/root", state=f"{tmp_path}/state", socket=f"{tmp_path}/state/c.sock")


@pytest.fixture
async def lookalike(places: ManagedPaths) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with the command line of the private containerd, recorded as it."""
    Path(places.state).mkdir(parents=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "print(flush=True); input()",
        places.config_file,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()  # before that, its arguments may not be seen yet
    Path(places.pid_file).write_text(f"{process.pid}\n")
    yield process
    if process.returncode is None:
        process.kill()
    await process.wait()


class Answers(Containerd):
    """A client whose version is scripted: an error is raised, anything else returned."""

    def __init__(self, *answers: Version | Exception) -> None:
        self.answers = list(answers)
        self.namespace = "sandboxd"
        self.waited = 0

    async def version(self, timeout: float = 5.0) -> Version:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def wait_until_serving(self, timeout: float | None) -> Version:
        self.waited += 1
        return await self.version()


VERSION = Version(version="2.0", revision="r")


def test_the_configuration_says_where_everything_is_and_what_is_not_wanted(places: ManagedPaths) -> None:
    parsed = tomllib.loads(configuration(places))

    assert parsed.pop("disabled_plugins")
    assert parsed == {
        "version": 2,
        "root": places.root,
        "state": f"{places.state}/state",
        "grpc": {"address": places.socket},
        "ttrpc": {"address": f"{places.socket}.ttrpc"},
    }


def test_containerds_own_cri_plugin_is_off_in_every_version(places: ManagedPaths) -> None:
    disabled = tomllib.loads(configuration(places))["disabled_plugins"]

    assert {"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"} <= set(
        disabled
    )
    assert not [name for name in disabled if "overlayfs" in name or "native" in name]


@given(root=_PATHS, state=_PATHS, socket=_PATHS)
def test_any_path_is_written_so_that_it_is_read_back(root: str, state: str, socket: str) -> None:
    parsed = tomllib.loads(configuration(ManagedPaths(root=root, state=state, socket=socket)))

    assert (parsed["root"], parsed["state"], parsed["grpc"]["address"]) == (root, f"{state}/state", socket)


async def test_the_private_containerd_is_told_by_its_command_line(
    places: ManagedPaths, lookalike: asyncio.subprocess.Process
) -> None:
    assert places.process.pid() == lookalike.pid


@pytest.mark.parametrize(
    "content",
    [None, "", "no number", "-1", "0", "99999999999999999999", pytest.param(f"{os.getpid()}\n", id="our own")],
)
def test_a_missing_damaged_or_recycled_pid_is_nobody(places: ManagedPaths, content: str | None) -> None:
    Path(places.state).mkdir(parents=True)
    if content is not None:
        Path(places.pid_file).write_text(content)

    assert places.process.pid() == 0


async def test_one_of_other_places_is_not_ours(
    places: ManagedPaths, lookalike: asyncio.subprocess.Process, tmp_path: Path
) -> None:
    other = ManagedPaths(root=places.root, state=f"{tmp_path}/other", socket=places.socket)
    Path(other.state).mkdir()
    Path(other.pid_file).write_text(f"{lookalike.pid}\n")

    assert other.process.pid() == 0
    assert other.process.end(1) is False
    assert lookalike.returncode is None


async def test_one_that_has_ended_is_nobody(places: ManagedPaths, lookalike: asyncio.subprocess.Process) -> None:
    lookalike.kill()
    await lookalike.wait()

    assert places.process.pid() == 0
    assert places.process.end(1) is False


async def test_stop_ends_it_and_forgets_its_pid(places: ManagedPaths, lookalike: asyncio.subprocess.Process) -> None:
    assert places.process.end(30) is True

    assert await lookalike.wait() == -signal.SIGTERM
    assert not Path(places.pid_file).exists()
    assert places.process.end(30) is False


async def test_one_that_does_not_listen_is_killed(places: ManagedPaths) -> None:
    Path(places.state).mkdir(parents=True)
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, places.config_file, stdout=asyncio.subprocess.PIPE
    )
    Path(places.pid_file).write_text(f"{process.pid}\n")
    assert process.stdout is not None
    await process.stdout.readline()

    assert places.process.end(0.05) is True

    assert await process.wait() == -signal.SIGKILL


async def test_one_that_answers_is_used(places: ManagedPaths) -> None:
    client = Answers(VERSION)

    assert await ensure_running(client, "no-such-binary", places, 1, {}) == VERSION
    assert not Path(places.state).exists()


@pytest.mark.parametrize("error", [Unavailable("no"), TimedOut("slow")])
async def test_ours_that_does_not_answer_yet_is_waited_for_and_no_second_one_started(
    places: ManagedPaths, lookalike: asyncio.subprocess.Process, error: Exception
) -> None:
    client = Answers(error, VERSION)

    assert await ensure_running(client, "no-such-binary", places, 1, {}) == VERSION
    assert client.waited == 1


async def test_a_stranger_that_does_not_answer_in_time_is_not_challenged(places: ManagedPaths) -> None:
    with pytest.raises(TimedOut):
        await ensure_running(Answers(TimedOut("slow")), "no-such-binary", places, 1, {})


async def test_a_missing_binary_says_what_to_install(places: ManagedPaths) -> None:
    with pytest.raises(NotReady, match="no-such-binary was not found; install containerd"):
        await ensure_running(Answers(Unavailable("no")), "no-such-binary", places, 1, {})


async def test_one_that_does_not_come_up_shows_the_end_of_its_log(places: ManagedPaths, tmp_path: Path) -> None:
    binary = tmp_path / "containerd"
    binary.write_text('#!/bin/sh\necho "$1 $2: no such plugin" >&2\nread -r _ < "$0.fifo"\n')
    binary.chmod(0o755)
    os.mkfifo(f"{binary}.fifo")
    client = Answers(Unavailable("no"), Unavailable("not within 1 s"))
    try:
        with pytest.raises(Unavailable, match=r"not within 1 s; the end of .*containerd\.log"):
            await ensure_running(client, str(binary), places, 1, {})

        pid = places.process.pid()
        assert Path(places.pid_file).read_text() == f"{pid}\n"
        assert tomllib.loads(Path(places.config_file).read_text())["root"] == places.root
        assert os.getsid(pid) == pid  # what is sent to the daemon's group does not reach it
    finally:
        assert places.process.end(30)


class Served(Answers):
    """A client for which containerd serves once it has been started `starts` times."""

    def __init__(self, started: Path, starts: int) -> None:
        super().__init__(Unavailable("no"))
        self._started, self._starts = started, starts

    async def wait_until_serving(self, timeout: float | None) -> Version:
        self.waited += 1
        while self._so_far() < self._starts:  # noqa: ASYNC110 - a file is all that the process can tell with
            await asyncio.sleep(0.01)
        return VERSION

    def _so_far(self) -> int:
        return len(self._started.read_text()) if self._started.exists() else 0


def mortal(tmp_path: Path, deaths: int) -> tuple[Path, Path]:
    """A containerd that dies at once the first `deaths` times; and where it counts its starts."""
    binary, started = tmp_path / "containerd", tmp_path / "started"
    binary.write_text(
        f'#!/bin/sh\nprintf x >>"{started}"\n[ "$(wc -c <"{started}")" -gt {deaths} ] || kill -9 $$\n'
        f'read -r _ <"{binary}.fifo"\n'
    )
    binary.chmod(0o755)
    os.mkfifo(f"{binary}.fifo")
    return binary, started


async def test_one_that_dies_while_it_starts_is_started_again_at_once(places: ManagedPaths, tmp_path: Path) -> None:
    """Its limit, for which nobody could wait here, is for one that lives and does not answer."""
    binary, started = mortal(tmp_path, deaths=managed.STARTS - 1)
    client = Served(started, managed.STARTS)
    try:
        async with asyncio.timeout(60):
            assert await ensure_running(client, str(binary), places, 3600, {}) == VERSION
        assert len(started.read_text()) == managed.STARTS
        assert places.process.pid()
    finally:
        places.process.end(30)


async def test_one_that_always_dies_is_given_up_and_shows_the_end_of_its_log(
    places: ManagedPaths, tmp_path: Path
) -> None:
    binary = tmp_path / "containerd"
    binary.write_text('#!/bin/sh\necho "no such plugin" >&2\nexit 1\n')
    binary.chmod(0o755)
    async with asyncio.timeout(60):
        with pytest.raises(
            Unavailable, match=rf"ended {managed.STARTS} times before it answered; .*\n.*no such plugin"
        ):
            await ensure_running(Served(tmp_path / "started", 1), str(binary), places, 3600, {})


async def test_one_that_an_earlier_daemon_started_and_that_dies_is_replaced(
    places: ManagedPaths, lookalike: asyncio.subprocess.Process, tmp_path: Path
) -> None:
    binary, started = mortal(tmp_path, deaths=0)
    try:
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            waiting = group.create_task(ensure_running(Served(started, 1), str(binary), places, 3600, {}))
            await asyncio.sleep(0)
            lookalike.kill()
            assert await waiting == VERSION
        assert places.process.pid() not in (0, lookalike.pid)
    finally:
        places.process.end(30)
