"""Statistics and metrics: what a client is told is what the kernel counts."""

from __future__ import annotations

import sys
import time

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.pods import (
    container_config,
    container_info,
    create_container,
    exited,
    pod_config,
    pod_status,
    refused,
    remove_pod,
    run_container,
    run_pod,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

MIB = 1 << 20
LIMITS = cri.LinuxContainerResources(
    cpu_period=100_000,
    cpu_quota=20_000,
    cpu_shares=1024,
    memory_limit_in_bytes=64 * MIB,
    memory_swap_limit_in_bytes=64 * MIB,
)


def container_stats(bed: Testbed, container_id: str) -> cri.ContainerStats:
    return bed.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container_id)).stats


def list_stats(bed: Testbed, **wanted: object) -> list[str]:
    request = cri.ListContainerStatsRequest(filter=cri.ContainerStatsFilter(**wanted))  # type: ignore[arg-type]
    return sorted(entry.attributes.id for entry in bed.runtime.ListContainerStats(request).stats)


def pod_stats(bed: Testbed, pod_id: str) -> cri.PodSandboxStats:
    return bed.runtime.PodSandboxStats(cri.PodSandboxStatsRequest(pod_sandbox_id=pod_id)).stats


def exec_sync(bed: Testbed, container_id: str, script: str) -> bytes:
    request = cri.ExecSyncRequest(container_id=container_id, cmd=["sh", "-c", script], timeout=60)
    answer = bed.runtime.ExecSync(request, timeout=30)
    assert answer.exit_code == 0, answer.stderr
    return bytes(answer.stdout)


def test_a_busy_container_uses_its_quota_and_an_idle_one_next_to_nothing(
    bed: Testbed, images: tuple[str, ...]
) -> None:
    pod_id = run_pod(bed)
    linux = cri.LinuxContainerConfig(resources=LIMITS)
    busy = run_container(
        bed, pod_id, container_config("busy", "busybox", ["sh", "-c", "while :; do :; done"], linux=linux)
    )
    idle = run_container(bed, pod_id, container_config("idle", "busybox", ["sleep", "3600"], linux=linux))
    first = container_stats(bed, busy)
    until(lambda: container_stats(bed, busy).cpu.timestamp - first.cpu.timestamp > 2 * 10**9, what="2 s")
    last = container_stats(bed, busy)
    used = last.cpu.usage_core_nano_seconds.value - first.cpu.usage_core_nano_seconds.value
    took = last.cpu.timestamp - first.cpu.timestamp
    # A fifth of a CPU, and no more than that however busy the machine is.
    assert 0 < used <= 0.25 * took
    assert 0 < last.cpu.usage_nano_cores.value <= 250_000_000
    assert container_stats(bed, idle).cpu.usage_nano_cores.value < last.cpu.usage_nano_cores.value
    remove_pod(bed, pod_id)


def test_the_figures_of_a_container_are_complete_and_follow_what_it_does(
    bed: Testbed, images: tuple[str, ...]
) -> None:
    pod_id = run_pod(bed)
    config = container_config(
        "worker",
        "busybox",
        ["sleep", "3600"],
        labels={"app": "worker"},
        annotations={"note": "x"},
        linux=cri.LinuxContainerConfig(resources=LIMITS),
    )
    worker = run_container(bed, pod_id, config)
    until(
        lambda: container_stats(bed, worker).memory.rss_bytes.value < MIB, what="it is sleep, and no runtime any more"
    )
    before = container_stats(bed, worker)
    assert before.attributes.metadata.name == "worker"
    assert dict(before.attributes.labels) == {"app": "worker"}
    assert dict(before.attributes.annotations) == {"note": "x"}
    memory = before.memory
    assert abs(memory.timestamp - time.time_ns()) < 60 * 10**9
    assert 0 < memory.working_set_bytes.value <= memory.usage_bytes.value < 64 * MIB
    assert memory.available_bytes.value == 64 * MIB - memory.working_set_bytes.value
    # 20 MiB of shared memory are in the container's charge, and are no cache that could be dropped.
    exec_sync(bed, worker, "mount | grep -q shm && dd if=/dev/zero of=/dev/shm/fill bs=1M count=20 2>/dev/null")
    after = container_stats(bed, worker)
    assert after.memory.working_set_bytes.value - memory.working_set_bytes.value > 18 * MIB
    assert after.memory.page_faults.value > memory.page_faults.value
    until(lambda: container_stats(bed, worker).HasField("writable_layer"), what="the layer is measured")
    exec_sync(bed, worker, "dd if=/dev/zero of=/written bs=1M count=5 2>/dev/null")
    until(
        lambda: container_stats(bed, worker).writable_layer.used_bytes.value >= 5 * MIB,
        what="the layer is measured again",
    )
    layer = container_stats(bed, worker).writable_layer
    assert layer.inodes_used.value > 0
    assert layer.timestamp > before.memory.timestamp
    assert "snapshotter" in layer.fs_id.mountpoint
    remove_pod(bed, pod_id)


def test_a_container_that_does_not_run_has_its_layer_and_no_usage(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    created = create_container(bed, pod_id, container_config("created", "busybox", ["sleep", "3600"]))
    ended = run_container(bed, pod_id, container_config("ended", "busybox", ["sh", "-c", "echo kept > /kept"]))
    until(lambda: exited(bed, ended), what="it has ended")
    for container_id in (created, ended):
        until(
            lambda container_id=container_id: container_stats(bed, container_id).HasField("writable_layer"),  # type: ignore[misc]
            what="the layer is measured",
        )
        stats = container_stats(bed, container_id)
        assert not stats.HasField("cpu")
        assert not stats.HasField("memory")
    assert list_stats(bed, pod_sandbox_id=pod_id) == sorted([created, ended])
    remove_pod(bed, pod_id)


def test_lists_take_ids_pods_and_labels_as_filters(bed: Testbed, images: tuple[str, ...]) -> None:
    one, two = run_pod(bed, pod_config(labels={"tier": "one"})), run_pod(bed, pod_config(labels={"tier": "two"}))
    sleep = ["sleep", "3600"]
    a = run_container(bed, one, container_config("a", "busybox", sleep, labels={"app": "a"}))
    b = run_container(bed, one, container_config("b", "busybox", sleep, labels={"app": "b"}))
    c = run_container(bed, two, container_config("c", "busybox", sleep, labels={"app": "a"}))
    assert {a, b, c} <= set(list_stats(bed))
    assert list_stats(bed, id=a) == [a]
    assert list_stats(bed, id=a[:12]) == [a]
    assert list_stats(bed, pod_sandbox_id=one) == sorted([a, b])
    assert list_stats(bed, label_selector={"app": "a"}) == sorted([a, c])
    assert list_stats(bed, pod_sandbox_id=two, label_selector={"app": "b"}) == []

    def pods(**wanted: object) -> list[str]:
        request = cri.ListPodSandboxStatsRequest(filter=cri.PodSandboxStatsFilter(**wanted))  # type: ignore[arg-type]
        return sorted(entry.attributes.id for entry in bed.runtime.ListPodSandboxStats(request).stats)

    assert {one, two} <= set(pods())
    assert pods(id=one) == [one]
    assert pods(label_selector={"tier": "two"}) == [two]
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=two))
    assert pods(label_selector={"tier": "two"}) == []
    for pod_id in (one, two):
        remove_pod(bed, pod_id)


def test_a_pod_is_the_sum_of_what_runs_in_it_and_of_its_interfaces(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    first = run_container(bed, pod_id, container_config("first", "busybox", ["sh", "-c", "sleep 3600 & sleep 3600"]))
    second = run_container(bed, pod_id, container_config("second", "busybox", ["sleep", "3600"]))
    create_container(bed, pod_id, container_config("idle", "busybox", ["sleep", "3600"]))
    # Pause, two of sh and its child, and one.
    until(lambda: pod_stats(bed, pod_id).linux.process.process_count.value == 4, what="all run")
    stats = pod_stats(bed, pod_id).linux
    assert {entry.attributes.id for entry in stats.containers} == {first, second}
    for kind in ("cpu", "memory", "process", "network"):
        assert getattr(stats, kind).timestamp > 0
    parts = sum(entry.memory.usage_bytes.value for entry in stats.containers)
    assert stats.memory.usage_bytes.value > parts * 0.5
    assert stats.network.default_interface.name == "eth0"
    assert not stats.network.interfaces
    received = stats.network.default_interface.rx_bytes.value
    send = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(bytes(1000), (sys.argv[1], 9))"
    for _ in range(3):
        bed.run([sys.executable, "-I", "-c", send, pod_status(bed, pod_id).network.ip])
    network = pod_stats(bed, pod_id).linux.network.default_interface
    assert network.rx_bytes.value - received >= 3000
    assert network.tx_bytes.value > 0  # nobody listens, and the kernel says so
    remove_pod(bed, pod_id)


def test_pods_that_share_a_cgroup_parent_do_not_count_each_other(bed: Testbed, images: tuple[str, ...]) -> None:
    parent = bed.parent_below("shared")
    one, two = (run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(cgroup_parent=parent))) for _ in "12")
    run_container(bed, one, container_config("few", "busybox", ["sleep", "3600"]))
    run_container(bed, two, container_config("more", "busybox", ["sh", "-c", "sleep 3600 & sleep 3600 & sleep 3600"]))
    until(lambda: pod_stats(bed, two).linux.process.process_count.value >= 4, what="all sleep")
    assert pod_stats(bed, one).linux.process.process_count.value == 2
    for pod_id in (one, two):
        remove_pod(bed, pod_id)


def test_a_pod_in_the_hosts_network_has_no_interfaces_of_its_own(bed: Testbed, images: tuple[str, ...]) -> None:
    options = cri.NamespaceOption(network=cri.NODE)
    security = cri.LinuxSandboxSecurityContext(namespace_options=options)
    pod_id = run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(security_context=security)))
    stats = pod_stats(bed, pod_id).linux
    assert not stats.HasField("network")
    assert stats.HasField("memory")
    remove_pod(bed, pod_id)


def test_what_is_not_there_or_does_not_run_is_told_apart(bed: Testbed) -> None:
    pod_id = run_pod(bed)
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    with pytest.raises(grpc.RpcError) as stopped:
        pod_stats(bed, pod_id)
    assert refused(stopped.value)[0] is grpc.StatusCode.FAILED_PRECONDITION
    remove_pod(bed, pod_id)
    with pytest.raises(grpc.RpcError) as gone:
        pod_stats(bed, pod_id)
    with pytest.raises(grpc.RpcError) as none:
        container_stats(bed, "0" * 64)
    assert refused(gone.value)[0] is refused(none.value)[0] is grpc.StatusCode.NOT_FOUND


def test_statistics_go_on_after_a_restart_of_the_daemon(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    worker = run_container(bed, pod_id, container_config("worker", "busybox", ["sleep", "3600"]))
    before = container_stats(bed, worker)
    bed.restart_daemon(kill=True)
    after = container_stats(bed, worker)
    assert after.cpu.usage_core_nano_seconds.value >= before.cpu.usage_core_nano_seconds.value
    assert after.memory.working_set_bytes.value > 0
    assert pod_stats(bed, pod_id).linux.network.default_interface.name == "eth0"
    remove_pod(bed, pod_id)


# critest of cri-tools expects a value for each of these once a container with limits runs.
METRICS = """
    cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total cpu_system_seconds_total
    cpu_usage_seconds_total cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes
    fs_usage_bytes last_seen memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file
    memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes memory_working_set_bytes
    network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total
    network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total
    network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total processes sockets
    spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes
    spec_memory_swap_limit_bytes start_time_seconds threads threads_max ulimits_soft
"""
# The kernel may have nothing to say about these: no pressure, no huge pages, no device behind the file system.
MAYBE = """
    blkio_device_usage_total fs_reads_bytes_total fs_reads_total fs_writes_bytes_total fs_writes_total
    hugetlb_max_usage_bytes hugetlb_usage_bytes
    pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total
    pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total
"""


def test_the_metrics_have_cadvisors_names_and_all_their_labels(bed: Testbed, images: tuple[str, ...]) -> None:
    described = {
        d.name: tuple(d.label_keys)
        for d in bed.runtime.ListMetricDescriptors(cri.ListMetricDescriptorsRequest()).descriptors
    }
    assert {f"container_{name}" for name in (METRICS + MAYBE).split()} <= described.keys()
    pod_id = run_pod(bed, pod_config("metered"))
    config = container_config(
        "worker", "busybox", ["sleep", "3600"], linux=cri.LinuxContainerConfig(resources=LIMITS)
    )
    worker = run_container(bed, pod_id, config)
    exec_sync(bed, worker, "echo written > /written")
    until(lambda: container_stats(bed, worker).HasField("writable_layer"), what="what was written is measured")
    answer = bed.runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest())
    (pod,) = (entry for entry in answer.pod_metrics if entry.pod_sandbox_id == pod_id)
    (container,) = pod.container_metrics
    assert container.container_id == worker
    found: dict[str, dict[tuple[str, ...], int]] = {}
    for metric in [*pod.metrics, *container.metrics]:
        assert len(metric.label_values) == len(described[metric.name])
        assert metric.timestamp > 0
        labels = dict(zip(described[metric.name], metric.label_values, strict=True))
        assert (labels["pod"], labels["namespace"]) == ("metered", "default")
        values = found.setdefault(metric.name, {})
        assert tuple(metric.label_values) not in values, "one value for each combination of labels"
        values[tuple(metric.label_values)] = metric.value.value
    assert {f"container_{name}" for name in METRICS.split()} <= found.keys()

    def of_worker(name: str) -> int:
        (value,) = (v for labels, v in found[f"container_{name}"].items() if labels[0] == "worker")
        return value

    assert of_worker("spec_memory_limit_bytes") == of_worker("spec_memory_swap_limit_bytes") == 64 * MIB
    assert of_worker("spec_cpu_quota") == 20_000
    assert of_worker("processes") == of_worker("threads") == 1
    assert of_worker("file_descriptors") >= 1
    assert of_worker("ulimits_soft") > 0
    assert abs(of_worker("start_time_seconds") - time.time()) < 60
    assert of_worker("fs_limit_bytes") > of_worker("fs_usage_bytes") > 0
    assert container_info(bed, worker)["pid"] > 0
    remove_pod(bed, pod_id)
