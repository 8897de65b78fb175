"""What is written of a record is read again, whole; what is damaged is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sandboxd import record_format
from sandboxd.model import ContainerRecord, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.test_ledger import attachment, container, sandbox


def test_a_pod_and_its_attachment_are_kept_whole() -> None:
    record, planned = sandbox("a"), attachment("a")
    kept = record_format.kept_sandbox("a", record_format.keep_sandbox(record, planned))
    assert (kept.record, kept.attachment) == (record, planned)
    alone = record_format.kept_sandbox("a", record_format.keep_sandbox(record, None))
    assert (alone.record, alone.attachment) == (record, None)


def test_a_container_is_kept_whole() -> None:
    record = replace(container("c", "a"), user=(1, 2, 3))
    assert record_format.kept_container("c", record_format.keep_container(record)) == record


def test_what_a_later_version_adds_is_left_out() -> None:
    values = json.loads(record_format.keep_container(container("c", "a")))
    values["body"] = json.dumps({**json.loads(values["body"]), "later": 1})
    assert record_format.kept_container("c", json.dumps({**values, "more": 1}).encode()) == container("c", "a")


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"null", b"\xff", b'{"version": 1}', b'{"version": 2}'])
def test_what_is_damaged_or_of_another_version_is_refused(data: bytes) -> None:
    for read in (record_format.kept_sandbox, record_format.kept_container):
        with pytest.raises((ValueError, KeyError, TypeError)):
            read("a", data)


def test_the_attachment_of_another_pod_is_refused() -> None:
    with pytest.raises(ValueError, match="that of b"):
        record_format.kept_sandbox("a", record_format.keep_sandbox(sandbox("a"), attachment("b")))


def test_the_body_is_all_but_the_id_and_the_configuration() -> None:
    for record in (sandbox("a"), container("c", "a")):
        kind: type = type(record)
        config = record.config
        assert record_format.record(kind, record.id, config, record_format.body(record)) == record
    assert isinstance(sandbox("a"), SandboxRecord) and isinstance(container("c", "a"), ContainerRecord)
    assert isinstance(sandbox("a").config, cri.PodSandboxConfig)
