"""The host API's reading calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandboxd.api.host import Host
from sandboxd.errors import InvalidRequest, NotFound, NotReady
from sandboxd.ledger import Ledger
from sandboxd.model import ContainerRecord, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2

POD, MUTE, LOGGING = "a" * 64, "b" * 64, "c" * 64
NOTHING: Any = None


@pytest.fixture
def ledger() -> Any:
    ledger = Ledger(":memory:")
    ledger.add_sandbox(
        SandboxRecord(
            id=POD, config=cri.PodSandboxConfig(), runtime_handler="", netns_path="/run/netns/a", created_at=1
        )
    )
    for identity, log_path in ((MUTE, ""), (LOGGING, "/no/such/log")):
        name = cri.ContainerMetadata(name=identity[0])
        ledger.add_container(
            ContainerRecord(
                id=identity,
                sandbox_id=POD,
                config=cri.ContainerConfig(metadata=name),
                sandbox_name="",
                image_ref="",
                image_id="",
                log_path=log_path,
                created_at=1,
            )
        )
    yield ledger
    ledger.close()


@pytest.fixture
def host(ledger: Ledger) -> Host:
    return Host(ledger, NOTHING, lambda: "x 1.0 ✓\n".encode())


async def read(call: AsyncIterator[host_pb2.ReadLogsResponse]) -> list[host_pb2.ReadLogsResponse]:
    return [answer async for answer in call]


async def test_metrics_are_the_exposition(host: Host) -> None:
    answer = await host.Metrics(host_pb2.MetricsRequest(), None)

    assert answer.text == "x 1.0 ✓\n"


async def test_logs_that_cannot_be_read_are_refused_with_the_reason(host: Host) -> None:
    with pytest.raises(NotFound):
        await read(host.ReadLogs(host_pb2.ReadLogsRequest(container_id="d"), None))
    with pytest.raises(NotReady, match="without a log path"):
        await read(host.ReadLogs(host_pb2.ReadLogsRequest(container_id=MUTE), None))
    with pytest.raises(InvalidRequest, match="-1 for all, got -2"):
        await read(host.ReadLogs(host_pb2.ReadLogsRequest(container_id=LOGGING, tail=-2), None))
