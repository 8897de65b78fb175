"""The armed daemon reports its points, and is killed, failed and stopped where it is planned."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from sandboxd import vocabulary
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.faults.armed import Arms
from tests.pods import pod_config, refused, remove_pod, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def armed() -> Iterator[tuple[Testbed, Arms]]:
    with Testbed() as bed:
        bed.default_network()
        arms = Arms(bed)
        bed.start_daemon(network={"in_process": "never"})  # so that plugins are spawned
        yield bed, arms


@pytest.fixture(autouse=True)
def peaceful(armed: tuple[Testbed, Arms]) -> None:
    _, arms = armed
    arms.disarm()
    arms.clear()


def test_every_step_call_commit_and_spawn_of_a_run_is_a_point(armed: tuple[Testbed, Arms]) -> None:
    bed, arms = armed
    remove_pod(bed, run_pod(bed))
    names = {point.name for point in arms.points if point.verb == "RunPodSandbox"}
    assert {
        "commit INSERT sandboxes:before",
        "netns create:after",
        "spawn bridge:before",
        "containerd Tasks/Create:before",
        "containerd Tasks/Start:after",
        "step pod.run:end",
    } <= names
    assert {name.split(" ")[1].rpartition(":")[0] for name in names if name.startswith("step ")} <= set(
        vocabulary.NAMES
    )
    assert not arms.fired


def test_it_dies_at_its_point_and_not_again(armed: tuple[Testbed, Arms]) -> None:
    bed, arms = armed
    config = pod_config()
    arms.plan("RunPodSandbox", "containerd Tasks/Create:after", "kill")
    with pytest.raises(grpc.RpcError):
        run_pod(bed, config)
    until(lambda: not bed.daemon_running, what="the daemon is dead")
    assert arms.points[-1].did == "kill" and arms.points[-1].name == "containerd Tasks/Create:after"
    bed.relaunch_daemon()
    remove_pod(bed, run_pod(bed, config))


@pytest.mark.parametrize(
    ("point", "code"),
    [
        ("containerd Tasks/Create:before", grpc.StatusCode.UNAVAILABLE),
        ("commit INSERT sandboxes:before", grpc.StatusCode.UNAVAILABLE),
        ("spawn bridge:before", grpc.StatusCode.FAILED_PRECONDITION),
        ("netns create:before", grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_what_fails_is_refused_in_its_own_words(
    armed: tuple[Testbed, Arms], point: str, code: grpc.StatusCode
) -> None:
    bed, arms = armed
    arms.plan("RunPodSandbox", point, "fail")
    with pytest.raises(grpc.RpcError) as caught:
        run_pod(bed)
    found, words = refused(caught.value)
    assert (found, "armed" in words) == (code, True), words
    assert arms.fired


def test_a_call_fails_at_its_own_limit_and_a_shorter_delay_passes(armed: tuple[Testbed, Arms]) -> None:
    bed, arms = armed
    arms.plan("RunPodSandbox", "containerd Containers/Create:before", "late")
    with pytest.raises(grpc.RpcError) as caught:
        run_pod(bed)
    assert refused(caught.value)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    arms.plan("RunPodSandbox", "containerd Containers/Create:before", "hang", seconds=0.2)
    remove_pod(bed, run_pod(bed))
    assert [point.did for point in arms.points if point.did] == ["late", "hang"]


def test_it_stops_at_its_point_until_it_is_to_go_on(armed: tuple[Testbed, Arms]) -> None:
    bed, arms = armed
    arms.plan("RunPodSandbox", "containerd Tasks/Start:before", "stop")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_pod, bed)
        try:
            arms.until_stopped()
            assert bed.runtime.Version(cri.VersionRequest()).runtime_name == "sandboxd"
            assert not running.done()
        finally:
            arms.go()
        remove_pod(bed, running.result(timeout=60))
