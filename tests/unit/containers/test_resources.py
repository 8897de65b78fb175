"""Limits and changes to them: what becomes of the request and of the spec. The rest is in tests/e2e."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sandboxd.containers.create import create_container
from sandboxd.containers.resources import earlier_limits, merged, update_container, updated_spec
from sandboxd.containers.start import start_container
from sandboxd.errors import NotReady
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.fakes.bundle import Bundle, container_config


def limits(**values: Any) -> cri.LinuxContainerResources:
    return cri.LinuxContainerResources(**values)


def pages(size: str, limit: int) -> cri.HugepageLimit:
    return cri.HugepageLimit(page_size=size, limit=limit)


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        (limits(cpu_shares=2), limits(), limits(cpu_shares=2)),
        (limits(cpu_shares=2), limits(cpu_shares=3), limits(cpu_shares=3)),
        (limits(cpu_quota=5000), limits(cpu_quota=-1), limits(cpu_quota=-1)),
        (limits(cpu_shares=2), limits(cpuset_cpus="0"), limits(cpu_shares=2, cpuset_cpus="0")),
        (
            limits(unified={"memory.high": "1", "memory.low": "2"}),
            limits(unified={"memory.high": "9"}),
            limits(unified={"memory.high": "9", "memory.low": "2"}),
        ),
        (
            limits(hugepage_limits=[pages("2MB", 1), pages("1GB", 2)]),
            limits(hugepage_limits=[pages("2MB", 0)]),
            limits(hugepage_limits=[pages("1GB", 2), pages("2MB", 0)]),
        ),
    ],
)
def test_what_is_not_specified_stays(
    before: cri.LinuxContainerResources, wanted: cri.LinuxContainerResources, after: cri.LinuxContainerResources
) -> None:
    unchanged = before.SerializeToString(deterministic=True)
    assert merged(before, wanted) == after
    assert before.SerializeToString(deterministic=True) == unchanged


def test_the_spec_changes_in_its_limits_alone() -> None:
    devices = [{"allow": False, "access": "rwm"}]
    spec: dict[str, Any] = {
        "process": {"args": ["x"], "oomScoreAdj": 1},
        "linux": {"resources": {"devices": devices, "cpu": {"shares": 2, "quota": 3}, "pids": {"limit": 9}}},
    }
    now = updated_spec(spec, {"cpu": {"quota": 7}, "memory": {"limit": 8}, "hugepageLimits": [{"limit": 1}]}, 5)
    assert now == {
        "process": {"args": ["x"], "oomScoreAdj": 5},
        "linux": {
            "resources": {
                "devices": devices,
                "cpu": {"shares": 2, "quota": 7},
                "pids": {"limit": 9},
                "memory": {"limit": 8},
                "hugepageLimits": [{"limit": 1}],
            }
        },
    }
    assert spec["linux"]["resources"]["cpu"] == {"shares": 2, "quota": 3}, "the old one is kept for the way back"
    assert updated_spec(spec, {}, 0) == spec


def test_earlier_limits_are_those_of_the_spec_and_none_where_it_has_none() -> None:
    spec = {"linux": {"resources": {"cpu": {"quota": 20_000, "shares": 2}, "unified": {"memory.high": "1"}}}}
    wanted = {
        "cpu": {"quota": 40_000, "cpus": "4096"},
        "memory": {"limit": 1, "swap": 1},
        "unified": {"memory.high": "2"},
    }
    assert earlier_limits(spec, wanted) == {
        "cpu": {"quota": 20_000},
        "memory": {"limit": -1, "swap": -1},
        "unified": {"memory.high": "1"},
    }


async def test_limits_that_the_runtime_set_before_it_refused_another_are_set_back(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod_id = await fakes.ready_pod()
    container_id = await create_container(fakes.node, pod_id, container_config())
    await start_container(fakes.node, container_id)
    await update_container(fakes.node, container_id, limits(cpu_quota=20_000))
    whole = fakes.runtime.update
    refused: list[Mapping[str, Any]] = []

    async def update(task: str, resources: Mapping[str, Any]) -> None:
        await whole(task, resources)
        if not refused:
            refused.append(resources)
            raise NotReady("cpuset.cpus: invalid argument")

    monkeypatch.setattr(fakes.runtime, "update", update)
    with pytest.raises(NotReady, match=r"cpuset\.cpus"):
        await update_container(fakes.node, container_id, limits(cpu_quota=40_000, cpuset_cpus="4096"))
    assert fakes.runtime.task(container_id).limits["cpu"]["quota"] == 20_000
