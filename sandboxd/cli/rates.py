"""Two samples of what pods use → what they use a second, as rows, for `top`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from sandboxd.cli import render
from sandboxd.cli.names import SHORT_ID
from sandboxd.pb.cri.v1 import api_pb2 as cri


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A pod, or a container of the pod above it. What was not measured is None."""

    id: str
    pod: str  # "namespace/name"
    container: str  # "" for the pod itself
    cpu: float | None  # processors in use: 1.0 is all of one
    memory: int | None  # bytes, the working set
    processes: int | None  # of a pod
    received: float | None  # bytes a second, of a pod with a network of its own
    sent: float | None


def rows(before: Iterable[cri.PodSandboxStats], after: Iterable[cri.PodSandboxStats]) -> list[Row]:
    """The pods that run, the busiest first, each with its containers below it, likewise.

    A pod that was not in the first sample has no rate yet, but for its CPU where the daemon knows it.
    """
    earlier = {pod.attributes.id: pod for pod in before}
    found = [list(_pod(earlier.get(pod.attributes.id), pod)) for pod in after if pod.linux.HasField("memory")]
    return [row for group in sorted(found, key=lambda group: _busy(group[0])) for row in group]


def table(listed: Sequence[Row]) -> Table:
    """The output of `top`."""
    return render.table(
        ("ID", "POD", "CONTAINER", "CPU", "MEMORY", "PROCESSES", "RECEIVED", "SENT"),
        (
            (
                row.id[:SHORT_ID],
                "" if row.container else row.pod,
                row.container or f"({sum(each.pod == row.pod and bool(each.container) for each in listed)})",
                f"{row.cpu * 100:.1f}%" if row.cpu is not None else "",
                render.size(row.memory) if row.memory is not None else "",
                str(row.processes) if row.processes is not None else "",
                _speed(row.received),
                _speed(row.sent),
            )
            for row in listed
        ),
    )


def as_dict(row: Row, moment: int) -> dict[str, Any]:
    """One row for programs; `moment` is unix nanoseconds."""
    return {
        "time": moment,
        "id": row.id,
        "pod": row.pod,
        "container": row.container,
        "cpu": row.cpu,
        "memoryBytes": row.memory,
        "processes": row.processes,
        "receivedBytesPerSecond": row.received,
        "sentBytesPerSecond": row.sent,
    }


def _pod(before: cri.PodSandboxStats | None, after: cri.PodSandboxStats) -> Iterator[Row]:
    meta, linux = after.attributes.metadata, after.linux
    name = f"{meta.namespace}/{meta.name}"
    was = before.linux if before is not None else cri.LinuxPodSandboxStats()
    received, sent = _network(was.network, linux.network)
    yield Row(
        id=after.attributes.id,
        pod=name,
        container="",
        cpu=_cpu(was.cpu, linux.cpu),
        memory=_memory(linux.memory),
        processes=linux.process.process_count.value if linux.HasField("process") else None,
        received=received,
        sent=sent,
    )
    earlier = {each.attributes.id: each for each in was.containers}
    parts = [
        Row(
            id=each.attributes.id,
            pod=name,
            container=each.attributes.metadata.name,
            cpu=_cpu(earlier.get(each.attributes.id, cri.ContainerStats()).cpu, each.cpu),
            memory=_memory(each.memory),
            processes=None,
            received=None,
            sent=None,
        )
        for each in linux.containers
        if each.HasField("memory")
    ]
    yield from sorted(parts, key=_busy)


def _busy(row: Row) -> tuple[float, str, str]:
    return -(row.cpu or 0.0), row.pod, row.container


def _cpu(before: cri.CpuUsage, after: cri.CpuUsage) -> float | None:
    """From the two samples; from what the daemon has measured itself while there are no two."""
    known = before.HasField("usage_core_nano_seconds") and after.HasField("usage_core_nano_seconds")
    if known and after.timestamp > before.timestamp:
        used = after.usage_core_nano_seconds.value - before.usage_core_nano_seconds.value
        return max(0, used) / (after.timestamp - before.timestamp)
    return after.usage_nano_cores.value / 1e9 if after.HasField("usage_nano_cores") else None


def _memory(usage: cri.MemoryUsage) -> int | None:
    return usage.working_set_bytes.value if usage.HasField("working_set_bytes") else None


def _network(before: cri.NetworkUsage, after: cri.NetworkUsage) -> tuple[float | None, float | None]:
    """Bytes a second, received and sent, over all interfaces."""
    seconds = (after.timestamp - before.timestamp) / 1e9
    if not before.timestamp or seconds <= 0:
        return None, None
    (was_in, was_out), (now_in, now_out) = _bytes(before), _bytes(after)
    return max(0, now_in - was_in) / seconds, max(0, now_out - was_out) / seconds


def _bytes(usage: cri.NetworkUsage) -> tuple[int, int]:
    every = [usage.default_interface, *usage.interfaces]
    return sum(each.rx_bytes.value for each in every), sum(each.tx_bytes.value for each in every)


def _speed(rate: float | None) -> str:
    return f"{render.size(round(rate))}/s" if rate is not None else ""
