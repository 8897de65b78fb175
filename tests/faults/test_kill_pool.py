"""The daemon is killed at every point of a hand-out and of a filling: a prepared pod, a pod or nothing is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods.refill import VERB
from tests.audit import Snapshot, assert_no_leaks, observe
from tests.faults.armed import Arms
from tests.pods import pod_config, pod_status, remove_pod, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

ONE_IN = 8  # of the points of a filling, in the short mode


@dataclass(kw_only=True)
class Host:
    bed: Testbed
    arms: Arms
    before: Snapshot

    def ready(self, number: int) -> list[str]:
        """What is prepared, once it is as many."""
        found: list[str] = []

        def full() -> bool:
            answer = self.bed.runtime.Status(cri.StatusRequest(verbose=True), timeout=30)
            found[:] = json.loads(answer.info["pool"])["ready"]
            return len(found) == number

        until(full, what=f"{number} are prepared")
        return found

    def restart(self, size: int) -> None:
        if self.bed.daemon_running:
            self.bed.stop_daemon()
        self.bed.config["pool"] = {"size": size}
        self.bed.relaunch_daemon()

    def empty(self) -> None:
        """Without a pool nothing is left of one."""
        self.arms.disarm()
        self.restart(0)
        self.ready(0)
        assert_no_leaks(self.bed, self.before)

    def points(self, verb: str) -> list[str]:
        """The points that were reached, each once."""
        return list(dict.fromkeys(point.name for point in self.arms.points if point.verb == verb))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Testbed() as bed:
        bed.default_network()
        arms = Arms(bed)
        bed.start_daemon()
        remove_pod(bed, run_pod(bed))
        yield Host(bed=bed, arms=arms, before=observe(bed))


def test_a_hand_out_that_is_cut_off_leaves_a_pod_or_nothing(host: Host) -> None:
    host.restart(1)
    host.ready(1)
    host.arms.clear()
    remove_pod(host.bed, run_pod(host.bed))
    points = host.points("RunPodSandbox")
    assert any("Containers/Update" in point for point in points)

    for point in points:
        host.ready(1)
        host.arms.clear()
        config = pod_config()
        host.arms.plan("RunPodSandbox", point, "kill")
        try:
            run_pod(host.bed, config)
        except grpc.RpcError:
            until(lambda: not host.bed.daemon_running, what="the daemon is dead")
            host.arms.disarm()
            host.bed.relaunch_daemon()
        host.arms.disarm()
        pod_id = run_pod(host.bed, config)
        status = pod_status(host.bed, pod_id)
        assert (status.state, status.metadata) == (cri.SANDBOX_READY, config.metadata), point
        pods = host.bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items
        assert [each.id for each in pods] == [pod_id], point
        remove_pod(host.bed, pod_id)
    host.empty()


def test_a_filling_that_is_cut_off_leaves_nothing_or_a_prepared_pod(host: Host, everything: bool) -> None:
    host.restart(0)
    host.arms.clear()
    host.restart(1)
    host.ready(1)
    points = host.points(VERB)
    assert any("Tasks/Start" in point for point in points)

    for point in points[:: 1 if everything else ONE_IN]:
        host.restart(0)
        host.ready(0)
        host.arms.clear()
        host.arms.plan(VERB, point, "kill")
        host.bed.stop_daemon()
        host.bed.config["pool"] = {"size": 1}
        host.bed.relaunch_daemon()
        until(lambda: host.arms.fired and not host.bed.daemon_running, what=f"it is killed at {point}")
        host.arms.disarm()
        host.bed.relaunch_daemon()
        (prepared,) = host.ready(1)
        pods = host.bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items
        assert not pods, point
        assert run_pod(host.bed) == prepared
        remove_pod(host.bed, prepared)
    host.empty()
