"""Programs in other pid namespaces: signalling them, finding them, waiting for them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def until(check: Callable[[], object], *, within: float, what: str) -> None:
    """Wait until `check()` is true. Raises TimeoutError that names `what` after `within` seconds."""
    deadline = time.monotonic() + within
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within:g} s")
        time.sleep(0.02)


class Inside(subprocess.Popen[str]):
    """A program in the bed, as a child of the nsenter(1) or unshare(1) that started it and waits for it.

    Signals go to the program itself. If only its parent were killed, the machine's init would inherit it, and its pid
    namespace could not end until init reaps it.
    """

    def send_signal(self, sig: int) -> None:
        """Signal the program, not its parent. kill() and terminate() use this too."""
        if self.poll() is None:
            until(lambda: children_of(self.pid) or self.poll() is not None, within=5, what="the program starts")
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
