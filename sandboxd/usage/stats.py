"""What containers and pods use, with CPU rates from two measurements.

Figures are read from the cgroup files and the pod's interface counters when they are asked for, in a thread; neither
containerd nor a plugin is asked. What the kernel does not measure is None: a 0 would be a lie that dashboards
believe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sandboxd.cgroups.sample import Sample
from sandboxd.errors import NotReady
from sandboxd.model import AnyRecord, ContainerRecord, ContainerState, SandboxRecord, SandboxState
from sandboxd.node import Node
from sandboxd.pods.network import IFNAME
from sandboxd.usage.measure import Gauge
from sandboxd.usage.records import (
    ContainerUsage,
    Interface,
    MeasuredContainer,
    MeasuredPod,
    Network,
    PodUsage,
)
from sandboxd.usage.written import Layers

_SECOND = 1_000_000_000
MIN_INTERVAL_NS = _SECOND // 2  # of a rate; several clients must not spoil each other's


@dataclass(slots=True)
class _Marks:
    """Two earlier readings of a counter, (when, value); the rate is computed from the older one."""

    older: tuple[int, int]
    newer: tuple[int, int]


class Rates:
    """CPU time per second, from counters that are read now and then."""

    def __init__(self) -> None:
        self._marks: dict[str, _Marks] = {}

    def rate(self, key: str, at: int, value: int, since: int) -> int | None:
        """Nanoseconds per second between an earlier reading and this one; None when it cannot be computed.

        `since` is when the counter began at 0: the earlier reading of the first question. Times are unix
        nanoseconds.
        """
        marks = self._marks.setdefault(key, _Marks((since, 0), (since, 0)))
        if at - marks.newer[0] >= MIN_INTERVAL_NS:
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
    """What pods and containers use, measured on request."""

    def __init__(self, node: Node, layers: Layers, gauge: Gauge | None = None) -> None:
        self._node = node
        self.layers = layers
        self.gauge = gauge or Gauge(node.machine.cgroups, node.places)
        self._rates = Rates()
        node.ledger.subscribe(self._on_change)

    def _on_change(self, before: AnyRecord | None, after: AnyRecord | None) -> None:
        if after is None and before is not None:
            self._rates.forget(before.id)

    async def container(self, record: ContainerRecord) -> ContainerUsage:
        """What one container uses."""
        (usage,) = await self.containers([record])
        return usage

    async def containers(self, records: Iterable[ContainerRecord]) -> list[ContainerUsage]:
        """What containers use; those that do not run have their writable layer alone."""
        sandboxes = self._node.ledger.sandboxes
        pairs = [(record, sandboxes[record.sandbox_id]) for record in records if record.sandbox_id in sandboxes]
        measured = await asyncio.to_thread(
            lambda: [self.gauge.container(record, sandbox) for record, sandbox in pairs]
        )
        return [self._container(each) for each in measured]

    async def pod(self, record: SandboxRecord) -> PodUsage:
        """What one pod uses. Raises NotReady when it does not run."""
        if record.state is not SandboxState.READY:
            raise NotReady(f"pod {record.name} ({record.id}) is {record.state.value}: it uses nothing to be measured")
        (usage,) = await self.pods([record])
        return usage

    async def pods(self, records: Iterable[SandboxRecord]) -> list[PodUsage]:
        """What pods use; those that are not ready are left out."""
        ready = [record for record in records if record.state is SandboxState.READY]
        return [self._pod(measured) for measured in await self.measure_pods(ready)]

    async def measure_pods(self, records: Sequence[SandboxRecord]) -> list[MeasuredPod]:
        """The pods as they are now, with their containers."""
        ledger = self._node.ledger
        running: dict[str, list[ContainerRecord]] = {record.id: [] for record in records}
        for container in ledger.containers.values():
            if container.state is ContainerState.RUNNING and container.sandbox_id in running:
                running[container.sandbox_id].append(container)
        pairs = [(record, running[record.id]) for record in records]
        return await asyncio.to_thread(self.gauge.pods, pairs, list(ledger.sandboxes.values()))

    def _container(self, measured: MeasuredContainer) -> ContainerUsage:
        record, sample = measured.record, measured.sample
        layer = self.layers.get(record.id)
        return ContainerUsage(
            record=record,
            sample=sample,
            cpu_rate=self._cpu_rate(record.id, sample, record.started_at),
            layer=layer,
            layers_directory=self._node.images.fs_info().directory if layer else "",
        )

    def _pod(self, measured: MeasuredPod) -> PodUsage:
        record, sample = measured.record, measured.sample
        return PodUsage(
            record=record,
            containers=tuple(self._container(each) for each in measured.containers if each.sample),
            sample=sample,
            cpu_rate=self._cpu_rate(record.id, sample, record.created_at),
            processes=measured.processes,
            network=None if measured.interfaces is None else network(measured.interfaces),
        )

    def _cpu_rate(self, key: str, sample: Sample | None, since: int) -> int | None:
        if sample is None or sample.cpu is None:
            return None
        return self._rates.rate(key, sample.at, sample.cpu.usage, since)


def network(interfaces: Sequence[Interface]) -> Network:
    """The interface that CNI made first, and the others."""
    default = next((interface for interface in interfaces if interface.name == IFNAME), None)
    return Network(default=default, others=tuple(each for each in interfaces if each.name != IFNAME))
