"""What is known about the use of a pod or a container, as records. Pure.

Bytes, counts, nanoseconds; times are unix nanoseconds. None means "not measured", which is not the same as 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandboxd.cgroups.sample import Sample
from sandboxd.model import ContainerRecord, SandboxRecord

# What is measured.


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """The counters of a network interface since it was made."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredContainer:
    """A container; without a sample when it does not run."""

    record: ContainerRecord
    cgroup: str
    sample: Sample | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPod:
    """A pod that is ready, with its containers. `interfaces` leaves out the loopback; None for the host's network."""

    record: SandboxRecord
    cgroup: str
    sample: Sample | None
    containers: tuple[MeasuredContainer, ...]
    interfaces: tuple[Interface, ...] | None
    processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """What the processes of a container hold together."""

    count: int
    files: int  # open file descriptors
    sockets: int  # of these
    open_files_limit: int | None  # RLIMIT_NOFILE of the first process, soft; None when there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The size of a writable layer, as of `at`."""

    bytes: int
    inodes: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """The file system that holds the writable layers. `device` is its block device, "/dev/vda1"."""

    device: str
    bytes: int
    inodes: int
    inodes_free: int


# What is reported.


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerUsage:
    """What a container uses; without a sample when it does not run.

    `cpu_rate` is CPU time in nanoseconds per second, None when it cannot be computed. `layer` is None before its
    first measurement; `layers_directory` is where the file system that holds it is mounted.
    """

    record: ContainerRecord
    sample: Sample | None
    cpu_rate: int | None
    layer: Layer | None
    layers_directory: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The interfaces of a pod: the one that CNI made first, if it is still there, and the others."""

    default: Interface | None
    others: tuple[Interface, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodUsage:
    """What a ready pod uses as a whole, and each of its running containers. `network` is None for the host's.

    `cpu_rate` is CPU time in nanoseconds per second, None when it cannot be computed.
    """

    record: SandboxRecord
    sample: Sample | None
    cpu_rate: int | None
    processes: int
    network: Network | None
    containers: tuple[ContainerUsage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One value of a metric. `labels` are the values of all its labels, in the order of their names."""

    name: str
    gauge: bool  # a counter otherwise
    labels: tuple[str, ...]
    value: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerMetrics:
    """The metrics of a running container."""

    container_id: str
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodMetrics:
    """The metrics of a ready pod as a whole, and of its running containers."""

    sandbox_id: str
    metrics: tuple[Metric, ...]
    containers: tuple[ContainerMetrics, ...]
