"""ListMetricDescriptors and ListPodSandboxMetrics: the metrics that cAdvisor exports, under its names.

One table, `FAMILIES`, holds each metric with how it is had from a measurement; descriptors and values both come from
it, so they cannot disagree. Every metric has the labels that kubelet gives cAdvisor's: `id` is the cgroup, `name` the
container's id, and for what is of the pod as a whole `container`, `image` and `name` are "".

CRI carries whole numbers, so that seconds are whole seconds. What this kernel does not measure has no values.

Source: the table "Prometheus container metrics" of cAdvisor's documentation, docs/storage/prometheus.md.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sandboxd.cgroups.sample import Cpu, Device, Memory, Pressure, Sample
from sandboxd.model import ContainerRecord, SandboxRecord, SandboxState
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.usage.measure import Interface, MeasuredContainer, MeasuredPod, Processes
from sandboxd.usage.stats import Stats
from sandboxd.usage.written import Layer

BASE_LABELS = ("container", "id", "image", "name", "namespace", "pod")
_SECOND = 1_000_000_000
_DEFAULT_PERIOD, _DEFAULT_SHARES = 100_000, 1024  # of a container that asks for none, as the kernel gives them


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """The file system that holds the writable layers, and what is known of one layer."""

    device: str
    bytes: int
    inodes: int
    inodes_free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What the metrics are about: a running container, or a pod as a whole."""

    container: ContainerRecord | None
    sample: Sample | None = None
    processes: Processes | None = None
    interfaces: tuple[Interface, ...] = ()
    layer: Layer | None = None
    filesystem: Filesystem | None = None
    seen_at: int = 0  # unix nanoseconds


Value = tuple[tuple[str, ...], int]
"""The values of the metric's own labels, and the number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: what it is called, and how its values are had from a subject."""

    name: str
    help: str
    read: Callable[[Subject], Iterable[Value]]
    labels: tuple[str, ...] = ()  # beside the ones that all have
    gauge: bool = False


# How values are had.


def _cpu(read: Callable[[Cpu], int]) -> Callable[[Subject], Iterator[Value]]:
    def values(subject: Subject) -> Iterator[Value]:
        if subject.sample and subject.sample.cpu:
            yield (), read(subject.sample.cpu)

    return values


def _memory(read: Callable[[Memory], int | None]) -> Callable[[Subject], Iterator[Value]]:
    def values(subject: Subject) -> Iterator[Value]:
        if subject.sample and subject.sample.memory and (value := read(subject.sample.memory)) is not None:
            yield (), value

    return values


def _pressure(
    which: Callable[[Sample], Pressure | None], read: Callable[[Pressure], int]
) -> Callable[[Subject], Iterator[Value]]:
    def values(subject: Subject) -> Iterator[Value]:
        if subject.sample and (pressure := which(subject.sample)):
            yield (), read(pressure) // _SECOND

    return values


def _device(read: Callable[[Device], int]) -> Callable[[Subject], Iterator[Value]]:
    def values(subject: Subject) -> Iterator[Value]:
        for device in subject.sample.devices if subject.sample else ():
            yield (device_name(device.major, device.minor),), read(device)

    return values


def _device_operations(subject: Subject) -> Iterator[Value]:
    for device in subject.sample.devices if subject.sample else ():
        where = (device_name(device.major, device.minor), str(device.major), str(device.minor))
        yield (*where, "Read"), device.read_bytes
        yield (*where, "Write"), device.write_bytes


def _interface(read: Callable[[Interface], int]) -> Callable[[Subject], Iterator[Value]]:
    def values(subject: Subject) -> Iterator[Value]:
        for interface in subject.interfaces:
            yield (interface.name,), read(interface)

    return values


def _processes(read: Callable[[Processes], int]) -> Callable[[Subject], Iterator[Value]]:
    def values(subject: Subject) -> Iterator[Value]:
        if subject.processes:
            yield (), read(subject.processes)

    return values


def _filesystem(read: Callable[[Filesystem], int]) -> Callable[[Subject], Iterator[Value]]:
    def values(subject: Subject) -> Iterator[Value]:
        if subject.filesystem:
            yield (subject.filesystem.device,), read(subject.filesystem)

    return values


def _layer_usage(subject: Subject) -> Iterator[Value]:
    if subject.filesystem and subject.layer:
        yield (subject.filesystem.device,), subject.layer.bytes


def _hugepages(subject: Subject) -> Iterator[Value]:
    for pages in subject.sample.hugepages if subject.sample else ():
        yield (pages.size,), pages.usage


def _hugepages_peak(subject: Subject) -> Iterator[Value]:
    for pages in subject.sample.hugepages if subject.sample else ():
        if pages.peak is not None:
            yield (pages.size,), pages.peak


def _memory_failures(subject: Subject) -> Iterator[Value]:
    if subject.sample and (memory := subject.sample.memory):
        # The figures are those of the cgroup with all below it; a container has nothing below it that is not its own.
        for scope in ("container", "hierarchy"):
            yield ("pgfault", scope), memory.page_faults
            yield ("pgmajfault", scope), memory.major_page_faults


def _spec(read: Callable[[cri.LinuxContainerResources], int | None]) -> Callable[[Subject], Iterator[Value]]:
    def values(subject: Subject) -> Iterator[Value]:
        if subject.container and (value := read(subject.container.config.linux.resources)) is not None:
            yield (), max(0, value)

    return values


def _threads(subject: Subject) -> Iterator[Value]:
    if subject.sample and subject.sample.tasks is not None:
        yield (), subject.sample.tasks


def _threads_max(subject: Subject) -> Iterator[Value]:
    if subject.sample and subject.sample.tasks is not None:
        yield (), subject.sample.tasks_limit or 0


def _ulimits(subject: Subject) -> Iterator[Value]:
    if subject.processes and subject.processes.open_files_limit is not None:
        yield ("max_open_files",), subject.processes.open_files_limit


def _last_seen(subject: Subject) -> Iterator[Value]:
    yield (), subject.seen_at // _SECOND


def _start_time(subject: Subject) -> Iterator[Value]:
    if subject.container:
        yield (), subject.container.started_at // _SECOND


def _families() -> Iterator[Family]:
    def counter(
        name: str, text: str, read: Callable[[Subject], Iterable[Value]], labels: tuple[str, ...] = ()
    ) -> Family:
        return Family(name=f"container_{name}", help=text, read=read, labels=labels)

    def gauge(
        name: str, text: str, read: Callable[[Subject], Iterable[Value]], labels: tuple[str, ...] = ()
    ) -> Family:
        return Family(name=f"container_{name}", help=text, read=read, labels=labels, gauge=True)

    yield counter("cpu_usage_seconds_total", "CPU time, in seconds.", _cpu(lambda c: c.usage // _SECOND))
    yield counter("cpu_user_seconds_total", "CPU time in user mode, in seconds.", _cpu(lambda c: c.user // _SECOND))
    yield counter(
        "cpu_system_seconds_total", "CPU time in the kernel, in seconds.", _cpu(lambda c: c.system // _SECOND)
    )
    yield counter("cpu_cfs_periods_total", "Periods in which the CPU quota was enforced.", _cpu(lambda c: c.periods))
    yield counter(
        "cpu_cfs_throttled_periods_total",
        "Periods in which the CPU quota was used up.",
        _cpu(lambda c: c.throttled_periods),
    )
    yield counter(
        "cpu_cfs_throttled_seconds_total",
        "Time that tasks had to wait for new CPU quota, in seconds.",
        _cpu(lambda c: c.throttled // _SECOND),
    )
    for resource, which in (
        ("cpu", lambda s: s.cpu_pressure),
        ("memory", lambda s: s.memory_pressure),
        ("io", lambda s: s.io_pressure),
    ):
        yield counter(
            f"pressure_{resource}_waiting_seconds_total",
            f"Time in which at least one task waited for {resource}, in seconds.",
            _pressure(which, lambda p: p.some.total),
        )
        yield counter(
            f"pressure_{resource}_stalled_seconds_total",
            f"Time in which all tasks waited for {resource}, in seconds.",
            _pressure(which, lambda p: p.full.total),
        )
    for name, text, amount in (
        ("usage_bytes", "Memory in use, caches included, in bytes.", lambda m: m.usage),
        ("working_set_bytes", "Memory in use less file cache that was not used lately, in bytes.", _working_set),
        ("max_usage_bytes", "The most memory that was in use, in bytes.", lambda m: m.peak),
        ("cache", "File cache, in bytes.", lambda m: m.cache),
        ("rss", "Anonymous memory, in bytes.", lambda m: m.rss),
        ("kernel_usage", "Memory that the kernel uses on behalf of the container, in bytes.", lambda m: m.kernel),
        ("mapped_file", "Files mapped into memory, in bytes.", lambda m: m.mapped),
        ("swap", "Swap in use, in bytes.", lambda m: m.swap or 0),
        ("total_active_file_bytes", "File cache that was used lately, in bytes.", lambda m: m.active_file),
        ("total_inactive_file_bytes", "File cache that was not used lately, in bytes.", lambda m: m.inactive_file),
    ):
        yield gauge(f"memory_{name}", text, _memory(amount))
    yield counter("memory_failcnt", "How often the memory limit was met.", _memory(lambda m: m.failures))
    yield counter("memory_failures_total", "Page faults.", _memory_failures, ("failure_type", "scope"))
    yield counter("oom_events_total", "Processes ended by the OOM killer.", _memory(lambda m: m.oom_kills))
    yield gauge("hugetlb_usage_bytes", "Huge pages in use, in bytes.", _hugepages, ("pagesize",))
    yield gauge("hugetlb_max_usage_bytes", "The most huge pages in use, in bytes.", _hugepages_peak, ("pagesize",))
    for direction, short in (("receive", "rx"), ("transmit", "tx")):
        for what, text in (
            ("bytes", "Bytes"),
            ("packets", "Packets"),
            ("packets_dropped", "Packets dropped"),
            ("errors", "Errors"),
        ):
            yield counter(
                f"network_{direction}_{what}_total",
                f"{text}, {direction} side.",
                _interface(_attribute(f"{short}_{what.removeprefix('packets_')}")),
                ("interface",),
            )
    for name, text, number in (
        ("reads_bytes_total", "Bytes read from the device.", "read_bytes"),
        ("reads_total", "Reads from the device.", "reads"),
        ("writes_bytes_total", "Bytes written to the device.", "write_bytes"),
        ("writes_total", "Writes to the device.", "writes"),
    ):
        yield counter(f"fs_{name}", text, _device(_device_attribute(number)), ("device",))
    yield counter(
        "blkio_device_usage_total",
        "Bytes read from and written to the device.",
        _device_operations,
        ("device", "major", "minor", "operation"),
    )
    yield gauge("fs_usage_bytes", "Bytes in the container's writable layer.", _layer_usage, ("device",))
    for name, text, room in (
        ("limit_bytes", "Size of the file system that holds the writable layer.", lambda f: f.bytes),
        ("inodes_total", "Inodes of the file system that holds the writable layer.", lambda f: f.inodes),
        ("inodes_free", "Free inodes of the file system that holds the writable layer.", _inodes_free),
    ):
        yield gauge(f"fs_{name}", text, _filesystem(room), ("device",))
    yield gauge("processes", "Processes.", _processes(lambda p: p.count))
    yield gauge("threads", "Threads of all processes.", _threads)
    yield gauge("threads_max", "The most threads allowed; 0 is without a limit.", _threads_max)
    yield gauge("file_descriptors", "Open file descriptors of all processes.", _processes(lambda p: p.files))
    yield gauge("sockets", "Open sockets of all processes.", _processes(lambda p: p.sockets))
    yield gauge("ulimits_soft", "Soft limit of the first process; no value if unlimited.", _ulimits, ("ulimit",))
    yield gauge("last_seen", "When this was measured, in unix seconds.", _last_seen)
    yield gauge("start_time_seconds", "When the container was started, in unix seconds.", _start_time)
    for name, text, asked in (
        ("cpu_period", "CFS period in microseconds.", lambda r: r.cpu_period or _DEFAULT_PERIOD),
        ("cpu_quota", "CFS quota in microseconds; no value if unlimited.", _quota),
        ("cpu_shares", "CPU shares.", lambda r: r.cpu_shares or _DEFAULT_SHARES),
        ("memory_limit_bytes", "Memory limit in bytes; 0 is without one.", lambda r: r.memory_limit_in_bytes),
        ("memory_swap_limit_bytes", "Limit of memory and swap in bytes; 0 is without one.", _both_limit),
        ("memory_reservation_limit_bytes", "Memory reservation in bytes; CRI cannot ask for one.", lambda r: 0),
    ):
        yield gauge(f"spec_{name}", text, _spec(asked))


def _working_set(memory: Memory) -> int:
    return memory.working_set


def _inodes_free(filesystem: Filesystem) -> int:
    return filesystem.inodes_free


def _quota(resources: cri.LinuxContainerResources) -> int | None:
    return resources.cpu_quota if resources.cpu_quota > 0 else None


def _both_limit(resources: cri.LinuxContainerResources) -> int:
    return resources.memory_swap_limit_in_bytes or resources.memory_limit_in_bytes


def _attribute(name: str) -> Callable[[Interface], int]:
    return lambda interface: int(getattr(interface, name))


def _device_attribute(name: str) -> Callable[[Device], int]:
    return lambda device: int(getattr(device, name))


@lru_cache(maxsize=256)
def device_name(major: int, minor: int) -> str:
    """The path of a block device, "/dev/vda1"; its numbers where sysfs does not know it."""
    try:
        lines = Path(f"/sys/dev/block/{major}:{minor}/uevent").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.removeprefix("DEVNAME=") for line in lines if line.startswith("DEVNAME=")]
    return f"/dev/{names[0]}" if names else f"{major}:{minor}"


FAMILIES: tuple[Family, ...] = tuple(_families())


# What CRI is told.


def descriptors() -> list[cri.MetricDescriptor]:
    """Every metric that `pod_metrics` may hold."""
    return [
        cri.MetricDescriptor(name=family.name, help=family.help, label_keys=(*BASE_LABELS, *family.labels))
        for family in FAMILIES
    ]


def metrics(subject: Subject, base: tuple[str, ...]) -> list[cri.Metric]:
    """The values of every metric that the subject has; `base` are those of BASE_LABELS."""
    return [
        cri.Metric(
            name=family.name,
            timestamp=subject.seen_at,
            metric_type=cri.GAUGE if family.gauge else cri.COUNTER,
            label_values=(*base, *labels),
            value=cri.UInt64Value(value=value),
        )
        for family in FAMILIES
        for labels, value in family.read(subject)
    ]


async def list_pod_metrics(node: Node, stats: Stats) -> list[cri.PodSandboxMetrics]:
    """The metrics of every pod that is ready, and of its running containers."""
    ready = [record for record in node.ledger.sandboxes.values() if record.state is SandboxState.READY]
    pods = await stats.measure_pods(ready)
    running = [each.record.id for pod in pods for each in pod.containers if each.sample]
    known = {container_id: stats.layers.get(container_id) for container_id in running}
    directory = node.images.fs_info().directory

    def tell() -> list[cri.PodSandboxMetrics]:
        holding = filesystem(directory)
        return [
            cri.PodSandboxMetrics(
                pod_sandbox_id=pod.record.id,
                metrics=metrics(_of_pod(pod), _labels(pod.record, pod.cgroup)),
                container_metrics=[
                    cri.ContainerMetrics(
                        container_id=each.record.id,
                        metrics=metrics(
                            Subject(
                                container=each.record,
                                sample=each.sample,
                                processes=stats.gauge.processes(each),
                                layer=known[each.record.id],
                                filesystem=holding,
                                seen_at=each.sample.at,
                            ),
                            _labels(pod.record, each.cgroup, each),
                        ),
                    )
                    for each in pod.containers
                    if each.sample
                ],
            )
            for pod in pods
        ]

    return await asyncio.to_thread(tell)


def _of_pod(pod: MeasuredPod) -> Subject:
    return Subject(
        container=None,
        sample=pod.sample,
        interfaces=pod.interfaces or (),
        seen_at=pod.sample.at if pod.sample else time.time_ns(),
    )


def _labels(sandbox: SandboxRecord, cgroup: str, measured: MeasuredContainer | None = None) -> tuple[str, ...]:
    meta = sandbox.config.metadata
    container, image, name = "", "", ""
    if measured is not None:
        config = measured.record.config
        container, name = config.metadata.name, measured.record.id
        image = config.image.user_specified_image or config.image.image
    return container, cgroup, image, name, meta.namespace, meta.name


def filesystem(directory: str) -> Filesystem | None:
    """The file system that `directory` is on; None when there is no telling."""
    try:
        room, device = os.statvfs(directory), os.stat(directory).st_dev
    except OSError:
        return None
    return Filesystem(
        device=device_name(os.major(device), os.minor(device)),
        bytes=room.f_blocks * room.f_frsize,
        inodes=room.f_files,
        inodes_free=room.f_ffree,
    )
