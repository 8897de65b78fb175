"""The logger as a process: find the one that runs, start one, end one.

Whoever starts it listens on the socket first and passes that on, so a started logger can be connected to at once.
There is one daemon per directory (it holds the root directory's lock), hence one starter.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from sandboxd import private
from sandboxd.errors import NotReady
from sandboxd.logs.wire import pid_file

log = structlog.get_logger(__name__)

_MODULE = "sandboxd.logs"
_HOME = str(Path(__file__).parents[2])  # where that module is found, installed or not
# Not a child of ours: asyncio kills the children that still run when their loop is collected.
# A shell gives what it starts in the background an empty standard input, unless it is told otherwise.
_ORPHAN = 'exec 3<&0; exec "$@" <&3 3<&- &'
BACKLOG = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the logger of one daemon is."""

    state: str  # the daemon's directory

    @property
    def socket(self) -> str:
        return f"{self.state}/logger.sock"

    @property
    def pid_file(self) -> str:
        return pid_file(self.socket)

    @property
    def log_file(self) -> str:
        return f"{self.state}/logger.log"


async def start(places: Places, idle_seconds: float, env: Mapping[str, str]) -> None:
    """Start a logger; it can be connected to at once. The one before must have ended.

    Raises NotReady.
    """
    try:
        listener = _listen(places.socket)
        with listener, open(places.log_file, "ab", opener=private.opener) as output:
            shell = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                _ORPHAN,
                "sh",
                sys.executable,
                "-m",
                _MODULE,
                places.socket,
                f"{idle_seconds:g}",
                stdin=listener.fileno(),
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=_HOME,
                env=env,
            )
            await shell.wait()
    except OSError as exc:
        raise NotReady(f"the logger cannot be started: {exc}") from exc
    log.info("logger started", socket=places.socket)


def _listen(path: str) -> socket.socket:
    private.make(str(Path(path).parent), private.PASSABLE)
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)  # root only, not even for an instant otherwise
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def running_pid(places: Places) -> int:
    """The logger's pid, 0 when it does not run. A recycled pid is told by its command line."""
    try:
        pid = int(Path(places.pid_file).read_text(encoding="ascii"))
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return 0
    return pid if os.fsencode(places.socket) in argv else 0


def pidfd(places: Places) -> int:
    """A descriptor of the logger that runs (pidfd_open(2)), -1 when it does not; the caller closes it."""
    pid = running_pid(places)
    try:
        return os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:
        return -1


def gone(fd: int, timeout: float) -> bool:
    """Whether a process ends within `timeout` seconds. Blocks."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def end(places: Places, timeout: float) -> bool:
    """End the logger that runs (SIGTERM, then SIGKILL after `timeout` seconds); False when none did. Blocks."""
    fd = pidfd(places)
    if fd < 0:
        return False
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(fd, number)
            if gone(fd, timeout):
                break
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
    Path(places.pid_file).unlink(missing_ok=True)  # it was killed, or it has done so itself
    return True
