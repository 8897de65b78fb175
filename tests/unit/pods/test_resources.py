"""A pod's resources are noted as its client has set them; what the client leaves out stays."""

from __future__ import annotations

import asyncio

import pytest

from sandboxd import steps
from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods.resources import update_sandbox
from tests.fakes.bundle import Bundle
from tests.unit.pods.conftest import RunPod

SMALL = cri.LinuxContainerResources(cpu_shares=512)
BIG = cri.LinuxContainerResources(cpu_shares=2048, memory_limit_in_bytes=1 << 30)
NONSENSE = cri.LinuxContainerResources(cpu_period=-1)


@pytest.fixture
async def pod(run_pod: RunPod) -> str:
    return await run_pod()


def linux(fakes: Bundle, pod: str) -> cri.LinuxPodSandboxConfig:
    return fakes.node.ledger.sandboxes[pod].config.linux


def asking(
    *, overhead: cri.LinuxContainerResources | None = None, resources: cri.LinuxContainerResources | None = None
) -> cri.UpdatePodSandboxResourcesRequest:
    return cri.UpdatePodSandboxResourcesRequest(overhead=overhead, resources=resources)


async def test_resources_and_overhead_are_noted(fakes: Bundle, pod: str) -> None:
    await update_sandbox(fakes.node, pod, asking(overhead=SMALL, resources=BIG))

    assert (linux(fakes, pod).overhead, linux(fakes, pod).resources) == (SMALL, BIG)


async def test_what_is_absent_stays(fakes: Bundle, pod: str) -> None:
    await update_sandbox(fakes.node, pod, asking(overhead=SMALL, resources=BIG))

    await update_sandbox(fakes.node, pod, asking(resources=SMALL))
    assert (linux(fakes, pod).overhead, linux(fakes, pod).resources) == (SMALL, SMALL)

    await update_sandbox(fakes.node, pod, asking(overhead=BIG))
    assert (linux(fakes, pod).overhead, linux(fakes, pod).resources) == (BIG, SMALL)

    await update_sandbox(fakes.node, pod, asking())
    assert (linux(fakes, pod).overhead, linux(fakes, pod).resources) == (BIG, SMALL)


async def test_what_is_present_replaces_what_there_was_whole(fakes: Bundle, pod: str) -> None:
    await update_sandbox(fakes.node, pod, asking(resources=BIG))
    await update_sandbox(fakes.node, pod, asking(resources=SMALL))

    assert not linux(fakes, pod).resources.memory_limit_in_bytes


async def test_the_rest_of_the_configuration_stays_and_earlier_records_do_not_change(fakes: Bundle, pod: str) -> None:
    before = fakes.node.ledger.sandboxes[pod]
    bytes_before = before.config.SerializeToString(deterministic=True)

    await update_sandbox(fakes.node, pod, asking(resources=BIG))

    expected = cri.PodSandboxConfig()
    expected.CopyFrom(before.config)
    expected.linux.resources.CopyFrom(BIG)
    assert fakes.node.ledger.sandboxes[pod].config == expected
    assert before.config.SerializeToString(deterministic=True) == bytes_before, "a record is immutable"


async def test_nothing_but_the_record_changes(fakes: Bundle, pod: str) -> None:
    """The pod's cgroup is the client's."""
    left = fakes.left()

    await update_sandbox(fakes.node, pod, asking(resources=BIG))

    assert fakes.left() == left
    assert not fakes.points.passed


async def test_a_pod_that_is_not_there_is_not_found(fakes: Bundle) -> None:
    with pytest.raises(NotFound, match="pod 000 does not exist"):
        await update_sandbox(fakes.node, "000", asking(resources=BIG))


async def test_resources_that_no_pod_can_have_are_refused_and_not_noted(fakes: Bundle, pod: str) -> None:
    before = fakes.node.ledger.sandboxes[pod]

    with pytest.raises(InvalidRequest, match=r"config\.linux\.resources\."):
        await update_sandbox(fakes.node, pod, asking(overhead=SMALL, resources=NONSENSE))

    assert fakes.node.ledger.sandboxes[pod] == before


async def test_it_waits_for_what_is_under_way_with_the_pod(fakes: Bundle, pod: str) -> None:
    async with fakes.node.jobs.exclusive(pod):
        updating = asyncio.ensure_future(update_sandbox(fakes.node, pod, asking(resources=BIG)))
        for _ in range(10):  # in which it would be done, did it not wait
            await asyncio.sleep(0)
        assert not linux(fakes, pod).HasField("resources")
    await updating

    assert linux(fakes, pod).resources == BIG


async def test_two_different_requests_at_once_are_both_noted(fakes: Bundle, pod: str) -> None:
    await asyncio.gather(
        update_sandbox(fakes.node, pod, asking(overhead=SMALL)),
        update_sandbox(fakes.node, pod, asking(resources=BIG)),
    )

    assert (linux(fakes, pod).overhead, linux(fakes, pod).resources) == (SMALL, BIG)


async def test_it_is_a_step_in_the_pods_timeline(fakes: Bundle, pod: str) -> None:
    records: list[steps.StepRecord] = []
    stop = steps.subscribe(records.append)

    await update_sandbox(fakes.node, pod, asking(resources=BIG))
    stop()

    (step,) = records
    assert (step.operation, step.name, step.sandbox_id, step.error) == (
        "UpdatePodSandboxResources",
        "pod.update",
        pod,
        "",
    )
    assert step.detail == {"pod": fakes.node.ledger.sandboxes[pod].name}
