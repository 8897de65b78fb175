"""Reading cgroups from the kernel.

Every function blocks for the microseconds that the kernel takes; read many of them in a thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from sandboxd import trees
from sandboxd.cgroups.sample import (
    HugePages,
    Sample,
    blkio,
    cpu_v1,
    cpu_v2,
    io_stat,
    keyed,
    memory_v1,
    memory_v2,
    number,
    pressure,
)
from sandboxd.errors import NotFound
from sandboxd.trees import Descent, Event

ROOT = "/sys/fs/cgroup"

_V1_FILES = {
    "cpuacct": ("cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys", "cpuacct.stat"),
    "cpu": ("cpu.stat",),
    "memory": (
        "memory.usage_in_bytes",
        "memory.limit_in_bytes",
        "memory.stat",
        "memory.max_usage_in_bytes",
        "memory.failcnt",
        "memory.kmem.usage_in_bytes",
        "memory.memsw.usage_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.oom_control",
    ),
    "pids": ("pids.current", "pids.max"),
}
_V2_FILES = (
    "cpu.stat",
    "memory.current",
    "memory.max",
    "memory.stat",
    "memory.peak",
    "memory.events",
    "memory.swap.current",
    "memory.swap.max",
    "pids.current",
    "pids.max",
    "io.stat",
)
_PRESSURES = ("cpu.pressure", "memory.pressure", "io.pressure")


class Cgroups:
    """The cgroups of this machine. `root` is where they are mounted."""

    def __init__(self, root: str = ROOT) -> None:
        self.root = root
        self._root = Path(root)
        self.v2 = (self._root / "cgroup.controllers").exists()
        # The hierarchy in which cgroups are looked up; runtimes create them in all v1 hierarchies.
        self._first = self._root if self.v2 else self._root / "memory"
        self._pressures = self._root if self.v2 else self._root / "unified"

    def exists(self, path: str) -> bool:
        """Whether there is such a cgroup now."""
        return (self._first / path.lstrip("/")).is_dir()

    def sample(self, path: str) -> Sample:
        """Everything that is measured for a cgroup; raises NotFound when it is gone."""
        below = path.lstrip("/")
        at = time.time_ns()
        files = self._read_v2(below) if self.v2 else self._read_v1(below)
        if not files:
            raise NotFound(f"cgroup {path} does not exist")
        stalls = {name: pressure(text) for name, text in _contents(self._pressures / below, _PRESSURES)}
        v1_io = "blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"
        return Sample(
            at=at,
            cpu=cpu_v2(files) if self.v2 else cpu_v1(files),
            memory=memory_v2(files) if self.v2 else memory_v1(files),
            devices=io_stat(files.get("io.stat", "")) if self.v2 else blkio(*(files.get(n, "") for n in v1_io)),
            tasks=number(files.get("pids.current", "")),
            tasks_limit=number(files.get("pids.max", "")),
            cpu_pressure=stalls.get("cpu.pressure"),
            memory_pressure=stalls.get("memory.pressure"),
            io_pressure=stalls.get("io.pressure"),
            hugepages=tuple(self._hugepages(below)),
        )

    def oom_kills(self, path: str) -> int | None:
        """How many processes of the cgroup an OOM killer has killed; None when that is not (or no longer) known."""
        name = "memory.events" if self.v2 else "memory.oom_control"
        for _, text in _contents(self._first / path.lstrip("/"), (name,)):
            return keyed(text).get("oom_kill")
        return None

    def children(self, path: str) -> dict[str, int]:
        """The names of the cgroups right below this one, in any hierarchy, and when each was made (unix ns)."""
        found: dict[str, int] = {}
        try:
            hierarchies = [self._root] if self.v2 else [each for each in self._root.iterdir() if each.is_dir()]
        except OSError:
            return found
        for hierarchy in hierarchies:
            try:
                with os.scandir(hierarchy / path.lstrip("/")) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            found.setdefault(entry.name, entry.stat(follow_symlinks=False).st_mtime_ns)
            except OSError:
                continue  # it is in no pod's hierarchy, or was removed while being read
        return found

    def processes(self, path: str) -> list[int]:
        """The pids in the cgroup and below it, as numbered in our own pid namespace; none when it is gone."""
        try:
            at = Descent(os.open(self._first / path.lstrip("/"), trees.DIRECTORY))
        except OSError:
            return []
        pids = _pids(at.fd)
        try:
            for event, _ in trees.walk(at):
                if event is Event.ENTERED:
                    pids += _pids(at.fd)
        except OSError:
            pass  # it was removed while being read
        finally:
            at.close()
        return pids

    def _read_v1(self, below: str) -> dict[str, str]:
        files: dict[str, str] = {}
        for controller, names in _V1_FILES.items():
            files.update(_contents(self._root / controller / below, names))
        for kind in ("io_service_bytes", "io_serviced"):
            # The recursive ones came with Linux 5.1.
            name = f"blkio.throttle.{kind}"
            pair = dict(_contents(self._root / "blkio" / below, (f"{name}_recursive", name)))
            files[f"{name}_recursive"] = pair.get(f"{name}_recursive", pair.get(name, ""))
        return files if "memory.usage_in_bytes" in files or "cpuacct.usage" in files else {}

    def _read_v2(self, below: str) -> dict[str, str]:
        return dict(_contents(self._root / below, _V2_FILES))

    def _hugepages(self, below: str) -> Iterator[HugePages]:
        directory = self._root / below if self.v2 else self._root / "hugetlb" / below
        suffix = ".current" if self.v2 else ".usage_in_bytes"
        try:
            names = sorted(os.listdir(directory)) if self.v2 or directory.is_dir() else []
        except OSError:
            return
        for name in names:
            if not name.startswith("hugetlb.") or not name.endswith(suffix) or ".rsvd." in name:
                continue
            stem = name.removesuffix(suffix)
            values = dict(_contents(directory, (name, f"{stem}.max_usage_in_bytes")))
            yield HugePages(
                size=stem.removeprefix("hugetlb."),
                usage=number(values.get(name, "")) or 0,
                peak=number(values.get(f"{stem}.max_usage_in_bytes", "")),
            )


def _pids(fd: int) -> list[int]:
    """The pids that an open cgroup lists; a process outside our pid namespace is listed as 0, and left out."""
    # Through the descriptor: a container can nest cgroups deeper than any path reaches.
    for _, text in _contents(Path(f"/proc/self/fd/{fd}"), ("cgroup.procs",)):
        return [int(pid) for pid in text.split() if pid.isdecimal() and pid != "0"]
    return []


def _contents(directory: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, content) of those files that exist; a cgroup may be removed at any moment."""
    for name in names:
        try:
            fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            # A kernel file is read to its end in one call only if it is short.
            parts = []
            while part := os.read(fd, 65536):
                parts.append(part)
            yield name, b"".join(parts).decode("ascii", "replace")
        except OSError:
            continue
        finally:
            os.close(fd)
