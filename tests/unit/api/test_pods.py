"""CRI's RPCs about pods, as far as the records answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandboxd.api.pods import Pods
from sandboxd.config import Config, Daemon
from sandboxd.errors import NotFound, Unavailable
from sandboxd.ledger import Ledger
from sandboxd.model import ContainerRecord, ImageRecord, SandboxRecord
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import Places

READY, STOPPED, CREATING = "a" * 64, "b" * 64, "c" * 64


async def no_pause_image() -> ImageRecord:
    raise AssertionError("no pod is run here")


class Runtime:
    """containerd is away, until there is a spec."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    async def spec(self, container_id: str) -> dict[str, Any]:
        if not self.known:
            raise Unavailable("containerd does not answer")
        return self.known


class Images:
    """One image."""

    def resolve(self, reference: str) -> Any:
        if reference != "pause":
            raise NotFound(reference)
        return SimpleNamespace(name="sha256:1", records=("localhost/pause:1",))


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
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
    settings = Config(daemon=Daemon(root=str(tmp_path / "root"), state=str(tmp_path / "state")))
    node = SimpleNamespace(
        ledger=ledger, runtime=Runtime(), images=Images(), config=settings, places=Places.of(settings)
    )
    yield Pods(cast(Node, node), no_pause_image)
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


async def test_what_changes_is_in_the_next_list(pods: Pods) -> None:
    assert await listed(pods) == ["a", "b"]
    ledger = pods._node.ledger
    ledger.update_sandbox(READY, exited_at=9)
    assert await listed(pods, state=cri.PodSandboxStateValue(state=cri.SANDBOX_NOTREADY)) == ["a", "b"]
    answer = await pods.ListPodSandbox(cri.ListPodSandboxRequest(), None)
    assert [item.state for item in answer.items] == [cri.SANDBOX_NOTREADY] * 2

    ledger.remove_sandbox(STOPPED)
    ledger.update_sandbox(CREATING, started_at=4)
    assert await listed(pods) == ["a", "c"]


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


async def test_a_verbose_status_says_what_it_takes_to_look_at_the_pod_with_other_tools(pods: Pods) -> None:
    node: Any = pods._node
    node.runtime.known = {"annotations": {"io.kubernetes.cri.podsandbox.image-name": "pause"}}
    files = Path(node.places.pod_files(READY))
    files.mkdir(parents=True)
    (files / "hosts").write_text("127.0.0.1 localhost\n")
    (files / "hostname").symlink_to("/etc/hostname")
    (files / "resolv.conf").write_bytes(b"x" * ((64 << 10) + 1))
    answer = await pods.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id="a", verbose=True), None)

    info = json.loads(answer.info["info"])
    assert info["containerd"] == {
        "address": node.config.containerd_socket,
        "namespace": "sandboxd",
        "snapshotter": "overlayfs",
        "runtimeType": "io.containerd.runc.v2",
        "runtimeBinary": "",
    }
    assert info["imageName"] == "localhost/pause:1"
    assert info["files"] == {f"{files}/hosts": "127.0.0.1 localhost\n"}, "a link and a long file are left out"


async def test_a_verbose_status_of_a_pod_whose_handler_is_not_configured_any_more_is_one(pods: Pods) -> None:
    ledger = pods._node.ledger
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="d"))
    ledger.add_sandbox(
        SandboxRecord(id="d" * 64, config=config, runtime_handler="lost", netns_path="", created_at=1, started_at=2)
    )
    answer = await pods.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id="d", verbose=True), None)
    assert "runtimeType" not in json.loads(answer.info["info"])["containerd"]
