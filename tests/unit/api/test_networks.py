"""What there is of a pod's network now, asked over the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandboxd import network_state
from sandboxd.api.networks import Networks
from sandboxd.errors import NotFound
from sandboxd.machine import network_look
from sandboxd.network_state import HOST, POD, State, Thing
from sandboxd.pb.host.v1 import host_pb2
from sandboxd.pods.teardown import stop_sandbox
from tests.fakes.bundle import Bundle


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with Bundle(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(subject: network_look.Subject) -> State:
        things = [
            Thing(place=POD, kind="link", name="eth0", fields={"mtu": "1500"}),
            Thing(place=HOST, kind="rule", name=f"iptables nat X {subject.pod_id}"),
            Thing(place=HOST, kind="link", name="stranger"),
        ]
        return network_state.state(things, {(HOST, "file"): "not now", (HOST, "sysctl"): "not now"})

    monkeypatch.setattr(network_look, "look", look)


def asked(pod_id: str) -> host_pb2.PodNetworkRequest:
    return host_pb2.PodNetworkRequest(pod_sandbox_id=pod_id)


async def test_what_is_the_pods_is_told_and_what_could_not_be_seen(fakes: Bundle) -> None:
    pod_id = await fakes.ready_pod()

    answer = await Networks(fakes.node.ledger).PodNetwork(asked(pod_id), None)

    assert [(each.place, each.kind, dict(each.fields), each.belongs_to) for each in answer.things] == [
        ("pod", "link", {"mtu": "1500"}, "pod"),
        ("host", "rule", {}, "pod"),
    ]
    assert list(answer.unseen) == ["not now"]


async def test_nothing_is_there_of_a_pod_that_is_stopped(fakes: Bundle) -> None:
    pod_id = await fakes.ready_pod()
    await stop_sandbox(fakes.node, pod_id)
    assert await Networks(fakes.node.ledger).PodNetwork(asked(pod_id), None) == host_pb2.PodNetworkResponse()


async def test_a_pod_that_does_not_exist_is_an_error(fakes: Bundle) -> None:
    with pytest.raises(NotFound):
        await Networks(fakes.node.ledger).PodNetwork(asked("f" * 64), None)
