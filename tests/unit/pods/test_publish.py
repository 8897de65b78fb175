"""What a pod asks of its network and cannot get is refused or said, and never for its own predecessor."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd.cni.conf import NetworkConfig
from sandboxd.cni.request import IPS, MAC
from sandboxd.errors import NotReady, PluginFailed
from sandboxd.model import AttachmentState, Owed, SandboxState
from sandboxd.operations import hold
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import publish
from sandboxd.pods.teardown import remove_sandbox, stop_sandbox
from tests.fakes.bundle import Bundle, pod_config
from tests.fakes.points import Point
from tests.unit.pods.conftest import LogLines
from tests.unit.pods.requests import asked, done, on_host, run, turns

ALL = {"portMappings": True, "bandwidth": True, "ips": True, "mac": True}
BOUND = publish.bound
REFUSED = PluginFailed(plugin="bridge", command="DEL", code=11, msg="try again later")


def network(capabilities: dict[str, bool] | None) -> NetworkConfig:
    plugins: tuple[dict[str, Any], ...] = ({"type": "bridge"}, {"type": "last", "capabilities": capabilities})
    return NetworkConfig(name="pods", versions=("1.0.0",), plugins=plugins, source="10-pods.conflist")


@pytest.fixture(autouse=True)
def listening() -> Iterator[set[int]]:
    """The host ports that processes of the machine have; its own ports and addresses play no part here."""
    ports: set[int] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "bound", lambda entry: errno.EADDRINUSE if entry["hostPort"] in ports else 0)
        yield ports


@pytest.fixture(autouse=True)
def publishing(fakes: Bundle) -> None:
    """The network that pods get can do everything."""
    conf = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "capabilities": ALL}]}
    Path(fakes.config.network.conf_dir, "10-pods.conflist").write_text(json.dumps(conf))


def with_port(name: str = "web", *, host_ip: str = "", port: int = 8080, **fields: Any) -> cri.PodSandboxConfig:
    config = pod_config(name)
    config.port_mappings.add(container_port=80, host_port=port, host_ip=host_ip, **fields)
    return config


def annotated(name: str, value: str) -> cri.PodSandboxConfig:
    config = pod_config()
    config.annotations[name] = value
    return config


# Capabilities


@pytest.mark.parametrize(
    ("config", "capability"),
    [(with_port(), "portMappings"), (annotated("kubernetes.io/ingress-bandwidth", "10M"), "bandwidth")],
)
@pytest.mark.parametrize("declared", [None, {}, {"portMappings": False, "bandwidth": False}])
def test_what_no_plugin_can_do_is_said(
    fakes: Bundle, config: cri.PodSandboxConfig, capability: str, declared: dict[str, bool] | None
) -> None:
    (warning,) = publish.check(fakes.node, config, network(declared))

    assert f'"{capability}"' in warning and "10-pods.conflist" in warning
    assert publish.check(fakes.node, config, network(ALL)) == ()


@pytest.mark.parametrize("config", [annotated(IPS, "10.88.0.7"), annotated(MAC, "02:00:00:00:00:07")])
def test_an_address_that_no_plugin_can_give_is_refused(fakes: Bundle, config: cri.PodSandboxConfig) -> None:
    with pytest.raises(NotReady, match="no plugin of network"):
        publish.check(fakes.node, config, network({"portMappings": True}))

    assert publish.check(fakes.node, config, network(ALL)) == ()


def test_what_only_informs_plugins_needs_none(fakes: Bundle) -> None:
    config = annotated("any", "thing")
    config.dns_config.servers.append("192.0.2.1")
    config.port_mappings.add(container_port=80)

    assert publish.check(fakes.node, config, network(None)) == ()


async def test_what_is_dubious_is_in_the_record_the_timeline_and_the_log(fakes: Bundle, log_lines: LogLines) -> None:
    Path(fakes.config.network.conf_dir, "10-pods.conflist").write_text(
        '{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}'
    )

    record = await run(fakes, with_port(host_ip="::1"))

    assert record.state is SandboxState.READY
    first, second = record.warnings
    assert "portMappings" in first and "no IPv6 address" in second
    assert [line["reason"] for line in log_lines if "reason" in line] == [first, second]


# Other pods


OVERLAPS = [
    ({}, {}, True),
    ({"host_ip": "192.0.2.1"}, {}, True),
    ({"host_ip": "0.0.0.0"}, {"host_ip": "192.0.2.1"}, True),
    ({"host_ip": "::"}, {"host_ip": "0:0::1"}, True),
    ({"host_ip": "192.0.2.1"}, {"host_ip": "192.0.2.2"}, False),
    ({"host_ip": "0.0.0.0"}, {"host_ip": "::1"}, False),
    ({"protocol": cri.UDP}, {}, False),
    ({"protocol": cri.SCTP}, {"protocol": cri.SCTP}, True),
    ({"port": 8081}, {}, False),
]


@pytest.mark.parametrize(("first", "second", "overlap"), OVERLAPS)
async def test_a_host_port_that_another_pod_has_is_refused(
    fakes: Bundle, first: dict[str, Any], second: dict[str, Any], overlap: bool
) -> None:
    holder = await run(fakes, with_port(**first))
    if not overlap:
        await run(fakes, with_port("other", **second))
        return

    with pytest.raises(NotReady, match=f"is held by pod default/web/.* \\({holder.id}\\)"):
        await asked(fakes, with_port("other", **second))

    assert set(fakes.node.ledger.sandboxes) == {holder.id}
    await remove_sandbox(fakes.node, holder.id)
    await run(fakes, with_port("other", **second))


async def test_of_two_pods_that_are_made_at_once_one_gets_the_port(fakes: Bundle) -> None:
    fakes.points.hang(Point("netns.create", 0))
    first = asked(fakes, with_port())
    await fakes.points.hangs.wait()

    with pytest.raises(NotReady, match="is held by pod"):
        await asked(fakes, with_port("other"))

    await done(fakes, first)


async def test_a_pods_successor_is_not_refused_for_what_its_predecessor_still_has(fakes: Bundle) -> None:
    old = await run(fakes, with_port())
    again = with_port()
    again.metadata.attempt = 1

    record = await run(fakes, again)

    assert old.id in record.warnings[0] and "until that is stopped" in record.warnings[0]
    await stop_sandbox(fakes.node, old.id)
    recreated = with_port()
    recreated.metadata.uid = "another"
    await stop_sandbox(fakes.node, record.id)
    assert (await run(fakes, recreated)).warnings == ()


async def test_a_pod_that_has_ended_or_is_being_stopped_holds_nothing_back(fakes: Bundle) -> None:
    old = await run(fakes, with_port())
    fakes.node.ledger.update_sandbox(old.id, exited_at=1)
    assert "until that is stopped" in (await run(fakes, with_port("second"))).warnings[0]
    second = fakes.node.ledger.sandbox_named("default/second/uid-second/0")
    assert second
    async with hold(fakes.node, second.id):
        stopping = asyncio.ensure_future(stop_sandbox(fakes.node, second.id))
        await turns()

        third = await asked(fakes, with_port("third"))

    await stopping
    assert fakes.node.ledger.sandboxes[third].warnings


async def test_a_debt_may_still_lead_somewhere_and_is_named(fakes: Bundle, log_lines: LogLines) -> None:
    old = await run(fakes, with_port())
    fakes.points.fail_always("cni.delete", REFUSED)
    await remove_sandbox(fakes.node, old.id)

    record = await run(fakes, with_port("other"))

    assert old.id in record.warnings[0] and "owes a DEL" in record.warnings[0]


async def test_a_port_whose_plugin_has_done_its_del_leads_nowhere(fakes: Bundle) -> None:
    old = await run(fakes, with_port())
    (attachment,) = fakes.node.ledger.attachments_of(old.id)
    plugins: list[dict[str, Any]] = [{"type": "bridge"}, {"type": "portmap", "capabilities": ALL}]
    config = json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}).encode()
    fakes.node.ledger.update_sandbox(old.id, stopped_at=1)
    for position, words in ((1, "whose network owes a DEL"), (0, "")):
        owed = (Owed(position=position, plugin=plugins[position]["type"], error="not today", attempts=1),)
        fakes.node.ledger.put_attachment(
            replace(attachment, config=config, state=AttachmentState.OWED, attempts=1, owed=owed)
        )

        warnings = publish.check(fakes.node, with_port("other"), network(ALL))

        assert [words in warning for warning in warnings] == [True] * bool(words)


async def test_a_pod_in_the_hosts_network_is_told_that_nothing_maps_its_ports(fakes: Bundle) -> None:
    config = on_host()
    config.port_mappings.add(container_port=80, host_port=8080)
    config.port_mappings.add(container_port=81, host_port=81)
    config.port_mappings.add(container_port=82)

    (warning,) = (await run(fakes, config)).warnings

    assert "host port 8080/tcp does not lead to port 80" in warning


async def test_ports_of_pods_in_the_hosts_network_are_not_published(fakes: Bundle) -> None:
    config = on_host()
    config.port_mappings.add(container_port=8080, host_port=8080)
    await run(fakes, config)

    assert (await run(fakes, with_port("other"))).warnings == ()


async def test_a_damaged_record_holds_up_nobody(fakes: Bundle) -> None:
    node = fakes.with_records()
    (attachment,) = node.ledger.attachments
    for field, value in (("config", b"["), ("capability_args", b"[]"), ("config", b'{"plugins": [1]}')):
        node.ledger.put_attachment(type(attachment)(**{**_fields(attachment), field: value}))
        assert publish.check(node, with_port("other"), network(ALL)) == ()


def _fields(attachment: Any) -> dict[str, Any]:
    return {name: getattr(attachment, name) for name in attachment.__slots__}


# Processes


async def test_a_port_that_a_process_of_the_machine_has_is_said(fakes: Bundle, listening: set[int]) -> None:
    listening.add(8080)

    (warning,) = (await run(fakes, with_port())).warnings

    assert "a process of this machine has host port 8080/tcp" in warning


@pytest.mark.parametrize(
    ("family", "address", "kind", "protocol"),
    [
        (socket.AF_INET, "127.0.0.1", socket.SOCK_STREAM, "tcp"),
        (socket.AF_INET6, "::1", socket.SOCK_STREAM, "tcp"),
        (socket.AF_INET, "127.0.0.1", socket.SOCK_DGRAM, "udp"),
    ],
)
def test_a_port_is_in_use_while_a_process_has_it(family: int, address: str, kind: int, protocol: str) -> None:
    with socket.socket(family, kind) as holder:
        holder.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            holder.listen()
        port = holder.getsockname()[1]
        entry = {"protocol": protocol, "hostPort": port}
        assert BOUND({**entry, "hostIP": address}) == errno.EADDRINUSE
        assert BOUND(entry) == errno.EADDRINUSE
    assert not BOUND({**entry, "hostIP": address})


async def test_a_port_at_an_address_that_the_machine_does_not_have_is_said(fakes: Bundle) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "bound", BOUND)

        (warning,) = (await run(fakes, with_port(host_ip="192.0.2.1"))).warnings

    assert "host port 8080/tcp at 192.0.2.1 leads nowhere until this machine has that address" in warning


def test_looking_at_an_sctp_port_does_not_load_the_kernels_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "SCTP", "/nonexistent")

    def opened(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", opened)

    assert not BOUND({"protocol": "sctp", "hostPort": 8080})
