"""What CRI's messages say of a measurement."""

from __future__ import annotations

from typing import Any

from sandboxd.api.usage_views import (
    container_stats,
    cpu_usage,
    descriptor,
    io_usage,
    memory_usage,
    network_usage,
    pod_metrics,
    pod_stats,
    psi,
    swap_usage,
)
from sandboxd.cgroups.sample import Cpu, Memory, Pressure, Sample, Stall
from sandboxd.model import ContainerRecord, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.usage.families import FAMILIES
from sandboxd.usage.records import (
    ContainerMetrics,
    ContainerUsage,
    Interface,
    Layer,
    Metric,
    Network,
    PodMetrics,
    PodUsage,
)

PRESSURE = Pressure(some=Stall(total=9, avg10=1.5, avg60=0.5, avg300=0.1), full=Stall(total=4))
CONTAINER = ContainerRecord(
    id="c", sandbox_id="s", config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name="web"), labels={"a": "b"}),
    sandbox_name="", image_ref="", image_id="", log_path="", created_at=1, started_at=2,
)  # fmt: skip
POD = SandboxRecord(
    id="s", config=cri.PodSandboxConfig(labels={"a": "b"}), runtime_handler="", netns_path="", created_at=1,
    started_at=2,
)  # fmt: skip


def sample(**changes: Any) -> Sample:
    return Sample(at=7, memory=Memory(usage=1000, working_set=800, **changes))


def used(of: Sample | None, layer: Layer | None = None) -> ContainerUsage:
    return ContainerUsage(record=CONTAINER, sample=of, cpu_rate=None, layer=layer, layers_directory="/layers")


def interface(name: str) -> Interface:
    zero = dict.fromkeys(
        ("rx_packets", "rx_errors", "rx_dropped", "tx_bytes", "tx_packets", "tx_errors", "tx_dropped"), 0
    )
    return Interface(name=name, rx_bytes=5, **zero)


def pod(of: Sample | None, network: Network | None = None) -> PodUsage:
    return PodUsage(record=POD, sample=of, cpu_rate=5, processes=3, network=network, containers=(used(sample()),))


def test_memory_is_available_under_a_limit_only() -> None:
    assert not memory_usage(sample()).HasField("available_bytes")
    assert memory_usage(sample(limit=900)).available_bytes.value == 100
    over = memory_usage(sample(limit=700))
    assert over.HasField("available_bytes") and over.available_bytes.value == 0


def test_a_measured_zero_is_there() -> None:
    usage = memory_usage(sample())
    assert usage.HasField("rss_bytes") and usage.HasField("page_faults")
    assert usage.timestamp == 7


def test_swap_is_there_where_it_is_counted() -> None:
    assert swap_usage(sample()) is None
    assert swap_usage(Sample(at=1)) is None
    counted = swap_usage(sample(swap=0))
    assert counted is not None and counted.HasField("swap_usage_bytes")
    assert not counted.HasField("swap_available_bytes")
    limited = swap_usage(sample(swap=30, swap_limit=100))
    assert limited is not None and limited.swap_available_bytes.value == 70


def test_pressure_is_there_where_the_kernel_has_it() -> None:
    stats = psi(PRESSURE)
    assert stats is not None
    assert (stats.Some.Total, stats.Some.Avg10, stats.Some.Avg300, stats.Full.Total) == (9, 1.5, 0.1, 4)
    assert psi(None) is None
    assert io_usage(Sample(at=1)) is None
    io = io_usage(Sample(at=1, io_pressure=PRESSURE))
    assert io is not None and io.psi.Some.Total == 9


def test_the_default_interface_is_apart_from_the_others() -> None:
    usage = network_usage(Network(default=interface("eth0"), others=(interface("net1"),)), at=3)
    assert (usage.timestamp, usage.default_interface.name) == (3, "eth0")
    assert usage.default_interface.rx_bytes.value == 5
    assert usage.default_interface.HasField("tx_errors")
    assert [each.name for each in usage.interfaces] == ["net1"]
    assert not network_usage(Network(default=None, others=()), at=3).HasField("default_interface")


def test_a_rate_that_cannot_be_computed_is_left_out() -> None:
    busy = Sample(at=7, cpu=Cpu(usage=9))
    assert not cpu_usage(busy, None).HasField("usage_nano_cores")
    assert cpu_usage(busy, 0).HasField("usage_nano_cores")
    assert cpu_usage(busy, 5).usage_core_nano_seconds.value == 9
    assert not cpu_usage(Sample(at=7), None).HasField("usage_core_nano_seconds")


def test_a_container_that_does_not_run_has_its_writable_layer_alone() -> None:
    stats = container_stats(used(None, Layer(bytes=9, inodes=2, at=4)))
    assert (stats.attributes.id, stats.attributes.metadata.name, dict(stats.attributes.labels)) == (
        "c", "web", {"a": "b"},
    )  # fmt: skip
    layer = stats.writable_layer
    assert (layer.fs_id.mountpoint, layer.used_bytes.value, layer.inodes_used.value, layer.timestamp) == (
        "/layers", 9, 2, 4,
    )  # fmt: skip
    assert {field.name for field, _ in stats.ListFields()} == {"attributes", "writable_layer"}


def test_a_running_container_has_the_parts_that_were_measured() -> None:
    assert {field.name for field, _ in container_stats(used(sample())).ListFields()} == {
        "attributes",
        "cpu",
        "memory",
    }
    whole = container_stats(used(sample(swap=0)))
    assert whole.HasField("swap")


def test_a_pod_in_the_network_of_the_host_has_no_network_of_its_own() -> None:
    assert not pod_stats(pod(sample())).linux.HasField("network")
    connected = pod_stats(pod(sample(), Network(default=interface("eth0"), others=())))
    assert connected.linux.network.default_interface.name == "eth0"
    assert connected.linux.process.process_count.value == 3
    assert [each.attributes.id for each in connected.linux.containers] == ["c"]


def test_a_pod_without_a_sample_has_its_containers_alone() -> None:
    assert {field.name for field, _ in pod_stats(pod(None)).linux.ListFields()} == {"containers"}


def test_a_descriptor_has_the_names_of_all_labels_in_order() -> None:
    described = [descriptor(family) for family in FAMILIES]
    assert [tuple(each.label_keys) for each in described] == [family.labels for family in FAMILIES]
    assert all(each.name and each.help for each in described)


def test_counters_and_gauges_are_told_apart() -> None:
    values = (
        Metric(name="container_cpu_usage_seconds_total", gauge=False, labels=("x",), value=7, at=9),
        Metric(name="container_memory_usage_bytes", gauge=True, labels=("x",), value=0, at=9),
    )
    message = pod_metrics(
        PodMetrics(sandbox_id="s", metrics=(), containers=(ContainerMetrics(container_id="c", metrics=values),))
    )
    (container,) = message.container_metrics
    kinds = {metric.name: metric.metric_type for metric in container.metrics}
    assert kinds["container_cpu_usage_seconds_total"] == cri.COUNTER
    assert kinds["container_memory_usage_bytes"] == cri.GAUGE
    assert [(each.value.value, each.timestamp, list(each.label_values)) for each in container.metrics] == [
        (7, 9, ["x"]), (0, 9, ["x"]),
    ]  # fmt: skip
