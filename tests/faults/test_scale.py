"""A hundred pods, ten at a time, and the host exactly as before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.pods import container_config, pod_status, remove_pod, run_container, run_pod
from tests.testbed import Testbed

pytestmark = pytest.mark.faults

PODS, AT_ONCE = 100, 10


def test_a_hundred_pods_ten_at_a_time_leave_the_host_as_it_was(bed: Testbed, images: tuple[str, ...]) -> None:
    def make(_: int) -> tuple[str, str]:
        pod_id = run_pod(bed)
        run_container(bed, pod_id, container_config("main", "busybox", ["sleep", "1000"]))
        return pod_id, pod_status(bed, pod_id).network.ip

    remove_pod(bed, make(0)[0])
    before = observe(bed)
    with ThreadPoolExecutor(AT_ONCE) as clients:
        made = list(clients.map(make, range(PODS)))
        assert len({ip for _, ip in made}) == PODS
        listed = bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
        assert {item.id for item in listed} == {pod_id for pod_id, _ in made}
        assert all(item.state == cri.SANDBOX_READY for item in listed)
        list(clients.map(lambda pod: remove_pod(bed, pod[0]), made))
    assert not bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    assert_no_leaks(bed, before)
