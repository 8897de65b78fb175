"""GetContainerEvents and the streaming lists."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.cri.v1.api_pb2_grpc import RuntimeServiceStub
from tests.pods import (
    container_config,
    container_info,
    create_container,
    pod_config,
    refused,
    remove_pod,
    run_container,
    run_pod,
    start_container,
)
from tests.processes import until
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
    assert "subscribe again" in words
    # What it did get has no gap.
    assert 1024 <= len(seen) < len(told)
    assert seen == told[: len(seen)]
    remove_pod(bed, pod_id)


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_a_daemon_that_ends_ends_the_streams_and_the_next_one_goes_on_from_what_happened_meanwhile(
    bed: Testbed, images: tuple[str, ...], kill: bool
) -> None:
    pod_id = run_pod(bed)
    data = bed.write("/var/lib/gate/.keep", "").parent
    gate = [cri.Mount(host_path="/var/lib/gate", container_path="/data")]
    script = "while [ ! -e /data/go ]; do sleep 0.02; done; exit 5"
    ends = run_container(bed, pod_id, container_config("ends", "busybox", ["sh", "-c", script], mounts=gate))
    stays = run_container(bed, pod_id, container_config("stays", "busybox", ["sleep", "3600"]))
    pid = container_info(bed, ends)["pid"]
    with events(bed) as one, events(bed) as two:
        if kill:
            bed.kill_daemon()
        else:
            bed.stop_daemon()
        for stream in (one, two):
            with pytest.raises(grpc.RpcError) as ended:
                next(stream)
            assert refused(ended.value)[0] is grpc.StatusCode.UNAVAILABLE
    (data / "go").touch()
    until(lambda: not _alive(bed, pid), what="it has ended while nobody watched")
    bed.relaunch_daemon()
    with events(bed) as one, events(bed) as two:
        bed.runtime.StopContainer(cri.StopContainerRequest(container_id=stays, timeout=0), timeout=60)
        (event,) = take(one, 1)
        assert take(two, 1) == [event]
    assert (event.container_id, event.container_event_type) == (stays, STOPPED)
    # What happened in between is in the state that each event carries.
    codes = {status.id: status.exit_code for status in event.containers_statuses}
    assert codes == {ends: 5, stays: 137}
    (data / "go").unlink()
    remove_pod(bed, pod_id)


def _alive(bed: Testbed, pid: int) -> bool:
    """Whether the process runs; a dead one may wait as a zombie for the shim to look at it."""
    try:
        return (bed.proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_subscribers_that_go_away_are_not_missed(bed: Testbed, images: tuple[str, ...]) -> None:
    """Cancelled, or gone with their connection: the others see everything."""
    with ExitStack() as leaving, events(bed) as stays:
        for _ in range(5):
            leaving.enter_context(events(bed))
        with grpc.insecure_channel(f"unix:{bed.socket}") as channel:
            cut_off = RuntimeServiceStub(channel).GetContainerEvents(cri.GetEventsRequest(), timeout=110)
            cut_off.initial_metadata()
        pod_id = run_pod(bed)
        leaving.close()
        remove_pod(bed, pod_id)
        seen = take(stays, 4)
    assert [event.container_event_type for event in seen] == [CREATED, STARTED, STOPPED, DELETED]
    assert {event.container_id for event in seen} == {pod_id}


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
