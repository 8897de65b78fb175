"""What a party spends: processor time of its daemon, of its containerd, of all that it runs; and their memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.processes import processes_in
from tests.testbed import Testbed

_TICK = os.sysconf("SC_CLK_TCK")
_CGROUPS = Path("/sys/fs/cgroup")
_LEAF = "bench"  # where the daemon is; v2 has processes in leaves only


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds of processor time.

    `children` are those that the daemon itself started and waited for: of sandboxd the plugins with what they run,
    of a containerd the plugins and the starts of shims. `all` is everything of the party, to the last process of the
    last container, without work that the kernel does on its own account; that is in `machine`, with everybody else's.
    """

    daemon: float = 0.0
    containerd: float = 0.0  # of sandboxd; the plugin's is its daemon
    children: float = 0.0
    all: float = 0.0
    machine: float = 0.0

    def __sub__(self, other: Spent) -> Spent:
        mine, others = asdict(self), asdict(other)
        return Spent(**{name: mine[name] - others[name] for name in mine})

    def __add__(self, other: Spent) -> Spent:
        mine, others = asdict(self), asdict(other)
        return Spent(**{name: mine[name] + others[name] for name in mine})

    def each(self, count: int) -> dict[str, float]:
        """For one of so many pods, by name."""
        return {name: value / count for name, value in asdict(self).items()}


class Account:
    """The account of one bed, from before its daemon starts."""

    def __init__(self, bed: Testbed) -> None:
        self._bed = bed
        name = bed.cgroup_parent.lstrip("/")
        self._v1 = next((d for d in _CGROUPS.glob("*cpuacct*") if (d / "cpuacct.usage").is_file()), None)
        self._group = (self._v1 or _CGROUPS) / name
        self._leaf = self._group / _LEAF
        self._leaf.mkdir(parents=True)
        self._daemon = 0
        self._containerd = 0

    def charged(self, argv: Iterable[str]) -> list[str]:
        """A command that is charged to this account, with everything that it starts."""
        return ["sh", "-c", f'echo $$ >{self._leaf}/cgroup.procs && exec "$@"', "sh", *argv]

    def charge(self, pids: Iterable[int]) -> None:
        """Charge what runs already from now on."""
        for pid in pids:
            (self._leaf / "cgroup.procs").write_text(str(pid), encoding="ascii")

    def look(self, daemon: int) -> None:
        """Find the processes of the daemon with this pid, after it has been started."""
        self._daemon = daemon
        found = [pid for pid in processes_in(self._bed.pid_namespace) if _program(pid) == "containerd"]
        self._containerd = next((pid for pid in found if pid != daemon), 0)

    def spent(self) -> Spent:
        """Since always: take the difference."""
        own, children = _times(self._daemon)
        return Spent(
            daemon=own,
            containerd=_times(self._containerd)[0] if self._containerd else 0.0,
            children=children,
            all=self._all(),
            machine=_machine(),
        )

    def memory(self) -> tuple[int, int]:
        """Resident bytes of the daemon; and of it with its containerd."""
        daemon = _resident(self._daemon)
        return daemon, daemon + (_resident(self._containerd) if self._containerd else 0)

    def _all(self) -> float:
        if self._v1:
            return int((self._group / "cpuacct.usage").read_text()) / 1e9
        lines = (self._group / "cpu.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("usage_usec")) / 1e6


def _program(pid: int) -> str:
    with suppress(OSError):
        return os.path.basename(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode())
    return ""


def _times(pid: int) -> tuple[float, float]:
    """A process's own time, and that of the children that it waited for (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, children = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return own / _TICK, children / _TICK


def _machine() -> float:
    """All that was not idle, of all processors (proc_stat(5))."""
    user, nice, system, _, _, irq, softirq = (int(n) for n in Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / _TICK


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) << 10
