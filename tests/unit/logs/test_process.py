"""Starting, finding and ending the logger."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from sandboxd.errors import NotReady
from sandboxd.logs import wire
from sandboxd.logs.process import LoggerPaths, start
from sandboxd.supervised import ended

ENV = dict(os.environ)


def hello(places: LoggerPaths) -> tuple[socket.socket, bytes]:
    """Connect at once and wait for an answer; without a daemon a logger ends when it has been idle."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)
    client.connect(places.socket)
    client.sendall(wire.message(op="hello", id=1))
    return client, client.recv(1 << 16)


def test_a_started_logger_can_be_connected_to_at_once_and_is_found_by_its_pid(places: LoggerPaths) -> None:
    start(places, 30.0, ENV)
    client, answer = hello(places)
    pid = places.process.pid()
    with client:
        assert b'"protocol":1' in answer
        assert pid
        assert os.stat(places.socket).st_mode & 0o777 == 0o600
        assert os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_it_is_small(places: LoggerPaths) -> None:
    """No asyncio, no grpc, nothing that the daemon is made of: it may have to live when memory is short."""
    start(places, 30.0, ENV)
    client, _ = hello(places)
    pid = places.process.pid()
    with client:
        maps = Path(f"/proc/{pid}/maps").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
    assert "grpc" not in maps and "_asyncio" not in maps and "_ssl" not in maps
    (rss,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    assert rss < 20_000  # kB; what it is made of needs 14 MB, asyncio alone would add 7


def test_sigterm_ends_it_and_takes_its_files_away(places: LoggerPaths) -> None:
    start(places, 30.0, ENV)
    client, _ = hello(places)
    fd = places.process.pidfd()
    with client:
        assert places.process.end(30)
        assert client.recv(1) == b""
    assert ended(fd, 30)
    os.close(fd)
    assert not os.path.exists(places.socket) and not os.path.exists(places.pid_file)
    assert not places.process.end(30)


def test_one_that_is_stuck_is_killed(places: LoggerPaths) -> None:
    start(places, 30.0, ENV)
    client, _ = hello(places)
    pid = places.process.pid()
    fd = places.process.pidfd()
    with client:
        os.kill(pid, signal.SIGSTOP)
        assert places.process.end(0.01)
    assert ended(fd, 30)
    os.close(fd)


def test_it_ends_by_itself_when_nobody_comes(places: LoggerPaths) -> None:
    start(places, 0.05, ENV)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(places.socket)
        assert client.recv(1) == b""

    assert not os.path.exists(places.socket)


def test_a_socket_that_a_killed_one_left_is_replaced(places: LoggerPaths) -> None:
    start(places, 30.0, ENV)
    client, _ = hello(places)
    client.close()
    fd = places.process.pidfd()
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    assert ended(fd, 30)
    os.close(fd)
    assert places.process.pid() == 0

    start(places, 30.0, ENV)
    client, answer = hello(places)
    client.close()
    assert answer


def test_a_recycled_pid_is_not_the_logger(places: LoggerPaths) -> None:
    Path(places.pid_file).write_text(f"{os.getpid()}\n")
    assert places.process.pid() == 0
    Path(places.pid_file).write_text("nonsense")
    assert places.process.pid() == 0


def test_a_directory_that_cannot_be_used_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotReady, match="the logger cannot be started"):
        start(LoggerPaths(state=str(tmp_path / "file")), 30.0, ENV)
