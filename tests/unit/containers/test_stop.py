"""Stopping a container: whatever is wrong with its stop signal, it ends. The rest is tests/e2e/test_lifecycle.py."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandboxd.containerd.tasks import Exit, Task, TaskState
from sandboxd.containers.stop import signal_number, stop_container
from sandboxd.errors import CleanupIncomplete, NotFound, NotReady, SandboxdError, TimedOut, Unavailable
from sandboxd.jobs import Jobs
from sandboxd.ledger import Ledger
from sandboxd.model import ContainerRecord, ContainerState
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri


class Runtime:
    """One task that ends by SIGKILL, and by the stop signal unless `refuse` or `ignored`."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.refuse: SandboxdError | None = None
        self.ignored = False
        self.exit: Exit | None = None

    async def kill(self, container_id: str, number: int) -> None:
        self.signals.append(number)
        if number != signal.SIGKILL and self.refuse is not None:
            raise self.refuse
        if self.exit is None and (number == signal.SIGKILL or not self.ignored):
            self.exit = Exit(code=128 + number, at=1)

    async def wait(self, container_id: str, timeout: float | None = None) -> Exit:
        if self.exit is None:
            raise TimedOut("it runs on")
        return self.exit

    async def get(self, container_id: str) -> Task:
        state = TaskState.STOPPED if self.exit else TaskState.RUNNING
        return Task(id=container_id, pid=1, state=state, exit=self.exit)

    async def delete(self, container_id: str) -> Exit | None:
        return self.exit


class Logs:
    async def drain(self, container_id: str, timeout: float) -> None:
        """Nothing to wait for."""


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture
def node(runtime: Runtime, tmp_path: Path) -> Iterator[Node]:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    config = SimpleNamespace(logs=SimpleNamespace(drain_seconds=1.0))
    made: Any = SimpleNamespace(jobs=Jobs(), ledger=ledger, runtime=runtime, logs=Logs(), config=config)
    yield cast(Node, made)
    ledger.close()


def running(stop_signal: str = "") -> ContainerRecord:
    return ContainerRecord(
        id="c",
        sandbox_id="s",
        config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c")),
        sandbox_name="pod",
        image_ref="",
        image_id="",
        log_path="",
        stop_signal=stop_signal,
        created_at=1,
        started_at=1,
    )


@pytest.mark.parametrize(
    ("name", "number"),
    [("", 15), ("SIGQUIT", 3), ("rtmin+3", 37), ("SIGRTMAX-1", 63), ("10", 10)],
)
async def test_the_stop_signal_ends_the_container(node: Node, runtime: Runtime, name: str, number: int) -> None:
    node.ledger.add_container(running(name))
    await stop_container(node, "c", 10)

    assert runtime.signals[0] == number
    assert node.ledger.containers["c"].exit_code == 128 + number


@pytest.mark.parametrize("name", ["SIGNOPE", "99999", "-9", "SIGRTMAX+100", "0", "\u0663", " SIGTERM ", "9" * 5000])
async def test_a_record_with_a_stop_signal_that_nobody_knows_is_stopped_with_sigterm(
    node: Node, runtime: Runtime, name: str
) -> None:
    node.ledger.add_container(running(name))
    assert signal_number(running(name)) == signal.SIGTERM
    await stop_container(node, "c", 10)

    assert runtime.signals[0] == signal.SIGTERM
    assert node.ledger.containers["c"].state is ContainerState.EXITED


@pytest.mark.parametrize("error", [NotReady, Unavailable, CleanupIncomplete, SandboxdError])
async def test_a_stop_signal_that_is_refused_is_followed_by_sigkill(
    node: Node, runtime: Runtime, error: type[SandboxdError]
) -> None:
    runtime.refuse = error("unknown signal")
    node.ledger.add_container(running())
    await stop_container(node, "c", 10)

    assert runtime.signals == [signal.SIGTERM, signal.SIGKILL]
    ended = node.ledger.containers["c"]
    assert (ended.state, ended.exit_code, ended.reason) == (ContainerState.EXITED, 137, "Error")


async def test_a_stop_signal_that_finds_no_task_is_the_end(node: Node, runtime: Runtime) -> None:
    runtime.refuse = NotFound("no task")
    runtime.exit = Exit(code=0, at=1)
    node.ledger.add_container(running())
    await stop_container(node, "c", 10)

    assert node.ledger.containers["c"].reason == "Completed"


async def test_a_stop_signal_that_is_ignored_is_followed_by_sigkill(node: Node, runtime: Runtime) -> None:
    runtime.ignored = True
    node.ledger.add_container(running())
    await stop_container(node, "c", 10)

    assert runtime.signals == [signal.SIGTERM, signal.SIGKILL]
