"""A checkpoint is an archive of a container that goes on, or nothing and the reason.

What each of its calls does when it fails or hangs is in `tests/unit/matrix`; its archive has tests of its own.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandboxd.containerd.tasks import TaskState
from sandboxd.containers.checkpoint import checkpoint_container, interrupted, undo
from sandboxd.containers.remove import remove_container
from sandboxd.errors import InvalidRequest, NotFound, NotReady
from sandboxd.operations import hold
from tests.fakes.bundle import Bundle
from tests.fakes.runtime import Program

PROGRAMS: dict[tuple[str, ...], Program] = {("/bin/app",): Program(handles={15: 0})}


@pytest.fixture
async def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bundle]:
    with Bundle(tmp_path, monkeypatch, PROGRAMS) as made:
        yield made


@pytest.fixture
async def running(fakes: Bundle) -> str:
    criu(fakes, "exit 0")
    return await fakes.running_container()


def criu(fakes: Bundle, script: str) -> None:
    """A program of this name, before everything else in PATH."""
    program = fakes.directory / "bin" / "criu"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    fakes.patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def state(fakes: Bundle, container_id: str) -> TaskState:
    return fakes.runtime.tasks[container_id].init.state


def gathered(fakes: Bundle) -> list[str]:
    return os.listdir(fakes.places.checkpoints)


async def test_the_archive_is_there_and_the_container_runs_on(fakes: Bundle, running: str) -> None:
    archive = fakes.directory / "c.tar"

    await checkpoint_container(fakes.node, running, str(archive), 60)

    with tarfile.open(archive) as tar:
        names = {name.partition("/")[0] for name in tar.getnames()}
    assert {"checkpoint", "config.dump", "spec.dump", "rootfs-diff.tar"} <= names
    assert state(fakes, running) is TaskState.RUNNING
    assert gathered(fakes) == []
    assert not list(fakes.directory.glob(".*unfinished"))


@pytest.mark.parametrize(
    ("location", "seconds", "words"),
    [
        ("c.tar", 0, "not the absolute path of a file"),
        ("/c/", 0, "not the absolute path of a file"),
        ("/c.tar", -1, "less than 0 seconds"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(
    fakes: Bundle, running: str, location: str, seconds: int, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await checkpoint_container(fakes.node, running, location, seconds)


async def test_there_must_be_such_a_container_and_it_must_run(fakes: Bundle, running: str) -> None:
    with pytest.raises(NotFound):
        await checkpoint_container(fakes.node, "0" * 64, "/c.tar", 0)
    fakes.node.ledger.update_container(running, finished_at=9)
    with pytest.raises(NotReady, match="exited, not running"):
        await checkpoint_container(fakes.node, running, "/c.tar", 0)


async def test_a_directory_that_is_not_there_is_named_before_anything_stands_still(
    fakes: Bundle, running: str
) -> None:
    passed = fakes.points.count("runtime.pause")
    with pytest.raises(NotReady, match="there is no directory /no/such"):
        await checkpoint_container(fakes.node, running, "/no/such/c.tar", 0)
    assert fakes.points.count("runtime.pause") == passed


async def test_a_criu_that_does_not_fit_the_kernel_is_quoted(fakes: Bundle, running: str) -> None:
    criu(fakes, "echo 'Error: kernel too new' >&2; exit 1")

    with pytest.raises(NotReady, match="do not fit: Error: kernel too new"):
        await checkpoint_container(fakes.node, running, str(fakes.directory / "c.tar"), 60)


async def test_without_criu_that_is_what_is_missing(fakes: Bundle, running: str) -> None:
    fakes.patch.setenv("PATH", str(fakes.directory))

    with pytest.raises(NotReady, match="the program criu is not installed"):
        await checkpoint_container(fakes.node, running, str(fakes.directory / "c.tar"), 60)


async def cut_off(fakes: Bundle, container_id: str) -> Path:
    """What a daemon leaves that dies while it writes the archive; the archive so far."""
    scratch = Path(fakes.places.checkpoint(container_id))
    (scratch / "work").mkdir(parents=True)
    half = fakes.directory / ".c.unfinished"
    half.write_text("half an archive")
    (scratch / "unfinished").symlink_to(half)
    await fakes.node.runtime.pause(container_id)
    return half


async def test_an_interrupted_one_is_undone_and_the_container_runs_on(fakes: Bundle, running: str) -> None:
    half = await cut_off(fakes, running)
    owner = fakes.node.ledger.containers[running].sandbox_id

    assert interrupted(fakes.node) == [(running, owner)]
    async with hold(fakes.node, owner) as held:
        await undo(held, running)

    assert state(fakes, running) is TaskState.RUNNING
    assert not half.exists() and gathered(fakes) == []
    assert interrupted(fakes.node) == []


async def test_one_that_is_being_taken_is_left_alone(fakes: Bundle, running: str) -> None:
    half = await cut_off(fakes, running)

    async with hold(fakes.node, fakes.node.ledger.containers[running].sandbox_id):
        assert interrupted(fakes.node) == []

    assert half.exists() and state(fakes, running) is TaskState.PAUSED


async def test_undoing_is_idempotent(fakes: Bundle, running: str) -> None:
    await cut_off(fakes, running)
    async with hold(fakes.node, fakes.node.ledger.containers[running].sandbox_id) as held:
        await undo(held, running)
        await undo(held, running)
    assert gathered(fakes) == []


async def test_removing_the_container_removes_what_its_checkpoint_gathered(fakes: Bundle, running: str) -> None:
    half = await cut_off(fakes, running)

    await remove_container(fakes.node, running)

    assert not half.exists() and gathered(fakes) == []
