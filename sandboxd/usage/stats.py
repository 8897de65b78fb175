"""ContainerStats, PodSandboxStats and their lists: what pods and containers use, as CRI tells it.

Figures are read from the cgroup files and the pod's interface counters at the moment of the question, in a thread;
neither containerd nor a plugin is asked. What the kernel does not measure is left out of the answer: a 0 would be
a lie that dashboards believe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sandboxd.cgroups.sample import Pressure, Sample, Stall
from sandboxd.errors import NotFound, NotReady
from sandboxd.model import AnyRecord, ContainerRecord, ContainerState, SandboxRecord, SandboxState, find
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods.network import IFNAME
from sandboxd.usage.measure import Gauge, Interface, MeasuredContainer, MeasuredPod
from sandboxd.usage.written import Layers

_SECOND = 1_000_000_000
SHORTEST = _SECOND // 2  # interval over which a rate is told; several clients must not spoil each other's


@dataclass(slots=True)
class _Marks:
    """Two earlier readings of a counter, (when, value); the rate is told against the older one."""

    older: tuple[int, int]
    newer: tuple[int, int]


class Rates:
    """CPU time per second, from counters that are read now and then."""

    def __init__(self) -> None:
        self._marks: dict[str, _Marks] = {}

    def rate(self, key: str, at: int, value: int, since: int) -> int | None:
        """Nanoseconds per second between an earlier reading and this one; None when that cannot be told.

        `since` is when the counter began at 0: the earlier reading of the first question. Times are unix
        nanoseconds.
        """
        marks = self._marks.setdefault(key, _Marks((since, 0), (since, 0)))
        if at - marks.newer[0] >= SHORTEST:
            marks.older, marks.newer = marks.newer, (at, value)
        span, grown = at - marks.older[0], value - marks.older[1]
        # A pod that is the sum of its containers shrinks when one is removed; clocks may be set back.
        if span <= 0 or grown < 0:
            self._marks.pop(key)
            return None
        return grown * _SECOND // span

    def forget(self, key: str) -> None:
        """The counter is gone."""
        self._marks.pop(key, None)


class Stats:
    """Answers what pods and containers use."""

    def __init__(self, node: Node, layers: Layers, gauge: Gauge | None = None) -> None:
        self._node = node
        self.layers = layers
        self.gauge = gauge or Gauge(node.machine.cgroups, node.places)
        self._rates = Rates()
        node.ledger.subscribe(self._on_change)

    def _on_change(self, before: AnyRecord | None, after: AnyRecord | None) -> None:
        if after is None and before is not None:
            self._rates.forget(before.id)

    async def container(self, text: str) -> cri.ContainerStats:
        """Of one container, named by its id or the beginning of it; raises NotFound."""
        ledger = self._node.ledger
        record = ledger.containers[find(ledger.containers, text, "container")]
        if record.state is ContainerState.CREATING:
            raise NotFound(f"container {text} does not exist")
        (answer,) = await self._containers([record])
        return answer

    async def containers(self, wanted: cri.ContainerStatsFilter) -> list[cri.ContainerStats]:
        """Of all containers that match, those that do not run with their writable layer alone."""
        return await self._containers(
            [
                record
                for record in self._node.ledger.containers.values()
                if record.state is not ContainerState.CREATING
                and record.id.startswith(wanted.id)
                and record.sandbox_id.startswith(wanted.pod_sandbox_id)
                and wanted.label_selector.items() <= record.config.labels.items()
            ]
        )

    async def pod(self, text: str) -> cri.PodSandboxStats:
        """Of one pod, named by its id or the beginning of it; raises NotFound, NotReady when it does not run."""
        ledger = self._node.ledger
        record = ledger.sandboxes[find(ledger.sandboxes, text, "pod")]
        if record.state is not SandboxState.READY:
            raise NotReady(f"pod {record.name} ({record.id}) is {record.state.value}: it uses nothing to be measured")
        (measured,) = await self.measure_pods([record])
        return self._pod(measured)

    async def pods(self, wanted: cri.PodSandboxStatsFilter) -> list[cri.PodSandboxStats]:
        """Of all pods that match and are ready."""
        records = [
            record
            for record in self._node.ledger.sandboxes.values()
            if record.state is SandboxState.READY
            and record.id.startswith(wanted.id)
            and wanted.label_selector.items() <= record.config.labels.items()
        ]
        return [self._pod(measured) for measured in await self.measure_pods(records)]

    async def measure_pods(self, records: Sequence[SandboxRecord]) -> list[MeasuredPod]:
        """The pods as they are now, with their containers."""
        ledger = self._node.ledger
        running: dict[str, list[ContainerRecord]] = {record.id: [] for record in records}
        for container in ledger.containers.values():
            if container.state is ContainerState.RUNNING and container.sandbox_id in running:
                running[container.sandbox_id].append(container)
        pairs = [(record, running[record.id]) for record in records]
        return await asyncio.to_thread(self.gauge.pods, pairs, list(ledger.sandboxes.values()))

    async def _containers(self, records: Iterable[ContainerRecord]) -> list[cri.ContainerStats]:
        sandboxes = self._node.ledger.sandboxes
        pairs = [(record, sandboxes[record.sandbox_id]) for record in records if record.sandbox_id in sandboxes]
        measured = await asyncio.to_thread(
            lambda: [self.gauge.container(record, sandbox) for record, sandbox in pairs]
        )
        return [self._container(each) for each in measured]

    def _container(self, measured: MeasuredContainer) -> cri.ContainerStats:
        record, sample = measured.record, measured.sample
        answer = cri.ContainerStats(
            attributes=cri.ContainerAttributes(
                id=record.id,
                metadata=record.config.metadata,
                labels=record.config.labels,
                annotations=record.config.annotations,
            ),
            writable_layer=self._layer(record.id),
        )
        if sample is None:
            return answer
        answer.cpu.CopyFrom(self._cpu(record.id, sample, record.started_at))
        answer.memory.CopyFrom(memory_usage(sample))
        if (swap := swap_usage(sample)) is not None:
            answer.swap.CopyFrom(swap)
        if (io := io_usage(sample)) is not None:
            answer.io.CopyFrom(io)
        return answer

    def _pod(self, measured: MeasuredPod) -> cri.PodSandboxStats:
        record, sample = measured.record, measured.sample
        linux = cri.LinuxPodSandboxStats(
            containers=[self._container(each) for each in measured.containers if each.sample]
        )
        if sample is not None:
            linux.cpu.CopyFrom(self._cpu(record.id, sample, record.created_at))
            linux.memory.CopyFrom(memory_usage(sample))
            if (io := io_usage(sample)) is not None:
                linux.io.CopyFrom(io)
            linux.process.CopyFrom(
                cri.ProcessUsage(timestamp=sample.at, process_count=cri.UInt64Value(value=measured.processes))
            )
            if measured.interfaces is not None:
                linux.network.CopyFrom(network_usage(measured.interfaces, sample.at))
        return cri.PodSandboxStats(
            attributes=cri.PodSandboxAttributes(
                id=record.id,
                metadata=record.config.metadata,
                labels=record.config.labels,
                annotations=record.config.annotations,
            ),
            linux=linux,
        )

    def _cpu(self, key: str, sample: Sample, since: int) -> cri.CpuUsage:
        usage = cri.CpuUsage(timestamp=sample.at, psi=psi(sample.cpu_pressure))
        if sample.cpu is not None:
            usage.usage_core_nano_seconds.value = sample.cpu.usage
            rate = self._rates.rate(key, sample.at, sample.cpu.usage, since)
            if rate is not None:
                usage.usage_nano_cores.value = rate
        return usage

    def _layer(self, container_id: str) -> cri.FilesystemUsage | None:
        layer = self.layers.get(container_id)
        if layer is None:
            return None
        return cri.FilesystemUsage(
            timestamp=layer.at,
            fs_id=cri.FilesystemIdentifier(mountpoint=self._node.images.fs_info().directory),
            used_bytes=cri.UInt64Value(value=layer.bytes),
            inodes_used=cri.UInt64Value(value=layer.inodes),
        )


def memory_usage(sample: Sample) -> cri.MemoryUsage:
    """The memory part; `available_bytes` only under a limit."""
    usage = cri.MemoryUsage(timestamp=sample.at, psi=psi(sample.memory_pressure))
    if (memory := sample.memory) is not None:
        usage.working_set_bytes.value = memory.working_set
        usage.usage_bytes.value = memory.usage
        usage.rss_bytes.value = memory.rss
        usage.page_faults.value = memory.page_faults
        usage.major_page_faults.value = memory.major_page_faults
        if memory.limit is not None:
            usage.available_bytes.value = max(0, memory.limit - memory.working_set)
    return usage


def swap_usage(sample: Sample) -> cri.SwapUsage | None:
    """The swap part; None where the kernel does not account for swap."""
    memory = sample.memory
    if memory is None or memory.swap is None:
        return None
    usage = cri.SwapUsage(timestamp=sample.at, swap_usage_bytes=cri.UInt64Value(value=memory.swap))
    if memory.swap_limit is not None:
        usage.swap_available_bytes.value = max(0, memory.swap_limit - memory.swap)
    return usage


def io_usage(sample: Sample) -> cri.IoUsage | None:
    """The I/O part, which is pressure alone."""
    return cri.IoUsage(timestamp=sample.at, psi=psi(sample.io_pressure)) if sample.io_pressure else None


def network_usage(interfaces: Iterable[Interface], at: int) -> cri.NetworkUsage:
    """The network part: eth0, which CNI made first, and the others."""
    usage = cri.NetworkUsage(timestamp=at)
    for interface in interfaces:
        told = cri.NetworkInterfaceUsage(
            name=interface.name,
            rx_bytes=cri.UInt64Value(value=interface.rx_bytes),
            rx_errors=cri.UInt64Value(value=interface.rx_errors),
            tx_bytes=cri.UInt64Value(value=interface.tx_bytes),
            tx_errors=cri.UInt64Value(value=interface.tx_errors),
        )
        if interface.name == IFNAME:
            usage.default_interface.CopyFrom(told)
        else:
            usage.interfaces.append(told)
    return usage


def psi(pressure: Pressure | None) -> cri.PsiStats | None:
    """Pressure as CRI tells it."""
    if pressure is None:
        return None
    return cri.PsiStats(Full=_stall(pressure.full), Some=_stall(pressure.some))


def _stall(stall: Stall) -> cri.PsiData:
    return cri.PsiData(Total=stall.total, Avg10=stall.avg10, Avg60=stall.avg60, Avg300=stall.avg300)
