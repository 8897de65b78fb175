"""The logger as a process: where it is, and how it is started.

The starter listens on the socket first and passes that on, so a started logger can be connected to at once.
There is one daemon per directory (it holds the root directory's lock), hence one starter.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from sandboxd import private
from sandboxd.errors import NotReady
from sandboxd.logs.wire import pid_file
from sandboxd.supervised import Supervised

log = structlog.get_logger(__name__)

_MODULE = "sandboxd.logs"
_HOME = str(Path(__file__).parents[2])  # where that module is found, installed or not
BACKLOG = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggerPaths:
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

    @property
    def process(self) -> Supervised:
        return Supervised(pid_file=self.pid_file, argument=self.socket)


def start(places: LoggerPaths, idle_seconds: float, env: Mapping[str, str]) -> None:
    """Start a logger; it can be connected to at once. The one before must have ended.

    Raises NotReady.
    """
    try:
        listener = _listen(places.socket)
        with listener:
            places.process.start(
                [sys.executable, "-m", _MODULE, places.socket, f"{idle_seconds:g}"],
                log_file=places.log_file,
                env=env,
                cwd=_HOME,
                stdin=listener.fileno(),
            )
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
