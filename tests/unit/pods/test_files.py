"""Pods of an earlier version get their files, and cgroups go for good."""

from __future__ import annotations

import errno
from collections.abc import Generator
from pathlib import Path

import pytest

from sandboxd.cgroups import removal
from sandboxd.errors import CleanupIncomplete
from sandboxd.machine import pod_files
from sandboxd.model import SandboxRecord
from sandboxd.pods import files
from tests.fakes.bundle import Bundle, pod_config
from tests.fakes.points import Point
from tests.unit.pods.conftest import LogLines

MOUNT = Point("kernel.mount", 0)


def sandbox(id_: str, *, ips: tuple[str, ...] = (), started_at: int = 0) -> SandboxRecord:
    return SandboxRecord(
        id=id_,
        config=pod_config(id_),
        runtime_handler="",
        netns_path="/run/netns/pod",
        created_at=1,
        ips=ips,
        started_at=started_at,
    )


def read(fakes: Bundle, name: str, sandbox_id: str) -> bytes:
    return Path(fakes.places.pod_files(sandbox_id), name).read_bytes()


# prepare_missing


def test_pods_of_an_earlier_version_get_their_files(fakes: Bundle) -> None:
    fakes.node.ledger.add_sandbox(sandbox("old", started_at=2, ips=("10.88.0.9",)))

    files.prepare_missing(fakes.node)

    assert b"10.88.0.9" in read(fakes, "hosts", "old")
    assert len(fakes.kernel.mounts) == 2


def test_pods_that_have_files_or_do_not_run_are_left_as_they_are(fakes: Bundle) -> None:
    fakes.node.ledger.add_sandbox(sandbox("creating"))
    fakes.node.ledger.add_sandbox(sandbox("stopped", started_at=2))
    fakes.node.ledger.update_sandbox("stopped", stopped_at=3)
    fakes.node.ledger.add_sandbox(sandbox("running", started_at=2))
    pod_files.prepare(fakes.node, sandbox("running"))
    Path(fakes.places.pod_files("running"), "hosts").write_bytes(b"a container's own\n")

    files.prepare_missing(fakes.node)

    assert read(fakes, "hosts", "running") == b"a container's own\n"
    assert len(fakes.kernel.mounts) == 2


def test_a_pod_that_cannot_get_its_files_does_not_keep_others_from_theirs(fakes: Bundle, log_lines: LogLines) -> None:
    for name in ("bad", "good"):
        fakes.node.ledger.add_sandbox(sandbox(name, started_at=2))
    fakes.points.fail(MOUNT, OSError(errno.ENOSPC, "No space left on device"))

    files.prepare_missing(fakes.node)

    assert set(fakes.kernel.mounts) == {fakes.places.shm("good"), fakes.places.pod_files("good")}
    (line,) = log_lines
    assert (line["log_level"], line["sandbox"]) == ("error", "bad")
    assert "No space left" in line["error"]


# remove_cgroup


def answering(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Removals say these one after the other, then the last for ever; returns the cgroups that were asked for."""
    asked: list[str] = []

    def attempt(cgroup: str) -> Generator[None, None, str]:
        asked.append(cgroup)
        yield
        return answers[min(len(asked), len(answers)) - 1]

    monkeypatch.setattr(removal, "attempt", attempt)
    return asked


async def test_a_cgroup_is_removed_at_once_where_nothing_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, "")

    await files.remove_cgroup("/pods/pod")

    assert asked == ["/pods/pod"]


async def test_a_busy_cgroup_is_tried_again_until_the_last_process_is_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, "Device or resource busy", "Device or resource busy", "")

    await files.remove_cgroup("/pods/pod")

    assert len(asked) == 3


async def test_a_cgroup_that_stays_is_reported_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_EBUSY_TRIES", 2)
    asked = answering(monkeypatch, "first words", "Device or resource busy")

    with pytest.raises(CleanupIncomplete, match=r"^cgroup /pods/pod cannot be removed: Device or resource busy$"):
        await files.remove_cgroup("/pods/pod")

    assert len(asked) == 2
