"""The RPCs about debts, on a node that has some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog

from sandboxd.api.debts import Debts
from sandboxd.errors import CleanupIncomplete, InvalidRequest, NotFound, PluginFailed
from sandboxd.pb.host.v1 import host_pb2
from sandboxd.pods.teardown import remove_sandbox, stop_sandbox
from tests.fakes.bundle import Bundle, pod_config

REFUSED = PluginFailed(plugin="bridge", command="DEL", code=7, msg="this key is unknown now")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with Bundle(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
async def owing(fakes: Bundle) -> tuple[str, str]:
    """The ids of a pod that is stopped and of one that is removed; both owe a DEL."""
    stopped, removed = await fakes.ready_pod(pod_config("db")), await fakes.ready_pod(pod_config("web"))
    await fakes.settled()
    fakes.points.reset()
    fakes.points.fail_always("cni.delete", REFUSED)
    with structlog.testing.capture_logs():
        await stop_sandbox(fakes.node, stopped)
        await remove_sandbox(fakes.node, removed)
    return stopped, removed


async def listed(subject: Debts) -> list[host_pb2.Debt]:
    return list((await subject.ListDebts(host_pb2.ListDebtsRequest(), None)).debts)


async def test_a_debt_says_all_that_is_known_of_it(fakes: Bundle, owing: tuple[str, str]) -> None:
    first, second = await listed(Debts(fakes.node))

    assert [(each.pod_sandbox_id, each.pod, each.pod_exists) for each in (first, second)] == [
        (owing[0], "default/db", True),
        (owing[1], "default/web", False),
    ]
    assert (second.network, second.ifname, list(second.ips)) == ("pods", "eth0", ["10.88.0.2"])
    assert second.netns_path == fakes.places.network_namespace(owing[1])
    assert [(each.plugin, each.error, each.attempts) for each in second.plugins] == [("bridge", str(REFUSED), 1)]
    assert (second.error, second.attempts) == (str(REFUSED), 1)
    assert 0 < second.failed_at == second.tried_at <= second.next_at


async def test_a_retry_pays_or_says_why_not(fakes: Bundle, owing: tuple[str, str]) -> None:
    subject, request = Debts(fakes.node), host_pb2.RetryDebtRequest(pod_sandbox_id=owing[1][:20])
    with structlog.testing.capture_logs(), pytest.raises(CleanupIncomplete, match="this key is unknown now"):
        await subject.RetryDebt(request, None)
    fakes.points.reset()

    assert await subject.RetryDebt(request, None) == host_pb2.RetryDebtResponse()

    assert [each.pod_sandbox_id for each in await listed(subject)] == [owing[0]]


async def test_forgiving_answers_with_what_was_forgiven(fakes: Bundle, owing: tuple[str, str]) -> None:
    subject = Debts(fakes.node)
    with structlog.testing.capture_logs():
        answer = await subject.ForgiveDebt(host_pb2.ForgiveDebtRequest(pod_sandbox_id=owing[0]), None)

    assert [(each.pod, list(each.ips)) for each in answer.forgiven] == [("default/db", ["10.88.0.2"])]
    assert [each.pod_sandbox_id for each in await listed(subject)] == [owing[1]]
    assert owing[0] in fakes.node.ledger.sandboxes, "the pod is there until it is removed"


@pytest.mark.parametrize("text", ["f" * 64, "nonsense"])
async def test_a_pod_that_owes_nothing_is_not_found(fakes: Bundle, owing: tuple[str, str], text: str) -> None:
    subject = Debts(fakes.node)
    with pytest.raises(NotFound):
        await subject.RetryDebt(host_pb2.RetryDebtRequest(pod_sandbox_id=text), None)
    with pytest.raises(NotFound):
        await subject.ForgiveDebt(host_pb2.ForgiveDebtRequest(pod_sandbox_id=text), None)
    assert len(await listed(subject)) == 2


async def test_a_prefix_of_two_ids_forgives_neither(fakes: Bundle, owing: tuple[str, str]) -> None:
    subject = Debts(fakes.node)
    with pytest.raises((NotFound, InvalidRequest)):
        await subject.ForgiveDebt(host_pb2.ForgiveDebtRequest(pod_sandbox_id=""), None)
    assert len(await listed(subject)) == 2
