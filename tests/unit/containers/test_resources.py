"""Limits and changes to them: what becomes of the request and of the spec. The rest is in tests/e2e."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxd.containers.resources import merged, updated_spec
from sandboxd.pb.cri.v1 import api_pb2 as cri


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
