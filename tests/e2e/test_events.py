"""GetContainerEvents and the streaming lists."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.pods import (
    container_config,
    create_container,
    pod_config,
    refused,
    remove_pod,
    run_container,
    run_pod,
    start_container,
)
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

CREATED, STARTED = cri.CONTAINER_CREATED_EVENT, cri.CONTAINER_STARTED_EVENT
STOPPED, DELETED = cri.CONTAINER_STOPPED_EVENT, cri.CONTAINER_DELETED_EVENT


@contextmanager
def events(bed: Testbed) -> Iterator[Any]:
    """A subscription that is in force."""
    stream = bed.runtime.GetContainerEvents(cri.GetEventsRequest(), timeout=110)
    stream.initial_metadata()
    try:
        yield stream
    finally:
        stream.cancel()


def take(stream: Any, count: int) -> list[cri.ContainerEventResponse]:
    return [next(stream) for _ in range(count)]


def test_every_subscriber_sees_the_life_of_a_pod_in_order(bed: Testbed, images: tuple[str, ...]) -> None:
    with events(bed) as one, events(bed) as two:
        pod_id = run_pod(bed, pod_config("seen"))
        container_id = run_container(bed, pod_id, container_config("ends", "busybox", ["sh", "-c", "exit 3"]))
        seen = take(one, 5)
        remove_pod(bed, pod_id)
        seen += take(one, 3)
        told = take(two, 8)
    assert [(event.container_id, event.container_event_type) for event in seen] == [
        (pod_id, CREATED),
        (pod_id, STARTED),
        (container_id, CREATED),
        (container_id, STARTED),
        (container_id, STOPPED),
        (pod_id, STOPPED),
        (container_id, DELETED),
        (pod_id, DELETED),
    ]
    assert seen == told
    assert all(event.created_at > 0 for event in seen)
    # The pod's state after it, and as it was last once it is gone.
    assert {event.pod_sandbox_status.metadata.name for event in seen} == {"seen"}
    assert seen[1].pod_sandbox_status.state == cri.SANDBOX_READY
    assert seen[1].pod_sandbox_status.network.ip
    (status,) = seen[4].containers_statuses
    assert (status.state, status.exit_code) == (cri.CONTAINER_EXITED, 3)
    assert seen[4].created_at == status.finished_at
    assert seen[5].pod_sandbox_status.state == seen[7].pod_sandbox_status.state == cri.SANDBOX_NOTREADY
    assert not seen[6].containers_statuses


def test_a_subscriber_that_comes_later_sees_only_what_happens_then(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    container_id = create_container(bed, pod_id, container_config("later", "busybox", ["sleep", "3600"]))
    with events(bed) as stream:
        start_container(bed, container_id)
        (first,) = take(stream, 1)
    assert (first.container_id, first.container_event_type) == (container_id, STARTED)
    remove_pod(bed, pod_id)


def test_a_pod_that_fails_to_run_is_not_announced(bed: Testbed, images: tuple[str, ...]) -> None:
    with events(bed) as stream:
        linux = cri.LinuxPodSandboxConfig(sysctls={"net.ipv4.no_such_thing": "1"})
        with pytest.raises(grpc.RpcError):
            run_pod(bed, pod_config(linux=linux))
        pod_id = run_pod(bed)
        (first,) = take(stream, 1)
    assert first.container_id == pod_id
    remove_pod(bed, pod_id)


def test_a_slow_subscriber_holds_nobody_up_and_learns_that_it_missed_something(
    bed: Testbed, images: tuple[str, ...]
) -> None:
    """It stops reading: the connection's buffers fill, then its queue of 1024, and then it has lost its place."""
    pod_id = run_pod(bed, pod_config(annotations={"ballast": "x" * 65536}))
    config = container_config("c", "busybox", ["sleep", "3600"])
    told: list[str] = []
    with events(bed) as slow, events(bed) as quick:
        for _ in range(700):
            container_id = create_container(bed, pod_id, config)
            bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=10)
            told += [event.container_id for event in take(quick, 2)]
        seen: list[str] = []
        with pytest.raises(grpc.RpcError) as ended:
            seen.extend(event.container_id for event in slow)
    code, words = refused(ended.value)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "subscribe anew" in words
    # What it did get has no gap.
    assert 1024 <= len(seen) < len(told)
    assert seen == told[: len(seen)]
    remove_pod(bed, pod_id)


def test_a_daemon_that_stops_ends_the_streams_with_a_status(bed: Testbed) -> None:
    with events(bed) as stream:
        bed.restart_daemon()
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
    assert refused(ended.value)[0] is grpc.StatusCode.UNAVAILABLE


def test_the_streaming_lists_say_what_the_others_say(bed: Testbed, images: tuple[str, ...]) -> None:
    label = {"stream": secrets.token_hex(4)}
    # Together more than one message holds: each is the size of a third of a part.
    ballast = {"ballast": "x" * 200_000}
    pods = [run_pod(bed, pod_config(labels=label, annotations=ballast)) for _ in range(7)]
    config = container_config("c", "busybox", ["sleep", "3600"], labels=label)
    containers = [run_container(bed, pod_id, config) for pod_id in pods[:2]]
    runtime = bed.runtime

    parts = list(
        runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest(filter=cri.PodSandboxFilter(label_selector=label)))
    )
    assert len(parts) > 1
    assert all(part.pod_sandboxes for part in parts)
    assert sorted(pod.id for part in parts for pod in part.pod_sandboxes) == sorted(pods)

    by_pod = cri.ContainerFilter(pod_sandbox_id=pods[0])
    (part,) = runtime.StreamContainers(cri.StreamContainersRequest(filter=by_pod))
    assert [entry.id for entry in part.containers] == containers[:1]

    wanted = cri.ContainerStatsFilter(label_selector=label)
    (stats,) = runtime.StreamContainerStats(cri.StreamContainerStatsRequest(filter=wanted))
    assert sorted(entry.attributes.id for entry in stats.container_stats) == sorted(containers)

    one = cri.PodSandboxStatsFilter(id=pods[0])
    (pod_stats,) = runtime.StreamPodSandboxStats(cri.StreamPodSandboxStatsRequest(filter=one))
    assert [entry.attributes.id for entry in pod_stats.pod_sandbox_stats] == pods[:1]

    metrics = list(runtime.StreamPodSandboxMetrics(cri.StreamPodSandboxMetricsRequest()))
    assert set(pods) <= {entry.pod_sandbox_id for part in metrics for entry in part.pod_sandbox_metrics}

    listed = bed.images.ListImages(cri.ListImagesRequest()).images
    streamed = [image for part in bed.images.StreamImages(cri.StreamImagesRequest()) for image in part.images]
    assert streamed == list(listed)
    assert streamed

    nothing = cri.PodSandboxFilter(label_selector={"stream": "none"})
    assert list(runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest(filter=nothing))) == []
    for pod_id in pods:
        remove_pod(bed, pod_id)
