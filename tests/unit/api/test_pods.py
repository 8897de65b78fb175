"""CRI's RPCs about pods, as far as the records answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandboxd.api.pods import Pods
from sandboxd.errors import NotFound, Unavailable
from sandboxd.ledger import Ledger
from sandboxd.model import ContainerRecord, ImageRecord, SandboxRecord
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri

READY, STOPPED, CREATING = "a" * 64, "b" * 64, "c" * 64


async def no_pause_image() -> ImageRecord:
    raise AssertionError("no pod is run here")


class Runtime:
    """containerd is away."""

    async def spec(self, container_id: str) -> dict[str, Any]:
        raise Unavailable("containerd does not answer")


@pytest.fixture
def pods() -> Iterator[Pods]:
    """A pod of each kind; the first has a container, and one that is still being created."""
    ledger = Ledger(":memory:")
    for identity, times in (
        (READY, {"started_at": 2}), (STOPPED, {"started_at": 2, "stopped_at": 3}), (CREATING, {}),
    ):  # fmt: skip
        config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name=identity[0]))
        fields: dict[str, Any] = {"netns_path": "", "created_at": 1, **times}
        ledger.add_sandbox(SandboxRecord(id=identity, config=config, runtime_handler="", **fields))
    for number, created_at in enumerate((1, 0)):
        ledger.add_container(
            ContainerRecord(
                id=f"{number}" * 64,
                sandbox_id=READY,
                config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name=f"{number}")),
                sandbox_name="a",
                image_ref="",
                image_id="",
                log_path="",
                created_at=created_at,
            )
        )
    yield Pods(cast(Node, SimpleNamespace(ledger=ledger, runtime=Runtime())), no_pause_image)
    ledger.close()


async def listed(pods: Pods, **fields: Any) -> list[str]:
    """The names in a list, which are those in its stream."""
    wanted = cri.PodSandboxFilter(**fields)
    whole = await pods.ListPodSandbox(cri.ListPodSandboxRequest(filter=wanted), None)
    parts = [part async for part in pods.StreamPodSandboxes(cri.StreamPodSandboxesRequest(filter=wanted), None)]
    assert [item for part in parts for item in part.pod_sandboxes] == list(whole.items)
    return [item.metadata.name for item in whole.items]


async def test_a_list_shows_what_matches_and_nothing_that_is_being_created(pods: Pods) -> None:
    assert await listed(pods) == ["a", "b"]
    assert await listed(pods, id="b") == ["b"]
    assert await listed(pods, state=cri.PodSandboxStateValue(state=cri.SANDBOX_READY)) == ["a"]
    assert await listed(pods, state=cri.PodSandboxStateValue(state=cri.SANDBOX_NOTREADY)) == ["b"]
    assert await listed(pods, label_selector={"app": "web"}) == []


async def test_stopping_or_removing_the_unknown_succeeds(pods: Pods) -> None:
    await pods.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id="f"), None)
    await pods.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id="f"), None)


async def test_a_status_has_the_containers_that_were_created(pods: Pods) -> None:
    answer = await pods.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id="a"), None)

    assert answer.status.id == READY
    assert [each.id for each in answer.containers_statuses] == ["0" * 64]
    assert not answer.info
    with pytest.raises(NotFound):
        await pods.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id="f"), None)


async def test_a_verbose_status_that_lacks_the_spec_is_better_than_none(pods: Pods) -> None:
    answer = await pods.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id="a", verbose=True), None)

    info = json.loads(answer.info["info"])
    assert info["state"] == "ready"
    assert "runtimeSpec" not in info
