"""What happened: a pod explained, the requests under way, and those that failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sandboxd import steps
from sandboxd.api.history import History
from sandboxd.errors import NotFound
from sandboxd.ledger import Ledger
from sandboxd.model import Attachment, AttachmentState, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2

POD, FAILED = "a" * 64, "b" * 64


class Netns:
    """One named namespace."""

    def inode(self, path: str) -> int:
        assert path == "/run/netns/a"
        return 42


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = Ledger(":memory:")
    metadata = cri.PodSandboxMetadata(name="web", namespace="default", uid="1")
    ledger.add_sandbox(
        SandboxRecord(
            id=POD,
            config=cri.PodSandboxConfig(metadata=metadata),
            runtime_handler="",
            netns_path="/run/netns/a",
            created_at=1,
        )
    )
    stop = steps.subscribe_failures(ledger.keep_story)
    yield ledger
    stop()
    ledger.close()


@pytest.fixture
def history(ledger: Ledger) -> History:
    netns: Any = Netns()
    return History(ledger, netns)


def fail(operation: str, subject: str, error: str, **ids: str) -> None:
    with (
        pytest.raises(ValueError, match=error),
        steps.operation(operation, subject=subject, **ids),
        steps.step("cni.add", plugin="bridge"),
    ):
        raise ValueError(error)


async def explain(history: History, reference: str) -> host_pb2.ExplainResponse:
    return await history.Explain(host_pb2.ExplainRequest(reference=reference), None)


async def test_explain_takes_a_prefix_and_shows_where_a_pod_is_connected(history: History, ledger: Ledger) -> None:
    """Also when a plugin's result makes no sense: it is shown as it is, without addresses."""
    ledger.put_attachment(
        Attachment(
            sandbox_id=POD, network="net", ifname="eth0", netns_path="", state=AttachmentState.ADDED, conf_file="f",
            config=b"{}", plugin_path="", args="", capability_args=b"{}", result=b"not a result",
        )
    )  # fmt: skip
    answer = await history.Explain(host_pb2.ExplainRequest(pod_sandbox_id="aa"), None)

    assert (answer.pod_sandbox_id, answer.netns_path, answer.netns_inode) == (POD, "/run/netns/a", 42)
    (attachment,) = answer.attachments
    assert (attachment.network, attachment.result, list(attachment.ips)) == ("net", b"not a result", [])


@pytest.mark.parametrize("reference", ["db", "prod/db", "b" * 12])
async def test_a_pod_that_could_not_be_made_is_explained_by_what_failed(history: History, reference: str) -> None:
    fail("RunPodSandbox", "prod/db", "no address left", sandbox_id=FAILED)
    answer = await explain(history, reference)
    assert answer.pod_sandbox_id == ""
    (failed,) = answer.operations
    assert (failed.operation, failed.subject, failed.error) == ("RunPodSandbox", "prod/db", "no address left")
    assert [(step.name, step.error) for step in failed.steps] == [("cni.add", "no address left")]


async def test_a_pod_that_exists_shows_what_failed_of_it_and_of_its_containers(history: History) -> None:
    fail("RunPodSandbox", "default/web", "the first try", sandbox_id=FAILED)
    fail("StartContainer", "default/web/nginx", "no such program", sandbox_id=POD, container_id="c" * 64)
    fail("RunPodSandbox", "default/webs", "another", sandbox_id="d" * 64)
    answer = await explain(history, "web")
    assert answer.pod_sandbox_id == POD
    assert [each.error for each in answer.operations] == ["no such program", "the first try"]
    for reference in ("nginx", "web/nginx", "c" * 12):
        (only,) = (await explain(history, reference)).operations
        assert only.error == "no such program"


async def test_an_image_that_could_not_be_pulled_is_explained(history: History) -> None:
    fail("PullImage", "docker.io/library/web:1", "unauthorized")
    (failed,) = (await explain(history, "docker.io/library/web:1")).operations
    assert failed.error == "unauthorized"


async def test_what_is_under_way_shows_what_it_has_done_and_what_it_waits_for(history: History) -> None:
    with steps.operation("RunPodSandbox", sandbox_id=FAILED, subject="default/slow"):
        with steps.step("pod.netns.create"):
            pass
        with steps.step("pod.network.attach"), steps.step("cni.add", plugin="bridge"):
            (running,) = (await explain(history, "slow")).operations
            listed = await history.ListOperations(host_pb2.ListOperationsRequest(), None)
    assert (running.duration, running.error) == (0, "")
    assert [step.name for step in running.steps] == ["pod.netns.create"]
    assert [(step.name, dict(step.detail)) for step in running.open] == [
        ("pod.network.attach", {}),
        ("cni.add", {"plugin": "bridge"}),
    ]
    assert [each.subject for each in listed.running] == ["default/slow"]
    assert steps.running() == ()


async def test_nothing_known_is_said(history: History) -> None:
    for reference in ("nosuch", "", "/"):
        with pytest.raises(NotFound, match="nothing is known of"):
            await explain(history, reference)


async def test_the_list_has_what_failed_newest_first_and_without_steps(history: History) -> None:
    fail("RunPodSandbox", "default/a", "one")
    fail("PullImage", "image", "two")
    failed = (await history.ListOperations(host_pb2.ListOperationsRequest(), None)).failed
    assert [(each.error, len(each.steps)) for each in failed] == [("two", 0), ("one", 0)]
