"""Programs in other pid namespaces: signalling them, finding them, waiting for them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

LIMIT = 60.0  # seconds for what takes one on a quiet machine: a limit says that something hangs, not that it is slow


def until(check: Callable[[], object], *, within: float = LIMIT, what: str) -> None:
    """Wait until `check()` is true, at most `within` seconds; raises TimeoutError naming `what`.

    The pauses grow to a tenth of a second, because looking often takes time from what is waited for.
    """
    deadline = time.monotonic() + within
    pause = 0.01
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within:g} s")
        time.sleep(pause)
        pause = min(1.5 * pause, 0.1)


class Inside(subprocess.Popen[str]):
    """A program in the bed, as a child of the nsenter(1) or unshare(1) that started it and waits for it.

    Signals go to the program itself. If only its parent were killed, the machine's init would inherit it, and its pid
    namespace could not end until init reaps it.
    """

    def send_signal(self, sig: int) -> None:
        """Signal the program, not its parent. kill() and terminate() use this too."""
        if self.poll() is None:
            until(lambda: children_of(self.pid) or self.poll() is not None, what="the program starts")
            for pid in children_of(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sig)


def children_of(pid: int) -> list[int]:
    """The pids of a process's children (proc_pid_stat(5); the kernel's list of children is optional)."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    pids.append(int(entry.name))
    return pids


def processes_in(pid_namespace: str) -> list[int]:
    """The pids (outside) of all processes in a pid namespace, not counting namespaces nested in it."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns" / "pid") == pid_namespace:
                    pids.append(int(entry.name))
    return pids
