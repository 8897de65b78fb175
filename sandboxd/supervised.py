"""Processes that outlive the one that starts them: started, found again, ended.

Each has a pid file, written by its starter. A pid alone identifies nothing, because the kernel reuses pids: the
process that has it is ours only while its command line has an argument that no other process has. Signals go through
a pidfd, so they never reach a process that got the pid later.

Everything here blocks; only `end`, `terminate` and `ended` may take long.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from sandboxd import private

log = structlog.get_logger(__name__)

KILLED_SECONDS = 10.0  # for a killed process to end; longer only in the middle of a system call that cannot return
LOOK_SECONDS = 0.001  # between looks at a process that is just being started
MAX_LOOKS = 1000  # the first mostly sees it; a program may have no arguments to see


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised:
    """One process and how it is recognised."""

    pid_file: str
    argument: str  # of its command line, and of no other process's

    def start(
        self, argv: Sequence[str], *, log_file: str, env: Mapping[str, str], cwd: str = "/", stdin: int | None = None
    ) -> int:
        """Start it in a session of its own, its output appended to `log_file`, and return its pid.

        Neither the caller's end nor a signal to the caller's process group reaches it. It inherits nothing but `env`
        and the descriptor `stdin`, by default an empty input. The process before it must have ended.

        Raises OSError when it cannot be executed or the log file cannot be opened. A pid file that cannot be written
        is logged: the process runs, it only cannot be found again.
        """
        with open(log_file, "ab", opener=private.opener) as output:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=cwd,
                env=env,
            )
        _await_arguments(process.pid)
        # Not a process of asyncio's, which kills those that still run when their loop is closed.
        threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
        try:
            private.write(self.pid_file, f"{process.pid}\n")
        except OSError as exc:
            log.warning("the pid file cannot be written", path=self.pid_file, pid=process.pid, error=str(exc))
        return process.pid

    def pid(self) -> int:
        """Its pid, 0 when it does not run."""
        pid, fd = self._find()
        if pid:
            os.close(fd)
        return pid

    def pidfd(self) -> int:
        """A descriptor of it (pidfd_open(2)), -1 when it does not run; the caller closes it."""
        return self._find()[1]

    def terminate(self, seconds: float) -> bool:
        """Send SIGTERM and wait up to `seconds`; True when it no longer runs then, or did not run at all."""
        pid, fd = self._find()
        if not pid:
            return True
        try:
            if not _signalled(fd, signal.SIGTERM, seconds):
                return False
        finally:
            os.close(fd)
        self._forget(pid)
        return True

    def end(self, grace: float) -> bool:
        """Send SIGTERM, and SIGKILL after `grace` seconds; False when it did not run."""
        pid, fd = self._find()
        if not pid:
            return False
        try:
            if not _signalled(fd, signal.SIGTERM, grace) and not _signalled(fd, signal.SIGKILL, KILLED_SECONDS):
                log.warning("a killed process does not end", pid=pid, seconds=KILLED_SECONDS)
                return True
        finally:
            os.close(fd)
        self._forget(pid)
        return True

    def _find(self) -> tuple[int, int]:
        """Its pid and a pidfd, (0, -1) when it does not run."""
        try:
            pid = int(Path(self.pid_file).read_text(encoding="ascii"))
            fd = os.pidfd_open(pid)
        except (OSError, ValueError, OverflowError):
            return 0, -1
        try:
            # A process that has not ended by now still has its pid, so the command line was its own.
            if os.fsencode(self.argument) in _arguments(pid) and not ended(fd, 0):
                return pid, fd
        except OSError:
            pass
        os.close(fd)
        return 0, -1

    def _forget(self, pid: int) -> None:
        """Remove the pid file, unless it is that of a process started since."""
        path = Path(self.pid_file)
        try:
            if path.read_text(encoding="ascii").strip() == str(pid):
                path.unlink()
        except (OSError, ValueError):
            pass  # removed by the process itself, or by another caller


def _arguments(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def _await_arguments(pid: int) -> None:
    """Wait until a child that has just been started can be recognised.

    execve(2) closes what is to be closed, which is all that a parent sees of it, before it sets the arguments.
    """
    fd = os.pidfd_open(pid)
    try:
        for _ in range(MAX_LOOKS):
            if _arguments(pid) != [b""] or ended(fd, LOOK_SECONDS):
                break
    finally:
        os.close(fd)


def ended(fd: int, timeout: float) -> bool:
    """Whether the process behind a pidfd ends within `timeout` seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def _signalled(fd: int, number: signal.Signals, seconds: float) -> bool:
    """Send a signal; whether the process ends within `seconds`."""
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return True
    return ended(fd, seconds)
