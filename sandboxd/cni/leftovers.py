"""Plugins of an earlier daemon, which died while they ran: found and ended, before a DEL runs beside their ADD.

A plugin that outlives its daemon goes on: it makes a link or takes an address after the DEL of the daemon's successor
has found nothing to remove, and both stay for ever. Nothing has to be recorded to find it. Before it was started, the
ledger had the attachment, and CNI_CONTAINERID in its environment is the id of that attachment's pod.

A plugin may also leave a helper behind on purpose, a DHCP client or a name server, which has inherited the same
environment. That one is not ended. What tells a plugin, and the delegates that it waits for, is that somebody feeds
its standard input, or that its command line is that of a plugin: the path of a binary below CNI_PATH, and no more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass

from sandboxd import steps
from sandboxd.cni import execution
from sandboxd.errors import Unavailable

END_SECONDS = 5.0  # for killed processes to end; longer only in the middle of a system call that cannot return
LOOK_SECONDS = 0.01  # between two looks at them


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    """One process, which a pid alone does not identify: the kernel reuses pids."""

    pid: int
    group: int
    started: str  # in the kernel's clock ticks since boot

    def is_alive(self) -> bool:
        return _process(self.pid) == self


class Leftovers:
    """What an earlier daemon left running. Make it before the first plugin is started: it looks at what runs then."""

    def __init__(self) -> None:
        self._found = _look()

    async def end(self, container_id: str) -> None:
        """Kill the process groups of this pod's plugins and wait for their end.

        Raises Unavailable when one does not end.
        """
        if container_id in self._found:
            # Looked for again: by now the plugin may have ended, or a delegate may be all that is left of it.
            groups = {process.group for process in _look().get(container_id, ())}
            if groups:
                with steps.step("cni.leftovers", groups=",".join(map(str, sorted(groups)))):
                    await _end(groups)
            del self._found[container_id]


async def _end(groups: set[int]) -> None:
    members = [process for process in map(_process, _pids()) if process is not None and process.group in groups]
    for group in groups:
        execution.kill_group(group)
    try:
        async with asyncio.timeout(END_SECONDS):
            while any(process.is_alive() for process in members):  # noqa: ASYNC110 - they are not our children
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        left = ", ".join(str(process.pid) for process in members if process.is_alive())
        raise Unavailable(
            f"plugins that an earlier daemon left running were killed and do not end: process {left}; "
            "the DEL is tried again later"
        ) from None


def _look() -> dict[str, list[_Process]]:
    """The plugins that run now, and their delegates, by CNI_CONTAINERID."""
    found: dict[str, list[_Process]] = {}
    for pid in _pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                raw = file.read()
            if b"CNI_CONTAINERID=" not in raw or os.stat(f"/proc/{pid}").st_uid != os.geteuid():
                continue
            environ = dict(entry.partition(b"=")[::2] for entry in raw.split(b"\0"))
            if b"CNI_COMMAND" in environ and (_is_fed(pid) or _is_plugin(pid, environ)):
                process = _process(pid)
                if process is not None and process.group not in (0, 1, os.getpgrp()):
                    found.setdefault(os.fsdecode(environ[b"CNI_CONTAINERID"]), []).append(process)
        except OSError:  # it has just ended, or is not ours to look into
            continue
    return found


def _is_fed(pid: int) -> bool:
    """Whether its standard input is what a caller of plugins gives one; a helper's is /dev/null."""
    return os.readlink(f"/proc/{pid}/fd/0").startswith(("pipe:", "socket:"))


def _is_plugin(pid: int, environ: dict[bytes, bytes]) -> bool:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        last = file.read().removesuffix(b"\0").split(b"\0")[-1]
    return os.path.dirname(last) in environ.get(b"CNI_PATH", b"").split(b":") and last.startswith(b"/")


def _process(pid: int) -> _Process | None:
    """The process that has this pid; None when there is none, or only what its parent has not reaped yet."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            # The second field, in parentheses, is a name that may hold anything (proc_pid_stat(5)).
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    if len(fields) < 20 or fields[0] in "ZX":
        return None
    return _Process(pid=pid, group=int(fields[2]), started=fields[19])


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())
