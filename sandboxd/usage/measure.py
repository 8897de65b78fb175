"""Measuring pods and containers: one reading of the kernel's files, without interpreting them.

Everything here blocks for as long as the kernel takes and touches no state of the daemon, so that it can run in a
thread while the daemon goes on; its arguments are immutable records.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sandboxd.cgroups.kernel import Cgroups
from sandboxd.cgroups.sample import Sample, total
from sandboxd.errors import NotFound
from sandboxd.model import ContainerRecord, ContainerState, SandboxRecord
from sandboxd.places import Places
from sandboxd.usage.records import Interface, MeasuredContainer, MeasuredPod, Processes

PROC = "/proc"
_LOOPBACK = "lo"


class Gauge:
    """The kernel's files of this machine, and where those of a pod are."""

    def __init__(self, cgroups: Cgroups, places: Places, proc: str = PROC) -> None:
        self._cgroups = cgroups
        self._places = places
        self._proc = Path(proc)

    def container(self, record: ContainerRecord, sandbox: SandboxRecord) -> MeasuredContainer:
        """One container."""
        cgroup = self._member(sandbox, record.id)
        sample = self._sample(cgroup) if record.state is ContainerState.RUNNING else None
        return MeasuredContainer(record=record, cgroup=cgroup, sample=sample)

    def pods(
        self,
        wanted: Iterable[tuple[SandboxRecord, Sequence[ContainerRecord]]],
        everyone: Iterable[SandboxRecord],
    ) -> list[MeasuredPod]:
        """Pods with those of their containers that run. `everyone` are all pods that exist.

        They show whether the cgroup above a pod belongs to it alone. If it does not, the pod is the sum of its
        containers, which always have cgroups of their own.
        """
        shared = self._places.crowded(everyone)
        return [self._pod(sandbox, containers, shared) for sandbox, containers in wanted]

    def _pod(
        self, sandbox: SandboxRecord, containers: Iterable[ContainerRecord], shared: frozenset[str]
    ) -> MeasuredPod:
        measured = tuple(self.container(record, sandbox) for record in containers)
        parent = self._places.pod_cgroup(sandbox)
        pause = self._member(sandbox, sandbox.id)
        if self._places.is_own_cgroup(sandbox, shared):
            sample, holding = self._sample(parent), [parent]
        else:
            parts = [self._sample(pause), *(each.sample for each in measured)]
            sample = total(part for part in parts if part is not None)
            holding = [pause, *(each.cgroup for each in measured if each.sample)]
        return MeasuredPod(
            record=sandbox,
            cgroup=parent,
            sample=sample,
            containers=measured,
            interfaces=self._interfaces(sandbox, [sandbox.pid, *(each.record.pid for each in measured)]),
            processes=sum(len(self._cgroups.processes(cgroup)) for cgroup in holding),
        )

    def processes(self, measured: MeasuredContainer) -> Processes:
        """What the container's processes hold; a process that has ended by then holds nothing."""
        pids = self._cgroups.processes(measured.cgroup)
        files = sockets = 0
        for pid in pids:
            count, of_these = self._descriptors(pid)
            files, sockets = files + count, sockets + of_these
        limit = self._open_files_limit(measured.record.pid) if measured.record.pid in pids else None
        return Processes(count=len(pids), files=files, sockets=sockets, open_files_limit=limit)

    def _member(self, sandbox: SandboxRecord, object_id: str) -> str:
        return self._places.cgroup(sandbox, object_id)

    def _sample(self, cgroup: str) -> Sample | None:
        try:
            return self._cgroups.sample(cgroup)
        except NotFound:
            return None

    def _interfaces(self, sandbox: SandboxRecord, pids: Iterable[int]) -> tuple[Interface, ...] | None:
        """The pod's interfaces, by way of its first process: /proc shows them without entering the namespace.

        None are seen of a pod without a pause container while no other runs.
        """
        if not sandbox.netns_path:
            return None
        pid = str(next(filter(None, pids), 0))
        try:
            # Opened before it is compared: should the pid change hands, the file is still that of the process.
            with open(self._proc / pid / "net" / "dev", encoding="ascii", errors="replace") as file:
                here = os.stat(self._proc / pid / "ns" / "net")
                there = os.stat(sandbox.netns_path)
                if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
                    return ()
                return tuple(each for each in net_dev(file.read()) if each.name != _LOOPBACK)
        except OSError:
            return ()

    def _descriptors(self, pid: int) -> tuple[int, int]:
        """(open files, sockets among them) of a process."""
        directory = self._proc / str(pid) / "fd"
        try:
            names = os.listdir(directory)
        except OSError:
            return 0, 0
        sockets = 0
        for name in names:
            try:
                sockets += os.readlink(directory / name).startswith("socket:")
            except OSError:
                continue
        return len(names), sockets

    def _open_files_limit(self, pid: int) -> int | None:
        try:
            text = (self._proc / str(pid) / "limits").read_text(encoding="ascii")
        except OSError:
            return None
        for line in text.splitlines():
            if line.startswith("Max open files"):
                soft = line.removeprefix("Max open files").split()[0]
                return int(soft) if soft.isdecimal() else None
        return None


def net_dev(text: str) -> Sequence[Interface]:
    """/proc/PID/net/dev (proc_pid_net(5)): two heading lines, then one line for each interface."""
    found = []
    for line in text.splitlines()[2:]:
        # The name may hold anything but a slash and white space: a colon too, as aliases have it.
        name, colon, rest = line.rpartition(":")
        columns = rest.split()
        if not colon or len(columns) < 12 or not all(column.isdecimal() for column in columns):
            continue
        values = [int(column) for column in columns]
        found.append(
            Interface(
                name=name.strip(),
                rx_bytes=values[0],
                rx_packets=values[1],
                rx_errors=values[2],
                rx_dropped=values[3],
                tx_bytes=values[8],
                tx_packets=values[9],
                tx_errors=values[10],
                tx_dropped=values[11],
            )
        )
    return found
