"""A containerd that is stopped, as by SIGSTOP: connected, and silent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks
from tests.e2e.test_outages import AWAY, SLEEP, answered, containerd, until_logged, warmed_up
from tests.pods import (
    container_config,
    container_status,
    create_container,
    pod_config,
    pod_status,
    refused,
    remove_pod,
    run_container,
    run_pod,
    shell,
    start_container,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.faults


def trouble(bed: Testbed) -> str:
    """Why the runtime is not ready, "" when it is."""
    status = bed.runtime.Status(cri.StatusRequest(), timeout=60).status
    (ready,) = (condition for condition in status.conditions if condition.type == "RuntimeReady")
    assert (ready.reason, bool(ready.message)) == (("", False) if ready.status else ("ContainerdUnavailable", True))
    return str(ready.message)


@contextmanager
def stopped(bed: Testbed) -> Iterator[None]:
    """A containerd that is stopped, and known to be."""
    pid = containerd(bed)
    bed.run(["kill", "-STOP", pid])
    try:
        yield
    finally:
        bed.run(["kill", "-CONT", pid])
        until(lambda: not trouble(bed), what="it is seen to answer again")


def test_a_containerd_that_is_stopped_is_noticed_and_nothing_that_it_cut_off_is_made_permanent(
    bed: Testbed, images: tuple[str, ...]
) -> None:
    before = warmed_up(bed)
    pod_id, leaving, config = run_pod(bed), run_pod(bed), pod_config()
    runs = run_container(bed, pod_id, container_config("runs", "busybox", SLEEP))
    waits = create_container(bed, pod_id, shell("echo waits; sleep 100000"))
    created = create_container(bed, leaving, shell("echo created; sleep 100000"))
    with ThreadPoolExecutor(2) as clients, stopped(bed):
        cut_off: list[Future[Any]] = [
            clients.submit(run_pod, bed, config),
            clients.submit(start_container, bed, waits),
        ]
        until(lambda: "has stopped answering" in trouble(bed), what="Status says so")

        # Refused at once: within a limit that is shorter than any of a call to containerd.
        with pytest.raises(grpc.RpcError) as refusal:
            bed.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=pod_config()), timeout=20)
        assert refused(refusal.value)[0] is grpc.StatusCode.UNAVAILABLE
        assert "has stopped answering" in refused(refusal.value)[1]
        with pytest.raises(grpc.RpcError) as refusal:
            bed.runtime.StartContainer(cri.StartContainerRequest(container_id=created), timeout=20)
        assert "has stopped answering" in refused(refusal.value)[1]
        with pytest.raises(grpc.RpcError) as refusal:
            bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=leaving), timeout=20)
        assert "has stopped answering" in refused(refusal.value)[1]
        assert container_status(bed, runs).state == cri.CONTAINER_RUNNING
        # Each ends with the limit of the one call that was under way.
        for request in cut_off:
            error = request.exception(timeout=150)
            assert error is not None and refused(error)[0] in AWAY
        assert pod_status(bed, leaving).state == cri.SANDBOX_READY, "nothing of it was stopped"
    for container_id, name in ((waits, "waits"), (created, "created")):
        assert container_status(bed, container_id).state != cri.CONTAINER_EXITED
        start_container(bed, container_id)
        assert container_status(bed, container_id).state == cri.CONTAINER_RUNNING
        until_logged(bed, container_id, name)
    remove_pod(bed, leaving)
    made = answered(bed, config)
    assert pod_status(bed, made).state == cri.SANDBOX_READY
    remove_pod(bed, made)
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)
