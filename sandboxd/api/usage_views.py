"""Records of usage to CRI messages. Pure.

A field of a message is set only if it was measured; a measured 0 is set.
"""

from __future__ import annotations

from sandboxd.cgroups.sample import Pressure, Sample, Stall
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.usage.families import Family
from sandboxd.usage.records import ContainerUsage, Interface, Metric, Network, PodMetrics, PodUsage


def container_stats(usage: ContainerUsage) -> cri.ContainerStats:
    """What ContainerStats answers; the writable layer alone for a container that does not run."""
    record, sample = usage.record, usage.sample
    stats = cri.ContainerStats(
        attributes=cri.ContainerAttributes(
            id=record.id,
            metadata=record.config.metadata,
            labels=record.config.labels,
            annotations=record.config.annotations,
        ),
        writable_layer=_layer(usage),
    )
    if sample is None:
        return stats
    stats.cpu.CopyFrom(cpu_usage(sample, usage.cpu_rate))
    stats.memory.CopyFrom(memory_usage(sample))
    if (swap := swap_usage(sample)) is not None:
        stats.swap.CopyFrom(swap)
    if (io := io_usage(sample)) is not None:
        stats.io.CopyFrom(io)
    return stats


def _layer(usage: ContainerUsage) -> cri.FilesystemUsage | None:
    if usage.layer is None:
        return None
    return cri.FilesystemUsage(
        timestamp=usage.layer.at,
        fs_id=cri.FilesystemIdentifier(mountpoint=usage.layers_directory),
        used_bytes=cri.UInt64Value(value=usage.layer.bytes),
        inodes_used=cri.UInt64Value(value=usage.layer.inodes),
    )


def pod_stats(usage: PodUsage) -> cri.PodSandboxStats:
    """What PodSandboxStats answers."""
    record, sample = usage.record, usage.sample
    linux = cri.LinuxPodSandboxStats(containers=[container_stats(each) for each in usage.containers])
    if sample is not None:
        linux.cpu.CopyFrom(cpu_usage(sample, usage.cpu_rate))
        linux.memory.CopyFrom(memory_usage(sample))
        if (io := io_usage(sample)) is not None:
            linux.io.CopyFrom(io)
        linux.process.CopyFrom(
            cri.ProcessUsage(timestamp=sample.at, process_count=cri.UInt64Value(value=usage.processes))
        )
        if usage.network is not None:
            linux.network.CopyFrom(network_usage(usage.network, sample.at))
    return cri.PodSandboxStats(
        attributes=cri.PodSandboxAttributes(
            id=record.id,
            metadata=record.config.metadata,
            labels=record.config.labels,
            annotations=record.config.annotations,
        ),
        linux=linux,
    )


def cpu_usage(sample: Sample, rate: int | None) -> cri.CpuUsage:
    """The CPU part; `rate` is in nanoseconds per second, which CRI calls nano cores."""
    usage = cri.CpuUsage(timestamp=sample.at, psi=psi(sample.cpu_pressure))
    if sample.cpu is not None:
        usage.usage_core_nano_seconds.value = sample.cpu.usage
        if rate is not None:
            usage.usage_nano_cores.value = rate
    return usage


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


def network_usage(network: Network, at: int) -> cri.NetworkUsage:
    """The network part, as of `at` (unix nanoseconds)."""
    return cri.NetworkUsage(
        timestamp=at,
        default_interface=_interface(network.default) if network.default else None,
        interfaces=[_interface(each) for each in network.others],
    )


def _interface(interface: Interface) -> cri.NetworkInterfaceUsage:
    return cri.NetworkInterfaceUsage(
        name=interface.name,
        rx_bytes=cri.UInt64Value(value=interface.rx_bytes),
        rx_errors=cri.UInt64Value(value=interface.rx_errors),
        tx_bytes=cri.UInt64Value(value=interface.tx_bytes),
        tx_errors=cri.UInt64Value(value=interface.tx_errors),
    )


def psi(pressure: Pressure | None) -> cri.PsiStats | None:
    """Pressure; None where the kernel does not measure it."""
    if pressure is None:
        return None
    return cri.PsiStats(Full=_stall(pressure.full), Some=_stall(pressure.some))


def _stall(stall: Stall) -> cri.PsiData:
    return cri.PsiData(Total=stall.total, Avg10=stall.avg10, Avg60=stall.avg60, Avg300=stall.avg300)


def descriptor(family: Family) -> cri.MetricDescriptor:
    """An entry of ListMetricDescriptors."""
    return cri.MetricDescriptor(name=family.name, help=family.help, label_keys=family.labels)


def pod_metrics(pod: PodMetrics) -> cri.PodSandboxMetrics:
    """An entry of ListPodSandboxMetrics."""
    return cri.PodSandboxMetrics(
        pod_sandbox_id=pod.sandbox_id,
        metrics=[metric(each) for each in pod.metrics],
        container_metrics=[
            cri.ContainerMetrics(
                container_id=container.container_id, metrics=[metric(each) for each in container.metrics]
            )
            for container in pod.containers
        ],
    )


def metric(record: Metric) -> cri.Metric:
    """One value of a metric."""
    return cri.Metric(
        name=record.name,
        timestamp=record.at,
        metric_type=cri.GAUGE if record.gauge else cri.COUNTER,
        label_values=record.labels,
        value=cri.UInt64Value(value=record.value),
    )
