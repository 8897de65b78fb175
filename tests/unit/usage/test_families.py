"""The table of metrics: names, labels, and the readings that give the values."""

from __future__ import annotations

from sandboxd.cgroups.sample import Cpu, Device, HugePages, Memory, Pressure, Sample, Stall
from sandboxd.model import ContainerRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.usage.families import BASE_LABELS, FAMILIES, metrics
from sandboxd.usage.readings import Subject
from sandboxd.usage.records import Filesystem, Interface, Layer, Processes

S = 1_000_000_000
BASE = ("c", "/cgroup", "image", "id", "ns", "pod")


def container(resources: cri.LinuxContainerResources | None = None) -> ContainerRecord:
    config = cri.ContainerConfig(linux=cri.LinuxContainerConfig(resources=resources))
    return ContainerRecord(
        id="id",
        sandbox_id="s",
        config=config,
        sandbox_name="",
        image_ref="",
        image_id="",
        log_path="",
        created_at=S,
        started_at=5 * S,
    )


PRESSURE = Pressure(some=Stall(total=3 * S), full=Stall(total=2 * S))
EVERYTHING = Subject(
    container=container(cri.LinuxContainerResources(cpu_quota=20_000, memory_limit_in_bytes=64)),
    sample=Sample(
        at=9 * S,
        cpu=Cpu(usage=7 * S + 999_999_999, user=4 * S, system=3 * S, periods=9, throttled_periods=8, throttled=2 * S),
        memory=Memory(usage=100, working_set=80, peak=120, swap=6, page_faults=11, major_page_faults=1, oom_kills=2),
        devices=(Device(major=0, minor=0, read_bytes=1, write_bytes=2, reads=3, writes=4),),
        tasks=3,
        tasks_limit=50,
        cpu_pressure=PRESSURE,
        memory_pressure=PRESSURE,
        io_pressure=PRESSURE,
        hugepages=(HugePages(size="2MB", usage=5, peak=6),),
    ),
    processes=Processes(count=2, files=7, sockets=1, open_files_limit=1024),
    interfaces=(
        Interface(
            name="eth0",
            rx_bytes=1,
            rx_packets=2,
            rx_errors=3,
            rx_dropped=4,
            tx_bytes=5,
            tx_packets=6,
            tx_errors=7,
            tx_dropped=8,
        ),
    ),
    layer=Layer(bytes=77, inodes=3, at=1),
    filesystem=Filesystem(device="/dev/vda1", bytes=1000, inodes=100, inodes_free=40),
    seen_at=9 * S,
)


def values(subject: Subject) -> dict[tuple[str, ...], int]:
    """Name without its prefix and the metric's own labels → value."""
    return {
        (metric.name.removeprefix("container_"), *metric.labels[len(BASE) :]): metric.value
        for metric in metrics(subject, BASE)
    }


def test_a_subject_with_everything_has_every_metric_with_all_of_its_labels() -> None:
    keys = {family.name: family.labels for family in FAMILIES}
    reported = metrics(EVERYTHING, BASE)
    assert {metric.name for metric in reported} == set(keys)
    assert all(len(metric.labels) == len(keys[metric.name]) for metric in reported)
    assert all(metric.at == 9 * S for metric in reported)
    assert len({(metric.name, *metric.labels) for metric in reported}) == len(reported)


def test_every_family_is_whole_and_none_is_there_twice() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert family.help
        assert family.labels[: len(BASE_LABELS)] == BASE_LABELS


def test_the_values_are_those_that_were_measured() -> None:
    found = values(EVERYTHING)
    expected = {
        ("cpu_usage_seconds_total",): 7,
        ("cpu_cfs_throttled_seconds_total",): 2,
        ("pressure_io_waiting_seconds_total",): 3,
        ("pressure_memory_stalled_seconds_total",): 2,
        ("memory_working_set_bytes",): 80,
        ("memory_max_usage_bytes",): 120,
        ("memory_swap",): 6,
        ("memory_failures_total", "pgfault", "container"): 11,
        ("memory_failures_total", "pgmajfault", "hierarchy"): 1,
        ("oom_events_total",): 2,
        ("hugetlb_usage_bytes", "2MB"): 5,
        ("hugetlb_max_usage_bytes", "2MB"): 6,
        ("network_receive_bytes_total", "eth0"): 1,
        ("network_receive_packets_total", "eth0"): 2,
        ("network_receive_errors_total", "eth0"): 3,
        ("network_receive_packets_dropped_total", "eth0"): 4,
        ("network_transmit_bytes_total", "eth0"): 5,
        ("network_transmit_packets_total", "eth0"): 6,
        ("network_transmit_errors_total", "eth0"): 7,
        ("network_transmit_packets_dropped_total", "eth0"): 8,
        ("fs_reads_bytes_total", "0:0"): 1,
        ("fs_writes_total", "0:0"): 4,
        ("blkio_device_usage_total", "0:0", "0", "0", "Read"): 1,
        ("blkio_device_usage_total", "0:0", "0", "0", "Write"): 2,
        ("fs_usage_bytes", "/dev/vda1"): 77,
        ("fs_inodes_free", "/dev/vda1"): 40,
        ("processes",): 2,
        ("threads",): 3,
        ("threads_max",): 50,
        ("sockets",): 1,
        ("ulimits_soft", "max_open_files"): 1024,
        ("start_time_seconds",): 5,
        ("last_seen",): 9,
        ("spec_cpu_period",): 100_000,
        ("spec_cpu_quota",): 20_000,
        ("spec_cpu_shares",): 1024,
        ("spec_memory_limit_bytes",): 64,
        ("spec_memory_swap_limit_bytes",): 64,
    }
    assert expected.items() <= found.items()


def test_what_was_not_measured_has_no_value() -> None:
    assert values(Subject(container=None, seen_at=9 * S)) == {("last_seen",): 9}
    bare = values(Subject(container=container(), sample=Sample(at=1), seen_at=1))
    assert {name for name, *_ in bare} == {
        "last_seen",
        "start_time_seconds",
        "spec_cpu_period",
        "spec_cpu_shares",
        "spec_memory_limit_bytes",
        "spec_memory_swap_limit_bytes",
        "spec_memory_reservation_limit_bytes",
    }


def test_a_device_is_called_by_its_path_if_that_is_known() -> None:
    named = values(Subject(container=None, sample=EVERYTHING.sample, devices={(0, 0): "/dev/vda"}))
    assert named["fs_reads_bytes_total", "/dev/vda"] == 1
    assert named["blkio_device_usage_total", "/dev/vda", "0", "0", "Read"] == 1


def test_no_limit_is_zero_or_no_value_never_a_huge_number() -> None:
    unlimited = cri.LinuxContainerResources(cpu_quota=-1, memory_swap_limit_in_bytes=-1)
    found = values(Subject(container=container(unlimited), sample=Sample(at=1, tasks=1)))
    assert found["threads_max",] == found["spec_memory_swap_limit_bytes",] == 0
    assert ("spec_cpu_quota",) not in found
