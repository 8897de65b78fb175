"""Starting, finding and ending the logger."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from sandboxd.errors import NotReady
from sandboxd.logs import wire
from sandboxd.logs.process import Places, end, gone, pidfd, running_pid, start

ENV = dict(os.environ)


def hello(places: Places) -> tuple[socket.socket, bytes]:
    """Connect at once and wait for an answer; without a daemon a logger ends when it has been idle."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)
    client.connect(places.socket)
    client.sendall(wire.message(op="hello", id=1))
    return client, client.recv(1 << 16)


async def test_a_started_logger_can_be_connected_to_at_once_and_is_found_by_its_pid(places: Places) -> None:
    await start(places, 30.0, ENV)
    client, answer = hello(places)
    pid = running_pid(places)
    with client:
        assert b'"protocol":1' in answer
        assert pid
        assert os.stat(places.socket).st_mode & 0o777 == 0o600
        assert os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"


async def test_it_is_small(places: Places) -> None:
    """No asyncio, no grpc, nothing that the daemon is made of: it may have to live when memory is short."""
    await start(places, 30.0, ENV)
    client, _ = hello(places)
    pid = running_pid(places)
    with client:
        maps = Path(f"/proc/{pid}/maps").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
    assert "grpc" not in maps and "_asyncio" not in maps and "_ssl" not in maps
    (rss,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    assert rss < 20_000  # kB; what it is made of needs 14 MB, asyncio alone would add 7


async def test_sigterm_ends_it_and_takes_its_files_away(places: Places) -> None:
    await start(places, 30.0, ENV)
    client, _ = hello(places)
    fd = pidfd(places)
    with client:
        assert end(places, 30)
        assert client.recv(1) == b""
    assert gone(fd, 30)
    os.close(fd)
    assert not os.path.exists(places.socket) and not os.path.exists(places.pid_file)
    assert not end(places, 30)


async def test_one_that_is_stuck_is_killed(places: Places) -> None:
    await start(places, 30.0, ENV)
    client, _ = hello(places)
    pid = running_pid(places)
    fd = pidfd(places)
    with client:
        os.kill(pid, signal.SIGSTOP)
        assert end(places, 0.01)
    assert gone(fd, 30)
    os.close(fd)


async def test_it_ends_by_itself_when_nobody_comes(places: Places) -> None:
    await start(places, 0.05, ENV)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(places.socket)
        assert client.recv(1) == b""

    assert not os.path.exists(places.socket)


async def test_a_socket_that_a_killed_one_left_is_replaced(places: Places) -> None:
    await start(places, 30.0, ENV)
    client, _ = hello(places)
    client.close()
    fd = pidfd(places)
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    assert gone(fd, 30)
    os.close(fd)
    assert running_pid(places) == 0

    await start(places, 30.0, ENV)
    client, answer = hello(places)
    client.close()
    assert answer


def test_a_recycled_pid_is_not_the_logger(places: Places) -> None:
    Path(places.pid_file).write_text(f"{os.getpid()}\n")
    assert running_pid(places) == 0
    Path(places.pid_file).write_text("nonsense")
    assert running_pid(places) == 0


async def test_a_directory_that_cannot_be_used_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotReady, match="the logger cannot be started"):
        await start(Places(state=str(tmp_path / "file")), 30.0, ENV)
