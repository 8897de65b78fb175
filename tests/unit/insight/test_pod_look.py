"""When there is nothing of a pod to look at, and what of its records counts; the rest needs a kernel."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sandboxd.errors import NotReady
from sandboxd.insight import pod_look
from sandboxd.insight.evidence import Port, Severity
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.fakes.bundle import Bundle


async def test_a_pod_that_does_not_run_cannot_be_looked_at(fakes: Bundle) -> None:
    sandbox = fakes.node.ledger.sandboxes[await fakes.ready_pod()]

    (check,) = await pod_look.examined(fakes.node, replace(sandbox, exited_at=1))

    assert (check.severity, check.name) == (Severity.UNKNOWN, "network")


async def test_a_pod_in_the_machines_network_is_the_machines(fakes: Bundle) -> None:
    sandbox = fakes.node.ledger.sandboxes[await fakes.ready_pod()]

    (check,) = await pod_look.examined(fakes.node, replace(sandbox, netns_path=""))

    assert check.severity is Severity.INFO
    assert "`sandboxctl doctor`" in check.says


async def test_a_namespace_that_is_not_where_it_was_is_an_error_with_a_command(fakes: Bundle) -> None:
    sandbox = fakes.node.ledger.sandboxes[await fakes.ready_pod()]
    fakes.netns.pinned.clear()

    (check,) = await pod_look.examined(fakes.node, sandbox)

    assert (check.severity, check.commands) == (Severity.ERROR, ("sandboxctl audit --repair",))


async def test_what_cannot_be_read_or_takes_too_long_is_said(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = fakes.node.ledger.sandboxes[await fakes.ready_pod()]

    async def refuses(*args: object) -> None:
        raise NotReady("no netlink today")

    async def hangs(*args: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(pod_look, "SECONDS", 0.01)
    for look, words in ((refuses, "no netlink today"), (hangs, "in 0.01 s")):
        monkeypatch.setattr(pod_look, "look", look)
        (check,) = await pod_look.examined(fakes.node, sandbox)
        assert check.severity is Severity.UNKNOWN
        assert words in check.says


def test_a_host_port_counts_once_and_one_that_is_not_mapped_not_at_all() -> None:
    mapping = cri.PortMapping(container_port=80, host_port=8080, protocol=cri.UDP)
    config = cri.PodSandboxConfig(port_mappings=[mapping, mapping, cri.PortMapping(container_port=81)])

    assert pod_look.ports(config) == [Port(protocol="udp", number=8080, inside=80)]
