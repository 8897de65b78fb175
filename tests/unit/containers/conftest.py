"""A pod that takes containers."""

from __future__ import annotations

import pytest

from sandboxd.machine import pod_files
from sandboxd.model import SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.fakes.bundle import Bundle, pod_config

PID = 1 << 22  # of its pause container; no kernel gives it to anybody


@pytest.fixture
def pod(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> SandboxRecord:
    """A pod that is ready, in the host's network: nothing of it is in the fakes, nor are its files."""

    async def mend(*_: object) -> None:
        pass

    monkeypatch.setattr(pod_files, "mend", mend)
    config = pod_config()
    config.log_directory = str(fakes.directory / "log")
    config.linux.security_context.namespace_options.network = cri.NODE
    record = SandboxRecord(
        id="1" * 64, config=config, runtime_handler="", netns_path="", created_at=1, started_at=1, pid=PID
    )
    fakes.node.ledger.add_sandbox(record)
    return record
