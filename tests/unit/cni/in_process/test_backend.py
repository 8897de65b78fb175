"""One execution without a process."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from sandboxd.cni.in_process import backend, bridge, dialects, host_local
from sandboxd.cni.in_process.host_local import Cancelled
from sandboxd.cni.in_process.ranges import Odd
from sandboxd.cni.in_process.words import Failed
from sandboxd.model import IN_PROCESS
from sandboxd.steps import PluginExecution

IPAM = {"type": "host-local", "subnet": "10.99.0.0/24"}
BRIDGE = {"cniVersion": "1.0.0", "name": "pods", "type": "bridge", "ipam": IPAM}
PORTMAP = {"cniVersion": "1.0.0", "name": "pods", "type": "portmap", "prevResult": {"cniVersion": "1.0.0", "dns": {}}}


def env(command: str) -> dict[str, str]:
    return {"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_NETNS": "", "CNI_IFNAME": "eth0", "PATH": ""}


async def run(command: str, conf: dict[str, Any], timeout: float = 30, **more: Any) -> PluginExecution:
    stdin = json.dumps(conf).encode()
    return await backend.run("/bin/x", env(command), stdin, timeout, dialect=dialects.OLD, **more)


async def test_without_host_ports_there_is_nothing_to_do() -> None:
    done = await run("ADD", PORTMAP)

    assert json.loads(done.stdout) == PORTMAP["prevResult"]
    assert (done.exit_code, done.binary, done.backend, done.command) == (0, "/bin/x", IN_PROCESS, "ADD")
    assert (await run("DEL", PORTMAP)).stdout == b""


@pytest.mark.parametrize(
    ("command", "conf"),
    [
        ("CHECK", BRIDGE),
        ("ADD", {**BRIDGE, "vlan": 5}),
        ("ADD", {**BRIDGE, "ipMasq": True}),  # and no iptables in PATH
        ("ADD", {key: value for key, value in PORTMAP.items() if key != "prevResult"}),
    ],
)
async def test_what_is_the_plugins_is_refused_before_anything_is_done(command: str, conf: dict[str, Any]) -> None:
    with pytest.raises(Odd):
        await run(command, conf)


async def test_a_failure_is_recorded_as_the_plugin_would_have_printed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise Failed("no luck")

    monkeypatch.setattr(bridge, "prepare", fail)

    done = await run("ADD", BRIDGE)

    assert done.exit_code == 1
    assert json.loads(done.stdout) == {"code": 999, "msg": "no luck"}


async def test_when_its_time_is_over_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def hang(_conf: object, _pod: object, _dialect: object, given_up: threading.Event) -> None:
        assert given_up.wait(60)
        ended.set()
        raise Cancelled

    monkeypatch.setattr(bridge, "prepare", hang)

    done = await run("ADD", BRIDGE, 0.01)

    assert ended.is_set()
    assert (done.timed_out, done.exit_code, done.ended_by) == (True, -9, "sandboxd")


async def test_what_is_cancelled_has_ended_and_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hang(_conf: object, _pod: object, _dialect: object, given_up: threading.Event) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert given_up.wait(60)
        ended.set()
        raise Cancelled

    monkeypatch.setattr(bridge, "prepare", hang)
    cut: list[PluginExecution] = []
    running = asyncio.ensure_future(run("ADD", BRIDGE, cut_off=cut.append))
    await begun.wait()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert ended.is_set()
    assert [each.ended_by for each in cut] == ["sandboxd"]


async def test_the_address_is_released_once_nothing_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pod may have it a moment later."""
    order: list[str] = []
    monkeypatch.setattr(bridge, "disconnect", lambda *_: order.append("disconnected"))
    monkeypatch.setattr(host_local.Store, "release", lambda *_: order.append("released"))
    stdin = json.dumps(BRIDGE).encode()

    await backend.run("/bin/x", env("DEL") | {"CNI_NETNS": "/run/netns/p"}, stdin, 30, dialect=dialects.OLD)

    assert order == ["disconnected", "released"]
