"""What the runtime says of itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandboxd import config as configuration
from sandboxd.api.runtime import LOOK_SECONDS, Runtime
from sandboxd.errors import InvalidRequest
from sandboxd.ledger import Ledger
from sandboxd.machine import handlers, room
from sandboxd.node import Node, Stock
from sandboxd.pb.cri.v1 import api_pb2 as cri

NETWORK = SimpleNamespace(name="net", source="/etc/cni/10.conflist", plugins=({"type": "bridge"},))
PROBLEM = SimpleNamespace(path="/etc/cni/20.conf", text="not JSON")


def runtime(
    monkeypatch: pytest.MonkeyPatch,
    network: Any,
    *problems: Any,
    trouble: str = "",
    shortage: str = "",
    able: list[bool] | None = None,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> Runtime:
    """The RPCs on a machine whose handlers have all features, or those that `able` has at the time."""

    async def features(node: Node, handler: Any) -> Any:
        has = all(able or ())
        return SimpleNamespace(recursive_read_only=has, user_namespaces=has)

    monkeypatch.setattr(handlers, "features", features)
    config = configuration.merge({"runtime": settings}, origin="the test", flags={})
    choice = SimpleNamespace(config=network, problems=problems)
    conf = SimpleNamespace(current=lambda: choice)
    monkeypatch.setattr(room, "shortage", lambda node: shortage)
    machine = SimpleNamespace(stock=Stock())
    node = SimpleNamespace(
        config=config, ledger=Ledger(":memory:"), network=SimpleNamespace(conf=conf), machine=machine
    )
    return Runtime(cast(Node, node), lambda: trouble, clock)


async def conditions(subject: Runtime) -> dict[str, tuple[bool, str, str]]:
    answer = await subject.Status(cri.StatusRequest(), None)
    return {each.type: (each.status, each.reason, each.message) for each in answer.status.conditions}


async def test_a_machine_with_containerd_and_a_network_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = runtime(monkeypatch, NETWORK)

    assert await conditions(subject) == {
        "RuntimeReady": (True, "", ""), "NetworkReady": (True, "", ""), "DiskReady": (True, "", ""),
    }  # fmt: skip
    assert not (await subject.Status(cri.StatusRequest(), None)).info


async def test_what_is_not_ready_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = runtime(monkeypatch, NETWORK, trouble="containerd does not answer")
    assert (await conditions(lost))["RuntimeReady"] == (
        False, "ContainerdUnavailable", "containerd does not answer",
    )  # fmt: skip

    empty = await conditions(runtime(monkeypatch, None))
    assert empty["NetworkReady"] == (
        False, "NetworkNotConfigured", "no network configuration in /etc/cni/net.d",
    )  # fmt: skip

    broken = await conditions(runtime(monkeypatch, None, PROBLEM))
    assert broken["NetworkReady"] == (False, "NetworkNotConfigured", "/etc/cni/20.conf: not JSON")


async def test_a_full_disk_is_a_condition_of_its_own_since_kubelet_removes_no_pods_from_a_runtime_that_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = await conditions(runtime(monkeypatch, NETWORK, shortage="/var/lib is full"))
    assert full["DiskReady"] == (False, "NoRoom", "/var/lib is full")
    assert full["RuntimeReady"] == (True, "", "")


async def test_a_faulty_file_beside_a_good_one_is_reported_and_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await conditions(runtime(monkeypatch, NETWORK, PROBLEM)))["NetworkReady"] == (
        True, "", "/etc/cni/20.conf: not JSON",
    )  # fmt: skip


async def test_a_verbose_status_shows_the_network_and_what_is_owed(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = await runtime(monkeypatch, NETWORK).Status(cri.StatusRequest(verbose=True), None)

    assert set(answer.info) == {"config", "network", "pool", "quarantine"}
    assert json.loads(answer.info["network"]) == {
        "name": "net", "file": "/etc/cni/10.conflist", "plugins": ["bridge"], "problems": [], "debts": [],
    }  # fmt: skip
    assert json.loads(answer.info["pool"]) == {"size": 0, "ready": [], "hits": 0, "misses": {}, "trouble": ""}


async def test_the_default_handler_is_offered_under_the_empty_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = await runtime(monkeypatch, NETWORK).Status(cri.StatusRequest(), None)

    assert [each.name for each in answer.runtime_handlers] == ["", "runc"]
    assert answer.features.user_namespaces_host_network


async def test_what_runtimes_offer_is_looked_at_again_after_a_moment_and_conditions_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, able = [0.0], [True]
    subject = runtime(monkeypatch, NETWORK, able=able, clock=lambda: now[0])

    async def status() -> tuple[list[bool], str]:
        answer = await subject.Status(cri.StatusRequest(), None)
        offered = {each.features.user_namespaces for each in answer.runtime_handlers}
        offered.add(answer.features.user_namespaces_host_network)
        assert answer.features.supplemental_groups_policy
        return sorted(offered), answer.status.conditions[2].message

    assert await status() == ([True], "")
    able[0] = False
    monkeypatch.setattr(room, "shortage", lambda node: "full")
    now[0] = LOOK_SECONDS / 2
    assert await status() == ([True], "full")
    now[0] = LOOK_SECONDS
    assert await status() == ([False], "full")


@pytest.mark.parametrize(("driver", "value"), [("cgroupfs", cri.CGROUPFS), ("systemd", cri.SYSTEMD)])
async def test_the_cgroup_driver_is_the_configured_one(
    monkeypatch: pytest.MonkeyPatch, driver: str, value: cri.CgroupDriver.ValueType
) -> None:
    subject = runtime(monkeypatch, NETWORK, cgroup_driver=driver)

    assert (await subject.RuntimeConfig(cri.RuntimeConfigRequest(), None)).linux.cgroup_driver == value


async def test_a_pod_cidr_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    request = cri.UpdateRuntimeConfigRequest(
        runtime_config=cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr="nonsense"))
    )
    with pytest.raises(InvalidRequest):
        await runtime(monkeypatch, NETWORK).UpdateRuntimeConfig(request, None)


async def test_the_version_is_the_one_that_clients_compare_with(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = await runtime(monkeypatch, NETWORK).Version(cri.VersionRequest(), None)

    assert (answer.version, answer.runtime_name, answer.runtime_api_version) == ("0.1.0", "sandboxd", "v1")
