"""The RPC Doctor: of the machine, or of one pod that is there."""

from __future__ import annotations

import pytest

from sandboxd.api.doctor import Doctor
from sandboxd.errors import NotFound
from sandboxd.insight import machine_look, pod_look
from sandboxd.insight.evidence import Check, Severity
from sandboxd.model import SandboxRecord
from sandboxd.pb.host.v1 import host_pb2
from tests.fakes.bundle import Bundle

CHECK = Check(
    name="bridge",
    severity=Severity.ERROR,
    says="it is down",
    evidence="br0",
    remedy="set it up",
    commands=("ip", "x"),
)


async def version() -> str:
    return "1.6.20"


async def test_a_check_tells_all_that_is_known_of_it(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pod_id = await fakes.ready_pod()

    async def examined(node: object, sandbox: SandboxRecord) -> list[Check]:
        assert sandbox.id == pod_id
        return [CHECK]

    monkeypatch.setattr(pod_look, "examined", examined)
    (check,) = (await Doctor(fakes.node, version).Doctor(host_pb2.DoctorRequest(pod_sandbox_id=pod_id), None)).checks

    assert check == host_pb2.DoctorCheck(
        name="bridge", severity="error", says="it is down", evidence="br0", remedy="set it up", commands=("ip", "x")
    )


async def test_a_pod_that_does_not_exist_is_an_error(fakes: Bundle) -> None:
    with pytest.raises(NotFound):
        await Doctor(fakes.node, version).Doctor(host_pb2.DoctorRequest(pod_sandbox_id="ab" * 32), None)


async def test_without_a_pod_it_is_the_machine(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def examined(node: object, asked: object) -> list[Check]:
        assert asked is version
        return []

    monkeypatch.setattr(machine_look, "examined", examined)

    assert not (await Doctor(fakes.node, version).Doctor(host_pb2.DoctorRequest(), None)).checks
