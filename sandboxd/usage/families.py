"""The metrics that cAdvisor exports, under its names: one table. Pure.

Each row of `FAMILIES` holds a metric and the reading of its values. Descriptors and values both come from the table,
so they cannot disagree. Every metric has the labels that kubelet gives cAdvisor's: `id` is the cgroup, `name` the
container's id; `container`, `image` and `name` are "" in the metrics of a pod as a whole.

Source: the table "Prometheus container metrics" of cAdvisor's documentation, docs/storage/prometheus.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandboxd.usage import readings as by
from sandboxd.usage.readings import SECOND, Read, Subject
from sandboxd.usage.records import Metric

BASE_LABELS = ("container", "id", "image", "name", "namespace", "pod")
DEFAULT_PERIOD, DEFAULT_SHARES = 100_000, 1024  # of a container that asks for none, as the kernel gives them


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: what it is called, and how its values are read from a subject."""

    name: str
    help: str
    read: Read
    own_labels: tuple[str, ...] = ()  # beside the ones that all have
    gauge: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of all labels."""
        return (*BASE_LABELS, *self.own_labels)


def metrics(subject: Subject, base: tuple[str, ...]) -> tuple[Metric, ...]:
    """The values of every metric that the subject has; `base` are those of BASE_LABELS."""
    return tuple(
        Metric(name=family.name, gauge=family.gauge, labels=(*base, *labels), value=value, at=subject.seen_at)
        for family in FAMILIES
        for labels, value in family.read(subject)
    )


def _counter(name: str, text: str, read: Read, *own_labels: str) -> Family:
    return Family(name=f"container_{name}", help=text, read=read, own_labels=own_labels)


def _gauge(name: str, text: str, read: Read, *own_labels: str) -> Family:
    return Family(name=f"container_{name}", help=text, read=read, own_labels=own_labels, gauge=True)


FAMILIES: tuple[Family, ...] = (
    _counter("cpu_usage_seconds_total", "CPU time, in seconds.", by.cpu(lambda c: c.usage // SECOND)),
    _counter("cpu_user_seconds_total", "CPU time in user mode, in seconds.", by.cpu(lambda c: c.user // SECOND)),
    _counter("cpu_system_seconds_total", "CPU time in the kernel, in seconds.", by.cpu(lambda c: c.system // SECOND)),
    _counter("cpu_cfs_periods_total", "Periods in which the CPU quota was enforced.", by.cpu(lambda c: c.periods)),
    _counter(
        "cpu_cfs_throttled_periods_total",
        "Periods in which the CPU quota was used up.",
        by.cpu(lambda c: c.throttled_periods),
    ),
    _counter(
        "cpu_cfs_throttled_seconds_total",
        "Time that tasks had to wait for new CPU quota, in seconds.",
        by.cpu(lambda c: c.throttled // SECOND),
    ),
    _counter(
        "pressure_cpu_waiting_seconds_total",
        "Time in which at least one task waited for cpu, in seconds.",
        by.waiting(lambda s: s.cpu_pressure),
    ),
    _counter(
        "pressure_cpu_stalled_seconds_total",
        "Time in which all tasks waited for cpu, in seconds.",
        by.stalled(lambda s: s.cpu_pressure),
    ),
    _counter(
        "pressure_memory_waiting_seconds_total",
        "Time in which at least one task waited for memory, in seconds.",
        by.waiting(lambda s: s.memory_pressure),
    ),
    _counter(
        "pressure_memory_stalled_seconds_total",
        "Time in which all tasks waited for memory, in seconds.",
        by.stalled(lambda s: s.memory_pressure),
    ),
    _counter(
        "pressure_io_waiting_seconds_total",
        "Time in which at least one task waited for io, in seconds.",
        by.waiting(lambda s: s.io_pressure),
    ),
    _counter(
        "pressure_io_stalled_seconds_total",
        "Time in which all tasks waited for io, in seconds.",
        by.stalled(lambda s: s.io_pressure),
    ),
    _gauge("memory_usage_bytes", "Memory in use, caches included, in bytes.", by.memory(lambda m: m.usage)),
    _gauge(
        "memory_working_set_bytes",
        "Memory in use less file cache that was not used lately, in bytes.",
        by.memory(lambda m: m.working_set),
    ),
    _gauge("memory_max_usage_bytes", "The most memory that was in use, in bytes.", by.memory(lambda m: m.peak)),
    _gauge("memory_cache", "File cache, in bytes.", by.memory(lambda m: m.cache)),
    _gauge("memory_rss", "Anonymous memory, in bytes.", by.memory(lambda m: m.rss)),
    _gauge(
        "memory_kernel_usage",
        "Memory that the kernel uses on behalf of the container, in bytes.",
        by.memory(lambda m: m.kernel),
    ),
    _gauge("memory_mapped_file", "Files mapped into memory, in bytes.", by.memory(lambda m: m.mapped)),
    _gauge("memory_swap", "Swap in use, in bytes.", by.memory(lambda m: m.swap or 0)),
    _gauge(
        "memory_total_active_file_bytes",
        "File cache that was used lately, in bytes.",
        by.memory(lambda m: m.active_file),
    ),
    _gauge(
        "memory_total_inactive_file_bytes",
        "File cache that was not used lately, in bytes.",
        by.memory(lambda m: m.inactive_file),
    ),
    _counter("memory_failcnt", "How often the memory limit was met.", by.memory(lambda m: m.failures)),
    _counter("memory_failures_total", "Page faults.", by.memory_failures, "failure_type", "scope"),
    _counter("oom_events_total", "Processes ended by the OOM killer.", by.memory(lambda m: m.oom_kills)),
    _gauge("hugetlb_usage_bytes", "Huge pages in use, in bytes.", by.hugepages(lambda h: h.usage), "pagesize"),
    _gauge(
        "hugetlb_max_usage_bytes", "The most huge pages in use, in bytes.", by.hugepages(lambda h: h.peak), "pagesize"
    ),
    _counter("network_receive_bytes_total", "Bytes, receive side.", by.interface(lambda i: i.rx_bytes), "interface"),
    _counter(
        "network_receive_packets_total", "Packets, receive side.", by.interface(lambda i: i.rx_packets), "interface"
    ),
    _counter(
        "network_receive_packets_dropped_total",
        "Packets dropped, receive side.",
        by.interface(lambda i: i.rx_dropped),
        "interface",
    ),
    _counter(
        "network_receive_errors_total", "Errors, receive side.", by.interface(lambda i: i.rx_errors), "interface"
    ),
    _counter(
        "network_transmit_bytes_total", "Bytes, transmit side.", by.interface(lambda i: i.tx_bytes), "interface"
    ),
    _counter(
        "network_transmit_packets_total", "Packets, transmit side.", by.interface(lambda i: i.tx_packets), "interface"
    ),
    _counter(
        "network_transmit_packets_dropped_total",
        "Packets dropped, transmit side.",
        by.interface(lambda i: i.tx_dropped),
        "interface",
    ),
    _counter(
        "network_transmit_errors_total", "Errors, transmit side.", by.interface(lambda i: i.tx_errors), "interface"
    ),
    _counter("fs_reads_bytes_total", "Bytes read from the device.", by.device(lambda d: d.read_bytes), "device"),
    _counter("fs_reads_total", "Reads from the device.", by.device(lambda d: d.reads), "device"),
    _counter("fs_writes_bytes_total", "Bytes written to the device.", by.device(lambda d: d.write_bytes), "device"),
    _counter("fs_writes_total", "Writes to the device.", by.device(lambda d: d.writes), "device"),
    _counter(
        "blkio_device_usage_total",
        "Bytes read from and written to the device.",
        by.device_operations,
        "device",
        "major",
        "minor",
        "operation",
    ),
    _gauge("fs_usage_bytes", "Bytes in the container's writable layer.", by.layer_usage, "device"),
    _gauge(
        "fs_limit_bytes",
        "Size of the file system that holds the writable layer.",
        by.filesystem(lambda f: f.bytes),
        "device",
    ),
    _gauge(
        "fs_inodes_total",
        "Inodes of the file system that holds the writable layer.",
        by.filesystem(lambda f: f.inodes),
        "device",
    ),
    _gauge(
        "fs_inodes_free",
        "Free inodes of the file system that holds the writable layer.",
        by.filesystem(lambda f: f.inodes_free),
        "device",
    ),
    _gauge("processes", "Processes.", by.processes(lambda p: p.count)),
    _gauge("threads", "Threads of all processes.", by.threads(lambda s: s.tasks)),
    _gauge("threads_max", "The most threads allowed; 0 is without a limit.", by.threads(lambda s: s.tasks_limit)),
    _gauge("file_descriptors", "Open file descriptors of all processes.", by.processes(lambda p: p.files)),
    _gauge("sockets", "Open sockets of all processes.", by.processes(lambda p: p.sockets)),
    _gauge("ulimits_soft", "Soft limit of the first process; no value if unlimited.", by.ulimits, "ulimit"),
    _gauge("last_seen", "When this was measured, in unix seconds.", by.last_seen),
    _gauge("start_time_seconds", "When the container was started, in unix seconds.", by.start_time),
    _gauge("spec_cpu_period", "CFS period in microseconds.", by.spec(lambda r: r.cpu_period or DEFAULT_PERIOD)),
    _gauge(
        "spec_cpu_quota",
        "CFS quota in microseconds; no value if unlimited.",
        by.spec(lambda r: r.cpu_quota if r.cpu_quota > 0 else None),
    ),
    _gauge("spec_cpu_shares", "CPU shares.", by.spec(lambda r: r.cpu_shares or DEFAULT_SHARES)),
    _gauge(
        "spec_memory_limit_bytes",
        "Memory limit in bytes; 0 is without one.",
        by.spec(lambda r: r.memory_limit_in_bytes),
    ),
    _gauge(
        "spec_memory_swap_limit_bytes",
        "Limit of memory and swap in bytes; 0 is without one.",
        by.spec(lambda r: r.memory_swap_limit_in_bytes or r.memory_limit_in_bytes),
    ),
    _gauge(
        "spec_memory_reservation_limit_bytes",
        "Memory reservation in bytes; CRI cannot ask for one.",
        by.spec(lambda r: 0),
    ),
)
