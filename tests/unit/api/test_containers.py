"""CRI's RPCs about containers, as far as the records answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import pytest

from sandboxd.api.containers import Containers
from sandboxd.errors import NotFound
from sandboxd.ledger import Ledger
from sandboxd.model import ContainerRecord, SandboxRecord
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri

POD, RUNNING, ENDED, CREATING = "d" * 64, "a" * 64, "b" * 64, "c" * 64


class Resources:
    """The resources that answer without containerd."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.runtime = self
        self.logs = self
        self.images = self
        self.reopened: list[str] = []

    async def spec(self, container_id: str) -> dict[str, Any]:
        return {"ociVersion": "1.1.0"}

    def resolve(self, reference: str) -> Any:
        raise NotFound(reference)

    async def reopen(self, container_id: str) -> None:
        self.reopened.append(container_id)


@pytest.fixture
def node() -> Iterator[Resources]:
    """A pod with a container of each kind."""
    ledger = Ledger(":memory:")
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="pod"))
    ledger.add_sandbox(SandboxRecord(id=POD, config=config, runtime_handler="", netns_path="", created_at=1))
    for identity, created_at, finished_at in ((RUNNING, 1, 0), (ENDED, 1, 3), (CREATING, 0, 0)):
        name = cri.ContainerMetadata(name=identity[0])
        ledger.add_container(
            ContainerRecord(
                id=identity,
                sandbox_id=POD,
                config=cri.ContainerConfig(metadata=name),
                sandbox_name="pod",
                image_ref="",
                image_id="",
                log_path="",
                created_at=created_at,
                started_at=2 * created_at,
                finished_at=finished_at,
            )
        )
    yield Resources(ledger)
    ledger.close()


@pytest.fixture
def containers(node: Resources) -> Containers:
    return Containers(cast(Node, node))


async def listed(containers: Containers, **fields: Any) -> list[str]:
    """The names in a list, which are those in its stream."""
    wanted = cri.ContainerFilter(**fields)
    whole = await containers.ListContainers(cri.ListContainersRequest(filter=wanted), None)
    parts = [part async for part in containers.StreamContainers(cri.StreamContainersRequest(filter=wanted), None)]
    assert [item for part in parts for item in part.containers] == list(whole.containers)
    return [item.metadata.name for item in whole.containers]


async def test_a_list_shows_what_matches_and_nothing_that_is_being_created(containers: Containers) -> None:
    assert await listed(containers) == ["a", "b"]
    assert await listed(containers, id="b", pod_sandbox_id="d") == ["b"]
    assert await listed(containers, pod_sandbox_id="e") == []
    assert await listed(containers, state=cri.ContainerStateValue(state=cri.CONTAINER_RUNNING)) == ["a"]
    assert await listed(containers, state=cri.ContainerStateValue(state=cri.CONTAINER_EXITED)) == ["b"]
    assert await listed(containers, label_selector={"app": "web"}) == []


async def test_what_changes_is_in_the_next_list(containers: Containers, node: Resources) -> None:
    assert await listed(containers) == ["a", "b"]
    node.ledger.update_container(RUNNING, finished_at=9)
    assert await listed(containers, state=cri.ContainerStateValue(state=cri.CONTAINER_EXITED)) == ["a", "b"]
    answer = await containers.ListContainers(cri.ListContainersRequest(), None)
    assert [item.state for item in answer.containers] == [cri.CONTAINER_EXITED] * 2

    node.ledger.remove_container(RUNNING)
    node.ledger.update_container(CREATING, created_at=4)
    assert await listed(containers) == ["b", "c"]


async def test_stopping_or_removing_the_unknown_succeeds(containers: Containers) -> None:
    await containers.StopContainer(cri.StopContainerRequest(container_id="f"), None)
    await containers.RemoveContainer(cri.RemoveContainerRequest(container_id="f"), None)


async def test_only_a_verbose_status_has_the_spec(containers: Containers) -> None:
    answer = await containers.ContainerStatus(cri.ContainerStatusRequest(container_id="a"), None)
    assert (answer.status.id, answer.status.state, dict(answer.info)) == (RUNNING, cri.CONTAINER_RUNNING, {})

    answer = await containers.ContainerStatus(cri.ContainerStatusRequest(container_id="a", verbose=True), None)
    assert json.loads(answer.info["info"])["runtimeSpec"] == {"ociVersion": "1.1.0"}


async def test_a_container_that_is_being_created_has_no_status_yet(containers: Containers) -> None:
    with pytest.raises(NotFound, match=f"container {CREATING} does not exist"):
        await containers.ContainerStatus(cri.ContainerStatusRequest(container_id=CREATING), None)


async def test_a_log_is_reopened_by_the_full_id(containers: Containers, node: Resources) -> None:
    await containers.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id="a"), None)
    assert node.reopened == [RUNNING]

    with pytest.raises(NotFound):
        await containers.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id="f"), None)
