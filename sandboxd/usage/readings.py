"""What a metric's values are computed from, and how. Pure.

A reading takes a subject and gives the values that it has: one for most metrics, one for each device or interface
for others, none for what this kernel does not measure. CRI carries whole numbers, so seconds are whole seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sandboxd.cgroups.sample import Cpu, Device, HugePages, Memory, Pressure, Sample
from sandboxd.model import ContainerRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.usage.records import Filesystem, Interface, Layer, Processes

SECOND = 1_000_000_000  # in nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What the metrics are about: a running container, or a pod as a whole.

    `devices` gives the path of a block device by its numbers; a device without one is called by the numbers.
    """

    container: ContainerRecord | None
    sample: Sample | None = None
    processes: Processes | None = None
    interfaces: tuple[Interface, ...] = ()
    layer: Layer | None = None
    filesystem: Filesystem | None = None
    devices: Mapping[tuple[int, int], str] = field(default_factory=dict)
    seen_at: int = 0  # unix nanoseconds


Value = tuple[tuple[str, ...], int]
"""The values of the metric's own labels, and the number."""

Read = Callable[[Subject], Iterable[Value]]


def cpu(read: Callable[[Cpu], int]) -> Read:
    """One value, from the CPU part."""

    def values(subject: Subject) -> Iterator[Value]:
        if subject.sample and subject.sample.cpu:
            yield (), read(subject.sample.cpu)

    return values


def memory(read: Callable[[Memory], int | None]) -> Read:
    """One value, from the memory part; none where `read` gives None."""

    def values(subject: Subject) -> Iterator[Value]:
        if subject.sample and subject.sample.memory and (value := read(subject.sample.memory)) is not None:
            yield (), value

    return values


def waiting(which: Callable[[Sample], Pressure | None]) -> Read:
    """Whole seconds in which some task waited for a resource."""

    def values(subject: Subject) -> Iterator[Value]:
        if subject.sample and (pressure := which(subject.sample)):
            yield (), pressure.some.total // SECOND

    return values


def stalled(which: Callable[[Sample], Pressure | None]) -> Read:
    """Whole seconds in which all tasks waited for a resource."""

    def values(subject: Subject) -> Iterator[Value]:
        if subject.sample and (pressure := which(subject.sample)):
            yield (), pressure.full.total // SECOND

    return values


def device(read: Callable[[Device], int]) -> Read:
    """One value for each block device."""

    def values(subject: Subject) -> Iterator[Value]:
        for device in subject.sample.devices if subject.sample else ():
            yield (_path(subject, device),), read(device)

    return values


def device_operations(subject: Subject) -> Iterator[Value]:
    """Bytes read and written, for each block device."""
    for device in subject.sample.devices if subject.sample else ():
        where = (_path(subject, device), str(device.major), str(device.minor))
        yield (*where, "Read"), device.read_bytes
        yield (*where, "Write"), device.write_bytes


def _path(subject: Subject, device: Device) -> str:
    return subject.devices.get((device.major, device.minor), f"{device.major}:{device.minor}")


def interface(read: Callable[[Interface], int]) -> Read:
    """One value for each network interface."""

    def values(subject: Subject) -> Iterator[Value]:
        for interface in subject.interfaces:
            yield (interface.name,), read(interface)

    return values


def processes(read: Callable[[Processes], int]) -> Read:
    """One value, from what the processes hold."""

    def values(subject: Subject) -> Iterator[Value]:
        if subject.processes:
            yield (), read(subject.processes)

    return values


def filesystem(read: Callable[[Filesystem], int]) -> Read:
    """One value, from the file system that holds the writable layers."""

    def values(subject: Subject) -> Iterator[Value]:
        if subject.filesystem:
            yield (subject.filesystem.device,), read(subject.filesystem)

    return values


def layer_usage(subject: Subject) -> Iterator[Value]:
    """Bytes in the writable layer."""
    if subject.filesystem and subject.layer:
        yield (subject.filesystem.device,), subject.layer.bytes


def hugepages(read: Callable[[HugePages], int | None]) -> Read:
    """One value for each size of huge pages; none where `read` gives None."""

    def values(subject: Subject) -> Iterator[Value]:
        for pages in subject.sample.hugepages if subject.sample else ():
            if (value := read(pages)) is not None:
                yield (pages.size,), value

    return values


def memory_failures(subject: Subject) -> Iterator[Value]:
    """Page faults, by type and scope."""
    if subject.sample and (memory := subject.sample.memory):
        # The figures are those of the cgroup with all below it; a container has nothing below it that is not its own.
        for scope in ("container", "hierarchy"):
            yield ("pgfault", scope), memory.page_faults
            yield ("pgmajfault", scope), memory.major_page_faults


def spec(read: Callable[[cri.LinuxContainerResources], int | None]) -> Read:
    """One value, from what the container asked for; none where `read` gives None."""

    def values(subject: Subject) -> Iterator[Value]:
        if subject.container and (value := read(subject.container.config.linux.resources)) is not None:
            yield (), max(0, value)

    return values


def threads(read: Callable[[Sample], int | None]) -> Read:
    """One value, where the kernel counts tasks; 0 where `read` gives None."""

    def values(subject: Subject) -> Iterator[Value]:
        if subject.sample and subject.sample.tasks is not None:
            yield (), read(subject.sample) or 0

    return values


def ulimits(subject: Subject) -> Iterator[Value]:
    """The soft limits of the first process."""
    if subject.processes and subject.processes.open_files_limit is not None:
        yield ("max_open_files",), subject.processes.open_files_limit


def last_seen(subject: Subject) -> Iterator[Value]:
    """When the subject was measured, in unix seconds."""
    yield (), subject.seen_at // SECOND


def start_time(subject: Subject) -> Iterator[Value]:
    """When the container was started, in unix seconds."""
    if subject.container:
        yield (), subject.container.started_at // SECOND
